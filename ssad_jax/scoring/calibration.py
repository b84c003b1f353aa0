"""Raw score terms to calibrated scores: everything that is fitted comes from normal training time.

The steps, each of which makes a fault that touches one service visible in a system of hundreds of nodes:

1. A residual is divided by its own normal scale (root mean square on fit and calibration windows, floored).
2. A node's error is the largest of its channels; a kind's error is the largest of its nodes (a mean over
   hundreds of nodes would drown one).
3. Each kind is calibrated on held-out normal windows, so that 0 is their median and 1 what the worst window of three
   normal runs in four stays below. The largest kind is the reconstruction term.
4. The temporal and the prior term are put on the scale (x - median) / (q95 - median).
   The state that both are made of starts from zero: in a run's first windows, until it has seen one window length
   of history, they are 0 (no evidence) and nothing is calibrated on them.
5. score = alpha * evidence(reconstruction) + beta * evidence(temporal) + eta * evidence(prior), where
   evidence(x) = log(1 + x) above the normal median, 0 below.

Why step 5 is not the plain weighted sum: the calibrated terms have heavy tails, so that the plain sum is decided by
whichever term has the heaviest one, informative or not. Logarithms let terms that agree outweigh one that is alone.
Measured on simulated systems only (docs/method.md).

A calibration run is judged by scales that were fitted without it (leave one run out), because the maximum over
nodes picks exactly those residuals that inflate their own scale; otherwise calibration scores would be smaller
than those of new windows and thresholds too low. The centre is that of all runs, which matters where they are few
(docs/alerts.md).
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from data_prep.errors import InputError
from ssad_jax.prepared import NODE_KINDS
from ssad_jax.scoring.terms import Columns, Terms

KIND_SPREAD_FLOOR = 0.25  # of q95 - median of a kind's error, in normal scales (a kind that is silent in normal time)
KIND_FLOOR = {"log": 2.0, "dependency": 2.0}  # times score.scale_floor: counts of lines and of calls are noisy
TERM_SPREAD_FLOOR = 0.01  # the same for temporal and prior, as a share of the median
MIN_TERM_WINDOWS = 10  # with history; fewer calibrate nothing, and the secondary terms stay 0


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What was fitted; `arrays` and `from_arrays` take it through an .npz file."""

    centre: np.ndarray  # [C] f32: mean of each residual column in normal time
    scale: np.ndarray  # [C] f32: normal scale of each residual column
    kinds: np.ndarray  # [K] int: the node kinds with evidence, indices into NODE_KINDS
    kind_median: np.ndarray  # [K]
    kind_spread: np.ndarray  # [K]: what the worst window of a normal run usually exceeds the median by
    node_median: np.ndarray  # [kinds of nodes]: the same as kind_median for errors that tell suspects apart
    node_spread: np.ndarray  # [kinds of nodes]: and as kind_spread; infinite for kinds that do not occur
    term_median: np.ndarray  # [2]: temporal, prior
    term_spread: np.ndarray  # [2]; infinite where they could not be calibrated
    warm_up: np.ndarray  # scalar int: windows of a run before temporal and prior mean anything
    weights: np.ndarray  # [3]: alpha, beta, eta

    def arrays(self) -> dict[str, np.ndarray]:
        return dataclasses.asdict(self)

    @classmethod
    def from_arrays(cls, arrays) -> "Calibration":
        return cls(**{f.name: np.asarray(arrays[f.name]) for f in dataclasses.fields(cls)})


class Scores(NamedTuple):
    """Calibrated scores of M windows; 0 is usual, 1 is what most normal runs stay below."""

    calibrated: np.ndarray  # [M]
    paper: np.ndarray  # [M]: the paper's formula to the letter, alpha = beta = eta = 1
    reconstruction: np.ndarray  # [M]
    temporal: np.ndarray  # [M]
    prior: np.ndarray  # [M]
    kind: np.ndarray  # [M, K]: each kind's calibrated error
    node_error: np.ndarray  # [M, N]: each node's error in normal scales, to tell suspects apart; 0 without signals


def require_windows(held_out: Terms) -> None:
    """Raises InputError where there is no held-out window to calibrate on."""
    if not len(held_out.window):
        raise InputError(
            "the prepared dataset has no calibration windows; raise config.data.calibration_share or prepare more "
            "normal time"
        )


def fit_calibration(
    place: Columns, fit: Terms, held_out: Terms, before: np.ndarray, run: np.ndarray, num_nodes: int, warm_up: int,
    score_config,
) -> tuple[Calibration, Scores]:
    """Fit on normal windows.

    Args:
        place: what the residual columns are.
        fit: terms of windows that the model was fitted on (for scales only; may be empty).
        held_out: terms of normal windows that it was not fitted on.
        before: [M] the held-out window that ended when each began, -1 none.
        run: [M] the run (segment) of each held-out window.
        num_nodes: N.
        warm_up: windows of a run before temporal and prior mean anything.
        score_config: `config.score` (alpha, beta, eta, scale_floor).

    Returns:
        The calibration, and the held-out windows' own scores under it (leave one run out), for thresholds.

    Raises:
        InputError: there is no held-out window.
    """
    require_windows(held_out)
    floor = score_config.scale_floor * np.array([KIND_FLOOR.get(kind, 1.0) for kind in NODE_KINDS])[place.kind]
    centre = held_out.residual.mean(0, dtype=np.float64).astype(np.float32)
    squares = np.square(held_out.residual - centre, dtype=np.float64)
    total = np.square(fit.residual - centre, dtype=np.float64).sum(0) + squares.sum(0)
    count = len(fit.window) + len(held_out.window)
    scale = _scale(total, count, floor)
    lasting = lasting_residual(held_out.residual - centre, before)
    column_error = np.zeros_like(lasting)
    for r in np.unique(run):
        own = run == r
        left = count - own.sum()
        other = _scale(total - squares[own].sum(0), left, floor) if left else scale
        column_error[own] = column_errors(held_out.residual[own] - centre, lasting[own], other, place)

    kinds = np.unique(place.kind[place.evidence])
    errors = _kind_errors(column_error, place, kinds)
    kind_median, kind_spread = _by_run(errors, run)
    node_median, node_spread = np.zeros(len(NODE_KINDS)), np.full(len(NODE_KINDS), np.inf)
    for k in np.unique(place.kind):
        median, spread = _by_run(column_error[:, place.kind == k].max(1, keepdims=True), run)
        node_median[k], node_spread[k] = median[0], spread[0]
    raw_terms = _secondary(held_out)[held_out.position >= warm_up]
    term_median, term_spread = _centre(raw_terms, 0.0)
    term_spread = np.maximum(term_spread, np.maximum(TERM_SPREAD_FLOOR * np.abs(term_median), 1e-6))
    if len(raw_terms) < MIN_TERM_WINDOWS:
        term_spread = np.full(2, np.inf)
    weights = np.array([score_config.alpha, score_config.beta, score_config.eta], np.float64)
    calibration = Calibration(
        centre, scale, kinds, kind_median, kind_spread, node_median, node_spread, term_median, term_spread,
        np.array(warm_up), weights,
    )
    return calibration, _combine(calibration, held_out, node_errors(column_error, place, num_nodes), errors)


def apply_calibration(
    calibration: Calibration, place: Columns, terms: Terms, before: np.ndarray, num_nodes: int
) -> Scores:
    """Scores of new windows; `before` as in `fit_calibration`."""
    residual = terms.residual - calibration.centre
    error = column_errors(residual, lasting_residual(residual, before), calibration.scale, place)
    node_error = node_errors(error, place, num_nodes)
    return _combine(calibration, terms, node_error, _kind_errors(error, place, calibration.kinds))


def column_errors(residual: np.ndarray, lasting: np.ndarray, scale: np.ndarray, place: Columns) -> np.ndarray:
    """[M, C] how far residuals deviate, of the window or lasting, in normal scales.

    Where only a rise deviates, what lies below the expectation is 0.
    """

    def deviation(some):
        return np.where(place.rising, np.maximum(some, 0), np.abs(some))

    return np.maximum(deviation(residual), deviation(lasting)) / scale


def lasting_residual(residual: np.ndarray, before: np.ndarray) -> np.ndarray:
    """[M, C]: the residuals of a window and of the one that ended when it began, added, in the scale of one; 0 without.

    Noise of two windows that share no tick adds up to sqrt(2) times that of one, a fault that lasts to twice.
    """
    return np.where((before >= 0)[:, None], (residual + residual[before]) * np.float32(0.5**0.5), np.float32(0))


def node_errors(error: np.ndarray, place: Columns, num_nodes: int) -> np.ndarray:
    """[M, N] f32: the largest of the column errors [M, C] of each node; 0 where it has none."""
    out = np.zeros((len(error), num_nodes), np.float32)
    if len(place.node):
        first = np.flatnonzero(np.diff(place.node, prepend=-1))
        out[:, place.node[first]] = np.maximum.reduceat(error, first, axis=1)
    return out


def evidence(calibrated: np.ndarray) -> np.ndarray:
    """What a calibrated term is worth: log(1 + x) above its normal median, 0 below."""
    return np.log1p(np.maximum(calibrated, 0.0))


def kind_names(calibration: Calibration) -> list[str]:
    return [NODE_KINDS[k] for k in calibration.kinds]


def _scale(sum_of_squares, count, floor) -> np.ndarray:
    return np.maximum(np.sqrt(np.maximum(sum_of_squares, 0.0) / count), floor).astype(np.float32)


def _kind_errors(error: np.ndarray, place: Columns, kinds: np.ndarray) -> np.ndarray:
    """[M, K]: the largest of the column errors [M, C] that are evidence, of each kind."""
    own = [place.evidence & (place.kind == k) for k in kinds]
    return np.stack([error[:, o].max(1) for o in own], axis=1) if len(kinds) else np.zeros((len(error), 0))


def _by_run(errors: np.ndarray, run: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median of each column of errors [M, K], and what the worst window of three runs in four stays below, less it.

    The windows of a run stand or fall together, and time that is held to be normal is not always: a quantile over
    windows would be set by the one run that is not.
    """
    median = np.median(errors, axis=0)
    worst = np.stack([errors[run == r].max(0) for r in np.unique(run)])
    return median, np.maximum(np.quantile(worst, 0.75, axis=0) - median, KIND_SPREAD_FLOOR)


def _centre(values: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """Median and q95 - median of each column, over finite values; (0, 1) for a column that has none."""
    middle, spread = np.zeros(values.shape[1]), np.ones(values.shape[1])
    for i, column in enumerate(values.T):
        finite = column[np.isfinite(column)].astype(np.float64)
        if len(finite):
            middle[i], high = np.quantile(finite, [0.5, 0.95])
            spread[i] = max(high - middle[i], floor)
    return middle, spread


def _secondary(terms: Terms) -> np.ndarray:
    """[M, 2] f64: temporal and prior."""
    read = np.stack([terms.temporal, terms.prior], axis=1) if terms.read is None else terms.read
    return read.astype(np.float64)


def _combine(calibration: Calibration, terms: Terms, node_error: np.ndarray, errors: np.ndarray) -> Scores:
    kind = (errors - calibration.kind_median) / calibration.kind_spread
    reconstruction = kind.max(1) if kind.shape[1] else np.zeros(len(kind))
    raw = _secondary(terms)
    calibrated = (raw - calibration.term_median) / calibration.term_spread
    # Without history there is no evidence (whereas a diverged model's nan in `prior` must stay visible).
    new = terms.position < calibration.warm_up
    temporal = np.where(new | np.isnan(raw[:, 0]), 0.0, calibrated[:, 0])
    prior = np.where(new, 0.0, calibrated[:, 1])
    alpha, beta, eta = calibration.weights
    score = alpha * evidence(reconstruction) + beta * evidence(temporal) + eta * evidence(prior)
    paper = terms.paper_reconstruction + np.nan_to_num(terms.temporal, nan=0.0) + terms.prior
    return Scores(score, paper.astype(np.float64), reconstruction, temporal, prior, kind, node_error)
