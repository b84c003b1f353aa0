"""Prepare (if nothing is prepared yet), train (or go on training) and evaluate a detector.

    python -m ssad_jax.main --config=configs/smoke.py [--workdir=runs/smoke] [--config.train.num_epochs=20]

This file only reads flags; see `ssad_jax/train.py` and `ssad_jax/evaluate.py`.
"""

from pathlib import Path

from absl import flags

from data_prep import command
from data_prep.errors import InputError
from ssad_jax import evaluate, parallel, prepared, train

CONFIG = command.define_config_flag()
MODE = flags.DEFINE_enum(
    "mode", "train_and_evaluate", ["train", "evaluate", "train_and_evaluate"], "What to do with the prepared data."
)
flags.declare_key_flag("workdir")  # defined by ssad_jax.evaluate; here its default is runs/<config.name>

# Keys of config.data that do not change what is prepared.
NOT_PREPARED = {"raw_dir", "prepared_dir", "faults_path", "segments_path", "num_workers", "batch_size"}


def main() -> None:
    config = CONFIG.value
    workdir = Path(flags.FLAGS.workdir or f"runs/{config.name}")
    parallel.initialize_processes()
    data = find_prepared(config)
    if MODE.value != "evaluate":
        train.train(config, data, workdir)
    if MODE.value != "train":
        evaluate.evaluate(workdir, prepared_dir=config.data.prepared_dir)


def find_prepared(config) -> prepared.Prepared:
    """The prepared dataset that the config names, made by the first process where there is none."""
    directory = config.data.prepared_dir
    if not prepared.exists(directory) and parallel.is_main():
        from data_prep.prepare import prepare  # with its readers and simulator: only where it is needed

        prepare(config)
    parallel.any_process(True)  # the others wait for the first
    data = prepared.load(directory)
    differing = differing_settings(config, data.manifest)
    if differing:
        raise InputError(
            f"{directory} was prepared with other settings ({', '.join(differing)}); "
            "delete it or name another --config.data.prepared_dir"
        )
    return data


def differing_settings(config, manifest: dict) -> list[str]:
    """Settings in which a prepared dataset differs from what `config.data` would make."""
    there = manifest.get("data_config", {})
    now = train.checkpoint.config_to_dict(config.data)
    return [
        f"config.data.{key}: {there[key]!r} there, {now.get(key)!r} now"
        for key in sorted(set(there) - NOT_PREPARED)
        if there[key] != now.get(key)
    ]


if __name__ == "__main__":
    command.run(main)
