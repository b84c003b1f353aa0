"""`python -m data_prep.main --config=configs/X.py`: raw telemetry -> prepared dataset."""

from absl import flags, logging

from data_prep import command, shard_jobs
from data_prep.prepare import prepare
from ssad_jax import prepared

CONFIG = command.define_config_flag()
SHARD = flags.DEFINE_string(
    "shard", None,
    "i/n: only read the i-th of n parts of the raw files (i from 1 to n), into a directory beside prepared_dir that "
    "all jobs must see; these may run anywhere, in any order, and again. Then, once, `merge`: prepare from all parts. "
    "The result is that of a run without --shard.",
)  # fmt: skip


def main() -> None:
    with command.stopped_by_signals("what was not finished is removed; the same command begins it again"):
        run(CONFIG.value)


def run(config) -> None:
    """Prepares, or does what `--shard` says."""
    if SHARD.value not in (None, "merge"):
        shard_jobs.run(config, SHARD.value)
        print(shard_jobs.directory(config))
        return
    if prepared.exists(config.data.prepared_dir):
        logging.info("replacing %s", config.data.prepared_dir)
    if SHARD.value:
        shard_jobs.run(config, SHARD.value)
    else:
        prepare(config)
    print(config.data.prepared_dir)


if __name__ == "__main__":
    command.run(main)
