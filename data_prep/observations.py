"""Telemetry tables -> flat observations: one row an occurrence, with the unit (a service or an instance) it belongs to.

Calls are found here (a child span whose unit differs from its parent's, or a client span that names its peer), self
times (a span's duration less its children's) and rates of counters. Nothing is fitted and nothing is binned.
"""

import polars as pl

from data_prep import templates

NAME, OP, TIME = "unit", "operation", "time"


def observe(
    frames: dict[str, pl.DataFrame], node_level: str, metric_patterns, baseline_minutes: float
) -> dict[str, pl.DataFrame]:
    """Observation frames from canonical telemetry tables; a modality that is absent gives an empty frame.

    Args:
        frames: telemetry tables by name.
        node_level: `service` (a unit is a service) or `instance`.
        metric_patterns: regular expressions; a metric is used if one matches its whole name.
        baseline_minutes: a metric's value is its difference from its own median over so many minutes before; 0: the
            value itself.

    Returns:
        spans: time, unit, operation, client (bool), error (bool), self_ns, duration_ns, trace_id, span_id,
            parent_span_id (null at the root)
        calls: time, caller, callee, operation, error, gap_ns (null where the client side is unknown), duration_ns,
            trace_id
        logs: time, unit, masked, alert (bool), and the raw service_name and body
        metrics: time, unit, metric, value
        events: time, unit, event
        units: unit, service_name (every unit seen anywhere)
    """
    out = {name: pl.DataFrame(schema=schema) for name, schema in SCHEMAS.items()}
    seen = []
    for name in ("spans", "logs", "metrics", "events"):
        if name in frames:
            out |= observe_table(name, frames[name], node_level, metric_patterns, baseline_minutes)
            seen.append(units(name, frames[name], out, node_level))
    out["units"] = one_of_a_name(seen)
    return out


def observe_table(
    name: str, frame: pl.DataFrame, node_level: str, metric_patterns, baseline_minutes: float
) -> dict[str, pl.DataFrame]:
    """The observations of one table (of `spans` also the calls), as `observe` has them.

    A frame may be a part of the table: whole traces of `spans`, whole series (unit and metric) of `metrics`.
    """
    name_of_unit = unit(node_level)
    if name == "spans":
        return dict(zip(("spans", "calls"), _spans(frame, name_of_unit), strict=True))
    if name == "metrics":
        return {name: _metrics(frame, name_of_unit, metric_patterns, baseline_minutes)}
    return {name: {"logs": _logs, "events": _events}[name](frame, name_of_unit)}


def units(name: str, frame: pl.DataFrame, observed: dict[str, pl.DataFrame], node_level: str) -> pl.DataFrame:
    """The distinct (unit, service_name) of a table and, as their own service, of the peers its spans name."""
    own = frame.select(unit(node_level), "service_name")
    if name == "spans":
        callee = pl.col("callee")
        own = pl.concat([own, observed["calls"].select(callee.alias(NAME), callee.alias("service_name"))])
    return own.unique()


def one_of_a_name(units: list[pl.DataFrame]) -> pl.DataFrame:
    """Each unit once, with the first of its services, in order of names."""
    schema = {NAME: pl.String, "service_name": pl.String}
    every = pl.concat([pl.DataFrame(schema=schema), *units]).unique().sort(NAME, "service_name")
    return every.unique(NAME, keep="first").sort(NAME)


def unit(node_level: str) -> pl.Expr:
    """The unit that a row of a telemetry table belongs to."""
    return pl.col("service_name" if node_level == "service" else "service_instance_id").alias(NAME)


def _spans(frame, unit):
    spans = frame.select(
        "trace_id", "span_id", "parent_span_id", "kind", "peer_service_name", unit,
        pl.col("span_name").alias(OP), pl.col("start_time_unix_nano").alias(TIME),
        (pl.col("end_time_unix_nano") - pl.col("start_time_unix_nano")).alias("duration_ns"),
        (pl.col("status_code") == "ERROR").alias("error"),
    )  # fmt: skip
    children = spans.group_by("trace_id", pl.col("parent_span_id").alias("span_id")).agg(
        pl.col("duration_ns").sum().alias("children_ns"), pl.len().alias("num_children")
    )
    spans = spans.join(children, on=["trace_id", "span_id"], how="left").with_columns(
        # Children that run in parallel can last longer than their parent together.
        self_ns=(pl.col("duration_ns") - pl.col("children_ns").fill_null(0)).clip(0),
    )
    parents = spans.select(
        "trace_id", pl.col("span_id").alias("parent_span_id"), pl.col(NAME).alias("caller"),
        pl.col("duration_ns").alias("client_ns"), pl.col("error").alias("client_error"),
        ((pl.col("kind") == "CLIENT") & (pl.col("num_children") == 1)).fill_null(False).alias("is_client"),
    )  # fmt: skip
    served = (
        spans.join(parents, on=["trace_id", "parent_span_id"])
        .filter(pl.col("caller") != pl.col(NAME))
        .select(
            TIME, "caller", pl.col(NAME).alias("callee"), OP, error=pl.col("error") | pl.col("client_error"),
            gap_ns=pl.when("is_client").then((pl.col("client_ns") - pl.col("duration_ns")).clip(0)),
            duration_ns="duration_ns", trace_id="trace_id",
        )
    )  # fmt: skip
    peers = spans.filter(pl.col("peer_service_name").is_not_null() & (pl.col("num_children").fill_null(0) == 0)).select(
        TIME, pl.col(NAME).alias("caller"), pl.col("peer_service_name").alias("callee"), OP, "error",
        gap_ns=pl.lit(None, pl.Int64), duration_ns="duration_ns", trace_id="trace_id",
    )  # fmt: skip
    client = (pl.col("kind") == "CLIENT").fill_null(False)
    spans = spans.select(
        TIME, NAME, OP, client.alias("client"), "error", "self_ns", "duration_ns", "trace_id", "span_id",
        "parent_span_id",
    )  # fmt: skip
    calls = pl.concat([served, peers])
    return spans.sort(spans.columns), calls.sort(calls.columns)


def _logs(frame, unit):
    severity = pl.col("severity_text").fill_null("").str.to_uppercase()
    return frame.lazy().select(
        pl.col("time_unix_nano").alias(TIME), unit, templates.mask(pl.col("body")).alias("masked"),
        severity.str.contains("^(WARN|ERR|CRIT|FATAL|SEVERE|ALERT|EMERG|PANIC)").alias("alert"), "service_name", "body",
    ).collect()  # fmt: skip


def _metrics(frame, unit, patterns, baseline_minutes):
    chosen = "^(?:" + "|".join(f"(?:{p})" for p in patterns) + ")$"
    frame = frame.filter(pl.col("metric_name").str.contains(chosen) & pl.col("value").is_finite()).select(
        pl.col("time_unix_nano").alias(TIME), unit, pl.col("metric_name").alias("metric"), "value",
        pl.col("service_instance_id").alias("instance"), pl.col("is_counter").fill_null(False).alias("counter"),
        "attributes",
    )  # fmt: skip
    gauges = frame.filter(~pl.col("counter")).drop("counter")
    frame = _summed(pl.concat([_rates(frame.filter("counter")).select(gauges.columns), gauges]))
    # Several instances or readings of one unit at one time: their mean.
    frame = frame.sort(TIME, NAME, "metric", "value")
    frame = frame.group_by(TIME, NAME, "metric", maintain_order=True).agg(pl.col("value").mean())
    frame = frame.sort(NAME, "metric", TIME)
    if baseline_minutes:
        # Levels drift over hours and differ between days; what tells is a change against the recent past. Only
        # earlier readings count, and fewer than three of them say nothing.
        window = f"{int(baseline_minutes * 60)}s"
        baseline = pl.col("value").rolling_median_by("clock", window, min_samples=3, closed="left").over(NAME, "metric")
        clock = pl.from_epoch(TIME, "ns").alias("clock")
        frame = frame.with_columns(clock).with_columns(pl.col("value") - baseline).drop_nulls("value").drop("clock")
    return frame.sort(ORDER["metrics"])


def _rates(counters: pl.DataFrame) -> pl.DataFrame:
    """What each series of an instance's counters gained a second since its reading before."""
    keys = [NAME, "instance", "metric", "attributes"]
    counters = counters.group_by(*keys, TIME).agg(pl.col("value").max()).sort(*keys, TIME)
    step = pl.col("value").diff().over(keys)
    seconds = pl.col(TIME).diff().over(keys) / 1e9
    # A counter that falls has been reset: it counts from zero again.
    rate = pl.when(step < 0).then(pl.col("value")).otherwise(step) / seconds
    return counters.with_columns(value=rate).drop_nulls("value")


def _summed(frame: pl.DataFrame) -> pl.DataFrame:
    """`frame` with one row in the place of those of one instance and time that only attributes tell apart: their sum.

    Rates, not counters, are added up: a counter of several that is reset would take the others' gain for its own.
    """
    key = [TIME, NAME, "instance", "metric"]
    apart = frame.filter(pl.col("attributes").is_not_null()).sort(*key, "attributes", "value")
    each = apart.group_by(*key, "attributes", maintain_order=True).agg(pl.col("value").mean())
    sums = each.group_by(key, maintain_order=True).agg(pl.col("value").sum())
    columns = [TIME, NAME, "metric", "value"]
    return pl.concat([frame.filter(pl.col("attributes").is_null()).select(columns), sums.select(columns)])


def _events(frame, unit):
    return frame.select(pl.col("time_unix_nano").alias(TIME), unit, pl.col("event_name").alias("event"))


# Columns that the rows of a table are in order of; of a table that is not named, all columns: joins keep no order, and
# sums of floats must not depend on it.
ORDER = {"metrics": [TIME, NAME, "metric"]}
SCHEMAS = {
    "spans": {TIME: pl.Int64, NAME: pl.String, OP: pl.String, "client": pl.Boolean, "error": pl.Boolean,
              "self_ns": pl.Int64, "duration_ns": pl.Int64, "trace_id": pl.String, "span_id": pl.String,
              "parent_span_id": pl.String},
    "calls": {TIME: pl.Int64, "caller": pl.String, "callee": pl.String, OP: pl.String, "error": pl.Boolean,
              "gap_ns": pl.Int64, "duration_ns": pl.Int64, "trace_id": pl.String},
    "logs": {TIME: pl.Int64, NAME: pl.String, "masked": pl.String, "alert": pl.Boolean, "service_name": pl.String,
             "body": pl.String},
    "metrics": {TIME: pl.Int64, NAME: pl.String, "metric": pl.String, "value": pl.Float64},
    "events": {TIME: pl.Int64, NAME: pl.String, "event": pl.String},
}  # fmt: skip
