"""Values, times and amounts at the edge of what preparing accepts; docs/edge_cases.md says the same in words."""

import numpy as np
import polars as pl
import pytest

from data_prep import padding, signals, tables, vocabulary
from data_prep.errors import InputError
from tests.data_prep.small import SECOND, T0, fit_vocabulary, log, metric, observe
from tests.data_prep.test_prepare import FAULTS, LENGTH, prepare_rows, telemetry
from tests.data_prep.test_prepare import fault as fault_row

CPU = "gateway: cpu"


def with_metrics(value, rows=None):
    """`telemetry` whose metric has `value(number of the reading)`."""
    rows = rows or telemetry()
    return rows | {"metrics": [row | {"value": value(i)} for i, row in enumerate(rows["metrics"])]}


def only(*names):
    return {name: rows for name, rows in telemetry().items() if name in names}


def level(data, node=CPU):
    return data.windows.nodes[:, data.system.node_names.index(node), 16]


def finite(data) -> bool:
    return bool(np.isfinite(data.windows.nodes).all() and np.isfinite(data.ticks.signals).all())


def test_values_that_are_no_numbers_are_set_aside_and_counted(tmp_path):
    nothing = [np.nan, np.inf, -np.inf]
    data = prepare_rows(tmp_path, with_metrics(lambda i: nothing[i % 4] if i % 4 < 3 else float(i)))
    rows = data.manifest["rows"]["metrics"]
    assert rows["set_aside"] == {"no_value": 36} and rows["read"] == 48 == rows["kept"] + 36
    assert finite(data)


@pytest.mark.parametrize("value", [1.1e100, -1.7e308])
def test_values_whose_squares_are_no_numbers_are_set_aside_and_counted(value):
    rows = pl.DataFrame([metric(1, "a", "cpu", value), metric(2, "a", "cpu", 1e100)],
                        schema=tables.SCHEMAS["metrics"].columns)  # fmt: skip
    kept, account = tables.validate(rows, "metrics", "m")
    assert account.set_aside == {"value_out_of_range": 1} and kept["value"].to_list() == [1e100]
    with pytest.raises(InputError, match=r"m, row 1: value out of range \(1 such rows\); mend the file"):
        tables.validate(rows, "metrics", "m", "error")


@pytest.mark.parametrize("size", [1e30, 5e99])
def test_values_of_any_size_are_scaled_by_their_own_spread(size, tmp_path):
    data = prepare_rows(tmp_path, with_metrics(lambda i: size * (1 + i % 2)))
    assert finite(data) and 0.5 < np.abs(level(data)).max() < 3


@pytest.mark.parametrize("value", [-3e12 / 7, 1e100])
def test_a_constant_series_never_deviates(value, tmp_path):
    """Rounding of the mean is no deviation, however large the constant is."""
    data = prepare_rows(tmp_path, with_metrics(lambda _: value))
    assert np.abs(level(data)).max() < 1e-3


def test_what_differs_by_less_than_the_least_spread_is_constant(tmp_path):
    data = prepare_rows(tmp_path, with_metrics(lambda i: 5e-324 * (i % 2)))
    assert np.abs(level(data)).max() < 1e-6


def test_a_constant_series_that_moves_deviates_as_far_as_signals_go(tmp_path):
    rows = telemetry()
    late = [(row["time_unix_nano"] - T0) / SECOND > 350 for row in rows["metrics"]]
    data = prepare_rows(tmp_path, with_metrics(lambda i: 3.0 + late[i], rows))
    after = data.windows.start_unix_nano > T0 + 370 * SECOND
    assert after.any() and (level(data)[after] == 20).all() and np.abs(level(data)[~after][:40]).max() < 1e-3


@pytest.mark.parametrize("value", [1e45, -1e45, 1e100])
def test_a_reading_beyond_float32_is_a_deviation_and_not_a_missing_reading(value):
    rows = [metric(s, "a", "cpu", s % 2) for s in range(20)]
    _, v = fit_vocabulary(observe(metrics=rows))
    obs = observe(metrics=[*rows, metric(25, "a", "cpu", value)])
    obs["logs"] = obs["logs"].with_columns(template=pl.lit(-1, pl.Int32))
    windows = signals.aggregate(signals.per_tick(obs, v, T0, 40, SECOND), 10, np.array([0, 20, 30]))
    assert windows["metric_seen"].all() and np.isfinite(windows["metric_level"]).all()
    assert np.isfinite(windows["metric_rise"]).all()
    assert (np.sign(value) * windows["metric_level"][1:] > 1e6).all()


def test_sums_of_values_far_from_zero_still_know_their_spread():
    rows = [metric(s, "a", "bytes", 1e9 + 1000 * (s % 2)) for s in range(100)]
    _, v = fit_vocabulary(observe(metrics=rows))
    np.testing.assert_allclose(v.metric_scale[0], [1e9 + 500, 500], rtol=0.01)
    rows = [metric(s, "a", "bytes", 1e16 + 2 * (s % 2)) for s in range(100)]
    _, v = fit_vocabulary(observe(metrics=rows))
    assert v.metric_scale[0, 1] >= vocabulary.METRIC_ROUNDING * 1e16  # less cannot be told from rounding


@pytest.mark.parametrize("kept", ["spans", "logs", "metrics"])
def test_each_modality_alone_is_prepared(kept, tmp_path):
    data = prepare_rows(tmp_path, only(kept))
    assert finite(data) and data.manifest["counts"]["test_windows"] > 0
    assert set(data.manifest["rows"]) == {kept}


def test_events_alone_are_no_telemetry(tmp_path):
    with pytest.raises(InputError, match="holds no span, log line or metric: there is nothing to window"):
        prepare_rows(tmp_path, only("events"))


def test_a_window_without_any_event_is_a_window(tmp_path):
    """Silence is counted: what should have come and did not deviates; only what always holds has an edge."""
    rows = telemetry()
    time = {"spans": "start_time_unix_nano", "logs": "time_unix_nano", "metrics": "time_unix_nano"}
    for name, column in time.items():
        rows[name] = [row for row in rows[name] if not 300 <= (row[column] - T0) / SECOND < 340]
    data = prepare_rows(tmp_path, rows)
    silent = data.windows.start_unix_nano == data.windows.start_unix_nano[
        (data.windows.start_unix_nano >= T0 + 305 * SECOND) & (data.windows.end_unix_nano <= T0 + 335 * SECOND)
    ].min()  # fmt: skip
    assert silent.sum() == 1 and finite(data)
    used = data.windows.edge_kind[silent][0, : data.windows.n_edge[silent][0]]
    assert set(used) == {1}  # ownership
    line = data.system.node_names.index("gateway: request <num> done")
    assert data.windows.nodes[silent, line, 16] < -4


@pytest.mark.parametrize("until", [5, 12])
def test_segments_shorter_than_a_window_or_single_windows_are_too_little(until, tmp_path):
    with pytest.raises(InputError, match=r"segment\(s\) hold a window of 10 ticks.*shorten data.window_length"):
        prepare_rows(tmp_path, telemetry(until=until) | {"faults": []})


def test_a_tail_shorter_than_a_window_has_no_window(tmp_path):
    gaps = [{"start_time_unix_nano": T0 + (LENGTH - 60) * SECOND, "end_time_unix_nano": T0 + (LENGTH - 5) * SECOND}]
    data = prepare_rows(tmp_path, telemetry() | {"gaps": gaps})
    assert data.windows.end_unix_nano.max() <= T0 + (LENGTH - 60) * SECOND


@pytest.mark.parametrize("key, value", [("train_share", 0.99), ("train_share", 0.05)])
def test_a_split_that_leaves_a_part_empty_is_refused(key, value, tmp_path):
    with pytest.raises(InputError, match="too few for fitting, calibration and testing"):
        prepare_rows(tmp_path, telemetry(), **{key: value})


def test_time_that_is_all_faulty_leaves_nothing_to_fit(tmp_path):
    with pytest.raises(InputError, match="segment"):
        prepare_rows(tmp_path, telemetry() | {"faults": [fault_row(0, LENGTH)]})


def shifted(nanoseconds):
    """`telemetry` at another time."""
    return {
        name: [{k: v + nanoseconds if k.endswith("_unix_nano") and v is not None else v for k, v in row.items()}
               for row in rows]
        for name, rows in telemetry().items()
    }  # fmt: skip


@pytest.mark.parametrize("first", [tables._EARLIEST, tables._LATEST - (LENGTH + 1) * SECOND])
def test_times_at_the_limits_are_kept(first, tmp_path):
    data = prepare_rows(tmp_path, shifted(first - T0))
    assert not any(rows["set_aside"] for rows in data.manifest["rows"].values())
    assert first <= data.windows.start_unix_nano[0] < first + SECOND
    assert data.faults["start_time_unix_nano"].to_list() == [first + start * SECOND for start, _ in FAULTS]


def test_times_beyond_the_limits_are_set_aside_and_counted(tmp_path):
    until = 400 * SECOND  # of which 100 s lie beyond
    rows = {name: values for name, values in shifted(tables._LATEST - T0 - until).items() if name != "faults"}
    data = prepare_rows(tmp_path, rows)
    assert data.manifest["rows"]["logs"]["set_aside"]["time_out_of_range"] == 2 * 2 * (LENGTH - 400)
    assert data.windows.end_unix_nano.max() <= tables._LATEST


def test_a_service_that_fit_time_does_not_know_is_said_and_counted(tmp_path):
    rows = telemetry()
    rows["logs"] += [log(s, f"new-{s % 7}", "hello there") for s in range(420, 480)]
    data = prepare_rows(tmp_path, rows)
    assert data.manifest["counts"]["unknown_units"] == 7 and data.manifest["counts"]["unseen_templates"] == 60
    (warning,) = [w for w in data.manifest["warnings"] if "no node" in w]
    assert warning.startswith("7 of 9 services or instances have no node")
    assert "new-0, new-1, new-2, new-3, new-4 and 2 more" in warning
    assert level(data, "<unknown>: <other>")[data.windows.end_unix_nano > T0 + 440 * SECOND].max() > 0
    known = prepare_rows(tmp_path / "known", telemetry())
    assert known.manifest["warnings"] == [] and known.manifest["counts"]["unknown_units"] == 0


def test_one_service_alone_is_prepared(tmp_path):
    rows = telemetry()
    rows = {"logs": [row for row in rows["logs"] if row["service_name"] == "gateway"]}
    data = prepare_rows(tmp_path, rows)
    assert finite(data) and data.system.service_names == ("<unknown>", "gateway")


def test_the_budget_holds_every_window_and_less_is_an_error():
    pairs, kind = np.array([[0, 1], [1, 2]]), np.zeros(2, np.int8)
    active = np.array([[True, True], [False, False]])
    senders, _, _, n_edge = padding.pad_edges(pairs, kind, active, padding.edge_budget(4), 7)
    assert n_edge.tolist() == [4, 0] and (senders[1] == 7).all()
    with pytest.raises(ValueError, match="a window has 4 edges, more than the budget of 3"):
        padding.pad_edges(pairs, kind, active, 3, 7)


def test_a_fuller_dataset_has_a_larger_budget_of_its_own(tmp_path):
    rows = telemetry()
    small = prepare_rows(tmp_path / "small", rows)
    rows["logs"] = rows["logs"] + [log(s, "gateway", f"step {word}") for s in range(0, LENGTH, 3)
                                   for word in ("".join(w) for w in zip("abcdefghij" * 8, "kl" * 40, strict=True))]
    large = prepare_rows(tmp_path / "large", rows)
    assert large.manifest["counts"]["node_budget"] > small.manifest["counts"]["node_budget"]
    for data in (small, large):
        assert data.windows.n_edge.max() <= data.manifest["counts"]["edge_budget"] == data.windows.senders.shape[1]
