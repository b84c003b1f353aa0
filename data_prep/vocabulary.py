"""Which nodes a system has: units, operations, templates, metrics, dependencies and events seen in fit time.

An operation or template that is seen later and is not in the vocabulary counts on the unit's `<other>` slot, one of a
new unit on the unit `<unknown>`; dependencies, metrics and event names that fit time does not have are left out.
Built from counts that add up over shards of time (`count`, `merge`), so shards can be counted anywhere.
"""

import dataclasses

import numpy as np
import polars as pl

from data_prep.observations import NAME, OP, TIME

UNKNOWN, OTHER = "<unknown>", "<other>"
MAX_OPERATIONS = 11  # of a unit have a channel of their own; the rest share the twelfth
KEYS = {
    "spans": [NAME, OP, "client"], "durations": ["callee", OP], "gaps": ["caller", "callee"],
    "logs": [NAME, "template"], "metrics": [NAME, "metric"], "events": [NAME, "event"],
}  # fmt: skip
FLOOR_NS = 1e5  # latencies below 0.1 ms are noise of the clock: log(ns + floor)
LATENCY_FLOOR = 0.25  # least standard deviation of a log latency: 28% up or down
METRIC_FLOOR = 1e-6  # least standard deviation of a metric, in its own unit
METRIC_ROUNDING = 1e-7  # and as a share of its mean: a variance from sums in float64 is known to some (1e-8 mean)^2
PRIOR_CALLS = 10
FIXED = 10_000  # log latencies are summed as integers of 1e-4: exact, so the order of rows cannot matter


def log_latency(column: str) -> pl.Expr:
    return (pl.col(column) + FLOOR_NS).log()


def count(obs: dict[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
    """Partial statistics of one shard: counts, and sums of log latencies and of metric values with their squares."""

    def moments(frame, key, column):
        value = (log_latency(column) * FIXED).round().cast(pl.Int64)
        return frame.group_by(KEYS[key]).agg(
            pl.len().alias("n"), value.sum().alias("sum"), (value * value).sum().alias("square")
        )

    calls = obs["calls"]
    return {
        "spans": moments(obs["spans"], "spans", "self_ns"),
        "durations": moments(calls, "durations", "duration_ns"),
        "gaps": moments(calls, "gaps", "gap_ns").join(
            calls.group_by(KEYS["gaps"]).agg(pl.col("gap_ns").count().alias("num_gaps")), on=KEYS["gaps"]
        ),
        "logs": obs["logs"].group_by(KEYS["logs"]).agg(pl.len().alias("n")),
        "metrics": _metric_sums(obs["metrics"]),
        "events": obs["events"].group_by(KEYS["events"]).agg(pl.len().alias("n")),
    }


def _metric_sums(metrics: pl.DataFrame) -> pl.DataFrame:
    """Sums of values and squares. Values have any unit, so they are floats, added in the order of time."""
    metrics = metrics.sort(NAME, "metric", TIME)
    groups = metrics.group_by(KEYS["metrics"], maintain_order=True).agg(pl.len().alias("n"))
    value = metrics["value"].to_numpy()
    code = np.repeat(np.arange(groups.height), groups["n"].to_numpy())
    sums = [np.bincount(code, weights, groups.height) for weights in (value, value**2)]
    return groups.with_columns(sum=pl.Series(sums[0], dtype=pl.Float64), square=pl.Series(sums[1], dtype=pl.Float64))


def merge(parts: list[dict[str, pl.DataFrame]]) -> dict[str, pl.DataFrame]:
    """The statistics of all shards together. Sums are taken in the shards' order: same bits for any worker count."""
    out = {}
    for name, keys in KEYS.items():
        frame = pl.concat([part[name] for part in parts])
        out[name] = frame.group_by(keys, maintain_order=True).agg(pl.exclude(keys).sum()).sort(keys)
    return out


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Names in fixed order; positions are the columns of the per-tick arrays."""

    units: list[str]  # U; the last is `<unknown>`
    service_of_unit: list[str]
    operations: list[list[str]]  # of each unit, at most MAX_OPERATIONS
    logs: list[tuple[int, int]]  # L (unit, template number; -1 is `<other>`)
    metrics: list[tuple[int, str]]  # M
    dependencies: list[tuple[int, int]]  # D (caller, callee)
    events: list[tuple[int, str]]  # V
    self_time: pl.DataFrame  # unit, operation, mean, std of log self time
    duration: pl.DataFrame  # callee, operation, mean, std of log duration
    gap: pl.DataFrame  # caller, callee, mean, std of log gap, num_gaps
    metric_scale: np.ndarray  # [M, 2] mean, std
    metric_readings: np.ndarray  # [M] how many readings the scale was fitted on
    traced: list[bool]  # units with spans of their own
    deployed: list[list[int]]  # of each unit: the units that run on it


def build(stats, units: pl.DataFrame, topology: pl.DataFrame | None, config) -> Vocabulary:
    """The vocabulary from merged statistics.

    Args:
        stats: `merge`d counts of fit time.
        units: every unit with its service name.
        topology: tells which units run on which (hosts are units if they have metrics).
        config: `config.data`.
    """
    spoken = pl.concat([stats["spans"][NAME], stats["logs"][NAME], stats["gaps"]["caller"], stats["gaps"]["callee"]])
    metrics = stats["metrics"]
    if config.metric_units == "traced":
        metrics = metrics.filter(pl.col(NAME).is_in(spoken.unique().implode()))
    names = sorted({*spoken.to_list(), *metrics[NAME].to_list(), *stats["events"][NAME].to_list()} - {UNKNOWN})
    service = dict(units.iter_rows())
    names.append(UNKNOWN)
    index = {name: i for i, name in enumerate(names)}

    deployed = [[] for _ in names]
    if topology is not None:
        runs_on = topology.filter(pl.col("relation") == "runs_on").select("source", "target")
        for a, b in sorted(set(runs_on.iter_rows())):
            if a in index and b in index and a != b:
                deployed[index[b]].append(index[a])
    own = stats["spans"].filter(~pl.col("client")).sort(NAME, OP)
    ranked = own.sort(["n", OP], descending=[True, False]).group_by(NAME, maintain_order=True)
    operations = dict(ranked.agg(pl.col(OP).head(MAX_OPERATIONS)).iter_rows())
    logs = stats["logs"].filter((pl.col("n") >= config.min_template_count) & (pl.col("template") >= 0))
    logs = logs.sort(["n", "template"], descending=[True, False]).group_by(NAME, maintain_order=True)
    kept = dict(logs.agg(pl.col("template").head(config.max_templates_per_service)).iter_rows())
    speakers = {*stats["logs"][NAME].to_list(), UNKNOWN}
    log_nodes = []
    for name in names:
        log_nodes += [(index[name], t) for t in sorted(kept.get(name, []))]
        log_nodes += [(index[name], -1)] if name in speakers else []
    gaps = stats["gaps"]
    gap_moments = gaps.with_columns(n=pl.col("num_gaps"))
    metric_moments = _mean_std(metrics, floor=METRIC_FLOOR, unit=1)
    mean, std = metric_moments["mean"].to_numpy(), metric_moments["std"].to_numpy()
    std = np.maximum(std, METRIC_ROUNDING * np.abs(mean))
    return Vocabulary(
        units=names,
        service_of_unit=[service.get(n, n) for n in names],
        operations=[operations.get(n, []) for n in names],
        logs=log_nodes,
        metrics=[(index[u], m) for u, m in metrics.select(NAME, "metric").iter_rows()],
        dependencies=[(index[a], index[b]) for a, b in gaps.select("caller", "callee").iter_rows()],
        events=[(index[u], e) for u, e in stats["events"].select(NAME, "event").iter_rows()],
        self_time=_usual_latency(own.drop("client")),
        duration=_usual_latency(stats["durations"]),
        gap=_usual_latency(gap_moments),
        metric_scale=np.stack([mean, std], 1).reshape(-1, 2),
        metric_readings=metrics["n"].to_numpy(),
        deployed=deployed,
        traced=[n in operations for n in names],
    )


def with_latencies_of(v: Vocabulary, stats) -> Vocabulary:
    """The same nodes with usual latencies from the `merge`d counts of a part of fit time.

    What that part has no latency of has none: it is passed over, as an operation is that fit time has never seen.
    """
    own = stats["spans"].filter(~pl.col("client")).drop("client")
    gaps = stats["gaps"].with_columns(n=pl.col("num_gaps"))
    return dataclasses.replace(
        v,
        self_time=_usual_latency(own),
        duration=_usual_latency(stats["durations"]),
        gap=_usual_latency(gaps),
    )


def _usual_latency(frame: pl.DataFrame) -> pl.DataFrame:
    """Mean and predictive std of each group's log latencies.

    What the next call of a group is like is the less certain the fewer have been seen: the variance is drawn towards
    that of all groups, as if PRIOR_CALLS more calls had it, and the mean's own error is added. Nothing is usual for a
    group without a latency (calls whose client spans are missing have no gap).
    """
    usual = _mean_std(frame, floor=0.0)
    n = pl.max_horizontal(pl.col("n"), 1)
    pooled = (pl.col("n") * pl.col("std").pow(2)).sum() / pl.max_horizontal(pl.col("n").sum(), 1)
    variance = (n * pl.col("std").pow(2) + PRIOR_CALLS * pooled) / (n + PRIOR_CALLS) * (1 + 1 / n)
    mean = pl.when(pl.col("n") > 0).then("mean")
    return usual.with_columns(mean=mean, std=variance.sqrt().clip(LATENCY_FLOOR))


def _mean_std(frame: pl.DataFrame, floor: float, unit: int = FIXED) -> pl.DataFrame:
    """Mean and std from n, sum and square."""
    n = pl.max_horizontal(pl.col("n"), 1)
    mean = pl.col("sum") / n / unit
    std = (pl.col("square") / n / unit**2 - mean.pow(2)).clip(0).sqrt().clip(floor)
    return frame.with_columns(mean=mean, std=std).drop("sum", "square")


def within(obs: dict[str, pl.DataFrame], start: int, end: int) -> dict[str, pl.DataFrame]:
    """The observations of [start, end)."""
    keep = (pl.col(TIME) >= start) & (pl.col(TIME) < end)
    return {name: frame.filter(keep) for name, frame in obs.items() if name != "units"}
