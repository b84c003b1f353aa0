import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from data_prep import injection, split, tables
from data_prep.errors import InputError
from data_prep.injection import build, kinds, stretches
from data_prep.injection.requests import END, START, Changes, Requests
from data_prep.prepare import prepare
from ssad_jax import prepared as prepared_data
from ssad_jax.config import default_config
from tests.data_prep import small

MS, SECOND, T0 = small.MS, small.SECOND, small.T0
DAY = 86_400 * SECOND
ROOT = Path(__file__).parents[2]
LINES = {"front": ("request came", "asking back", "answer sent"), "back": ("looking up 12", "found 34 rows")}


def request(trace, at_ms, **changed):
    """front (100 ms) calls back (30 ms within a client span of 40 ms) at 20 ms, then itself (10 ms) at 70 ms."""
    spans = [
        small.span(trace, 1, None, "front", "GET /", at_ms, at_ms + 100, kind="SERVER"),
        small.span(trace, 2, 1, "front", "HTTP GET", at_ms + 20, at_ms + 60, kind="CLIENT"),
        small.span(trace, 3, 2, "back", "/find", at_ms + 25, at_ms + 55, kind="SERVER"),
        small.span(trace, 4, 1, "front", "render", at_ms + 70, at_ms + 80, kind="INTERNAL"),
    ]
    lines = [("front", 1, 5, 0), ("back", 3, 30, 0), ("back", 3, 50, 1), ("front", 1, 65, 1), ("front", 4, 75, 2)]
    logs = [
        small.log((at_ms + ms) / 1000, service, LINES[service][text]) | {"trace_id": trace, "span_id": str(number)}
        for service, number, ms, text in lines
    ]
    return [row | changed for row in spans], logs


def one(**changed):
    spans, logs = request("t", 0, **changed)
    return Requests(small.frame("spans", spans), small.frame("logs", logs))


def row(requests, name):
    return requests.name.index(name)


def times(spans):
    """{name: (start, end)} in ms after T0."""
    rows = spans.select("span_name", START, END).rows()
    return {name: ((start - T0) / MS, (end - T0) / MS) for name, start, end in rows}


def test_a_delay_on_the_way_lengthens_the_client_span_and_moves_the_server_span():
    requests = one()
    served = row(requests, "/find")
    spans, logs = requests.replay(Changes(way_in={served: 500 * MS}, way_back={served: 500 * MS}))
    assert times(spans) == {"GET /": (0, 1100), "HTTP GET": (20, 1060), "/find": (525, 555), "render": (1070, 1080)}
    assert [(t - T0) / MS for t in logs["time_unix_nano"]] == [5, 530, 550, 1065, 1075]


def test_a_slow_service_lengthens_itself_and_what_waits_for_it():
    requests = one()
    spans, logs = requests.replay(Changes(slow={row(requests, "/find"): 3.0}))
    assert times(spans) == {"GET /": (0, 160), "HTTP GET": (20, 120), "/find": (25, 115), "render": (130, 140)}
    assert [(t - T0) / MS for t in logs["time_unix_nano"]] == [5, 40, 100, 125, 135]


def test_slowness_does_not_stretch_the_time_spent_waiting():
    requests = one()
    spans, _ = requests.replay(Changes(slow={row(requests, "GET /"): 2.0}, slow_tail={row(requests, "HTTP GET"): 3.0}))
    # 20 + 10 + 20 ms of its own are doubled; after the answer the client span takes 5 ms, now 15.
    assert times(spans) == {"GET /": (0, 160), "HTTP GET": (40, 90), "/find": (45, 75), "render": (110, 120)}


def test_children_that_overlap_delay_their_parent_by_the_longest():
    spans = [
        small.span("t", 1, None, "front", "root", 0, 100, kind="SERVER"),
        small.span("t", 2, 1, "a", "first", 10, 50, kind="SERVER"),
        small.span("t", 3, 1, "b", "second", 20, 60, kind="SERVER"),
        small.span("t", 4, 1, "c", "later", 70, 80, kind="SERVER"),
        small.span("t", 5, 1, "d", "left alone", 90, 200, kind="CONSUMER"),
    ]
    requests = Requests(small.frame("spans", spans), None)
    spans, logs = requests.replay(Changes(way_back={1: 30 * MS, 2: 20 * MS, 4: 1000 * MS}))
    assert logs is None
    moved = times(spans)
    assert moved["root"] == (0, 130) and moved["second"] == (20, 60) and moved["later"] == (100, 110)
    assert moved["left alone"] == (120, 230)


def test_what_is_removed_takes_its_time_and_its_lines_away():
    requests = one()
    spans, logs = requests.replay(Changes(removed={row(requests, "HTTP GET")}, failed={row(requests, "GET /")}))
    assert times(spans) == {"GET /": (0, 60), "render": (30, 40)}
    assert logs["service_name"].to_list() == ["front"] * 3
    assert spans["status_code"].to_list() == ["ERROR", "OK"]


def test_a_server_whose_clock_is_ahead_still_delays_its_client():
    spans, _ = request("t", 0)
    spans[2] |= {START: T0 + 40 * MS, END: T0 + 70 * MS}  # 30 ms within the client's 40, but 15 ms late
    requests = Requests(small.frame("spans", spans), None)
    served = row(requests, "/find")
    assert requests.seen(served) == (T0 + 25 * MS, T0 + 55 * MS)
    spans, _ = requests.replay(Changes(way_in={served: 50 * MS}, way_back={served: 50 * MS}))
    assert times(spans)["HTTP GET"] == (20, 160) and times(spans)["/find"] == (90, 120)


def test_parents_that_are_missing_or_circular_do_not_stop_the_replay():
    spans, _ = request("t", 0)
    spans[0]["parent_span_id"] = "lost"
    spans += [small.span("u", 1, 2, "front", "a", 0, 9), small.span("u", 2, 1, "front", "b", 0, 9)]
    requests = Requests(small.frame("spans", spans), None)
    replayed, _ = requests.replay(Changes(way_back={row(requests, "/find"): 5 * MS, row(requests, "a"): 5 * MS}))
    assert times(replayed)["GET /"] == (0, 105) and times(replayed)["b"] == (0, 9)


# --- kinds --------------------------------------------------------------------------------------------------------


def place(number=20, metrics=None, severity=None):
    requests = [request(f"t{i}", 1000 * i) for i in range(number)]
    spans = small.frame("spans", [row for spans, _ in requests for row in spans])
    logs = small.frame("logs", [row for _, logs in requests for row in logs])
    alerts = small.frame("logs", [small.log(1, s, "back was unkind", severity) for s in LINES]) if severity else None
    return kinds.Place(Requests(spans, logs), metrics, T0, T0 + number * SECOND, 3, True, alerts)


def own_lines(logs, service):
    return logs.filter(pl.col("service_name") == service).group_by("body").len().sort("body").rows()


@pytest.mark.parametrize("seed", range(3))
def test_network_delay_is_seen_between_client_and_server_only(seed):
    before = place()
    fault = kinds.network_delay(before, np.random.default_rng(seed))
    assert fault.service == "back"  # nobody calls front from a client span
    spans, _ = before.requests.replay(fault.changes)
    lasted = spans.select("span_name", ms=(pl.col(END) - pl.col(START)) / MS)
    lasted = dict(lasted.group_by("span_name").agg(pl.col("ms").min()).rows())
    assert lasted["/find"] == 30 and lasted["render"] == 10
    assert 50 < lasted["HTTP GET"] - 40 < 3000 and lasted["HTTP GET"] - 40 == pytest.approx(lasted["GET /"] - 100)


def test_cpu_raises_the_load_that_metrics_show():
    rows = [small.metric(s, "back", "cpu %", 5) for s in range(0, 20, 2)]
    rows += [small.metric(s, "back", "cpu_seconds", s, is_counter=True) for s in range(0, 20, 2)]
    rows += [small.metric(s, "front", "cpu %", 5) for s in range(0, 20, 2)]
    rows += [small.metric(19, "back", "node cpu %", 5)]
    before = place(metrics=small.frame("metrics", rows))
    metrics, raised = kinds._raise_cpu(before, "back", T0 + 9 * SECOND, 30.0)

    def values(service, name):
        chosen = metrics.filter((pl.col("service_name") == service) & (pl.col("metric_name") == name))
        return chosen.sort("time_unix_nano")["value"].to_list()

    assert raised == 10
    assert values("back", "cpu %") == [5] * 5 + [100] * 5  # 30 times as much, but no more than there is
    assert values("back", "cpu_seconds") == [0, 2, 4, 6, 8, *(8 + 60 * i for i in range(1, 6))]
    assert values("front", "cpu %") == [5] * 10 and values("back", "node cpu %") == [5]


def test_cpu_slows_the_service_and_leaves_waiting_time():
    before = place()
    faults = [kinds.cpu(before, np.random.default_rng(seed)) for seed in range(8)]
    assert {fault.service for fault in faults} == {"front", "back"}
    for fault in faults:
        spans, _ = before.requests.replay(fault.changes)
        took = spans.with_columns(ms=(pl.col(END) - pl.col(START)) / MS).group_by("span_name").agg(pl.col("ms").min())
        took = dict(took.rows())
        assert took["GET /"] > 105 and (took["/find"] > 31) == (fault.service == "back")


def test_exception_cuts_the_lines_of_failing_requests_short():
    before, stopped = place(severity="ERROR"), set()
    for seed in range(12):
        fault = kinds.exception(before, np.random.default_rng(seed))
        spans, logs = before.requests.replay(fault.changes)
        n, lines = fault.details["failures"], dict(own_lines(logs, fault.service))
        assert 1 <= n <= 20 and lines["back was unkind"] == n
        first, *_, last = LINES[fault.service]
        assert lines[first] == 20 and lines.get(last, 0) == 20 - n
        assert spans.filter(pl.col("status_code") == "ERROR").height == n * (1 + (fault.service == "back"))
        if fault.service == "front":
            stopped.add(fault.details["stops"])
            gone = n if fault.details["stops"] else 0  # what it does after its second line
            assert spans.filter(pl.col("span_name") == "render").height == 20 - gone
    assert stopped == {True, False}


def test_return_leaves_one_line_out_and_nothing_else():
    before, replaced = place(severity="WARN"), set()
    for seed in range(8):
        fault = kinds.wrong_return(before, np.random.default_rng(seed))
        spans, logs = before.requests.replay(fault.changes)
        assert spans.equals(before.requests.spans)
        lines = dict(own_lines(logs, fault.service))
        instead = lines.pop("back was unkind", 0)
        replaced.add(instead)
        assert sorted(lines.values()) == [20] * (len(LINES[fault.service]) - 1)
        assert fault.details["line"] not in lines
    assert replaced == {0, 20}


def test_a_kind_says_where_it_has_no_place():
    rng = np.random.default_rng(0)
    assert all(kind(place(number=2), rng) is None for kind in kinds.KINDS.values())
    without_logs = Requests(place().requests.spans, None)
    bare = kinds.Place(without_logs, None, T0, T0 + 20 * SECOND, 3, False, None)
    assert kinds.wrong_return(bare, rng) is None
    fault = kinds.exception(bare, rng)
    assert not fault.changes.failed and not fault.changes.new_logs


# --- stretches and blocks -----------------------------------------------------------------------------------------


def settings(**changed):
    config = default_config("injected")
    config.data.update({"window_length": 5, "stride": 1, "train_stride": 1, "segment_seconds": 20.0,
                        "num_workers": 1, "metrics": ("cpu.*",), "sequence_length": 2})  # fmt: skip
    config.data.update(changed)
    return config


def intervals(*seconds):
    return [(T0 + a * SECOND, T0 + b * SECOND) for a, b in seconds]


def faults_frame(*rows):
    columns = {**tables.SCHEMAS["faults"].columns}
    values = [(T0 + a * SECOND, T0 + b * SECOND, "back", "kind", T0 + u * SECOND) for u, a, b in rows]
    return pl.DataFrame(values, schema=columns, orient="row")


def seconds_of(found):
    return [((s.start - T0) // SECOND, (s.end - T0) // SECOND) for s in found]


def test_normal_stretches_keep_away_from_faults_and_from_the_later_part():
    observed = intervals(*((100 * i, 100 * i + 20) for i in range(10)))
    faults = faults_frame((8, 10, 20), (205, 212, 214))  # the first one's recovery ends at 80
    found = stretches.known_normal(observed, faults, settings(window_length=5).data, 0.9)
    # (200, 205) is shorter than 1.2 windows; of eight stretches the five longest stay
    assert seconds_of(found) == [(100, 120), (300, 320), (400, 420), (500, 520), (600, 620)]


def test_neighbouring_segments_stay_apart():
    found = stretches.known_normal(intervals((0, 100)), faults_frame(), settings().data, 1.0)
    assert seconds_of(found) == [(0, 19), (20, 39), (40, 59), (60, 79), (80, 100)]


def test_too_little_normal_time_is_an_input_error():
    with pytest.raises(InputError, match="4 stretches .* 6 s long .*--until_share"):
        stretches.known_normal(intervals((0, 100)), faults_frame((81, 82, 90)), settings().data, 1.0)


@pytest.fixture(scope="module")
def telemetry():
    """10 stretches of 20 s, 40 s apart, five requests a second; a fault in the third; CPU readings throughout."""
    found, starts = tables.Tables(), [60 * i for i in range(10)]
    requests = [request(f"t{s}-{i}", 1000 * s + 200 * i + 50) for s in starts for i in range(100)]
    rows = {
        "spans": [row for spans, _ in requests for row in spans],
        "logs": [row for _, logs in requests for row in logs] + [small.log(s + 3, "back", "tick") for s in starts],
        "metrics": [small.metric(t, service, "cpu", 1 + t % 7) for t in range(0, 600, 5) for service in LINES],
        "events": [small.event(65, "back", "restart")],
    }
    for name, values in rows.items():
        found.add(name, [tables.check(pl.DataFrame(values, schema=tables.SCHEMAS[name].columns), name, name)])
    found.add("faults", [tables.check(faults_frame((125, 130, 140)), "faults", "faults")])
    gaps = pl.DataFrame([(T0 + (s + 20) * SECOND, T0 + (s + 60) * SECOND) for s in starts],
                        tables.SCHEMAS["gaps"].columns, orient="row")  # fmt: skip
    found.add("gaps", [tables.check(gaps, "gaps", "gaps")])
    return found


@pytest.fixture(scope="module")
def injected(telemetry):
    return build.inject(telemetry, settings().data, seed=1, until_share=0.8, copies=2)


def test_originals_are_unchanged_and_copies_are_others(telemetry, injected):
    out, _ = injected
    for name in ("spans", "logs"):
        copied = pl.col("trace_id").str.contains("-copy").fill_null(False)
        if name == "logs":  # lines outside requests have no ids; those of copies lie days later
            copied |= pl.col("time_unix_nano") > T0 + 3600 * SECOND
        originals = out.frames[name].filter(~copied)
        assert originals.join(telemetry.frames[name], on=originals.columns, how="anti", nulls_equal=True).is_empty()
        assert originals.height == 5 * (400 if name == "spans" else 501)
    spans = out.frames["spans"]
    assert not spans.select("trace_id", "span_id").is_duplicated().any() and out.accounts["spans"].duplicates == 0
    parents = spans.drop_nulls("parent_span_id").select("trace_id", span_id="parent_span_id")
    assert parents.join(spans, on=["trace_id", "span_id"], how="anti").is_empty()
    assert out.frames["metrics"].height == out.frames["metrics"].unique(["time_unix_nano", "service_name"]).height
    assert out.frames["events"].height == 3


def test_faults_fill_the_copies(injected):
    out, record = injected
    firsts = sorted({row["start_time_unix_nano"] % DAY for row in record})
    faults = out.frames["faults"].sort(START)
    assert faults.height == 10 and len(firsts) == 5
    assert (faults[START] == faults["onset_uncertain_from_unix_nano"]).all()
    assert set(faults["fault_type"]) == set(kinds.KINDS) and set(faults["service_name"]) <= set(LINES)
    assert faults["fault_type"].value_counts()["count"].max() == 3  # 10 over 4 kinds
    by_stretch = faults.group_by(pl.col(START) % DAY).agg(pl.col("fault_type").n_unique(), pl.len())
    assert by_stretch["fault_type"].to_list() == by_stretch["len"].to_list() == [2] * 5  # another kind in each copy
    assert ((faults[START] - T0) // DAY).unique().sort().to_list() == [1, 2]


def test_equal_seeds_give_equal_tables_and_others_do_not(telemetry, injected, tmp_path):
    out, record = injected
    again, same = build.inject(telemetry, settings().data, seed=1, until_share=0.8, copies=2)
    build.write(out, record, tmp_path / "a", seed=1)
    build.write(again, same, tmp_path / "b", seed=1)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted([f"{name}.parquet" for name in out.frames] + [injection.RECORD])
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    _, other = build.inject(telemetry, settings().data, seed=2, until_share=0.8, copies=2)
    assert other != record


def test_a_prepared_fold_fits_on_originals_and_tests_both(injected, tmp_path):
    out, record = injected
    build.write(out, record, tmp_path / "raw", seed=1)
    first_copy = min(row[START] for row in record)
    for fold in range(split.FOLDS):
        config = settings(raw_dir=str(tmp_path / "raw"), prepared_dir=str(tmp_path / f"fold{fold}"),
                          protocol=f"fold:{fold}", calibration_folds=2)  # fmt: skip
        prepare(config)
        data = prepared_data.load(tmp_path / f"fold{fold}")
        windows = data.windows
        assert (windows.start_unix_nano[windows.part == split.FIT] < first_copy).all()
        tests = windows.part == split.TEST
        copied = windows.start_unix_nano[tests] >= first_copy
        np.testing.assert_array_equal(windows.label[tests], copied)
        assert copied.sum() == 2 * (~copied).sum() > 0
        assert set(windows.segment[tests]) == {fold, fold + 5, fold + 10}
        seconds = {(start - T0) % DAY // (60 * SECOND) for start in windows.start_unix_nano[tests].tolist()}
        assert len(seconds) == 1  # one stretch and its copies
        assert data.manifest["injected"] == {"seed": 1}
        _check_twins(data, tests)


def _check_twins(data, tests):
    """A copy's windows are those of its original, but for what the fault changed."""
    nodes, start, fault = data.windows.nodes[tests], data.windows.start_unix_nano[tests], data.windows.fault[tests]
    for f in np.unique(fault[fault >= 0]):
        copied = start[fault == f]
        twins = np.searchsorted(start, copied - (copied[0] - start[0]))
        changed = (nodes[twins] != nodes[fault == f]).any((0, 2))
        assert changed.any()
        if data.faults["fault_type"][int(f)] == "return":
            service = data.faults["service_name"][int(f)]
            names = [data.system.node_names[i] for i in np.flatnonzero(changed)]
            assert all(name.startswith(service) for name in names), names


def test_telemetry_without_spans_cannot_be_injected_into(telemetry):
    bare = tables.Tables({"logs": telemetry.frames["logs"]})
    with pytest.raises(InputError, match="no spans"):
        build.inject(bare, settings().data, seed=0, until_share=0.8)


def test_quiet_stretches_are_an_input_error(telemetry):
    quiet = tables.Tables(dict(telemetry.frames))
    quiet.frames["spans"] = quiet.frames["spans"].filter(pl.col("trace_id").str.contains("-(0|99)$"))
    with pytest.raises(InputError, match="more traffic"):
        build.inject(quiet, settings().data, seed=0, until_share=0.8)


def test_the_command_writes_tables_and_the_record(telemetry, tmp_path):
    tables.write_tables(telemetry, tmp_path / "raw")
    (tmp_path / "own.py").write_text(
        "from tests.data_prep.test_inject import settings\n\n\ndef get_config():\n    return settings()\n"
    )
    program = [sys.executable, "-m", "data_prep.inject", f"--config={tmp_path}/own.py", "--seed=3", "--until_share=1"]
    done = subprocess.run(
        [*program, f"--config.data.raw_dir={tmp_path}/raw", f"--output_dir={tmp_path}/out"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.strip() == str(tmp_path / "out"), done.stderr
    record = json.loads((tmp_path / "out" / injection.RECORD).read_text())
    assert record["settings"] == {"seed": 3, "until_share": 1.0, "copies": 1} and len(record["faults"]) == 5
    assert tables.read_tables(tmp_path / "out").frames["faults"].height == 5
    failed = subprocess.run([*program, "--output_dir=out"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert failed.returncode == 2 and "set --config.data.raw_dir" in failed.stderr


def test_only_an_earlier_injection_is_replaced(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "spans.csv").write_text("of a user")
    for place in (raw, raw / "spans.csv", raw / "spans.csv" / "below"):
        with pytest.raises(InputError, match="name another --output_dir"):
            build.check_directory(place)
    (raw / injection.RECORD).write_text("{}")
    build.check_directory(raw)
    build.write(tables.Tables(), [], raw, seed=1)
    assert {path.name for path in raw.iterdir()} == {injection.RECORD} and list(tmp_path.iterdir()) == [raw]


def test_a_broken_record_is_an_input_error(tmp_path):
    assert injection.settings_of(str(tmp_path)) is None is injection.settings_of("")
    (tmp_path / injection.RECORD).write_text("[]")
    with pytest.raises(InputError, match="no record"):
        injection.settings_of(str(tmp_path))


def test_a_circle_of_parents_is_replayed_as_if_its_first_span_had_none():
    replayed = []
    for parent in (None, "2"):  # the second is its own child's child
        spans, logs = request("t", 0)
        spans[0]["parent_span_id"] = parent
        requests = Requests(small.frame("spans", spans), small.frame("logs", logs))
        assert sorted(requests.order) == list(range(len(spans)))
        spans, _ = requests.replay(Changes(slow={row(requests, "/find"): 3.0}))
        replayed.append(times(spans))
    assert replayed[0] == replayed[1] and replayed[0]["/find"] == (25, 25 + 3 * 30)
