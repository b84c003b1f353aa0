"""Back from scaled signals to what an engineer reads: counts, milliseconds, metric units, log lines, traces.

Everything comes from the prepared dataset: the fitted statistics of its manifest and its `tables/`. Where one is
missing, figures stay scaled and lists stay empty.
"""

from pathlib import Path

import numpy as np
import polars as pl

from data_prep.observations import OP
from data_prep.scaling import CLIP, SHRINK
from data_prep.vocabulary import FLOOR_NS, log_latency
from ssad_jax.prepared import NODE_KINDS, Prepared

SCALED = "normal scales"
MS = 1e6  # nanoseconds
COUNTS = {  # (node kind, channel) -> name of the mean counts that scale it, unit
    ("service", "errors"): ("errors", "failed spans in the window"),
    ("service", "alerts"): ("alerts", "log lines of severity warning or above in the window"),
    ("log", "count"): ("logs", "lines in the window"),
    ("dependency", "calls"): ("calls", "calls in the window"),
    ("dependency", "errors"): ("call_errors", "failed calls in the window"),
    ("event", "count"): ("events", "events in the window"),
}
LATENCIES = {  # channel -> table, column, name of the fitted statistics
    ("service", "self time, mean"): ("spans", "self_ns", "self_time"),
    ("dependency", "net latency, mean"): ("calls", "gap_ns", "gap"),
    ("dependency", "duration, mean"): ("calls", "duration_ns", "duration"),
}


def count(scaled: float, mean: float) -> float:
    """A count from its Pearson units, (n - mean) / sqrt(mean + 1); never below 0."""
    return max(0.0, float(round(scaled * np.sqrt(mean + 1) + mean, 2)))


def line_count(scaled: float, mean: float) -> float:
    """A count of log lines from stabilised units, 2 sqrt(n + 3/8) - 2 sqrt(mean + 3/8); never below 0."""
    root = max(0.0, scaled / 2 + np.sqrt(mean + 0.375))
    return max(0.0, float(round(root**2 - 0.375, 2)))


def latency_ms(scaled: float, calls: int, mean: float, std: float) -> float:
    """Geometric mean latency, ms, from the shrunk mean deviation of `calls` log latencies.

    mean, std: of the log latency (ns, `vocabulary.log_latency`) in normal time.
    """
    deviation = scaled / np.sqrt(calls / (calls + SHRINK))
    return max(float(np.exp(mean + std * deviation) - FLOOR_NS), 0.0) / MS


class Tables:
    """The tables beside the prepared windows, each read when it is first asked for."""

    def __init__(self, directory: Path | None):
        self._directory = None if directory is None else Path(directory) / "tables"
        self._frames: dict[str, pl.DataFrame | None] = {}

    def between(self, name: str, start: int, end: int, columns: tuple[str, ...]) -> pl.DataFrame | None:
        """Rows with `time_unix_nano` in [start, end); None without the table or one of the columns."""
        if name not in self._frames:
            path = None if self._directory is None else self._directory / f"{name}.parquet"
            self._frames[name] = pl.read_parquet(path) if path is not None and path.is_file() else None
        frame = self._frames[name]
        if frame is None or not {"time_unix_nano", *columns} <= set(frame.columns):
            return None
        return frame.filter(pl.col("time_unix_nano").is_between(start, end, closed="left"))


class Units:
    """Converts signals of a prepared dataset's nodes to raw units."""

    def __init__(self, prepared: Prepared, tables: Tables):
        self._system, self._tables = prepared.system, tables
        self._fitted = prepared.manifest.get("fitted") or {}
        self._baseline = prepared.manifest.get("data_config", {}).get("metric_baseline_minutes", 0)

    def convert(self, node: int, channel: str, observed: float, expected: float, start: int, end: int):
        """(observed, expected, unit) of one signal in the window [start, end), from its scaled values."""
        kind = NODE_KINDS[self._system.kind[node]]
        same = self._system.node_mask & (self._system.kind == self._system.kind[node])
        number = int(same[:node].sum())  # fitted statistics are in the order of the nodes of a kind
        converted = None
        if (kind, channel) in COUNTS:
            converted = self._count(*COUNTS[kind, channel], number, observed, expected)
        elif (kind, channel) in LATENCIES:
            table, column, statistics = LATENCIES[kind, channel]
            frame = self._tables.between(table, start, end, (column,))
            converted = self._latency(frame, column, statistics, self._system.node_names[node], observed, expected)
        elif kind == "metric":
            converted = self._metric(number, channel, observed, expected)
        if converted and abs(observed) >= CLIP:
            converted = (self._beyond_clip(converted[0], observed > 0, kind, channel, node, start, end), *converted[1:])
        return converted or (observed, expected, SCALED)

    def _beyond_clip(self, converted: float, above: bool, kind, channel, node: int, start: int, end: int) -> float:
        """The observed value from the tables where the scaled one was clipped: signals hold no more than CLIP scales.

        A metric's level is the mean of its readings in the window. What the tables do not tell stays as it is.
        """
        name = self._system.node_names[node]
        caller, _, callee = name.partition(" -> ")
        unit, _, what = name.partition(": ")
        of_unit, of_call = pl.col("unit") == name, (pl.col("caller") == caller) & (pl.col("callee") == callee)
        of_metric = (pl.col("unit") == unit) & (pl.col("metric") == what)
        of_event = (pl.col("unit") == unit) & (pl.col("event") == what)
        places = {
            ("log", "count"): ("logs", ("node",), pl.col("node") == node),
            ("service", "alerts"): ("logs", ("unit", "alert"), of_unit & pl.col("alert")),
            ("service", "errors"): ("spans", ("unit", "error"), of_unit & pl.col("error")),
            ("dependency", "calls"): ("calls", ("caller", "callee"), of_call),
            ("dependency", "errors"): ("calls", ("caller", "callee", "error"), of_call & pl.col("error")),
            ("event", "count"): ("events", ("unit", "event"), of_event),
            ("metric", "level"): ("metrics", ("unit", "metric", "value"), of_metric),
        }
        if (kind, channel) not in places:
            return converted
        table, columns, mine = places[kind, channel]
        rows = self._tables.between(table, start, end, columns)
        rows = None if rows is None else rows.filter(mine)
        if rows is None or not rows.height:
            return converted
        seen = float(rows["value"].mean() if kind == "metric" else rows.height)
        return max(converted, seen) if above else min(converted, seen)

    def _count(self, name, unit, number, observed, expected):
        mean = self._fitted.get("mean_counts", {}).get(name)
        if mean is None or number >= len(mean):
            return None
        convert = line_count if name == "logs" else count
        return convert(observed, mean[number]), convert(expected, mean[number]), unit

    def _metric(self, number, channel, observed, expected):
        scale = self._fitted.get("metric_scale")
        if scale is None or number >= len(scale):
            return None
        mean, std = scale[number]
        if channel == "rise":
            return observed * std, expected * std, "units of the metric, gained in the window"
        since = f" above its median of the {self._baseline:g} minutes before" if self._baseline else ""
        return mean + observed * std, mean + expected * std, f"units of the metric{since}"

    def _latency(self, frame, column, statistics, name, observed, expected):
        usual = self._fitted.get(statistics)
        if frame is None or not usual:
            return None
        usual = pl.DataFrame(usual)
        caller, _, callee = name.partition(" -> ")
        if statistics == "self_time":
            mine, keys = (pl.col("unit") == name) & ~pl.col("client"), ["unit", OP]
        else:
            mine = (pl.col("caller") == caller) & (pl.col("callee") == callee)
            keys = ["caller", "callee"] if statistics == "gap" else ["callee", OP]
        calls = frame.filter(mine & pl.col(column).is_not_null()).join(usual, on=keys)
        if not calls.height:
            return None
        seen = max(float(np.exp(calls.select(log_latency(column).mean()).item()) - FLOOR_NS), 0.0) / MS
        normal = latency_ms(expected, calls.height, calls["mean"].mean(), calls["std"].mean())
        return seen, normal, f"ms (geometric mean of {calls.height} calls)"
