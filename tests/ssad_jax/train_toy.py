"""Trains the toy method: `python -m tests.ssad_jax.train_toy WORKDIR NUM_DEVICES [MAPPING]`; 0 devices: all."""

import sys

import jax
import numpy as np

from data_prep import command
from ssad_jax import parallel, train
from tests.ssad_jax import toy
from tests.synthetic import make_prepared


def main():
    workdir, devices, mapping = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    parallel.initialize_processes()
    config = toy.small_config()
    config.parallel.mapping = mapping
    config.train.num_epochs = 3
    state = train.train(config, make_prepared(), workdir, toy.METHOD, jax.devices()[:devices] if devices else None)
    if parallel.is_main():
        np.savez(f"{workdir}/params.npz", **parallel.fetch(state["params"]))


if __name__ == "__main__":
    try:
        main()
    except command.Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(command.EXIT_STOPPED)
