"""Trains one family on one split with several seeds; the only place of the comparison that knows how training goes."""

from collections.abc import Iterator

import jax

from ssad_jax import train
from ssad_jax.backends import choices
from ssad_jax.comparison.splits import Split


def make_method(config, split: Split):
    """The method of a config for the split's system; its compiled programs are kept where `config.train` says so."""
    train.enable_compilation_cache(config)
    return train.make_method(config, split.prepared, train.find_knowledge(config, split.prepared))


def fit(config, split: Split, seeds: list[int], method) -> Iterator[tuple[int, object]]:
    """Parameters [K, ...] of the networks of each seed after training.

    On accelerators all seeds advance together in one compiled program: one small network leaves their units idle. A CPU
    is slower so (five seeds of configs/smoke.py with 64 hidden units ran at .91 of the speed of one after another);
    there each seed is trained by itself, with the same compiled program, and an interruption loses one seed at most.

    Raises:
        InputError: the config cannot be trained.
        Failure: training diverged.
    """
    groups = [seeds] if choices().networks_together else [[seed] for seed in seeds]
    for group in groups:
        params = train.fit(config, split.prepared, group, method) if group else None
        for i, seed in enumerate(group):
            yield seed, jax.tree.map(lambda p, i=i: p[i], params)
