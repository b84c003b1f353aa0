"""Clocks that differ, worked out by hand."""

import dataclasses

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from data_prep import clock_skew, observations, spilled, tables
from data_prep.clock_skew import Offset, Skew
from data_prep.executors import _Serial as Serial
from data_prep.sources.part import Part
from ssad_jax import prepared
from tests.data_prep.small import MS, SECOND, frame, log, span
from tests.data_prep.test_prepare import make_config, prepare, telemetry, write


def call(number, client, server, at=0, ahead=0, there=10, work=60, back=30, by=0):
    """A client span and its server span; the server's clock is `ahead`, the client's `by`, all in ms."""
    end = at + there + work + back
    one = span(f"t{number}", 1, None, client, "call", at + by, end + by, kind="CLIENT")
    other = span(f"t{number}", 2, 1, server, "GET", at + there + ahead, at + there + work + ahead, kind="SERVER")
    return [one | {"service_instance_id": client}, other | {"service_instance_id": server}]


def calls(count, client, server, first=0, **of):
    return [row for i in range(count) for row in call(f"{client}{server}{first + i}", client, server, 200 * i, **of)]


def of_spans(rows):
    return clock_skew.of_spans(frame("spans", rows))


def told(skews):
    return {(skew.instance, skew.reference): round(skew.offset.ns / MS, 3) for skew in skews}


# Estimates


def test_the_offset_lies_where_all_pairs_allow_it():
    low, high = np.arange(400, 420), np.arange(700, 680, -1)
    assert clock_skew.estimate(low, high) == Offset(550, 419, 681, 20, 1.0, 0.0)


def test_the_middle_is_bounded_by_what_all_pairs_allow():
    low, high = np.repeat([0, 90], [15, 6]), np.repeat([100, 110], [15, 6])
    assert clock_skew.estimate(low, high) == Offset(90, 90, 100, 21, 1.0, 15 / 21)


def test_few_wrong_pairs_do_not_matter():
    low, high = np.repeat([500, -9000, 800], [40, 5, 5]), np.repeat([600, -8000, 700], [40, 5, 5])
    assert clock_skew.estimate(low, high) == Offset(550, 500, 600, 50, 0.8, 0.0)


@pytest.mark.parametrize(("low", "high"), [([1] * 19, [2] * 19), ([2] * 30, [1] * 30)])
def test_without_enough_pairs_nothing_is_said(low, high):
    assert clock_skew.estimate(np.array(low), np.array(high)) is None


@pytest.mark.parametrize("seed", range(5))
def test_the_offset_is_the_one_that_most_intervals_hold(seed):
    rng = np.random.default_rng(seed)
    low = rng.integers(-1000, 1000, 60)
    high = low + rng.integers(-50, 800, 60)
    found = clock_skew.estimate(low, high)
    holding = [((low <= x) & (x <= high)).sum() for x in range(-1100, 1900)]
    assert max(holding) == ((low <= found.ns) & (found.ns <= high)).sum() == round(found.agreeing * 60)
    assert found.low <= found.ns <= found.high


# Pairs


def test_what_a_call_allows():
    [row] = clock_skew.call_pairs(frame("spans", call(1, "a", "b", ahead=500))).rows()
    assert row == ("a", "b", 470 * MS, 510 * MS)  # ends: 570 and 100; starts: 510 and 0


def test_calls_that_tell_nothing_are_left_out():
    inner = call(1, "a", "a")
    several = [*call(2, "a", "b"), call(2, "a", "c")[1] | {"span_id": "3"}]
    no_kind = [row | {"kind": None} for row in call(3, "a", "b")]
    alone = call(4, "a", "b")[1:]
    queued = [row | {"kind": kind} for row, kind in zip(call(5, "a", "b"), ("PRODUCER", "CONSUMER"), strict=True)]
    assert clock_skew.call_pairs(frame("spans", inner + several + no_kind + alone + queued)).height == 0


def test_what_a_log_line_allows():
    spans = frame("spans", call(1, "a", "b"))
    rows = [log(0.25, "b", "x") | {"trace_id": "t1", "span_id": number} for number in ("2", "9", None)]
    [row] = clock_skew.log_pairs(frame("logs", rows), spans).rows()
    assert row == ("b-1", 180 * MS, 240 * MS)  # 250 against 70 and 10


# Clocks of spans


def test_equal_clocks_and_small_differences_are_not_reported():
    for ahead in (0, 5, -8):
        assert of_spans(calls(50, "a", "b", ahead=ahead) + calls(50, "b", "c")) == []


def test_the_one_clock_that_differs_is_named():
    rows = calls(30, "a", "b", ahead=500) + calls(30, "b", "c", by=500) + calls(30, "a", "d")
    [skew] = of_spans(rows)
    # 490: the way there takes 20 ms less than the way back, and nobody can tell that from clocks 10 ms apart
    assert told([skew]) == {("b", ""): 490.0}
    assert (skew.offset.low, skew.offset.high) == (470 * MS, 510 * MS)
    assert skew.offset.sure and (skew.offset.pairs, skew.offset.agreeing) == (30, 1.0)
    assert skew.record(True) == {
        "table": "spans", "instance": "b", "reference": "", "offset_ms": 490.0, "low_ms": 470.0, "high_ms": 510.0,
        "pairs": 30, "agreeing": 1.0, "sure": True, "corrected": True,
    }  # fmt: skip


def test_offsets_add_up_along_calls():
    ways = {"there": 20, "back": 20}
    rows = calls(30, "a", "b", ahead=500, **ways) + calls(40, "b", "c", by=500, ahead=800, **ways)
    rows += calls(90, "a", "d", **ways) + calls(90, "d", "e", **ways)
    assert told(of_spans(rows)) == {("b", ""): 500.0, ("c", ""): 800.0}


def test_the_usual_clock_is_that_of_most_calls_wherever_it_begins():
    rows = calls(300, "hub", "a", by=-700) + calls(200, "hub", "b", by=-700) + calls(100, "hub", "c", by=-700)
    rows += calls(500, "a", "d") + calls(500, "b", "e")
    assert told(of_spans(rows)) == {("hub", ""): -690.0}


def test_groups_that_do_not_call_one_another_have_their_own_usual_clocks():
    rows = calls(30, "a", "b", ahead=500) + calls(60, "a", "c") + calls(30, "x", "y", ahead=-900) + calls(60, "x", "z")
    assert told(of_spans(rows)) == {("b", ""): 490.0, ("y", ""): -910.0}


def test_a_clock_that_drifts_is_reported_and_not_corrected():
    rows = [row for i in range(100) for row in call(i, "a", "b", 200 * i, ahead=100 + 50 * i)]
    [skew] = of_spans(rows)
    assert (skew.instance, skew.reference, skew.offset.sure) == ("b", "a", False)
    assert clock_skew.corrections([skew]) == {} and not skew.record(True)["corrected"]


def test_calls_in_circles_end():
    rows = calls(30, "a", "b", ahead=500) + calls(30, "b", "c", by=500) + calls(30, "c", "a")
    assert told(of_spans(rows)) == {("b", ""): 490.0}
    circle = [row | {"parent_span_id": {"1": "2", "2": "1"}[row["span_id"]]} for row in calls(30, "a", "b")]
    assert of_spans(circle) == []


def test_parents_in_circles_are_observed_and_end():
    rows = [row | {"parent_span_id": {"1": "2", "2": "1"}[row["span_id"]]} for row in call(1, "a", "b")]
    circle = frame("spans", rows)
    observed = observations.observe({"spans": circle}, "service", (".*",), 0.0)
    assert observed["calls"].select("caller", "callee").rows() == [("b", "a"), ("a", "b")]
    assert observed["spans"].select("operation", "self_ns").rows() == [("call", 40 * MS), ("GET", 0)]


# Clocks of logs


def logs_of(spans, ahead_ms, share=0.5):
    """A line in each span, so far into it."""
    def line(row):
        start, end = row["start_time_unix_nano"], row["end_time_unix_nano"]
        made = log(0, row["service_name"], "line") | {"trace_id": row["trace_id"], "span_id": row["span_id"]}
        return made | {"time_unix_nano": start + int(share * (end - start)) + ahead_ms * MS}

    return [line(row) for row in spans]


def of_logs(rows, spans):
    return clock_skew.of_logs(frame("logs", rows), frame("spans", spans))


def test_lines_in_their_spans_are_on_their_clock():
    spans = calls(30, "a", "b")
    assert of_logs(logs_of(spans, 0) + logs_of(spans, 0, 1.0), spans) == []


def test_the_offset_of_lines_is_one_that_moves_them_into_their_spans():
    spans = calls(30, "a", "b")
    skews = of_logs(logs_of(spans, 3_600_000, 0.0) + logs_of(spans, 3_600_000, 1.0), spans)
    assert told(skews) == {("a-1", "its spans"): 3_600_000.0, ("b-1", "its spans"): 3_600_000.0}


def test_lines_written_after_the_end_are_no_other_clock():
    spans = calls(30, "a", "b")
    assert of_logs(logs_of(spans, 0, 0.9) * 2 + logs_of(spans, 0, 1.5), spans) == []


def test_times_of_whole_seconds_have_no_one_offset():
    spans = [row for i in range(200) for row in call(i, "a", "b", 1037 * i)]
    rows = [row | {"time_unix_nano": row["time_unix_nano"] // SECOND * SECOND} for row in logs_of(spans, 0)]
    assert clock_skew.corrections(of_logs(rows, spans)) == {}


# What is done about it


def test_times_are_moved_by_instance():
    spans = frame("spans", call(1, "a", "b"))
    moved = clock_skew.corrected(spans, {"b": 5 * MS})
    changed = moved.with_columns(pl.col("^.*_unix_nano$") - spans["start_time_unix_nano"]).rows()
    assert moved.filter(service_name="a").equals(spans.filter(service_name="a")) and len(changed) == 2
    one, before = (some.filter(service_name="b") for some in (moved, spans))
    for name in ("start_time_unix_nano", "end_time_unix_nano"):
        assert one[name][0] == before[name][0] - 5 * MS
    assert clock_skew.corrected(spans, {}) is spans


def test_warnings_name_a_few_and_the_remedy():
    offset = Offset(1230 * MS, 0, 0, 40, 0.9, 0.1)
    some = [Skew("spans", f"i{n}", "", offset) for n in range(7)]
    drifting = Skew("spans", "x", "y", Offset(-500 * MS, 0, 0, 40, 0.3, 0.1))
    first, second = clock_skew.warnings([*some, drifting], False)
    assert first.startswith("clocks of spans differ: i0 +1230.0 ms (90% of 40 pairs), i1 ")
    assert "i4" in first and "i5" not in first and "and 2 more (clock_skew in the manifest)" in first
    assert first.endswith("; config.data.correct_clock_skew=True would correct them")
    assert second == (
        "clocks of spans differ by no one offset, which is not corrected: x -500.0 ms against y (30% of 40 pairs)"
    )
    assert clock_skew.warnings(some[:1], True)[0].endswith("(90% of 40 pairs): corrected")
    assert clock_skew.warnings([Skew("spans", "i", "", Offset(99 * MS, 0, 0, 40, 0.9, 0.1))], True) == []


def read(path, rows, num, correct):
    options = spilled.Options("service", (".*",), 0.0)
    found = spilled.SpilledTables(
        path / "observed", path / "scratch", Serial(), options, num, correct_clock_skew=correct
    )
    for name, values in rows.items():
        raw = pl.DataFrame(values, schema=tables.SCHEMAS[name].columns)
        found.read(Part(name, lambda some, name: [tables.check(some, name, name)], [
            (raw[at : at + 50], name) for at in range(0, raw.height, 50)
        ]))  # fmt: skip
    found.check()
    return found


@pytest.mark.parametrize("num", [1, 5])
@pytest.mark.parametrize("sampled", [10**6, 500])
def test_spilled_rows_are_corrected_as_whole_tables_are(tmp_path, monkeypatch, num, sampled):
    monkeypatch.setattr(spilled, "_CELL_NS", 2 * SECOND)
    monkeypatch.setattr(spilled, "_SAMPLED_ROWS", sampled)
    spans = calls(200, "a", "b", ahead=5000) + calls(300, "a", "c")
    lines = [row | {"service_instance_id": row["service_name"]} for row in logs_of(spans, 0)]
    for row in lines:
        row["time_unix_nano"] += 9 * SECOND * (row["service_name"] == "c")
    rows = {"spans": spans, "logs": [*lines, *lines[:3]]}
    found = read(tmp_path / "corrected", rows, num, True)
    spans_of = clock_skew.corrected(frame("spans", spans), {"b": 4990 * MS})
    # Lines of b are on b's clock: 10 ms of the 5 s are the ways' difference; c's own lines are 9 s ahead.
    logs_frame = clock_skew.corrected(frame("logs", rows["logs"]), {"b": 4990 * MS, "c": 9 * SECOND})
    assert {(s["table"], s["instance"]): s["offset_ms"] for s in found.clock_skew} == {
        ("spans", "b"): 4990.0, ("logs", "b"): 4990.0, ("logs", "c"): 9000.0
    }  # fmt: skip
    assert all(s["corrected"] for s in found.clock_skew) and len(found.warnings) == 2
    whole = observations.observe({"spans": spans_of, "logs": logs_frame}, "service", (".*",), 0.0)
    for name in ("spans", "calls", "logs"):
        files = spilled.cells(tmp_path / "corrected/observed", name)
        one = pl.concat([pl.read_parquet(file) for file in files])
        assert_frame_equal(one, whole[name].sort(whole[name].columns))
        for file in files:
            assert (pl.read_parquet(file)["time"] // (2 * SECOND) == int(file.stem)).all()
    assert found.extent(["logs"]) == (logs_frame["time_unix_nano"].min(), logs_frame["time_unix_nano"].max())
    reported = read(tmp_path / "reported", rows, num, False)
    assert [s["corrected"] for s in reported.clock_skew] == [False, False]  # b's lines and spans agree
    files = spilled.cells(tmp_path / "reported/observed", "spans")
    times = pl.concat([pl.read_parquet(file) for file in files])["time"]
    assert sorted(times) == sorted(row["start_time_unix_nano"] for row in spans)


def test_a_dataset_reports_clocks_and_corrects_them_on_request(tmp_path):
    rows = telemetry()
    for row in rows["spans"]:
        if row["service_name"] == "訂單":
            row["start_time_unix_nano"] += 90 * SECOND
            row["end_time_unix_nano"] += 90 * SECOND
    raw, out = write(tmp_path / "raw", rows), {}
    for correct in (False, True):
        prepare(make_config(raw, tmp_path / f"{correct}", correct_clock_skew=correct))
        out[correct] = prepared.load(tmp_path / f"{correct}")
        [found] = out[correct].manifest["clock_skew"]
        assert (found["instance"], found["offset_ms"], found["corrected"]) == ("訂單-1", 89_999.0, correct)
        assert any("clocks of spans differ: 訂單-1 +89999.0 ms" in text for text in out[correct].manifest["warnings"])
    span_files = {key: pl.read_parquet(data.directory / "tables/spans.parquet") for key, data in out.items()}
    last = {key: file.filter(unit="訂單")["time_unix_nano"].max() for key, file in span_files.items()}
    assert last[False] - last[True] == 89_999 * MS


def test_telemetry_on_one_clock_says_nothing(tmp_path):
    prepare(make_config(write(tmp_path / "raw", telemetry()), tmp_path / "out"))
    assert prepared.load(tmp_path / "out").manifest["clock_skew"] == []


def test_what_was_corrected_is_read_from_the_records_again():
    sure = clock_skew.Offset(ns=-7_654_321, low=-8_000_000, high=-7_000_000, pairs=30, agreeing=1.0, unmoved=0.0)
    unsure = dataclasses.replace(sure, agreeing=0.5)
    skews = [clock_skew.Skew("spans", "a", "", sure), clock_skew.Skew("logs", "b", "its spans", sure),
             clock_skew.Skew("spans", "c", "a", unsure)]  # fmt: skip
    records = [skew.record(corrected=True) for skew in skews]
    assert clock_skew.corrected_offsets(records) == {"spans": {"a": -7_654_321}, "logs": {"b": -7_654_321}}
    assert clock_skew.corrected_offsets([skew.record(corrected=False) for skew in skews]) == {}
