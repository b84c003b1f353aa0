"""Alert thresholds from held-out normal scores. Nothing here sees a test window or a label."""

from typing import NamedTuple

import numpy as np
from scipy.stats import genpareto

from data_prep.errors import InputError
from ssad_jax.scoring import conformal

METHODS = ("quantile", "pot", "conformal", "adaptive")
FEWEST_ABOVE = 2  # calibration windows that share no tick, above a quantile threshold
MIN_EXCESSES = 10  # fewer cannot carry a tail fit
LONGEST = 2  # times one more than the windows in a window length: from a longer alarm the adaptive threshold learns not


class Threshold(NamedTuple):
    """Alert where score > value."""

    value: float
    method: str  # in words, for metrics.json and the report


def quantile_threshold(scores: np.ndarray, quantile: float, effective: int | None = None) -> Threshold:
    """The `quantile` of held-out normal scores, or a lower one where there are too few of them.

    At least `FEWEST_ABOVE` windows that share no tick lie above it, so that it never rests on a single odd stretch of
    time (what is held to be normal is not always). Little normal time means more false alarms, and `method` says so.

    Args: effective: how many of the windows share no tick with one another; None: all.
    """
    scores = _finite(scores)
    effective = len(scores) if effective is None else min(effective, len(scores))
    carried = max(1 - FEWEST_ABOVE / effective, 0.5)
    if quantile <= carried:
        method = f"{quantile:g} quantile of {len(scores)} held-out normal windows"
        return Threshold(float(np.quantile(scores, quantile)), method)
    method = (
        f"{carried:.3g} quantile of {len(scores)} held-out normal windows (of which {effective} do not overlap: too "
        f"few for the {quantile:g} quantile)"
    )
    return Threshold(float(np.quantile(scores, carried)), method)


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


def conformal_threshold(scores: np.ndarray, rate: float, effective: int | None = None) -> Threshold:
    """The score above which the conformal p-value is at most `rate`: a false alarm rate that holds without any
    assumption but exchangeability (`scoring/conformal.py`).

    p is never below 1 / (n + 1). Where that is above `rate` the threshold is the largest calibration score: the rate
    that can be guaranteed is then 1 / (n + 1), and `method` says so.

    Args:
        scores: of the calibration windows; rate: share of normal windows that may alert.
        effective: how many of them share no tick with one another; None: all.
    """
    scores = np.sort(_finite(scores))[::-1]
    effective = len(scores) if effective is None else min(effective, len(scores))
    rank = conformal.rank_for(len(scores), rate)
    method = f"split-conformal threshold at false alarm rate {rate:g}, {len(scores)} held-out normal windows"
    if effective < len(scores):
        method += f" ({effective} that do not overlap)"
    if conformal.rank_for(effective, rate) < 0:
        needed = int(np.ceil(1 / rate - 1e-9)) - 1
        method += (
            f"; the rate cannot be guaranteed: that takes {needed} windows that do not overlap, with {effective} the "
            f"least rate is {1 / (effective + 1):.2g}"
        )
    return Threshold(float(scores[max(rank, 0)]), method)


def choose_threshold(scores: np.ndarray, score_config, effective: int | None = None) -> Threshold:
    """The threshold that `config.score.threshold` names; of `adaptive`, the one that it begins with.

    Args: scores of calibration windows; effective: how many of them share no tick with one another; None: all.

    Raises:
        InputError: no finite score to fit on, or an unknown name.
    """
    if score_config.threshold == "quantile":
        return quantile_threshold(scores, score_config.quantile, effective)
    if score_config.threshold == "pot":
        return pot_threshold(scores, score_config.pot_risk)
    if score_config.threshold in ("conformal", "adaptive"):
        chosen = conformal_threshold(scores, score_config.false_alarm_rate, effective)
        adapts = score_config.threshold == "adaptive"
        return chosen._replace(method=f"{chosen.method}; adapted online") if adapts else chosen
    raise InputError(
        f"config.score.threshold is '{score_config.threshold}'; choose quantile, pot, conformal or adaptive"
    )


def alerts(scores: np.ndarray, threshold: Threshold) -> np.ndarray:
    """[M] bool. A score that is not finite (a diverged model) alerts: it must not be silent."""
    scores = np.asarray(scores, np.float64)
    return np.where(np.isfinite(scores), scores, np.inf) > threshold.value


class Decision(NamedTuple):
    """How M windows are judged."""

    threshold: Threshold
    p_value: np.ndarray  # [M] conformal
    alert: np.ndarray  # [M] bool


class Rule(NamedTuple):
    """How scores are judged; fitted on calibration windows alone."""

    threshold: Threshold
    rests_on: np.ndarray  # [n] finite f64: calibration scores that p-values rest on, in time order
    together: int  # windows that begin within one window length


def fit_rule(held_out: np.ndarray, score_config, overlap: conformal.Overlap | None = None) -> Rule:
    """The rule that `config.score` names, from the scores [n] of calibration windows in time order.

    Args: overlap: how the windows lie in time; None: no two share a tick.

    Raises:
        InputError: no finite calibration score, or an unknown `config.score.threshold`.
    """
    held_out = np.asarray(held_out, np.float64)
    effective, together = (len(held_out), 1) if overlap is None else (len(overlap.disjoint), overlap.windows)
    rest_on = held_out
    if overlap is not None and score_config.conformal_windows == "disjoint":
        rest_on = held_out[overlap.disjoint]
    conformal_family = score_config.threshold in ("conformal", "adaptive")
    threshold = choose_threshold(rest_on if conformal_family else held_out, score_config, effective)
    return Rule(threshold, _finite(rest_on), together)


def online(rule: Rule, score_config) -> conformal.Online:
    """The threshold `adaptive`, before the first window."""
    longest, accept_after = LONGEST * (rule.together + 1), score_config.accept_windows * rule.together
    return conformal.Online(rule.rests_on, score_config.false_alarm_rate, longest, accept_after)


def decide(held_out: np.ndarray, test: np.ndarray, score_config, overlap: conformal.Overlap | None = None) -> Decision:
    """The threshold, p-values and alerts of new scores [M] in time order; otherwise as `fit_rule`."""
    rule, test = fit_rule(held_out, score_config, overlap), np.asarray(test, np.float64)
    if score_config.threshold == "adaptive":
        judged = online(rule, score_config).judge_all(test)
        return Decision(rule.threshold, judged.p_value, judged.alert)
    return Decision(rule.threshold, conformal.p_values(rule.rests_on, test), alerts(test, rule.threshold))


def _finite(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    finite = scores[np.isfinite(scores)]
    if not len(finite):
        raise InputError(
            f"none of the {len(scores)} calibration scores is finite: the checkpoint has diverged (lower "
            "config.optimizer.learning_rate), the prepared arrays hold values that are not finite (prepare the data "
            "again), or config.data.calibration_share leaves no window"
        )
    return finite
