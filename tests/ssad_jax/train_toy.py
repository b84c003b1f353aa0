"""Trains the toy method: `python -m tests.ssad_jax.train_toy WORKDIR NUM_DEVICES MAPPING [EPOCHS]`; 0 devices: all."""

import sys

import jax
import numpy as np

from data_prep import command
from data_prep.errors import Failure
from ssad_jax import parallel, train
from tests.ssad_jax import toy
from tests.synthetic import make_prepared


def main():
    with parallel.processes():
        run(sys.argv[1], int(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:]))


def run(workdir, devices, mapping, epochs=3):
    config = toy.small_config()
    config.parallel.mapping = mapping
    config.train.num_epochs = epochs
    state = train.train(config, make_prepared(), workdir, toy.METHOD, jax.devices()[:devices] if devices else None)
    if parallel.is_main():
        np.savez(f"{workdir}/params.npz", **parallel.fetch(state["params"]))


if __name__ == "__main__":
    try:
        main()
    except (command.Stopped, Failure) as error:
        print(error, file=sys.stderr)
        sys.exit(command.exit_code(error))
