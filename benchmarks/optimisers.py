"""How low a loss on held-out normal windows each compared system reaches with which optimiser settings.

    python -m benchmarks.optimisers --config=configs/openstack.py [--detectors=art_adapted] [--seeds=2] [--epochs=1,4]

`own` are the settings of `config.methods`, `shared` those that all methods have by default. Labels are not read: a
setting is chosen here, before anything is measured on test windows. Markdown on stdout; losses of different systems
are on different scales.
"""

import dataclasses
import sys

import jax
import numpy as np
import optax
from absl import flags

from data_prep import command
from data_prep.errors import InputError
from ssad_jax import datasets, methods, parallel, settings, train
from ssad_jax.config import default_config, use_method

CONFIG = command.define_config_flag()
DETECTORS = flags.DEFINE_list("detectors", list(methods.COMPARED), "Compared systems, or methods of your own.")
SEEDS = flags.DEFINE_integer("seeds", 2, "Seeds of each.", lower_bound=1)
EPOCHS = flags.DEFINE_list("epochs", ["1"], "Multiples of a method's own number of epochs.")


def losses(config, prepared, seed: int) -> tuple[float, float]:
    """The loss on held-out windows of one network, before training and after; its group is held out."""
    mesh = parallel.make_mesh(jax.local_devices()[:1])
    method = train.make_method(config, prepared, None)
    optimizer, own = train.make_optimizer(config), train.streams(seed, 1)
    run_epoch = parallel.MappedEpoch(train.make_epoch(method, optimizer), mesh, config.parallel.mapping)
    feed = train.Feed(prepared, config, mesh, own, method.needs)
    state = jax.device_get(jax.jit(lambda: train.init_state(method.init, optimizer, own))())
    judge = Judge(config, prepared, method, own, mesh)
    return judge(train.fit_from(state, run_epoch, feed, 1, mesh)), judge(
        train.fit_from(state, run_epoch, feed, config.train.num_epochs, mesh)
    )


class Judge:
    """Parameters [1, ...] -> their mean loss on the held-out windows of the first calibration group."""

    def __init__(self, config, prepared, method, own, mesh):
        windows = np.unique(prepared.calibration_runs[prepared.calibration_runs >= 0])
        windows = windows[prepared.windows.group[windows] == 0]
        held_out = dataclasses.replace(prepared, fit_sequences=windows[:, None].astype(np.int32))
        self._streams = own + np.uint32([[0, 1]])  # a network that is not kept from the first group
        self._feed = train.Feed(held_out, config, mesh, self._streams, method.needs)
        still = train.make_epoch(method._replace(observe=None), optax.set_to_zero())
        self._epoch, self._mesh = parallel.MappedEpoch(still, mesh, config.parallel.mapping), mesh

    def __call__(self, params) -> float:
        state = {"params": params, "opt": optax.EmptyState(), "step": np.zeros(1, np.int32), "stream": self._streams}
        state, records = parallel.replicate(state, self._mesh), []
        for dataset, order, _ in self._feed.visits(0):
            state, record = self._epoch(state, dataset, order)
            records.append(parallel.fetch(record))
        return train.summarise(records)["loss"]


def check_flags(config) -> None:
    """Raises InputError for a flag or setting that cannot be used."""
    settings.check(config)
    if not EPOCHS.value or not all(multiple.isdecimal() and int(multiple) for multiple in EPOCHS.value):
        raise InputError(f"--epochs={','.join(EPOCHS.value)} cannot be used; give whole numbers above 0")
    for name in DETECTORS.value:
        if name not in methods.COMPARED and not methods.is_own(name):
            raise InputError(f"--detectors: {name!r} is unknown; there are {', '.join(methods.COMPARED)}")
        own = config.copy_and_resolve_references()
        use_method(own, name)
        settings.check(own)


def main() -> None:
    config = CONFIG.value
    check_flags(config)
    prepared = datasets.find_prepared(config, parallel)
    print("| detector | settings | epochs | after one epoch | in the end | each seed |")
    print("|---" * 6 + "|", flush=True)
    for name in DETECTORS.value:
        for shared in (False, True):
            for multiple in EPOCHS.value:
                own = config.copy_and_resolve_references()
                use_method(own, name)
                if shared:
                    own.optimizer.update(default_config("shared").optimizer)
                own.train.num_epochs *= int(multiple)
                found = np.array([losses(own, prepared, seed) for seed in range(SEEDS.value)])
                jax.clear_caches()
                first, last = found.mean(0)
                each = " ".join(f"{loss:.4g}" for loss in found[:, 1])
                row = f"`{name}` | {'shared' if shared else 'own'} | {own.train.num_epochs}"
                print(f"| {row} | {first:.4g} | {last:.4g} | {each} |", flush=True)
        print(f"optimisers: {name} done", file=sys.stderr, flush=True)


if __name__ == "__main__":
    command.run(main)
