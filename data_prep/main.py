"""`python -m data_prep.main --config=configs/X.py`: raw telemetry -> prepared dataset."""

from absl import logging

from data_prep import command
from data_prep.prepare import prepare
from ssad_jax import prepared

CONFIG = command.define_config_flag()


def main() -> None:
    config = CONFIG.value
    if prepared.exists(config.data.prepared_dir):
        logging.info("replacing %s", config.data.prepared_dir)
    prepare(config)
    print(config.data.prepared_dir)


if __name__ == "__main__":
    command.run(main)
