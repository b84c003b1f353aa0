import math

import numpy as np
import polars as pl
import pytest

from data_prep import signals, vocabulary
from data_prep.vocabulary import FLOOR_NS, MAX_OPERATIONS
from tests.data_prep.small import MS, SECOND, T0, event, fit_vocabulary, log, metric, observe, span

CALL = [
    span("t", 1, None, "gateway", "GET /", 0, 100, kind="SERVER"),
    span("t", 2, 1, "gateway", "call order", 10, 90, kind="CLIENT"),
    span("t", 3, 2, "order", "POST /orders", 30, 80, kind="SERVER", status_code="ERROR"),
    span("t", 4, 3, "order", "SELECT", 40, 45, kind="CLIENT", peer_service_name="db"),
]


def test_self_times_calls_and_net_latency():
    obs = observe(spans=CALL)
    assert dict(obs["spans"].select("operation", pl.col("self_ns") / MS).iter_rows()) == {
        "GET /": 20, "call order": 30, "POST /orders": 45, "SELECT": 5,
    }  # fmt: skip
    rows = obs["calls"].select("caller", "callee", "operation", "error", "gap_ns", "duration_ns").rows()
    assert rows == [
        ("gateway", "order", "POST /orders", True, 30 * MS, 50 * MS),
        ("order", "db", "SELECT", False, None, 5 * MS),
    ]
    assert obs["units"]["unit"].to_list() == ["db", "gateway", "order"]


def test_children_in_parallel_leave_no_negative_self_time_and_no_gap():
    rows = [
        span("t", 1, None, "a", "root", 0, 100, kind="CLIENT"),
        span("t", 2, 1, "b", "x", 0, 90),
        span("t", 3, 1, "c", "y", 0, 90),
    ]
    obs = observe(spans=rows)
    assert obs["spans"].filter(pl.col("unit") == "a")["self_ns"].to_list() == [0]
    assert obs["calls"]["gap_ns"].to_list() == [None, None]  # which of two children the client waited for is unknown


def test_observations_do_not_depend_on_the_order_of_rows():
    rows = [span("t", i, 1 if i > 1 else None, "ab"[i % 2], "x", 0, 5, status_code=("OK", "ERROR")[i // 3 % 2])
            for i in range(1, 13)]  # fmt: skip
    one, two = observe(spans=rows), observe(spans=rows[::-1])
    for name in ("spans", "calls", "units"):
        assert one[name].equals(two[name])


def test_instances_are_units_of_their_own_on_request():
    obs = observe("instance", logs=[log(0, "a", "x"), {**log(1, "a", "x"), "service_instance_id": "a-2"}])
    assert obs["units"].rows() == [("a-1", "a"), ("a-2", "a")]


def test_counters_become_rates_and_a_reset_counts_from_zero():
    rows = [metric(10 * i, "a", "requests", v, is_counter=True) for i, v in enumerate([100, 150, 150, 20])]
    assert observe(metrics=rows)["metrics"]["value"].to_list() == [5, 0, 2]


def test_counters_of_two_instances_are_not_taken_for_one():
    rows = [metric(10 * i, "a", "requests", 1000 + 10 * i, is_counter=True) for i in range(4)]
    rows += [metric(10 * i + 5, "a", "requests", 30 * i, instance="a-2", is_counter=True) for i in range(4)]
    rows += [metric(30, "a", "requests", 1030.5, is_counter=True)]  # a second reading of one time
    got = observe(metrics=rows)["metrics"]
    assert got.select((pl.col("time") - T0) // SECOND, "value").rows() == [
        (10, 1.0), (15, 3.0), (20, 1.0), (25, 3.0), (30, 1.05), (35, 3.0),
    ]  # fmt: skip


def test_series_that_attributes_tell_apart_are_added_up_as_rates():
    idle = [(cpu, i, value) for cpu, values in (("0", (10, 30, 5)), ("1", (1, 2, 4))) for i, value in enumerate(values)]
    rows = [metric(10 * i, "a", "idle", v, is_counter=True) | {"attributes": f"cpu={cpu}"} for cpu, i, v in idle]
    rows += [metric(10 * i, "a", "idle", 40 * i, instance="a-2", is_counter=True) for i in range(3)]
    assert observe(metrics=rows)["metrics"]["value"].to_list() == pytest.approx([(2.1 + 4) / 2, (0.7 + 4) / 2])
    rows = [metric(0, "a", "free", v) | {"attributes": d} for v, d in ((1, "d=0"), (4, "d=1"), (6, "d=1"), (9, None))]
    assert observe("instance", metrics=rows)["metrics"]["value"].to_list() == [7.5]  # the mean of 1 + 5 and 9


def test_gauges_of_one_time_are_averaged_and_unnamed_metrics_left_out():
    rows = [metric(0, "a", "cpu", 1), metric(0, "a", "cpu", 4, instance="a-2"), metric(0, "a", "mem", 7)]
    assert observe(patterns=("c.u",), metrics=rows)["metrics"].select("metric", "value").rows() == [("cpu", 2.5)]


def test_the_baseline_is_the_median_of_earlier_readings_only():
    rows = [metric(30 * i, "a", "cpu", v) for i, v in enumerate([1, 2, 9, 5, 100, 6])]
    got = observe(baseline=2.0, metrics=rows)["metrics"]["value"].to_list()
    # 5 - median(1, 2, 9); 100 - median(1, 2, 9, 5); 6 - median(2, 9, 5, 100): two minutes back
    assert got == [3, 96.5, -1]
    future = observe(baseline=2.0, metrics=[*rows[:-1], metric(150, "a", "cpu", 10_000)])["metrics"]["value"].to_list()
    assert future[:-1] == got[:-1]


def test_ticks_by_hand():
    spans = [*CALL, span("u", 1, None, "gateway", "GET /", 1500, 1600, kind="SERVER", status_code="ERROR")]
    spans.append(span("v", 1, None, "newcomer", "x", 2500, 2600))
    logs = [log(0, "order", "saved"), log(2.999, "order", "saved"), log(1, "order", "odd", "WARN")]
    logs.append(log(1, "zoo", "odd"))
    obs, _ = fit_vocabulary(observe(spans=spans, logs=logs, events=[event(2, "order", "restart")]), {"saved": 0})
    fit_time = observe(spans=spans[:-1], logs=logs[:-1], events=[event(2, "order", "restart")])
    _, v = fit_vocabulary(fit_time, {"saved": 0})
    assert v.units == ["db", "gateway", "order", vocabulary.UNKNOWN]
    assert v.operations == [[], ["GET /"], ["POST /orders"], []]
    assert v.traced == [False, True, True, False]
    assert v.logs == [(2, 0), (2, -1), (3, -1)] and v.dependencies == [(1, 2), (2, 0)] and v.events == [(2, "restart")]
    ticks = signals.per_tick(obs, v, T0, 3, SECOND)
    ops = np.zeros((3, 4, MAX_OPERATIONS + 1))
    ops[0, 1, 0] = ops[1, 1, 0] = ops[0, 2, 0] = ops[2, 3, -1] = 1  # client spans are no operations
    assert (ticks["ops"] == ops).all()
    assert ticks["errors"].tolist() == [[0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert ticks["alerts"].tolist() == [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert ticks["logs"].tolist() == [[1, 0, 0], [0, 1, 1], [1, 0, 0]]
    assert ticks["calls"].tolist() == [[1, 1], [0, 0], [0, 0]]
    assert ticks["call_errors"].tolist() == [[1, 0], [0, 0], [0, 0]]
    assert ticks["gap_n"].tolist() == [[1, 0], [0, 0], [0, 0]]
    assert ticks["events"].tolist() == [[0], [0], [1]]
    # Self times of GET / are 20 and 100 ms.
    logs_of = [math.log(x * MS + FLOOR_NS) for x in (20, 100)]
    variances = np.var(logs_of), 0.0  # of the gateway's two calls, of the order's one
    pooled = (2 * variances[0] + 1 * variances[1]) / 3
    predictive = (2 * variances[0] + 10 * pooled) / (2 + 10) * (1 + 1 / 2)
    dev = (logs_of[0] - np.mean(logs_of)) / math.sqrt(predictive)
    assert ticks["self_sum"][:2, 1] == pytest.approx([dev, -dev], abs=1e-3)
    assert ticks["self_max"][:, 1] == pytest.approx([dev, -dev, signals.NO_CALL], abs=1e-3)
    assert ticks["self_n"][:, 1].tolist() == [1, 1, 0]


def test_usual_latencies_of_a_part_of_the_time():
    """What the part has not seen is passed over, also the gap of calls whose client spans it lacks."""
    call = [span("u", 1, None, "gateway", "GET /", 0, 100, kind="SERVER"),
            span("u", 2, 1, "gateway", "call", 10, 90, kind="CLIENT"),
            span("u", 3, 2, "order", "POST /", 30, 80, kind="SERVER")]  # fmt: skip
    part = [span("v", 1, None, "gateway", "GET /", 1000, 1300, kind="SERVER"),
            span("v", 3, 1, "order", "GET /", 1100, 1200, kind="SERVER")]  # fmt: skip
    obs, whole = fit_vocabulary(observe(spans=[*call, *part]))
    stats = vocabulary.merge([vocabulary.count(fit_vocabulary(observe(spans=part))[0])])
    less = vocabulary.with_latencies_of(whole, stats)
    assert less.dependencies == whole.dependencies == [(0, 1)] and less.units == whole.units
    one, two = (signals.per_tick(obs, v, T0, 2, SECOND) for v in (whole, less))
    for name in ("ops", "calls", "errors"):
        np.testing.assert_array_equal(one[name], two[name])
    assert one["gap_n"].tolist() == [[1], [0]] and two["gap_n"].tolist() == [[0], [0]]
    assert one["self_n"][:, :2].tolist() == [[1, 1], [1, 1]] and two["self_n"][:, :2].tolist() == [[1, 0], [1, 1]]
    # The gateway itself takes 20 ms, in the part 200: 2.3 in logarithms at the least spread, widened for a single call.
    assert two["self_sum"][1, 0] == pytest.approx(0, abs=1e-3) and two["self_sum"][0, 0] == pytest.approx(
        math.log((20 * MS + FLOOR_NS) / (200 * MS + FLOOR_NS)) / vocabulary.LATENCY_FLOOR, abs=1e-2
    )


def test_metrics_are_carried_forward_never_back_and_not_for_long():
    rows = [metric(-30, "a", "cpu", 1), metric(3.5, "a", "cpu", 3), metric(5, "a", "cpu", 5)]
    obs, v = fit_vocabulary(observe(metrics=rows))
    assert v.metric_scale == pytest.approx(np.array([[3, math.sqrt(8 / 3)]])) and v.metric_readings.tolist() == [3]
    values = signals.per_tick(obs, v, T0, 300, SECOND)["metrics"][:, 0] * math.sqrt(8 / 3) + 3
    assert values[:3] == pytest.approx([1, 1, 1]) and values[3] == values[4] == pytest.approx(3)  # 5 s: next tick
    last = 5 + int(signals.METRIC_MAX_AGE_SECONDS)
    assert values[5:last] == pytest.approx([5] * (last - 5)) and np.isnan(values[last:]).all()
    before = signals.per_tick(obs, v, T0 - 40 * SECOND, 12, SECOND)["metrics"][:, 0]
    assert np.isnan(before[:10]).all() and np.isfinite(before[10:]).all()


def test_windows_are_sums_maxima_levels_and_rises():
    rng = np.random.default_rng(0)
    shapes = {"ops": (2, MAX_OPERATIONS + 1)}
    ticks = {name: rng.integers(0, 5, (9, *shapes.get(name, (2,)))).astype(np.float32) for name in signals.SUMS}
    ticks |= {name: rng.normal(size=(9, 2)).astype(np.float32) for name in signals.MAXIMA}
    ticks["metrics"] = np.array([[np.nan, 1, 2, 3, 4, 5, 6, 7, 9], [np.nan] * 9], np.float32).T
    got = signals.aggregate(ticks, 4, np.array([0, 5]))
    for name in signals.SUMS:
        assert (got[name] == [ticks[name][:4].sum(0), ticks[name][5:].sum(0)]).all()
    for name in signals.MAXIMA:
        assert (got[name] == [ticks[name][:4].max(0), ticks[name][5:].max(0)]).all()
    assert got["metric_level"][:, 0] == pytest.approx([2, 6.75]) and got["metric_rise"][:, 0].tolist() == [0, 4]
    assert got["metric_seen"].tolist() == [[True, False]] * 2 and (got["metric_level"][:, 1] == 0).all()


def test_statistics_of_shards_add_up():
    obs, _ = fit_vocabulary(observe(spans=CALL, logs=[log(i, "a", "x") for i in range(4)]), {"x": 0})
    obs = {name: table for name, table in obs.items() if name != "units"}
    whole = vocabulary.merge([vocabulary.count(obs)])
    cuts = [T0 - SECOND, T0 + 15 * MS, T0 + 35 * MS, T0 + 2 * SECOND, T0 + 9 * SECOND]
    shards = [vocabulary.within(obs, a, b) for a, b in zip(cuts, cuts[1:], strict=False)]
    parts = vocabulary.merge([vocabulary.count(shard) for shard in shards])
    assert whole.keys() == parts.keys() == vocabulary.KEYS.keys()
    for name in whole:
        assert whole[name].equals(parts[name])


def test_operations_before_a_window_stop_at_the_segments_start():
    ticks = {name: np.zeros((7, 1), np.float32) for name in signals.SUMS + signals.MAXIMA}
    ticks["ops"] = np.arange(1, 8, dtype=np.float32).reshape(7, 1, 1)  # 1 .. 7
    ticks["metrics"] = np.zeros((7, 0), np.float32)
    windows = signals.aggregate(ticks, 2, np.array([0, 2, 5]))
    assert windows["ops"].ravel().tolist() == [3, 7, 13]
    assert windows["ops_before"].reshape(3, 2).tolist() == [[3, 3], [3, 3], [9, 5]]
