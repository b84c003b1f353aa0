"""Floors that look at nothing."""

import numpy as np

from ssad_jax.floors.base import Score, Signals


def fit_random(fit: Signals, seed: int) -> Score:
    """A uniform random number, a new one for every window asked about."""
    rng = np.random.default_rng(seed)
    return lambda some: rng.random(len(some.values))


def fit_all_positive(fit: Signals, seed: int) -> Score:
    """Always 1, and always an alert: what F1 is worth at this prevalence."""
    return lambda some: np.ones(len(some.values))
