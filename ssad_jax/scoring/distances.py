"""How far the representations of windows lie from those of normal windows (method B).

Each dimension is put in units of how much it varies in normal time; the distance of a window is the root mean square
over dimensions, in the mean over its nearest normal windows. For each service, and for the system. The normal windows
are fit windows where a share of training time is held out from fitting. Where groups take turns they are the
calibration windows, and one of these is not compared with its own run (segment), which has its part in the units alone.
"""

import dataclasses

import numpy as np

from ssad_jax.scoring.calibration import require_windows
from ssad_jax.scoring.terms import Terms

BLOCK = 1 << 24  # pairs of windows compared at a time
MOST = 4096  # normal windows, spread evenly over time, that others are compared with
ROUNDING = 1e-4  # nor by less than this share of its size: float32 differs by some 1e-6 between compiled programs
CLOSE = 0.01  # a distance below this is none, in units of what is normal: of constant representations it is rounding
FLOOR = 0.2  # a dimension varies at least by this share of what dimensions vary by in the mean


@dataclasses.dataclass(frozen=True)
class Normal:
    """Representations of n normal windows, standardised."""

    middle: np.ndarray  # [U, H]
    spread: np.ndarray  # [U, H]
    rows: np.ndarray  # [n, U, H] f32
    run: np.ndarray  # [n] int: -1 where no window is ever compared with its own

    @classmethod
    def of(cls, rows: np.ndarray, run: np.ndarray) -> "Normal":
        """rows [n, U, H] f32: of U services, or of the system with U = 1."""
        middle = rows.mean(0, dtype=np.float64)
        variance = np.stack([rows[:, u].var(0, dtype=np.float64) for u in range(rows.shape[1])])
        size = np.sqrt(np.mean(middle**2) + variance.mean())
        spread = np.sqrt(variance + FLOOR**2 * variance.mean() + (ROUNDING * size) ** 2 + 1e-12)
        middle, spread = middle.astype(np.float32), spread.astype(np.float32)
        return cls(middle, spread, (rows - middle) / spread, run)

    def distance(self, rows: np.ndarray, run: np.ndarray | None, neighbours: int) -> np.ndarray:
        """[m, U] f32 of representations [m, U, H].

        Args:
            run: [m] of each, whose own normal windows do not count; None: all count.
            neighbours: normal windows that the mean is over; fewer where there are fewer.
        """
        rows = (rows - self.middle) / self.spread
        out = np.zeros(rows.shape[:2], np.float32)
        size = max(1, BLOCK // len(self.rows))
        for first in range(0, len(rows), size):
            some = slice(first, first + size)
            own = None if run is None else run[some, None] == self.run[None]
            for u in range(rows.shape[1]):
                out[some, u] = self._of_service(u, rows[some, u], own, neighbours)
        return out

    def _of_service(self, u: int, rows: np.ndarray, own: np.ndarray | None, neighbours: int) -> np.ndarray:
        normal = self.rows[:, u]
        squared = (rows**2).sum(1)[:, None] + (normal**2).sum(1)[None] - 2 * rows @ normal.T
        squared = np.maximum(squared, 0) / rows.shape[1]
        if own is not None:
            squared = np.where(own, np.inf, squared)
        count = min(neighbours, squared.shape[1])
        nearest = np.sqrt(np.partition(squared, count - 1, axis=1)[:, :count])
        nearest[nearest < CLOSE] = 0
        known = nearest != np.inf  # of a single run nothing else is normal: nothing deviates; nan stays
        return np.where(known, nearest, 0).sum(1) / np.maximum(known.sum(1), 1)


def read_distances(
    fit: Terms, calibration: Terms, run: np.ndarray, test: Terms, neighbours: int
) -> tuple[Terms, Terms]:
    """One network's terms with the distance of each service as its residual and that of the system as prior term.

    Args:
        fit: windows that calibration windows are compared with as test windows are. Where there are none, or
            calibration windows are among them, these are compared with one another.
        run: [M] the run (segment) of each calibration window.

    Raises:
        InputError: there is no calibration window.
    """
    require_windows(calibration)
    apart = len(fit.window) and not np.isin(fit.window, calibration.window).any()
    normal, own = (fit, None) if apart else (calibration, run)
    some = np.unique(np.linspace(0, len(normal.window) - 1, min(MOST, len(normal.window))).round().astype(int))
    normal, runs = normal.take(some), np.full(len(some), -1) if own is None else own[some]
    of_services, of_system = Normal.of(normal.service, runs), Normal.of(normal.state[:, None], runs)

    def read(terms: Terms, own: np.ndarray | None) -> Terms:
        if not len(terms.window):
            nothing = np.zeros((0, normal.service.shape[1]), np.float32)
            return terms._replace(residual=nothing, service=None, read=np.zeros((0, 2), np.float32))
        services = of_services.distance(terms.service, own, neighbours)
        system = of_system.distance(terms.state[:, None], own, neighbours)[:, 0]
        # As measured: the paper's score is the plain sum of the mean over services and the system's.
        return terms._replace(
            residual=services, prior=system, paper_reconstruction=services.mean(1), service=None,
            read=np.stack([np.zeros_like(system), system], axis=1),
        )  # fmt: skip

    return read(calibration, own), read(test, None)
