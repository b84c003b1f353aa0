"""Scores that a method gives windows by itself, on a scale of normal windows, so that networks and splits compare."""

import numpy as np

from data_prep.errors import InputError
from ssad_jax.scoring.calibration import Scores, require_windows
from ssad_jax.scoring.terms import Columns, Terms

ROUNDING = 1e-6  # relative error of scores: that of float32, some sums on


def on_held_out_scale(held_out: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(x - median) / (q95 - median) of the held-out scores; nan, where there was nothing to judge, becomes 0: usual.

    Where held-out scores differ by rounding alone, what differs from them by no more is as usual.

    Args:
        held_out: [H] or [H, V] f32.
        test: [M] or [M, V] f32.
    """
    known = np.isfinite(held_out)
    if not known.any(0).all():  # nothing to judge in normal time: nothing is usual
        held_out = np.where(known.any(0), held_out, 0.0)
    middle, high = np.nanquantile(held_out.astype(np.float64), [0.5, 0.95], axis=0)
    spread = np.where(high > middle, high - middle, np.nanstd(held_out, axis=0))
    rounding = ROUNDING * np.abs(middle)
    constant = np.nanmax(np.abs(held_out - middle), axis=0) <= rounding
    spread = np.where((spread > 0) & ~constant, spread, 1.0)

    def scaled(some):
        away = np.asarray(some, np.float64) - middle
        return np.where(np.isnan(away) | constant & (np.abs(away) <= rounding), 0.0, away / spread)

    return scaled(held_out), scaled(test)


def read_scores(held_out: Terms, test: Terms) -> tuple[Terms, Terms]:
    """One network's terms with its own scores on the scale of its held-out windows.

    Raises:
        InputError: there is no held-out window, or a score of one is infinite.
    """
    require_windows(held_out)
    if infinite := int(np.isinf(held_out.own).any(1).sum()):
        raise InputError(
            f"scores of {infinite} of {len(held_out.own)} held-out windows are infinite: no scale can be set by them"
        )
    low, high = on_held_out_scale(held_out.own, test.own)
    if not len(test.window):
        test = test._replace(residual=np.zeros((0, held_out.residual.shape[1]), np.float32))
    return held_out._replace(own=low), test._replace(own=high)


def no_columns() -> Columns:
    """Of a method that names no services."""
    return Columns(*(np.zeros(0, int) for _ in range(3)), *(np.zeros(0, bool) for _ in range(2)))


def as_scores(scores: Scores, terms: Terms) -> Scores:
    """`scores` with the method's own score as the window's; what was calibrated of services tells suspects apart."""
    score, nothing = terms.own[:, 0].astype(np.float64), np.zeros(len(terms.window))
    kind = scores.kind[:, :0]
    return scores._replace(
        calibrated=score, paper=score, reconstruction=score, temporal=nothing, prior=nothing, kind=kind
    )
