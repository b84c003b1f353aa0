"""Isolation forest (Liu, Ting and Zhou, ICDM 2008) on flattened signals."""

from sklearn.ensemble import IsolationForest

from ssad_jax.floors.base import Score, Signals, standardised


def fit_iforest(fit: Signals, seed: int) -> Score:
    """Negated score_samples of 100 trees."""
    scaled = standardised(fit)
    forest = IsolationForest(n_estimators=100, random_state=seed).fit(scaled(fit))
    return lambda some: -forest.score_samples(scaled(some)) if len(some.values) else some.values.sum(1)
