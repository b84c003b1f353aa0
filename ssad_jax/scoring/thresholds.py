"""Alert thresholds from held-out normal scores. Nothing here sees a test window or a label."""

from typing import NamedTuple

import numpy as np
from scipy.stats import genpareto

from data_prep.errors import InputError

MIN_EXCESSES = 10  # fewer cannot carry a tail fit


class Threshold(NamedTuple):
    """Alert where score > value."""

    value: float
    method: str  # in words, for metrics.json and the report


def quantile_threshold(scores: np.ndarray, quantile: float) -> Threshold:
    """The `quantile` of held-out normal scores."""
    scores = _finite(scores)
    method = f"{quantile:g} quantile of {len(scores)} held-out normal windows"
    if len(scores) * (1 - quantile) < 1:
        method += " (fewer than 1/(1 - quantile): close to their largest score)"
    return Threshold(float(np.quantile(scores, quantile)), method)


def pot_threshold(scores: np.ndarray, risk: float, level: float = 0.9) -> Threshold:
    """Peaks over threshold: the score that a normal window exceeds with probability `risk`.

    Excesses over the `level` quantile follow a generalised Pareto distribution (Pickands, Balkema, de Haan;
    Siffer et al., KDD 2017). Where the tail cannot be fitted the quantile at 1 - risk takes its place, and
    `method` says so.
    """
    scores = _finite(scores)
    start = np.quantile(scores, level)
    over = scores[scores > start] - start
    if len(over) < MIN_EXCESSES or over.max() <= 0:
        fallback = quantile_threshold(scores, 1 - risk)
        return Threshold(fallback.value, f"{fallback.method}; POT needs {MIN_EXCESSES} excesses, has {len(over)}")
    shape, _, spread = genpareto.fit(over, floc=0.0)
    share = len(over) / len(scores)
    value = start + genpareto.ppf(1 - min(risk / share, 1.0), shape, loc=0.0, scale=spread)
    if not np.isfinite(value):
        fallback = quantile_threshold(scores, 1 - risk)
        return Threshold(fallback.value, f"{fallback.method}; the POT fit did not converge")
    method = f"POT at risk {risk:g}, {len(over)} excesses of {len(scores)} held-out normal windows, shape {shape:.2f}"
    return Threshold(float(value), method)


def choose_threshold(scores: np.ndarray, score_config) -> Threshold:
    """The threshold that `config.score.threshold` names.

    Raises:
        InputError: no finite score to fit on, or an unknown name.
    """
    if score_config.threshold == "quantile":
        return quantile_threshold(scores, score_config.quantile)
    if score_config.threshold == "pot":
        return pot_threshold(scores, score_config.pot_risk)
    raise InputError(f"config.score.threshold is '{score_config.threshold}'; choose quantile or pot")


def _finite(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    finite = scores[np.isfinite(scores)]
    if not len(finite):
        raise InputError(
            f"none of the {len(scores)} calibration scores is finite; the checkpoint has diverged (lower "
            "config.optimizer.learning_rate) or config.data.calibration_share leaves no window"
        )
    return finite
