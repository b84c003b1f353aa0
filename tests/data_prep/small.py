"""Telemetry tables and observations small enough to be worked out by hand."""

from types import SimpleNamespace

import polars as pl

from data_prep import observations, tables, vocabulary

T0 = 1_700_000_000_000_000_000  # a whole second
SECOND, MS = 1_000_000_000, 1_000_000


def span(trace, number, parent, service, name, start_ms, end_ms, **more):
    """A row of `spans`; times in milliseconds after T0."""
    row = {
        "trace_id": trace, "span_id": str(number), "parent_span_id": parent and str(parent), "service_name": service,
        "service_instance_id": f"{service}-1", "span_name": name, "start_time_unix_nano": T0 + int(start_ms * MS),
        "end_time_unix_nano": T0 + int(end_ms * MS), "status_code": "OK", "kind": None, "peer_service_name": None,
    }  # fmt: skip
    return row | more


def log(second, service, body, severity="INFO"):
    return {
        "time_unix_nano": T0 + int(second * SECOND), "service_name": service, "service_instance_id": f"{service}-1",
        "severity_text": severity, "body": body,
    }  # fmt: skip


def metric(second, service, name, value, instance=None, is_counter=None):
    return {
        "time_unix_nano": T0 + int(second * SECOND), "service_name": service,
        "service_instance_id": instance or f"{service}-1", "metric_name": name, "value": float(value),
        "is_counter": is_counter,
    }  # fmt: skip


def event(second, service, name):
    return {
        "time_unix_nano": T0 + int(second * SECOND), "service_name": service, "service_instance_id": f"{service}-1",
        "event_name": name, "body": None,
    }  # fmt: skip


def frame(name, rows):
    """A checked table."""
    return tables.validate(pl.DataFrame(rows, schema=tables.SCHEMAS[name].columns), name, name)[0]


def observe(node_level="service", patterns=(".*",), baseline=0.0, **rows):
    frames = {name: frame(name, values) for name, values in rows.items()}
    return observations.observe(frames, node_level, patterns, baseline)


def fit_vocabulary(obs, templates=None, topology=None, **changed):
    """The vocabulary of all of `obs`, whose log lines get the numbers that `templates` (body -> number) says."""
    numbers = templates or {}
    logs = obs["logs"].with_columns(
        template=pl.col("body").replace_strict(numbers, default=-1, return_dtype=pl.Int32)
    )  # fmt: skip
    obs = obs | {"logs": logs}
    config = SimpleNamespace(
        **{"metric_units": "all", "min_template_count": 1, "max_templates_per_service": 40, **changed}
    )
    stats = vocabulary.merge([vocabulary.count({k: v for k, v in obs.items() if k != "units"})])
    return obs, vocabulary.build(stats, obs["units"], topology, config)
