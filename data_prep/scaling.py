"""Window aggregates -> scaled signals and closed-form expectations, by statistics fitted on fit windows.

Counts are in Pearson units, (n - mu) / sqrt(mu + 1), latencies are means and maxima of deviations shrunk by
sqrt(n / (n + 3)). The expectation of a template's count (and of a caller's calls) is a ridge regression on the operation
counts of the same unit: a log line that should have appeared and did not is the trace an exception leaves.
"""

import dataclasses

import numpy as np

from data_prep.signals import NO_CALL
from data_prep.vocabulary import MAX_OPERATIONS, Vocabulary

COUNTS = ("ops", "errors", "alerts", "logs", "calls", "call_errors", "events")
SHRINK = 3.0  # calls: a mean of n latencies counts sqrt(n / (n + 3))
CLIP = 20.0  # of every signal
CHANNELS = {
    "service": ["errors", "alerts", "self time, mean", "self time, maximum"]
    + [f"operation {i + 1}" for i in range(MAX_OPERATIONS)] + ["other operations"],
    "log": ["count"],
    "metric": ["level", "rise"],
    "dependency": ["calls", "errors", "net latency, maximum", "net latency, mean", "duration, mean"],
    "event": ["count"],
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Moments:
    """Sums over fit windows; integers in float64, so adding shards in any order gives the same bits."""

    windows: int
    sums: dict[str, np.ndarray]
    grams: list[np.ndarray]  # of each unit: products of its regressors and targets, `unit_columns`

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
    coefficients: list[np.ndarray]  # of each unit [operations, targets], in Pearson units


def unit_columns(vocabulary: Vocabulary) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each unit: its log nodes and the dependencies it calls; both are regressed on its operation counts."""
    logs = np.array([u for u, _ in vocabulary.logs] or [-1])
    callers = np.array([a for a, _ in vocabulary.dependencies] or [-1])
    return [(np.flatnonzero(logs == u), np.flatnonzero(callers == u)) for u in range(len(vocabulary.units))]


def moments(windows: dict[str, np.ndarray], vocabulary: Vocabulary) -> Moments:
    """Partial statistics of one shard's fit windows (from `signals.aggregate`)."""
    grams = []
    for u, (logs, calls) in enumerate(unit_columns(vocabulary)):
        columns = [windows["ops"][:, u], windows["logs"][:, logs], windows["calls"][:, calls]]
        rows = np.concatenate(columns, axis=1).astype(np.float64)
        grams.append(rows.T @ rows)
    sums = {name: windows[name].sum(0, dtype=np.float64) for name in COUNTS}
    return Moments(len(windows["ops"]), sums, grams)


def fit(total: Moments, vocabulary: Vocabulary, ridge: float) -> Statistics:
    """Means and ridge coefficients; `ridge` is the penalty in units of windows of unit variance."""
    n = max(total.windows, 1)
    mean = {name: value / n for name, value in total.sums.items()}
    coefficients = []
    width = MAX_OPERATIONS + 1
    for u, (logs, calls) in enumerate(unit_columns(vocabulary)):
        mu = np.concatenate([mean["ops"][u], mean["logs"][logs], mean["calls"][calls]])
        scale = np.sqrt(mu + 1)
        covariance = (total.grams[u] / n - np.outer(mu, mu)) / np.outer(scale, scale)
        penalised = covariance[:width, :width] + ridge / n * np.eye(width)
        coefficients.append(np.linalg.solve(penalised, covariance[:width, width:]))
    return Statistics(mean, coefficients)


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
    expected_logs, expected_calls = np.zeros_like(pearson["logs"]), np.zeros_like(pearson["calls"])
    for u, (logs, calls) in enumerate(unit_columns(vocabulary)):
        expected = pearson["ops"][:, u] @ statistics.coefficients[u]
        expected_logs[:, logs], expected_calls[:, calls] = np.split(expected, [len(logs)], axis=1)
    latency = {
        "self": _shrunk(windows["self_n"], windows["self_sum"], windows["self_max"]),
        "gap": _shrunk(windows["gap_n"], windows["gap_sum"], windows["gap_max"]),
        "dur": _shrunk(windows["dur_n"], windows["dur_sum"], None),
    }
    service = [pearson["errors"], pearson["alerts"], *latency["self"], *np.moveaxis(pearson["ops"], 2, 0)]
    dependency = [pearson["calls"], pearson["call_errors"], latency["gap"][1], latency["gap"][0], latency["dur"][0]]
    signal = {
        "service": np.stack(service, -1),
        "log": pearson["logs"][..., None],
        "metric": np.stack([windows["metric_level"], windows["metric_rise"]], -1),
        "dependency": np.stack(dependency, -1),
        "event": pearson["events"][..., None],
    }
    context = {"log": expected_logs[..., None], "dependency": expected_calls[..., None]}
    for kind in signal:
        context.setdefault(kind, np.zeros((n, signal[kind].shape[1], 1)))
    clipped = [{k: np.clip(v, -CLIP, CLIP).astype(np.float32) for k, v in part.items()} for part in (signal, context)]
    return clipped[0], clipped[1]


def _shrunk(count, total, top):
    weight = np.sqrt(count / (count + SHRINK))
    mean = total / np.maximum(count, 1) * weight
    if top is None:
        return mean, None
    return mean, np.where(top > NO_CALL, top, 0) * weight
