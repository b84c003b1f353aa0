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


def read_states(calibration: Terms, run: np.ndarray, test: Terms, warm_up: int, score_config) -> tuple[Terms, Terms]:
    """One network's terms with `read` as the settings say.

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
    read = [np.stack([terms.temporal, terms.prior], axis=1) for terms in (calibration, test)]
    for column, fit in enumerate((TEMPORAL[score_config.temporal], PRIOR[score_config.prior])):
        if fit is not None:
            read[0][:, column] = _without_own_run(fit, normal, usable, run, fewest)
            read[1][:, column] = _fitted(fit, normal.take(usable), fewest)(new)
    return calibration._replace(read=read[0]), test._replace(read=read[1])


def fit_forecast(normal: States):
    """A function States [M] -> [M]: how far each state is from its forecast; nan at a run's first window."""
    middle, middle_before = normal.now.mean(0), normal.before.mean(0)
    before = normal.before - middle_before
    gram = before.T @ before
    inverse = np.linalg.pinv(gram + FORECAST_RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram)), hermitian=True)
    weights = inverse @ before.T @ (normal.now - middle)

    def error(states: States) -> np.ndarray:
        return states.now - middle - (states.before - middle_before) @ weights

    # What the error of each window would be under a forecast fitted without it.
    leverage = ((before @ inverse) * before).sum(1) + 1 / len(before)
    distance = _whitened(error(normal) / (1 - leverage)[:, None])
    return lambda states: distance(error(states))


def fit_mahalanobis(normal: States):
    """A function States [M] -> [M]: how far each state is from normal ones."""
    distance = _whitened(normal.now)
    return lambda states: distance(states.now)


TEMPORAL = {"paper": None, "forecast": fit_forecast}
PRIOR = {"paper": None, "mahalanobis": fit_mahalanobis}


def _whitened(normal: np.ndarray):
    """Mahalanobis distance of rows from normal ones [n, H], with shrunk correlations.

    Not with a shrunk covariance, which would add to every direction a share of the load's variance.
    """
    middle, spread = normal.mean(0), np.maximum(normal.std(0), 1e-12)
    precision = np.linalg.pinv(ledoit_wolf((normal - middle) / spread)[0], hermitian=True)

    def distance(rows: np.ndarray) -> np.ndarray:
        off = (rows - middle) / spread
        return np.sqrt(np.maximum(((off @ precision) * off).sum(1), 0.0))

    return distance


def _fitted(fit, normal: States, fewest: int):
    return fit(normal) if len(normal.now) >= fewest else lambda states: np.zeros(len(states.now))


def _without_own_run(fit, normal: States, usable: np.ndarray, run: np.ndarray, fewest: int) -> np.ndarray:
    """[M]: each calibration window under a fit without its run; of a single run, under the fit on all."""
    out = np.zeros(len(run))
    for r in np.unique(run):
        own = run == r
        rest = usable & ~own
        out[own] = _fitted(fit, normal.take(rest if rest.any() else usable), fewest)(normal.take(own))
    return out


def _states(terms: Terms) -> States:
    now = terms.state.astype(np.float64)
    before = np.concatenate([np.full_like(now[:1], np.nan), now[:-1]])
    before[terms.position == 0] = np.nan
    return States(now, before)
