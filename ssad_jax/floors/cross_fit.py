"""Floors on the windows that a method is judged on: fitted on fit windows, with held-out scores for a threshold."""

import numpy as np

from ssad_jax.floors.base import Fit, signals
from ssad_jax.prepared import Prepared

MOST_FIT_WINDOWS = 4096  # that a floor is fitted on


class Windows:
    """The signals of one dataset's fit, held-out and test windows, read once for all floors.

    Args:
        held_out: [H] rows of Prepared.windows, normal; a window of a calibration group is scored by a floor that was
            fitted without the group.
        test: [M] rows of Prepared.windows.
    """

    def __init__(self, prepared: Prepared, held_out: np.ndarray, test: np.ndarray):
        fit = np.flatnonzero(prepared.windows.part == 0)
        some = np.unique(np.linspace(0, len(fit) - 1, min(MOST_FIT_WINDOWS, len(fit))).round().astype(int))
        fit = fit[some]
        own = prepared.windows.group
        self._fit = signals(prepared, fit)
        self._test = signals(prepared, test)
        self._num_held_out = len(held_out)
        self._turns = []  # (rows of the fit windows, held-out rows, their signals)
        for group in np.unique(own[held_out]):
            rows = np.flatnonzero(own[held_out] == group)
            self._turns.append((np.flatnonzero(own[fit] != group), rows, signals(prepared, held_out[rows])))

    def scores(self, fit_floor: Fit, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Held-out scores [H] and test scores [M] of a floor."""
        whole = fit_floor(self._fit, seed)
        held_out = np.zeros(self._num_held_out)
        for fitted, rows, some in self._turns:
            everything = len(fitted) == len(self._fit.values)
            part = whole if everything else fit_floor(self._fit._replace(values=self._fit.values[fitted]), seed)
            held_out[rows] = part(some)
        return held_out, whole(self._test)
