"""Measure speed on the devices present: training, scoring, streaming, compilation, and what the device could do.

    python -m ssad_jax.benchmark --config=configs/openstack.py                 on the prepared dataset of the config
    python -m ssad_jax.benchmark --config=configs/openstack.py:paper --nodes=128 --peers     on numbers of that size

With --peers the same model in PyTorch and PyTorch Geometric is timed by turns (docs/performance.md). A table goes to
stderr; the last line of stdout is one JSON object.
"""

import json
import sys

from absl import flags

from data_prep import command
from data_prep import settings as data_settings
from data_prep.errors import InputError
from ssad_jax import settings

CONFIG = command.define_config_flag()
NODES = flags.DEFINE_integer("nodes", 0, "Real nodes of synthetic windows; 0: the prepared dataset of the config.")
EDGES = flags.DEFINE_integer("edges", 0, "Directed edge slots of synthetic windows; 0: four for each node.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 0, "Sequences in the global batch; 0: as the config says.")
SEQUENCE_LENGTH = flags.DEFINE_integer("sequence_length", 0, "Windows in a synthetic sequence; 0: as the config says.")
STEPS = flags.DEFINE_integer("steps", 0, "Steps of a synthetic epoch; 0: 2 on a CPU, 32 elsewhere.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Repeats of each measurement, by turns.")
PUSHES = flags.DEFINE_integer("pushes", 200, "Windows pushed to measure streaming latency.")
COMPILE_TIMES = flags.DEFINE_bool("compile_times", True, "Measure compilation, in a cache of its own.")
PEERS = flags.DEFINE_bool("peers", False, "Time the PyTorch peers as well, by turns.")
PEER_FAMILIES = flags.DEFINE_list("peer_families", None, "Default: fp32 on a CPU, all elsewhere.")
PEER_COMPILE = flags.DEFINE_bool("peer_compile", True, "Try torch.compile among the peers' variants.")


def main() -> None:
    config = CONFIG.value
    for flag, least in ((NODES, 0), (EDGES, 0), (BATCH_SIZE, 0), (SEQUENCE_LENGTH, 0), (STEPS, 0), (ROUNDS, 1),
                        (PUSHES, 2)):  # fmt: skip
        if flag.value < least:
            raise InputError(f"--{flag.name}={flag.value} cannot be used; give {least} or more")
    for flag in (SEQUENCE_LENGTH, EDGES, STEPS, PEERS):
        if flag.value and not NODES.value:
            raise InputError(f"--{flag.name} needs --nodes, the size of synthetic windows")
    if PEER_FAMILIES.value and not PEERS.value:
        raise InputError("--peer_families needs --peers")
    if 0 < NODES.value < 10:
        raise InputError(f"--nodes={NODES.value} leaves no room for services, logs and calls; give 10 or more")
    config.data.batch_size = BATCH_SIZE.value or config.data.batch_size
    config.data.sequence_length = SEQUENCE_LENGTH.value or config.data.sequence_length
    settings.check(config)
    data_settings.check(config)
    if config.method != "knowledge_ssl":
        raise InputError(
            f"method={config.method!r} is not measured; choose a configuration of method A, such as "
            "configs/train_ticket.py:knowledge"
        )
    from ssad_jax.benchmarking import measure  # with jax: not needed for --help and bad flags
    from ssad_jax.benchmarking.table import describe

    prepared = measure.dataset(config, NODES.value, EDGES.value, STEPS.value)
    families = (PEER_FAMILIES.value or measure.default_families()) if PEERS.value else ()
    results = measure.everything(
        config, prepared, ROUNDS.value, PUSHES.value, families, PEER_COMPILE.value, COMPILE_TIMES.value
    )
    print(describe(results), file=sys.stderr)
    print(json.dumps(results))


if __name__ == "__main__":
    command.run(main)
