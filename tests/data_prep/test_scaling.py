import dataclasses
import math

import numpy as np
import pytest

from data_prep import scaling, signals
from data_prep.scaling import CHANNELS, CLIP
from data_prep.vocabulary import MAX_OPERATIONS
from tests.data_prep.small import T0, event, fit_vocabulary, log, metric, observe, span

WIDTH = MAX_OPERATIONS + 1


@pytest.fixture(scope="module")
def vocabulary():
    """Units db, gateway, order, <unknown>; three log nodes, a metric, two dependencies, an event."""
    spans = [
        span("t", 1, None, "gateway", "GET /", 0, 100, kind="SERVER"),
        span("t", 2, 1, "order", "POST /orders", 30, 80, kind="SERVER"),
        span("t", 3, 2, "order", "SELECT", 40, 45, kind="CLIENT", peer_service_name="db"),
    ]
    rows = {"logs": [log(0, "order", "saved")], "metrics": [metric(0, "order", "cpu", 1)]}
    return fit_vocabulary(observe(spans=spans, events=[event(2, "order", "restart")], **rows), {"saved": 0})[1]


def make_windows(n, v, seed=0):
    """Random counts; log node 0 appears twice for each operation of its unit, cpu rises by 0.1 with each."""
    rng = np.random.default_rng(seed)
    units, calls = len(v.units), len(v.dependencies)
    widths = {"ops": (units, WIDTH), "logs": (len(v.logs),), "events": (len(v.events),)}
    widths |= {name: (calls,) for name in ("calls", "call_errors", "gap_n", "gap_sum", "gap_max", "dur_n", "dur_sum")}
    out = {name: np.zeros((n, *widths.get(name, (units,))), np.float32) for name in signals.SUMS + signals.MAXIMA}
    out["ops"][:, 1, 0] = rng.poisson(4, n)
    out["ops"][:, 2, 0] = rng.poisson(6, n)
    out["ops_before"] = rng.poisson(5, (n, signals.LAGS, units, WIDTH)).astype(np.float32)
    out["logs"][:, 0] = 2 * out["ops"][:, 2, 0]
    out["logs"][:, 1] = rng.poisson(3, n)
    out["calls"][:, 0] = 3 * out["ops"][:, 1, 0]
    out["metric_level"] = (0.1 * out["ops"][:, 2, :1] - 0.6).astype(np.float32)
    out["metric_rise"], out["metric_seen"] = np.zeros((n, 1), np.float32), np.ones((n, 1), bool)
    return out


def take(windows, rows):
    return {name: values[rows] for name, values in windows.items()}


def test_moments_of_shards_add_up(vocabulary):
    windows = make_windows(60, vocabulary)
    whole = scaling.moments(windows, vocabulary)
    parts = [scaling.moments(take(windows, slice(a, a + 20)), vocabulary) for a in (0, 20, 40)]
    total = parts[0] + parts[1] + parts[2]
    assert total.windows == whole.windows == 60
    for name in scaling.COUNTS:
        assert (total.sums[name] == whole.sums[name]).all()
    for a, b in zip(total.grams, whole.grams, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    columns = len(whole.grams[2]) - 1 - len(vocabulary.metrics)  # levels of metrics are no integers
    assert (total.grams[2][:columns, :columns] == whole.grams[2][:columns, :columns]).all()


def test_pearson_units_by_hand(vocabulary):
    windows = make_windows(4, vocabulary)
    windows["errors"][:, 2] = [0, 0, 4, 8]  # mean 3: (n - 3) / 2
    statistics = scaling.fit(scaling.moments(windows, vocabulary), vocabulary, 3.0)
    signal, _ = scaling.scale(windows, vocabulary, statistics)
    assert signal["service"][:, 2, 0].tolist() == [-1.5, -1.5, 0.5, 2.5]
    ticks = take(windows, [0])
    ticks["errors"][:, 2] = 2  # of a tick, a twentieth of the window: (2 - 0.15) / sqrt(1.15)
    single, _ = scaling.scale(ticks, vocabulary, statistics, share=1 / 20)
    assert single["service"][0, 2, 0] == pytest.approx(1.85 / math.sqrt(1.15))


def test_counts_of_lines_and_their_expectation_by_hand(vocabulary):
    windows = make_windows(4, vocabulary)
    windows["logs"][:, 0] = [0, 1, 3, 8]  # mean 3
    statistics = scaling.fit(scaling.moments(windows, vocabulary), vocabulary, 3.0)
    nothing = dataclasses.replace(statistics, coefficients=[np.zeros_like(c) for c in statistics.coefficients])
    signal, context = scaling.scale(windows, vocabulary, nothing)
    roots = 2 * np.sqrt(np.array([0, 1, 3, 8]) + 0.375) - 2 * np.sqrt(3.375)
    assert signal["log"][:, 0, 0] == pytest.approx(roots, abs=1e-6) and signal["log"][2, 0, 0] == 0
    assert (context["log"] == 0).all()  # the mean is expected
    steep = [np.where(np.arange(len(c)) == len(c) - 1, -100.0, 0.0)[:, None] + 0 * c for c in nothing.coefficients]
    windows["ops"] += 100  # so many operations that fewer than no lines would be expected
    _, context = scaling.scale(windows, vocabulary, dataclasses.replace(nothing, coefficients=steep))
    assert context["log"][:, 0, 0] == pytest.approx(2 * np.sqrt(0.375) - 2 * np.sqrt(3.375), abs=1e-6)


def test_latencies_are_shrunk_by_the_number_of_calls(vocabulary):
    windows = make_windows(2, vocabulary)
    windows["self_n"][:, 1], windows["self_sum"][:, 1], windows["self_max"][:, 1] = [1, 0], [4, 0], [4, signals.NO_CALL]
    windows["gap_n"][0, 0], windows["gap_sum"][0, 0], windows["gap_max"][0, 0] = 9, 18, 5
    statistics = scaling.fit(scaling.moments(windows, vocabulary), vocabulary, 3.0)
    signal, _ = scaling.scale(windows, vocabulary, statistics)
    assert signal["service"][:, 1, 2].tolist() == signal["service"][:, 1, 3].tolist() == [2, 0]  # 4 sqrt(1 / 4)
    channels = CHANNELS["dependency"]
    root = math.sqrt(9 / 12)
    assert signal["dependency"][0, 0, channels.index("net latency, mean")] == pytest.approx(2 * root)
    assert signal["dependency"][0, 0, channels.index("net latency, maximum")] == pytest.approx(5 * root)


def test_shapes_and_clipping(vocabulary):
    windows = make_windows(3, vocabulary)
    statistics = scaling.fit(scaling.moments(windows, vocabulary), vocabulary, 3.0)
    windows["logs"][:] = 1e6
    signal, context = scaling.scale(windows, vocabulary, statistics)
    assert {kind: values.shape[2] for kind, values in signal.items()} == {k: len(c) for k, c in CHANNELS.items()}
    assert {kind: values.shape[1] for kind, values in signal.items()} == {
        "service": 4, "log": 3, "metric": 1, "dependency": 2, "event": 1,
    }  # fmt: skip
    assert (signal["log"] == CLIP).all() and all(v.dtype == np.float32 for v in [*signal.values(), *context.values()])


def test_ridge_recovers_a_planted_linear_relation(vocabulary):
    fit, new = make_windows(400, vocabulary), make_windows(100, vocabulary, seed=1)
    statistics = scaling.fit(scaling.moments(fit, vocabulary), vocabulary, 3.0)
    signal, context = scaling.scale(new, vocabulary, statistics)
    for kind, node in (("log", 0), ("dependency", 0), ("metric", 0)):
        truth, expected = signal[kind][:, node, 0], context[kind][:, node, 0]
        assert np.std(truth - expected) < 0.05 * np.std(truth), kind
    # What does not hang on the operations is expected at its mean.
    assert np.abs(context["log"][:, 1, 0]).max() < 0.5 < np.std(signal["log"][:, 1, 0])


def test_coefficients_of_a_part_in_the_units_of_the_whole(vocabulary):
    """They expect a count relative to the mean of all windows, wherever the part's own mean lies."""
    fit, new = make_windows(400, vocabulary), make_windows(100, vocabulary, seed=1)
    some = make_windows(150, vocabulary, seed=2)
    some["ops"][:, 2, 0] += 4  # a busier time
    some["logs"][:, 0] = 2 * some["ops"][:, 2, 0]
    whole = scaling.fit(scaling.moments(fit, vocabulary), vocabulary, 3.0)
    part = scaling.fit(scaling.moments(some, vocabulary), vocabulary, 3.0, whole.mean)
    assert part.mean is whole.mean
    signal, context = scaling.scale(new, vocabulary, part)
    np.testing.assert_array_equal(signal["log"][..., 0], scaling.scale(new, vocabulary, whole)[0]["log"][..., 0])
    assert np.std(signal["log"][:, 0, 0] - context["log"][:, 0, 0]) < 0.05 * np.std(signal["log"][:, 0, 0])
    own = scaling.fit(scaling.moments(some, vocabulary), vocabulary, 3.0)
    assert own.mean["ops"][2, 0] > whole.mean["ops"][2, 0] + 3
    assert not np.array_equal(own.coefficients[0], part.coefficients[0])


def test_a_missing_line_stands_out_of_its_expectation(vocabulary):
    fit, new = make_windows(400, vocabulary), make_windows(1, vocabulary, seed=1)
    statistics = scaling.fit(scaling.moments(fit, vocabulary), vocabulary, 3.0)
    new["logs"][:, 0] = 0
    signal, context = scaling.scale(new, vocabulary, statistics)
    assert signal["log"][0, 0, 0] - context["log"][0, 0, 0] < -2


def test_balance_is_the_geometric_mean_of_two_residuals_that_agree():
    first, second = np.array([2.0, -2, 2, 0, -3]), np.array([8.0, -8, -8, 5, 0])
    assert scaling.balance(first, second).tolist() == [4, -4, 0, 0, 0]


def test_coefficients_on_all_others_are_those_of_one_regression_each():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50, 5)) @ rng.normal(size=(5, 5))
    penalised = rows.T @ rows / 50 + 0.1 * np.eye(5)
    got = scaling._on_all_others(penalised, slice(2, 4))
    for column, target in zip(got.T, (2, 3), strict=True):
        others = [i for i in range(5) if i != target]
        direct = np.linalg.solve(penalised[np.ix_(others, others)], penalised[others, target])
        np.testing.assert_allclose(column[others], direct, rtol=1e-9)
        assert abs(column[target]) < 1e-12
    assert scaling._on_all_others(penalised, slice(5, 5)).shape == (5, 0)


def test_a_line_that_leaves_its_proportion_to_other_lines_is_out_of_balance(vocabulary):
    """Two lines as often as one another, but not as often as any operation (a loop over what was asked for)."""
    fit, new = make_windows(400, vocabulary), make_windows(200, vocabulary, seed=1)
    for windows in (fit, new):
        windows["logs"][:, 0] = windows["logs"][:, 1] = 6 * windows["logs"][:, 1]
    statistics = scaling.fit(scaling.moments(fit, vocabulary), vocabulary, 3.0)
    signal, context = scaling.scale(new, vocabulary, statistics)
    left = signal["log"][:, 0, 0] - context["log"][:, 0, 0]
    normal = signal["log"][:, 0, 1]
    assert np.abs(left).max() > 4 and np.abs(normal).max() < 0.25 * np.abs(left).max()
    new["logs"][:, 0] *= 0.5  # an exception in half of the loops
    halved = scaling.scale(new, vocabulary, statistics)[0]["log"]
    usual = new["logs"][:, 1] <= 18  # of more lines the half is no fewer than the work done lets expect
    assert usual.sum() > 50 and np.median(halved[usual, 0, 1]) < -1.5 and (halved[usual, 0, 1] <= 0).all()


def test_metrics_of_a_host_are_expected_from_what_runs_on_it(vocabulary):
    fit, new = make_windows(400, vocabulary), make_windows(100, vocabulary, seed=1)
    db = vocabulary.units.index("db")
    moved = dataclasses.replace(vocabulary, metrics=[(db, "cpu")], deployed=[[2], [], [], []])
    statistics = scaling.fit(scaling.moments(fit, moved), moved, 3.0)
    signal, context = scaling.scale(new, moved, statistics)
    difference = signal["metric"][:, 0, 0] - context["metric"][:, 0, 0]
    assert np.std(difference) < 0.1 * np.std(signal["metric"][:, 0, 0])
    new["metric_seen"][:] = False
    assert (scaling.scale(new, moved, statistics)[1]["metric"] == 0).all()


def test_metrics_also_follow_what_was_done_before(vocabulary):
    fit, new = make_windows(400, vocabulary), make_windows(100, vocabulary, seed=1)
    for windows in (fit, new):
        windows["metric_level"] = 0.2 * windows["ops_before"][:, 1, 2, :1] - 1
    statistics = scaling.fit(scaling.moments(fit, vocabulary), vocabulary, 3.0)
    signal, context = scaling.scale(new, vocabulary, statistics)
    difference = signal["metric"][:, 0, 0] - context["metric"][:, 0, 0]
    assert np.std(difference) < 0.05 * np.std(signal["metric"][:, 0, 0])


def test_a_system_without_logs_calls_metrics_and_events():
    obs, v = fit_vocabulary(observe(spans=[span("t", 1, None, "a", "x", 0, 5)]))
    ticks = signals.per_tick(obs, v, T0, 4, 1_000_000_000)
    windows = signals.aggregate(ticks, 2, np.arange(3))
    statistics = scaling.fit(scaling.moments(windows, v), v, 3.0)
    signal, _ = scaling.scale(windows, v, statistics)
    assert {kind: values.shape[:2] for kind, values in signal.items()} == {
        "service": (3, 2), "log": (3, 1), "metric": (3, 0), "dependency": (3, 0), "event": (3, 0),
    }  # fmt: skip
    assert all(np.isfinite(values).all() for values in signal.values())
