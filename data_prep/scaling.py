"""Window aggregates -> scaled signals and closed-form expectations, by statistics fitted on fit windows.

Counts are in Pearson units, (n - mu) / sqrt(mu + 1), those of log lines in stabilised ones, whose noise does not grow
with the expectation, 2 sqrt(n + 3/8) - 2 sqrt(mu + 3/8) (Anscombe, Biometrika 1948). Latencies are means and maxima
of deviations shrunk by sqrt(n / (n + 3)). The expectations are ridge regressions on operation counts (of the unit
itself, of what runs on it, and of the whole system). Of a template's count: a log line that should have appeared and
did not is the trace an exception leaves. Of a caller's calls. Of a metric's level: processor time that the work done
explains is no fault.
"""

import dataclasses

import numpy as np

from data_prep.signals import LAGS, NO_CALL
from data_prep.vocabulary import MAX_OPERATIONS, Vocabulary

COUNTS = ("ops", "errors", "alerts", "logs", "calls", "call_errors", "events")
TARGETS = ("logs", "calls", "metric_level")  # what has an expectation
SHRINK = 3.0  # calls: a mean of n latencies counts sqrt(n / (n + 3))
CLIP = 20.0  # of every signal
CHANNELS = {
    "service": ["errors", "alerts", "self time, mean", "self time, maximum"]
    + [f"operation {i + 1}" for i in range(MAX_OPERATIONS)] + ["other operations"],
    "log": ["count", "balance"],
    "metric": ["level", "rise"],
    "dependency": ["calls", "errors", "net latency, maximum", "net latency, mean", "duration, mean"],
    "event": ["count"],
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Moments:
    """Sums over fit windows. Those of counts are exact, those of metrics not: shards are added in their order."""

    windows: int
    sums: dict[str, np.ndarray]
    grams: list[np.ndarray]  # of each unit: products of its regressors, its targets and one

    def __add__(self, other):
        return Moments(
            self.windows + other.windows,
            {name: self.sums[name] + other.sums[name] for name in self.sums},
            [a + b for a, b in zip(self.grams, other.grams, strict=True)],
        )


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What scales signals."""

    mean: dict[str, np.ndarray]  # of a window's counts
    coefficients: list[np.ndarray]  # of each regression [regressors, targets], in scaled units
    lines_on_all: list[np.ndarray]  # of each regression [regressors and targets, its log lines], 0 for a line on itself


@dataclasses.dataclass(frozen=True)
class _Regression:
    """What is regressed on what: columns of the arrays of counts."""

    units: list[int]  # whose operation counts are the regressors: a unit's own and those of what runs on it
    lags: int  # regressors are also the counts so many window lengths before
    targets: dict[str, np.ndarray]  # TARGETS -> columns

    def regressors(self, values, total: np.ndarray) -> np.ndarray:
        """[n, r]; `total` [n] are the operations of the whole system."""
        operations = [values["ops"], *(values["ops_before"][:, lag] for lag in range(self.lags))]
        flat = [x[:, self.units].reshape(len(total), len(self.units) * (MAX_OPERATIONS + 1)) for x in operations]
        return np.concatenate([*flat, total[:, None]], axis=1)

    def scale(self, mean: dict[str, np.ndarray]) -> np.ndarray:
        """Pearson's root of each regressor and target, from the mean counts; levels of metrics are scaled already."""
        values = {"ops": mean["ops"][None], "ops_before": np.repeat(mean["ops"][None, None], LAGS, axis=1)}
        levels = np.zeros(len(self.targets.get("metric_level", ())))
        targets = [levels if name == "metric_level" else mean[name][c] for name, c in self.targets.items()]
        return np.sqrt(np.concatenate([self.regressors(values, mean["ops"].sum()[None])[0], *targets]) + 1)

    @property
    def size(self) -> int:
        return (1 + self.lags) * len(self.units) * (MAX_OPERATIONS + 1) + 1

    @property
    def lines(self) -> slice:
        """Where the log lines stand among regressors and targets."""
        return slice(self.size, self.size + len(self.targets.get("logs", ())))


def _regressions(v: Vocabulary) -> list[_Regression]:
    """Two for each unit: its logs and calls on what it does now, its metrics also on what it did before.

    A load average or the memory of a machine is the work of the last minute or two, not only of this window.
    """
    nodes = {"logs": v.logs, "calls": v.dependencies, "metric_level": v.metrics}
    owners = {name: np.array([unit for unit, _ in rows], int) for name, rows in nodes.items()}
    out = []
    for u, deployed in enumerate(v.deployed):
        targets = {name: np.flatnonzero(owners[name] == u) for name in TARGETS}
        out += [
            _Regression([u, *deployed], lags, {name: targets[name] for name in names})
            for lags, names in ((0, ("logs", "calls")), (LAGS, ("metric_level",)))
            if any(len(targets[name]) for name in names)
        ]
    return out


def moments(windows: dict[str, np.ndarray], vocabulary: Vocabulary) -> Moments:
    """Partial statistics of one shard's fit windows (from `signals.aggregate`)."""
    grams = []
    total = windows["ops"].sum((1, 2))
    for unit in _regressions(vocabulary):
        targets = [windows[name][:, columns] for name, columns in unit.targets.items()]
        ones = np.ones((len(total), 1))
        rows = np.concatenate([unit.regressors(windows, total), *targets, ones], axis=1, dtype=float)
        grams.append(rows.T @ rows)
    sums = {name: windows[name].sum(0, dtype=np.float64) for name in COUNTS}
    return Moments(len(windows["ops"]), sums, grams)


def fit(total: Moments, vocabulary: Vocabulary, ridge: float, mean: dict[str, np.ndarray] | None = None) -> Statistics:
    """Means and ridge coefficients; `ridge` is the penalty in units of windows of unit variance.

    `mean`: of a larger set of windows, for coefficients from a part of it that speak in the same units.
    """
    n = max(total.windows, 1)
    mean = mean or {name: value / n for name, value in total.sums.items()}
    coefficients, lines_on_all = [], []
    for gram, unit in zip(total.grams, _regressions(vocabulary), strict=True):
        mu = gram[-1, :-1] / n  # the last row is the product with one
        scale = unit.scale(mean)
        covariance = (gram[:-1, :-1] / n - np.outer(mu, mu)) / np.outer(scale, scale)
        penalised = covariance + ridge / n * np.eye(len(covariance))
        some = penalised[: unit.size, : unit.size]
        coefficients.append(np.linalg.solve(some, covariance[: unit.size, unit.size :]))
        lines_on_all.append(_on_all_others(penalised, unit.lines))
    return Statistics(mean, coefficients, lines_on_all)


def _on_all_others(penalised: np.ndarray, columns: slice) -> np.ndarray:
    """[all, columns] coefficients of each column's ridge regression on all others: a column of the precision matrix."""
    if columns.start == columns.stop:
        return np.zeros((len(penalised), 0))
    precision = np.linalg.inv(penalised)
    return (np.eye(len(precision)) - precision / np.diag(precision))[:, columns]


def scale(windows: dict[str, np.ndarray], vocabulary: Vocabulary, statistics: Statistics, share: float = 1.0):
    """Signals and expectations of each node kind.

    Args:
        windows: aggregates over windows (or ticks); share: their length as a share of the window the means are of.

    Returns: signal, context: dicts node kind -> [n, nodes, channels] float32, channels as in CHANNELS. `context` holds
        the expectation of the count on the channel of the count, and nothing for kinds without one.
    """
    pearson = {}
    for name in COUNTS:
        mu = statistics.mean[name] * share
        pearson[name] = (windows[name] - mu) / np.sqrt(mu + 1)
    n = len(windows["ops"])
    mu = statistics.mean["ops"].sum() * share
    total = (windows["ops"].sum((1, 2)) - mu) / np.sqrt(mu + 1)
    mu = statistics.mean["ops"] * share
    before = (windows["ops_before"] - mu) / np.sqrt(mu + 1)
    values = pearson | {"metric_level": windows["metric_level"], "ops_before": before}
    expected, lines = _expectations(vocabulary, statistics, values, total)
    latency = {
        "self": _shrunk(windows["self_n"], windows["self_sum"], windows["self_max"]),
        "gap": _shrunk(windows["gap_n"], windows["gap_sum"], windows["gap_max"]),
        "dur": _shrunk(windows["dur_n"], windows["dur_sum"], None),
    }
    service = [pearson["errors"], pearson["alerts"], *latency["self"], *np.moveaxis(pearson["ops"], 2, 0)]
    dependency = [pearson["calls"], pearson["call_errors"], latency["gap"][1], latency["gap"][0], latency["dur"][0]]
    signal = {
        "service": np.stack(service, -1),
        "metric": np.stack([windows["metric_level"], windows["metric_rise"]], -1),
        "dependency": np.stack(dependency, -1),
        "event": pearson["events"][..., None],
    }
    # A metric without a reading has level zero, which nothing needs to explain.
    level = np.where(windows["metric_seen"], expected["metric_level"], 0)
    mu = statistics.mean["logs"] * share
    stabilised = stabilise(mu)
    count, by_work, by_all = (
        stabilise(np.maximum(some, 0)) - stabilised
        for some in (windows["logs"], expected["logs"] * np.sqrt(mu + 1) + mu, lines * np.sqrt(mu + 1) + mu)
    )
    signal["log"] = np.stack([count, balance(count - by_work, count - by_all)], -1)
    context = {"log": by_work, "dependency": expected["calls"], "metric": level}
    context = {kind: values[..., None] for kind, values in context.items()}
    for kind in signal:
        context.setdefault(kind, np.zeros((n, signal[kind].shape[1], 1)))
    clipped = [{k: np.clip(v, -CLIP, CLIP).astype(np.float32) for k, v in part.items()} for part in (signal, context)]
    return clipped[0], clipped[1]


def stabilise(count):
    """Counts to a scale on which Poisson noise has a standard deviation of about 1, whatever the mean."""
    return 2 * np.sqrt(np.asarray(count, np.float64) + 0.375)


def balance(first, second):
    """The geometric mean of two residuals of one sign, with that sign; 0 where they differ in it."""
    return np.sign(first) * np.sqrt(np.maximum(first * second, 0))


def _expectations(vocabulary, statistics, values, total) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The targets as their regressors would have them, and the log lines as all else that is counted of their unit.

    Shaped and ordered as the targets are.
    """
    out, lines = {name: np.zeros_like(values[name]) for name in TARGETS}, np.zeros_like(values["logs"])
    fitted = zip(_regressions(vocabulary), statistics.coefficients, statistics.lines_on_all, strict=True)
    for unit, coefficients, on_all in fitted:
        regressors = unit.regressors(values, total)
        targets = [values[name][:, columns] for name, columns in unit.targets.items()]
        ends = np.cumsum([len(columns) for columns in unit.targets.values()])[:-1]
        parts = np.split(regressors @ coefficients, ends, axis=1)
        for (name, columns), part in zip(unit.targets.items(), parts, strict=True):
            out[name][:, columns] = part
        if on_all.shape[1]:
            lines[:, unit.targets["logs"]] = np.concatenate([regressors, *targets], axis=1) @ on_all
    return out, lines


def _shrunk(count, total, top):
    weight = np.sqrt(count / (count + SHRINK))
    mean = total / np.maximum(count, 1) * weight
    if top is None:
        return mean, None
    return mean, np.where(top > NO_CALL, top, 0) * weight
