"""Scaled signals back to raw units, by hand and against the way there."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from data_prep.vocabulary import FLOOR_NS
from ssad_jax.scoring.raw import SCALED, Tables, Units, count, latency_ms, line_count
from tests.synthetic import make_prepared

FITTED = {
    "mean_counts": {"logs": [3.0, 8.0, 0.0, 0.0, 0.0, 0.0], "calls": [15.0, 0.0], "call_errors": [0.0, 0.0]},
    "metric_scale": [[0.5, 2.0], [0.0, 1.0], [0.0, 1.0]],
    "gap": [{"caller": "service-0", "callee": "service-1", "mean": float(np.log(1e6 + FLOOR_NS)), "std": 0.5}],
}
CALLS = {
    "time_unix_nano": [100, 110, 120, 130, 999],
    "caller": ["service-0"] * 3 + ["service-1", "service-0"],
    "callee": ["service-1"] * 3 + ["service-2", "service-1"],
    "gap_ns": [4_000_000, 4_000_000, None, 9, 9],
}


@pytest.fixture
def data(tmp_path):
    (tmp_path / "tables").mkdir()
    pl.DataFrame(CALLS).write_parquet(tmp_path / "tables" / "calls.parquet")
    prepared = make_prepared()
    channels = prepared.system.channels | {"dependency": ["calls", "net latency, mean"]}
    system = dataclasses.replace(prepared.system, channels=channels)
    manifest = prepared.manifest | {"fitted": FITTED, "data_config": {"metric_baseline_minutes": 20.0}}
    return dataclasses.replace(prepared, system=system, manifest=manifest, directory=tmp_path)


def convert(data, name, channel, observed, expected):
    units = Units(data, Tables(data.directory))
    return units.convert(data.system.node_names.index(name), channel, observed, expected, 100, 200)


def test_counts_by_hand():
    assert count(0.0, 3.0) == 3.0
    assert count(2.0, 3.0) == 7.0  # (7 - 3) / sqrt(4)
    assert count(-9.0, 3.0) == 0.0 and not np.signbit(count(-1e-9, 0.0))


def test_line_counts_by_hand():
    assert line_count(0.0, 3.0) == 3.0
    assert line_count(2 * np.sqrt(7.375) - 2 * np.sqrt(3.375), 3.0) == 7.0
    assert line_count(2 * np.sqrt(0.375) - 2 * np.sqrt(3.375), 3.0) == 0.0 == line_count(-9.0, 3.0)


def test_log_counts(data):
    # A mean of 8 lines has the root sqrt(8.375); half a unit on it is half of a root of a count.
    roots = [np.sqrt(8.375) + half for half in (0.5, -0.5)]
    lines = tuple(round(r**2 - 0.375, 2) for r in roots)
    assert convert(data, "service-0/template 1", "count", 1.0, -1.0) == (*lines, "lines in the window")
    assert lines == (11.14, 5.36)


def test_calls(data):
    assert convert(data, "service-0 -> service-1", "calls", 0.25, 0.0) == (16.0, 15.0, "calls in the window")


def test_metrics_are_told_against_their_baseline(data):
    observed, expected, unit = convert(data, "service-0/cpu", "level", 3.0, 1.0)
    assert (observed, expected) == (6.5, 2.5) and "above its median of the 20 minutes before" in unit
    observed, expected, unit = convert(data, "service-0/cpu", "rise", 3.0, 0.0)
    assert (observed, expected) == (6.0, 0.0) and "gained" in unit


def test_what_was_clipped_is_looked_up(data):
    names = list(data.system.node_names)
    node = names.index("service-0/template 1")
    tables = {
        "logs": {"time_unix_nano": [150] * 500 + [99] * 9, "node": [node] * 500 + [node] * 9},
        "metrics": {"time_unix_nano": [120, 150, 200], "unit": ["service-0"] * 3, "metric": ["cpu"] * 3,
                    "value": [90.0, 110.0, 1e6]},
    }  # fmt: skip
    for name, columns in tables.items():
        pl.DataFrame(columns).write_parquet(data.directory / "tables" / f"{name}.parquet")
    assert convert(data, "service-0/template 1", "count", 20.0, 0.0)[:2] == (500.0, 8.0)
    assert convert(data, "service-0/template 1", "count", 19.9, 0.0)[0] < 200  # not clipped: as it was scaled
    assert convert(data, "service-0/template 0", "count", 20.0, 0.0)[0] < 200  # nothing of it in the table
    names[names.index("service-0/cpu")] = "service-0: cpu"  # as preparation names metrics
    data = dataclasses.replace(data, system=dataclasses.replace(data.system, node_names=tuple(names)))
    assert convert(data, "service-0: cpu", "level", 20.0, 0.0)[0] == 100.0
    assert convert(data, "service-0: cpu", "level", -20.0, 0.0)[0] == -39.5


def test_latency_is_in_milliseconds(data):
    mean, std, calls = np.log(1e6 + FLOOR_NS), 0.5, 2
    deviation = (np.log(4e6 + FLOOR_NS) - mean) / std
    scaled = deviation * np.sqrt(calls / (calls + 3))  # as `scaling` has it
    assert latency_ms(scaled, calls, mean, std) == pytest.approx(4.0)
    assert latency_ms(0.0, calls, mean, std) == pytest.approx(1.0)
    observed, expected, unit = convert(data, "service-0 -> service-1", "net latency, mean", scaled, 0.0)
    assert observed == pytest.approx(4.0) and expected == pytest.approx(1.0)  # of the two calls in the window
    assert unit == "ms (geometric mean of 2 calls)"


def test_what_cannot_be_converted_stays_scaled(data):
    assert convert(data, "service-1 -> service-2", "net latency, mean", 2.0, 1.0) == (2.0, 1.0, SCALED)
    assert convert(data, "service-0", "requests", 2.0, 1.0) == (2.0, 1.0, SCALED)
    bare = dataclasses.replace(data, manifest={}, directory=None)
    for name, channel in (("service-0/template 1", "count"), ("service-0/cpu", "level"),
                          ("service-0 -> service-1", "net latency, mean")):  # fmt: skip
        assert convert(bare, name, channel, 2.0, 1.0) == (2.0, 1.0, SCALED)


def test_tables_of_an_interval(data):
    tables = Tables(data.directory)
    assert tables.between("calls", 110, 130, ("gap_ns",))["time_unix_nano"].to_list() == [110, 120]
    assert tables.between("calls", 0, 200, ("trace_id",)) is None
    assert tables.between("logs", 0, 200, ()) is None and Tables(None).between("calls", 0, 200, ()) is None
