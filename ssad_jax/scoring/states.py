"""The temporal and the prior term read off the states of normal windows (`score.temporal`, `score.prior`).

The paper compares states by cosine and by Euclidean distance. States of one system point in nearly the same direction
and vary most with load, so that both say how busy the system is: measured alone they are at chance. Here a deviation is
divided by how much normal states vary in its direction (Mahalanobis 1936), so that a small step in a direction in which
normal states never move counts more than a large one along the load:

- `forecast`: u_t less its linear forecast from u_{t-1}, fitted in closed form on normal windows;
- `mahalanobis`: u_t less the mean of normal states.

Both are fitted on the states of calibration windows past the warm-up, scored over long runs as test windows are
(training sequences are too short for the state to settle). A calibration window is judged by a fit without its own run.
Correlations are shrunk (Ledoit & Wolf 2004): normal windows are few and overlap. Where there are not enough of them
nothing deviates: both terms are 0.

States of different networks cannot be compared: read the terms of each network before averaging them.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from sklearn.covariance import ledoit_wolf

from ssad_jax.scoring.terms import Terms

FEWEST = 10  # window lengths of normal time with history that anything is fitted on
FORECAST_RIDGE = 1.0  # in units of the mean variance of a state's dimension


class States(NamedTuple):
    """States of M windows, in the order of their runs."""

    now: np.ndarray  # [M, H] f64
    before: np.ndarray  # [M, H]: of the window before, nan at a run's first

    def take(self, rows) -> "States":
        return States(self.now[rows], self.before[rows])


@dataclasses.dataclass(frozen=True)
class Whitening:
    """Mahalanobis distance of rows from normal ones, with shrunk correlations.

    Not with a shrunk covariance, which would add to every direction a share of the load's variance.
    """

    middle: np.ndarray  # [H]
    spread: np.ndarray  # [H]
    precision: np.ndarray  # [H, H], of rows in units of the spread

    @classmethod
    def fit(cls, normal: np.ndarray) -> "Whitening":
        """normal: [n, H]."""
        middle, spread = normal.mean(0), np.maximum(normal.std(0), 1e-12)
        return cls(middle, spread, np.linalg.pinv(ledoit_wolf((normal - middle) / spread)[0], hermitian=True))

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """[M, H] -> [M]."""
        off = (rows - self.middle) / self.spread
        return np.sqrt(np.maximum(((off @ self.precision) * off).sum(1), 0.0))


@dataclasses.dataclass(frozen=True)
class Forecast:
    """How far each state is from its linear forecast; nan at a run's first window."""

    middle: np.ndarray  # [H]
    middle_before: np.ndarray  # [H]
    weights: np.ndarray  # [H, H]
    distance: Whitening  # of errors

    @classmethod
    def fit(cls, normal: States) -> "Forecast":
        middle, middle_before = normal.now.mean(0), normal.before.mean(0)
        before = normal.before - middle_before
        gram = before.T @ before
        inverse = np.linalg.pinv(gram + FORECAST_RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram)), hermitian=True)
        weights = inverse @ before.T @ (normal.now - middle)
        # What the error of each window would be under a forecast fitted without it.
        leverage = ((before @ inverse) * before).sum(1) + 1 / len(before)
        error = normal.now - middle - before @ weights
        return cls(middle, middle_before, weights, Whitening.fit(error / (1 - leverage)[:, None]))

    def __call__(self, states: States) -> np.ndarray:
        """[M]."""
        return self.distance(states.now - self.middle - (states.before - self.middle_before) @ self.weights)


@dataclasses.dataclass(frozen=True)
class Mahalanobis:
    """How far each state is from normal ones."""

    distance: Whitening

    @classmethod
    def fit(cls, normal: States) -> "Mahalanobis":
        return cls(Whitening.fit(normal.now))

    def __call__(self, states: States) -> np.ndarray:
        """[M]."""
        return self.distance(states.now)


@dataclasses.dataclass(frozen=True)
class AsMeasured:
    """The paper's own term."""


@dataclasses.dataclass(frozen=True)
class Silent:
    """Too few normal windows to fit anything on: nothing deviates."""

    def __call__(self, states: States) -> np.ndarray:
        """[M]."""
        return np.zeros(len(states.now))


Reading = Forecast | Mahalanobis | AsMeasured | Silent
TEMPORAL = {"paper": AsMeasured, "forecast": Forecast}
PRIOR = {"paper": AsMeasured, "mahalanobis": Mahalanobis}


class Readings(NamedTuple):
    """How the terms of one network are read off its states."""

    temporal: Reading
    prior: Reading

    def read(self, states: States, measured: np.ndarray) -> np.ndarray:
        """[M, 2] f32: temporal and prior term; measured [M, 2] f32: as the paper measures them."""
        out = np.array(measured, np.float32)
        for column, reading in enumerate(self):
            if not isinstance(reading, AsMeasured):
                out[:, column] = reading(states)
        return out


def read_states(
    calibration: Terms, run: np.ndarray, test: Terms, warm_up: int, score_config
) -> tuple[Terms, Terms, Readings]:
    """One network's terms with `read` as the settings say, and the readings of new windows.

    Args:
        calibration, test: in the order in which `score_runs` gives them.
        run: [M] the run (segment) of each calibration window.
        warm_up: windows of a run before the state means anything.
        score_config: `config.score` (temporal, prior).
    """
    normal, new = _states(calibration), _states(test)
    usable = (calibration.position >= warm_up) & np.isfinite(normal.now + normal.before).all(1)
    fewest = FEWEST * warm_up
    # A calibration window is judged without its run: where too little is left then, nothing is judged at all.
    left = [(usable & (run != r)).sum() for r in np.unique(run)]
    if len(left) > 1 and min(left) < fewest:
        usable[:] = False

    def fit(windows: np.ndarray) -> Readings:
        chosen = (TEMPORAL[score_config.temporal], PRIOR[score_config.prior])
        return Readings(*(_fitted(kind, normal.take(windows), fewest) for kind in chosen))

    # Calibration windows under a fit without their run; of a single run, under the fit on all.
    read, measured = np.zeros((len(run), 2), np.float32), _measured(calibration)
    for r in np.unique(run):
        own = run == r
        rest = usable & ~own
        read[own] = fit(rest if rest.any() else usable).read(normal.take(own), measured[own])
    of_new = fit(usable)
    return calibration._replace(read=read), test._replace(read=of_new.read(new, _measured(test))), of_new


def _fitted(kind: Callable, normal: States, fewest: int) -> Reading:
    if kind is AsMeasured:
        return AsMeasured()
    return kind.fit(normal) if len(normal.now) >= fewest else Silent()


def _measured(terms: Terms) -> np.ndarray:
    return np.stack([terms.temporal, terms.prior], axis=1)


def _states(terms: Terms) -> States:
    now = terms.state.astype(np.float64)
    before = np.concatenate([np.full_like(now[:1], np.nan), now[:-1]])
    before[terms.position == 0] = np.nan
    return States(now, before)
