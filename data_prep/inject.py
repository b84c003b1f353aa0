"""Put simulated faults into known-normal time of real telemetry, to choose settings without looking at real labels.

    python -m data_prep.inject --config=configs/telemetry.py --config.data.raw_dir=DIR --output_dir=INJECTED --seed=0

Then prepare `INJECTED` with `data.source=tables`, under `data.protocol=fold:0` ... `fold:4`.
"""

import math
from collections import Counter

from absl import flags, logging

from data_prep import command, disk, settings, sources
from data_prep.errors import InputError

CONFIG = command.define_config_flag()
OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Where the telemetry tables go.", required=True)
SEED = flags.DEFINE_integer("seed", 0, "Decides which faults are injected where.", lower_bound=0)
UNTIL_SHARE = flags.DEFINE_float(
    "until_share", 0.6, "Only this share of each recording is used, from its begin.", lower_bound=0, upper_bound=1
)
COPIES = flags.DEFINE_integer(
    "copies", 1, "Copies of every normal stretch, each with a fault.", lower_bound=1, upper_bound=100
)


def main() -> None:
    config = CONFIG.value
    settings.check(config)
    if not config.data.raw_dir:
        raise InputError("data.raw_dir is empty; set --config.data.raw_dir to the telemetry to inject faults into")
    if not math.isfinite(UNTIL_SHARE.value):
        raise InputError("--until_share is not a number; give a share between 0 and 1")
    from data_prep.injection import build

    build.check_directory(OUTPUT_DIR.value)
    found = sources.read(config.data)
    for warning in found.warnings:
        logging.warning(warning)
    drawn = {"seed": SEED.value, "until_share": UNTIL_SHARE.value, "copies": COPIES.value}
    out, record = build.inject(found, config.data, **drawn)
    with disk.needed(OUTPUT_DIR.value, "begins again"):
        build.write(out, record, OUTPUT_DIR.value, **drawn)
    logging.info("faults by kind: %s", dict(Counter(row["fault_type"] for row in record)))
    print(OUTPUT_DIR.value)


if __name__ == "__main__":
    command.run(main)
