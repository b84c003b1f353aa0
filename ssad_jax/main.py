"""Prepare (if nothing is prepared yet), train (or go on training) and evaluate a detector.

    python -m ssad_jax.main --config=configs/smoke.py [--workdir=runs/smoke] [--config.train.num_epochs=20]

This file only reads flags and joins the steps; see `ssad_jax/train.py` and `ssad_jax/evaluate.py`.
"""

import contextlib
from pathlib import Path

from absl import flags

from data_prep import command
from ssad_jax import settings
from ssad_jax.datasets import find_prepared

CONFIG = command.define_config_flag()
# evaluate.py, which is imported after the flags are read, defines a flag of the same name for its own command line.
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where results go, or a run to go on with; default runs/<config.name>.", allow_override=True
)
MODE = flags.DEFINE_enum(
    "mode", "train_and_evaluate", ["train", "evaluate", "train_and_evaluate"], "What to do with the prepared data."
)


def main() -> None:
    config, mode = CONFIG.value, MODE.value
    settings.check(config)
    workdir = Path(WORKDIR.value or f"runs/{config.name}")
    with command.stopped_by_signals("what is finished is kept; the same command goes on from there"):
        from ssad_jax import parallel  # jax and what it brings: not needed for --help and bad flags

        with parallel.processes():
            run(config, mode, workdir)


def run(config, mode: str, workdir: Path) -> None:
    """All steps of `mode`, in every process of the run."""
    from ssad_jax import parallel
    from ssad_jax import workdir as workdirs

    with contextlib.ExitStack() as stack:
        if mode != "evaluate":  # first of all: whether the workdir can be written is not to be learned in the end
            parallel.in_main("use the workdir", lambda: stack.enter_context(workdirs.using(workdir)))
        data = find_prepared(config, parallel)
        workdirs.check(workdir, config, data.manifest["dataset_hash"])
        if mode != "evaluate":
            from ssad_jax.train import train

            train(config, data, workdir)
        if mode != "train":
            from ssad_jax.evaluate import evaluate

            own = {"score": config.score, "alerts": config.alerts, "log": config.evaluation_log}
            parallel.in_main("evaluate", lambda: evaluate(workdir, prepared_dir=config.data.prepared_dir, **own))


if __name__ == "__main__":
    command.run(main)
