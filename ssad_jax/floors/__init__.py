"""Detectors that any method has to beat under the same protocol (the untrained method is the evaluation's own)."""

from ssad_jax.floors.base import Fit, Signals, signals
from ssad_jax.floors.chance import fit_all_positive, fit_random
from ssad_jax.floors.distance import fit_knn, fit_l2_norm, fit_pca
from ssad_jax.floors.forest import fit_iforest
from ssad_jax.floors.rules import fit_count_rule

FLOORS: dict[str, Fit] = {
    "random": fit_random,
    "all_positive": fit_all_positive,
    "count_rule": fit_count_rule,
    "l2_norm": fit_l2_norm,
    "pca": fit_pca,
    "knn": fit_knn,
    "iforest": fit_iforest,
}

__all__ = ["FLOORS", "Fit", "Signals", "signals"]
