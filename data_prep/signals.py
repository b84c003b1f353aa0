"""Observations -> raw per-tick arrays of named nodes -> sums and maxima over windows.

All arrays have the tick first. A latency is kept as its deviation from what is normal for its operation, in standard
deviations of the log; `n` counts the calls behind a sum, so that windows with few calls can be trusted less.
"""

import numpy as np
import polars as pl

from data_prep.observations import NAME, OP, TIME
from data_prep.vocabulary import MAX_OPERATIONS, Vocabulary, log_latency

NS = 1_000_000_000
SUMS = ("ops", "errors", "alerts", "self_n", "self_sum", "logs", "calls", "call_errors", "gap_n", "gap_sum", "dur_n",
        "dur_sum", "events")  # fmt: skip
MAXIMA = ("self_max", "gap_max")
NO_CALL = -50.0  # below any deviation: the maximum of nothing
LAGS = 2  # windows before a window whose operations may explain its metrics
FARTHEST = 1e30  # standard deviations of a reading: float32 still holds the sum of a window of them
METRIC_MAX_AGE_SECONDS = 180.0  # an older reading says nothing about now


def per_tick(obs: dict[str, pl.DataFrame], vocabulary: Vocabulary, start: int, num_ticks: int, tick_ns: int):
    """Raw arrays of one segment.

    Args:
        obs: observations of the segment; `logs` with a `template` column. `metrics` may begin earlier: readings are
            carried forward from the past, never back from the future and never interpolated.
        start: the segment's first nanosecond; num_ticks (T), tick_ns: its ticks.

    Returns: dict of float32 arrays, see SUMS, MAXIMA; plus `metrics` [T, M] (NaN where no recent reading) in fitted
        units of scale.
    """
    v = vocabulary
    shape = _Scatter(start, num_ticks, tick_ns)
    num_units, unknown = len(v.units), len(v.units) - 1
    unit_index = pl.DataFrame({NAME: v.units, "u": np.arange(num_units)})

    def units(frame, name=NAME, to="u"):
        frame = frame.join(unit_index.rename({NAME: name, "u": to}), on=name, how="left", maintain_order="left")
        return frame.with_columns(pl.col(to).fill_null(unknown))

    spans = units(obs["spans"]).join(v.self_time.drop("n"), on=[NAME, OP], how="left", maintain_order="left")
    slots = [(u, op, i) for u, ops in enumerate(v.operations) for i, op in enumerate(ops)]
    slots = pl.DataFrame(slots, schema={"u": pl.Int64, OP: pl.String, "slot": pl.Int64}, orient="row")
    served = spans.filter(~pl.col("client")).join(slots, on=["u", OP], how="left", maintain_order="left")
    width = MAX_OPERATIONS + 1
    column = (served["u"] * width + served["slot"].fill_null(MAX_OPERATIONS)).to_numpy()
    out = {"ops": shape.sum(served, column, num_units * width).reshape(num_ticks, num_units, width)}
    out["errors"] = shape.sum(spans.filter("error"), None, num_units)
    known = spans.filter(~pl.col("client")).with_columns(dev=_deviation("self_ns")).drop_nulls("dev")
    out |= shape.latency(known, "self", known["u"].to_numpy(), num_units)

    logs = units(obs["logs"])
    out["alerts"] = shape.sum(logs.filter("alert"), None, num_units)
    nodes = pl.DataFrame(
        [(u, t, i) for i, (u, t) in enumerate(v.logs)],
        schema={"u": pl.Int64, "template": pl.Int32, "node": pl.Int64}, orient="row",
    )  # fmt: skip
    other = nodes.filter(pl.col("template") < 0).select("u", pl.col("node").alias("other"))
    logs = logs.join(nodes, on=["u", "template"], how="left", maintain_order="left")
    logs = logs.join(other, on="u", how="left", maintain_order="left")
    # A known unit that never spoke in fit time has no `<other>` of its own: `<unknown>` has the last.
    logs = logs.with_columns(node=pl.coalesce("node", "other").fill_null(len(v.logs) - 1))
    out["logs"] = shape.sum(logs, logs["node"].to_numpy(), len(v.logs))

    calls = units(units(obs["calls"], "caller", "a"), "callee", "b")
    dependencies = pl.DataFrame(
        [(a, b, i) for i, (a, b) in enumerate(v.dependencies)],
        schema={"a": pl.Int64, "b": pl.Int64, "d": pl.Int64}, orient="row",
    )  # fmt: skip
    calls = calls.join(dependencies, on=["a", "b"], maintain_order="left")
    num_calls = len(v.dependencies)
    out["calls"] = shape.sum(calls, calls["d"].to_numpy(), num_calls)
    failed = calls.filter("error")
    out["call_errors"] = shape.sum(failed, failed["d"].to_numpy(), num_calls)
    usual = v.gap.select("caller", "callee", "mean", "std")
    gap = calls.join(usual, on=["caller", "callee"], how="left", maintain_order="left")
    gap = gap.with_columns(dev=_deviation("gap_ns")).drop_nulls("dev")
    out |= shape.latency(gap, "gap", gap["d"].to_numpy(), num_calls)
    usual = v.duration.select("callee", OP, "mean", "std")
    took = calls.join(usual, on=["callee", OP], how="left", maintain_order="left")
    took = took.with_columns(dev=_deviation("duration_ns")).drop_nulls("dev")
    out |= shape.latency(took, "dur", took["d"].to_numpy(), num_calls)

    events = pl.DataFrame([(v.units[u], e, i) for i, (u, e) in enumerate(v.events)],
                          schema={NAME: pl.String, "event": pl.String, "node": pl.Int64}, orient="row")  # fmt: skip
    events = obs["events"].join(events, on=[NAME, "event"], maintain_order="left")
    out["events"] = shape.sum(events, events["node"].to_numpy(), len(v.events))
    out["metrics"] = _carried_forward(obs["metrics"], v, start, num_ticks, tick_ns)
    out.pop("dur_max")
    return out


def _deviation(column: str) -> pl.Expr:
    """Deviation of a log latency from its operation's mean, in its standard deviations, clipped to +-20."""
    return ((log_latency(column) - pl.col("mean")) / pl.col("std")).clip(-20, 20)


class _Scatter:
    """Adds rows into [ticks, columns] arrays."""

    def __init__(self, start, num_ticks, tick_ns):
        self.start, self.num_ticks, self.tick_ns = start, num_ticks, tick_ns

    def _cells(self, frame, column, width):
        tick = (frame[TIME].to_numpy() - self.start) // self.tick_ns
        inside = (tick >= 0) & (tick < self.num_ticks)
        return (tick * width + column)[inside], inside

    def sum(self, frame, column, width, weights=None):
        column = frame["u"].to_numpy() if column is None else column
        cells, inside = self._cells(frame, column, width)
        weights = None if weights is None else weights[inside]
        total = np.bincount(cells, weights, minlength=self.num_ticks * width)
        return total.reshape(self.num_ticks, width).astype(np.float32)

    def latency(self, frame, name, column, width):
        """Count, sum and maximum of the deviations `dev`."""
        dev = frame["dev"].to_numpy()
        cells, inside = self._cells(frame, column, width)
        top = np.full(self.num_ticks * width, NO_CALL, np.float32)
        np.maximum.at(top, cells, dev[inside].astype(np.float32))
        return {
            f"{name}_n": self.sum(frame, column, width),
            f"{name}_sum": self.sum(frame, column, width, dev),
            f"{name}_max": top.reshape(self.num_ticks, width),
        }


def _carried_forward(metrics: pl.DataFrame, v: Vocabulary, start, num_ticks, tick_ns):
    """[T, M] the last reading at each tick's end, in standard deviations from the mean; NaN where it is too old."""
    out = np.full((num_ticks, len(v.metrics)), np.nan, np.float32)
    ends = start + np.arange(1, num_ticks + 1, dtype=np.int64) * tick_ns
    groups = metrics.partition_by(NAME, "metric", as_dict=True)
    for m, (unit, name) in enumerate(v.metrics):
        readings = groups.get((v.units[unit], name))
        if readings is None:
            continue
        time, value = readings[TIME].to_numpy(), readings["value"].to_numpy()
        last = np.searchsorted(time, ends, side="left") - 1
        fresh = (last >= 0) & (ends - time[np.maximum(last, 0)] <= METRIC_MAX_AGE_SECONDS * NS)
        mean, std = v.metric_scale[m]
        # Beyond float32 a reading would be infinite, which here means that there is none.
        out[fresh, m] = np.clip((value[last[fresh]] - mean) / std, -FARTHEST, FARTHEST)
    return out


def aggregate(ticks: dict[str, np.ndarray], length: int, offsets: np.ndarray) -> dict[str, np.ndarray]:
    """Sums and maxima over windows of `length` ticks that begin at `offsets`; metrics as mean level and rise.

    Returns: the same names with the window first; `ops_before` [n, LAGS, U, operations] (one and two window lengths
        earlier; where the segment does not reach back so far, as one step later); and `metric_level`, `metric_rise`,
        `metric_seen` [n, M].
    """
    out = {}
    for name in SUMS:
        total = np.cumsum(ticks[name], axis=0, dtype=np.float64)
        total = np.concatenate([np.zeros_like(total[:1]), total])
        out[name] = (total[offsets + length] - total[offsets]).astype(np.float32)
        if name == "ops":
            first = [offsets]
            for _ in range(LAGS):
                first.append(np.where(first[-1] >= length, first[-1] - length, first[-1]))
            out["ops_before"] = np.stack([total[o + length] - total[o] for o in first[1:]], 1).astype(np.float32)
    for name in MAXIMA:
        windows = np.lib.stride_tricks.sliding_window_view(ticks[name], length, axis=0)
        out[name] = windows[offsets].max(-1)
    windows = np.lib.stride_tricks.sliding_window_view(ticks["metrics"], length, axis=0)[offsets]
    seen = np.isfinite(windows)
    count = seen.sum(-1)
    out["metric_level"] = np.where(seen, windows, 0).sum(-1) / np.maximum(count, 1)
    out["metric_seen"] = count > 0
    out["metric_rise"] = np.where(seen[..., 0] & seen[..., -1], windows[..., -1] - windows[..., 0], 0)
    return out
