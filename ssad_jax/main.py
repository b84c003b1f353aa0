"""Prepare (if nothing is prepared yet), train (or go on training) and evaluate a detector.

    python -m ssad_jax.main --config=configs/smoke.py [--workdir=runs/smoke] [--config.train.num_epochs=20]

This file only reads flags and joins the steps; see `ssad_jax/train.py` and `ssad_jax/evaluate.py`.
"""

from pathlib import Path

from absl import flags

from data_prep import command
from data_prep import settings as data_settings
from data_prep.errors import InputError
from data_prep.fingerprint import raw_fingerprint
from ssad_jax import prepared, settings

CONFIG = command.define_config_flag()
# evaluate.py, which is imported after the flags are read, defines a flag of the same name for its own command line.
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where results go, or a run to go on with; default runs/<config.name>.", allow_override=True
)
MODE = flags.DEFINE_enum(
    "mode", "train_and_evaluate", ["train", "evaluate", "train_and_evaluate"], "What to do with the prepared data."
)

# Keys of config.data that do not change what is prepared; whether raw_dir was given is looked at apart.
NOT_PREPARED = {"raw_dir", "prepared_dir", "num_workers", "batch_size"}


def main() -> None:
    config, mode = CONFIG.value, MODE.value
    settings.check(config)
    workdir = Path(WORKDIR.value or f"runs/{config.name}")
    from ssad_jax import parallel  # jax and what it brings: not needed for --help and bad flags

    parallel.initialize_processes()
    data = find_prepared(config, parallel)
    if mode != "evaluate":
        from ssad_jax.train import train

        train(config, data, workdir)
    if mode != "train":
        from ssad_jax.evaluate import evaluate

        evaluate(workdir, prepared_dir=config.data.prepared_dir, score=config.score)
        parallel.any_process(True)  # the others wait for the first, which writes


def find_prepared(config, parallel) -> prepared.Prepared:
    """The prepared dataset that the config names, made by the first process where there is none.

    Raises:
        InputError: a setting cannot be used, or a dataset is there, but made with other settings.
    """
    data_settings.check(config)
    directory = config.data.prepared_dir
    if not prepared.exists(directory) and parallel.is_main():
        from data_prep.prepare import prepare  # with its readers and the simulator

        prepare(config)
    parallel.any_process(True)  # the others wait for the first
    data = prepared.load(directory)
    if differing := differing_settings(config, data.manifest):
        raise InputError(
            f"{directory} was prepared with other settings ({', '.join(differing)}); "
            "delete it or name another --config.data.prepared_dir"
        )
    return data


def differing_settings(config, manifest: dict) -> list[str]:
    """Settings in which a prepared dataset differs from what the config would make."""
    there = {f"data.{k}": v for k, v in manifest.get("data_config", {}).items() if k not in NOT_PREPARED}
    now = {f"data.{k}": _plain(v) for k, v in config.data.items()}
    if config.data.raw_dir:
        if manifest.get("simulated"):
            return [f"from simulated telemetry, not from raw_dir={config.data.raw_dir}"]
        if manifest.get("raw_files") not in (None, raw_fingerprint(config.data.raw_dir)):
            return [f"from other raw files than those in raw_dir={config.data.raw_dir}"]
    elif config.simulate.hours > 0:
        if not manifest.get("simulated"):
            return ["from a raw_dir, which is empty now"]
        there |= {f"simulate.{k}": _plain(v) for k, v in manifest["simulated"].items()}
        now |= {f"simulate.{k}": _plain(v) for k, v in config.simulate.items()}
    return [f"{k}={_plain(v)!r} there, {now.get(k)!r} now" for k, v in sorted(there.items()) if _plain(v) != now.get(k)]


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


if __name__ == "__main__":
    command.run(main)
