"""Windows of telemetry as it comes are those of the preparation that was fitted."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from data_prep import fitted, sources
from data_prep.errors import InputError
from data_prep.live import LiveWindows, arriving, on_one_clock
from data_prep.prepare import intervals_of, prepare
from data_prep.tables import TELEMETRY
from ssad_jax import prepared
from tests.data_prep.small import SECOND, T0, log, span
from tests.data_prep.small import frame as checked
from tests.data_prep.test_prepare import make_config, telemetry, write

LATE = 30 * SECOND


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A prepared dataset and the tables that it was made of."""
    path = tmp_path_factory.mktemp("live")
    config = make_config(write(path / "raw", telemetry()), path / "out", metric_baseline_minutes=1.0)
    prepare(config)
    frames = sources.read(config.data).frames
    return prepared.load(path / "out"), {name: frames[name] for name in TELEMETRY if name in frames}


def begin(dataset, start=None, **changed):
    data = dataset[0]
    start = data.manifest["segments"][0]["start_unix_nano"] if start is None else start
    return LiveWindows(fitted.load(data.directory), start, **changed)


def time_of(name):
    return pl.col("start_time_unix_nano" if name == "spans" else "time_unix_nano")


def between(frames, start, end):
    return {name: frame.filter(time_of(name).is_between(start, end, closed="left")) for name, frame in frames.items()}


@pytest.mark.parametrize("step", [3.5, 17, 1000])
def test_pushed_windows_are_the_prepared_ones(dataset, step):
    data, frames = dataset
    live, came = begin(dataset), T0 - SECOND
    for number, segment in enumerate(data.manifest["segments"]):
        if segment["part"] != "test":
            continue
        live.restart(segment["start_unix_nano"])
        windows, end = [], segment["end_unix_nano"] + LATE
        while came < end:
            now = min(came + int(step * SECOND), end)
            rows = between(frames, came, now)
            windows += live.push({name: rows[name].sample(fraction=1, shuffle=True, seed=1) for name in rows}, now)
            came = now
        rows = np.flatnonzero(data.windows.segment == number)
        assert [w.start_unix_nano for w in windows] == data.windows.start_unix_nano[rows].tolist()
        assert [w.end_unix_nano for w in windows] == data.windows.end_unix_nano[rows].tolist()
        assert np.diff([w.start_tick for w in windows]).tolist() == [5] * (len(rows) - 1)
        for row, window in zip(rows, windows, strict=True):
            real = data.windows.n_edge[row]
            assert window.n_edge == real
            np.testing.assert_array_equal(window.nodes, data.windows.nodes[row])
            for name in ("senders", "receivers", "edge_kind"):
                np.testing.assert_array_equal(getattr(window, name)[:real], getattr(data.windows, name)[row][:real])
            assert (window.senders[real:] == len(data.system.kind) - 1).all()
    live.check()


def test_nodes_have_the_names_and_order_of_the_system(dataset):
    assert begin(dataset).node_names == dataset[0].system.node_names


def test_windows_come_when_their_last_tick_may_not_change_any_more(dataset):
    live = begin(dataset, T0)
    assert live.push({}, T0 + LATE + 10 * SECOND - 1) == []
    (first,) = live.push({}, T0 + LATE + 10 * SECOND)
    assert (first.start_unix_nano, first.start_tick) == (T0, 0)
    second, third = live.push({}, T0 + LATE + 20 * SECOND)  # window_length 10, stride 5
    assert (second.start_tick, third.start_tick) == (5, 10)


def test_every_row_is_accounted_for(dataset):
    live = begin(dataset, T0)
    row = log(100, "gateway", "request 1 done")
    rows = [row, row, log(1, "gateway", "a"), log(200, "gateway", "b"), log(800, "gateway", "in five years")]
    live.push({"logs": checked("logs", rows[:1])}, T0)
    live.push({}, T0 + LATE + 50 * SECOND)  # ticks up to 50 s are made
    live.push({"logs": pl.concat(checked("logs", [r]) for r in rows[1:])}, T0 + LATE + 150 * SECOND)
    account = live.accounts["logs"]
    assert (account.read, account.kept, account.duplicates) == (5, 1, 1)
    assert account.set_aside == {"late": 1, "ahead": 1}
    assert live.pending["logs"] == 1
    live.check()
    account.kept += 1
    with pytest.raises(RuntimeError, match="logs do not add up"):
        live.check()


def test_a_trace_is_whole_across_pushes(dataset):
    """A child that ends later shortens its parent's self time, a duplicate of it does not."""
    v = fitted.load(dataset[0].directory).vocabulary
    live = begin(dataset, T0)
    parent = span("t", 1, None, "gateway", "GET /", 1000, 1080, kind="SERVER")
    child = span("t", 2, 1, "訂單", "POST /", 4000, 4030, kind="SERVER")
    live.push({"spans": checked("spans", [parent])}, T0 + 2 * SECOND)
    live.push({"spans": pl.concat([checked("spans", [child])] * 2)}, T0 + 5 * SECOND)
    seen = {}
    per_tick = live._make_ticks

    def spy(ticks):
        per_tick(ticks)
        seen.update(live._ticks)

    live._make_ticks = spy
    live.push({}, T0 + LATE + 10 * SECOND)
    gateway = v.units.index("gateway")
    usual = v.self_time.filter((pl.col("unit") == "gateway") & (pl.col("operation") == "GET /")).row(0, named=True)
    expected = (np.log(50e6 + 1e5) - usual["mean"]) / usual["std"]  # 80 ms less the child's 30
    np.testing.assert_allclose(seen["self_sum"][1, gateway], expected, rtol=1e-5)
    assert seen["ops"][:, v.units.index("訂單")].sum() == 1
    assert live.accounts["spans"].duplicates == 1


def test_clocks_that_were_corrected_are_corrected_again(dataset):
    ahead = dataclasses.replace(fitted.load(dataset[0].directory), clock_offsets={"logs": {"gateway-1": 90 * SECOND}})
    live = LiveWindows(ahead, T0)
    live.push({"logs": checked("logs", [log(92, "gateway", "a"), log(3, "訂單", "b")])}, T0 + 5 * SECOND)
    live.push({}, T0 + LATE + 10 * SECOND)
    assert (live.accounts["logs"].kept, live.pending["logs"]) == (2, 0)


@pytest.mark.parametrize("ahead", [-600, 600])
def test_recorded_tables_come_on_the_corrected_clock(tmp_path, ahead):
    """Otherwise all rows of such an instance would be late or ahead, and the time between would be silence."""
    rows = telemetry()
    del rows["logs"]
    for row in rows["spans"]:
        if row["service_name"] != "gateway":
            row["start_time_unix_nano"] += ahead * SECOND
            row["end_time_unix_nano"] += ahead * SECOND
    config = make_config(write(tmp_path / "raw", rows), tmp_path / "out", correct_clock_skew=True)
    prepare(config)
    was_fitted, frames = on_one_clock(fitted.load(tmp_path / "out"), sources.read(config.data).frames)
    intervals = [(int(start), int(end)) for start, end in intervals_of(frames, config.data)]
    segments = prepared.load(tmp_path / "out").manifest["segments"]
    assert intervals[0][0] == segments[0]["start_unix_nano"] and intervals[-1][1] < T0 + 500 * SECOND
    live = LiveWindows(was_fitted, intervals[0][0])
    for _, tables, now in arriving(frames, intervals, 60 * SECOND, LATE):
        live.push(tables, now)
    live.check()
    assert live.accounts["spans"].set_aside == {} and live.accounts["spans"].kept > 2800


def test_units_that_fit_time_does_not_have_are_named_and_count_as_unknown(dataset):
    v = fitted.load(dataset[0].directory).vocabulary
    live = begin(dataset, T0)
    live.push({"logs": checked("logs", [log(1, "newcomer", "hello"), log(2, "newcomer", "again")])}, T0)
    (window,) = live.push({}, T0 + LATE + 10 * SECOND)
    assert live.unknown == {"newcomer": 2}
    (silent,) = begin(dataset, T0).push({}, T0 + LATE + 10 * SECOND)
    changed = np.flatnonzero((window.nodes != silent.nodes).any(1))
    names = dataset[0].system.node_names
    assert {names[i].split(":")[0] for i in changed} == {v.units[-1]}


def test_restarting_sets_aside_what_lies_between_and_cannot_go_back(dataset):
    live = begin(dataset, T0)
    live.push({"logs": checked("logs", [log(2, "gateway", "a"), log(70, "gateway", "b")])}, T0)
    live.restart(T0 + 60 * SECOND)
    assert live.accounts["logs"].set_aside == {"between_observed_times": 1}
    (window,) = live.push({}, T0 + LATE + 70 * SECOND)
    assert (window.start_tick, window.start_unix_nano) == (60, T0 + 60 * SECOND)
    live.check()
    with pytest.raises(ValueError, match="restart at that time or later"):
        live.restart(T0)


@pytest.mark.parametrize("name", ["names.json", "arrays.npz", "gap.parquet"])
@pytest.mark.parametrize("content", [b"", b"{}", None])
def test_damaged_files_are_refused_with_the_remedy(dataset, tmp_path, name, content):
    whole = dataset[0].directory / fitted.DIRECTORY
    (tmp_path / fitted.DIRECTORY).mkdir()
    for file in whole.iterdir():
        data = file.read_bytes()
        if file.name == name:
            if content is None:
                continue
            data = content
        (tmp_path / fitted.DIRECTORY / file.name).write_bytes(data)
    with pytest.raises(InputError, match="prepare the data again"):
        fitted.load(tmp_path)
    with pytest.raises(InputError, match="missing"):
        fitted.load(tmp_path / "nowhere")


def test_every_row_arrives_once_whatever_the_intervals():
    """Two intervals with a gap between: the first step of the second brings what lies in the gap."""
    frames = {"logs": pl.DataFrame({"time_unix_nano": [0, 5, 12, 25, 31, 39]})}
    steps = list(arriving(frames, [(0, 10), (30, 40)], step=4, lateness=3))
    assert [(begin, now) for begin, _, now in steps] == [
        (0, 4), (None, 8), (None, 12), (None, 13), (30, 34), (None, 38), (None, 42), (None, 43),
    ]  # fmt: skip
    came = [rows["logs"]["time_unix_nano"].to_list() for _, rows, _ in steps]
    assert came == [[0], [5], [], [12], [25, 31], [], [39], []]
