"""Bad input for every reader: it is repaired, set aside and counted by file and row, or refused in one sentence.

A case that once broke a reader stays here; those that the fuzzer found are marked so.
"""

import gzip
import json
import os
from types import SimpleNamespace

import polars as pl
import pytest

from data_prep import csv_rows, fingerprint, injection, prepare, raw_files, spilled, split, tables, vocabulary
from data_prep.errors import InputError
from data_prep.injection.requests import Requests
from data_prep.sources import (
    jaeger,
    nezha,
    openstack,
    osprofiler,
    prometheus,
    read,
    spring_boot,
    train_ticket_versions,
)
from tests.data_prep import apis, small
from tests.data_prep import test_source_nezha as some_nezha
from tests.data_prep import test_source_openstack as some_openstack
from tests.data_prep import train_ticket_versions as versions
from tests.data_prep.test_tables import T0, config, frame, write

LOGS = "\n".join([
    "time_unix_nano,service_name,service_instance_id,severity_text,body",
    f"{T0},a,a-0,INFO,one", f"{T0 + 1},a,a-0,INFO,two", ""
])  # fmt: skip
DEEP = 100_000  # levels of lists


def account_of(directory, name="logs", **changed):
    found = read(config(directory, **changed))
    found.check()
    return found.frames[name], found.accounts[name]


# --- CSV -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "kept", "set_aside", "repaired"),
    [
        (LOGS.encode("utf-8-sig"), 2, {}, {}),
        (LOGS.replace("\n", "\r\n").encode(), 2, {}, {}),
        (LOGS[:-1].encode(), 2, {}, {}),
        (LOGS[: LOGS.rindex("INFO")].encode(), 1, {"torn_row": 1}, {}),  # copied until the disk was full
        (LOGS.replace("two", "zwölf").encode("latin-1"), 2, {}, {"not_utf8": 1}),
        (LOGS.replace("two", "t\0wo").encode(), 2, {}, {}),
        (LOGS.replace(str(T0 + 1), "").encode(), 1, {"null_time_unix_nano": 1}, {}),
        (LOGS.replace(str(T0 + 1), "1.7e18").encode(), 1, {"invalid_time_unix_nano": 1}, {}),
        (LOGS.replace(str(T0 + 1), "9" * 40).encode(), 1, {"invalid_time_unix_nano": 1}, {}),
        (LOGS.replace(str(T0 + 1), str(T0 // 10**9)).encode(), 1, {"time_out_of_range": 1}, {}),
        (LOGS.replace(str(T0 + 1), "0").encode(), 1, {"time_out_of_range": 1}, {}),
        (LOGS.replace(str(T0 + 1), str(-T0)).encode(), 1, {"time_out_of_range": 1}, {}),
        (LOGS.replace("two", '"two').encode(), 1, {"torn_row": 1}, {}),
    ],
    ids=["BOM", "CRLF", "no last newline", "torn", "latin-1", "NUL", "no time", "float", "huge", "seconds", "zero",
         "negative", "open quote"],
)  # fmt: skip
def test_rows_of_a_csv_file(tmp_path, content, kept, set_aside, repaired):
    (tmp_path / "logs.csv").write_bytes(content)
    _, account = account_of(tmp_path)
    assert (account.read, account.kept, account.set_aside, account.repaired) == (2, kept, set_aside, repaired)
    for place in account.examples.values():
        assert place == ("logs.csv", 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"logs\.csv is empty"),
        (b"\n\n\n", r"logs\.csv is empty"),
        (LOGS.encode("utf-16"), r"logs\.csv is UTF-16; convert it to UTF-8"),
        (LOGS.replace("body", "text").encode(), r"logs\.csv lacks column 'body' of table logs; it needs"),
        (LOGS.replace("severity_text", "body").encode(), r"logs\.csv names a column twice"),
        (LOGS.replace("severity_text", "_row").encode(), r"logs\.csv has a column '_row'"),
        (bytes(range(128, 256)) * 9, r"logs\.csv lacks column 'time_unix_nano'"),
        (LOGS.replace(f"{T0}", "x").replace(f"{T0 + 1}", "y").encode(), r"none of 2 rows can be used; the first, .*2"),
    ],
    ids=["empty", "blank", "UTF-16", "missing column", "column twice", "reserved column", "bytes", "no good row"],
)  # fmt: skip
def test_a_csv_file_without_use_is_refused(tmp_path, content, message):
    (tmp_path / "logs.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(config(tmp_path))


def test_a_csv_file_of_carriage_returns_alone_is_refused_not_taken_for_a_header(tmp_path):
    (tmp_path / "logs.csv").write_text(LOGS.replace("\n", "\r"))
    with pytest.raises(InputError, match=r"logs\.csv ends its lines with carriage returns alone; convert it"):
        read(config(tmp_path))


@pytest.mark.parametrize("name", ["logs.csv.gz", "Logs.CSV", "logs-2.csv", "spans_2024.parquet", "logs.jsonl"])
def test_a_file_that_may_be_meant_for_a_table_is_named(tmp_path, name):
    (tmp_path / "logs.csv").write_text(LOGS)
    (tmp_path / name).write_text("")
    (tmp_path / "logserver.csv").write_text("")
    [warning] = read(config(tmp_path)).warnings
    assert warning == f"tables are called <table>.parquet or <table>.csv; not read are {name}"


def test_columns_in_another_order_and_a_file_column_of_the_users_own(tmp_path):
    (tmp_path / "logs.csv").write_text(LOGS)
    expected, _ = account_of(tmp_path)
    pl.read_csv(tmp_path / "logs.csv").select(pl.all().reverse()).with_columns(_file=pl.lit("elsewhere")).select(
        "_file", "body", "severity_text", "service_instance_id", "service_name", "time_unix_nano"
    ).write_csv(tmp_path / "logs.csv")
    assert account_of(tmp_path)[0].equals(expected)
    with open(tmp_path / "logs.csv", "a") as file:
        file.write("elsewhere,x,INFO,a,a,noon\n")
    assert account_of(tmp_path)[1].examples == {"invalid_time_unix_nano": ("logs.csv", 4)}


def test_a_value_of_ten_megabytes_is_no_torn_row_even_beside_one(tmp_path):
    path = tmp_path / "some.csv"
    path.write_text(f'a,b\n1,{"x" * 10_000_000}\n2\n3,{"y" * 200_000}\n')
    rows, torn = csv_rows.read(path)
    assert rows["b"].str.len_chars().to_list() == [10_000_000, 200_000] and torn == [3]


@pytest.mark.parametrize("cut", [5, 20, -9, -1])
def test_a_cut_gzip_file_is_refused(tmp_path, cut):
    (tmp_path / "some.csv.gz").write_bytes(gzip.compress(LOGS.encode())[:cut])
    with pytest.raises(InputError, match=r"some\.csv\.gz cannot be read \(.*\); copy it again"):
        csv_rows.read(tmp_path / "some.csv.gz")


# --- Parquet ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 3, 4, 50, -1, -5, -40])
def test_a_cut_parquet_file_is_refused(tmp_path, cut):
    write(tmp_path, "parquet", logs=frame("logs"))
    (tmp_path / "logs.parquet").write_bytes((tmp_path / "logs.parquet").read_bytes()[:cut])
    with pytest.raises(InputError, match=r"logs\.parquet is not a whole Parquet file"):
        read(config(tmp_path))


@pytest.mark.parametrize("at", range(4, 1200, 37))
def test_a_flipped_byte_of_a_parquet_file_is_no_crash(tmp_path, at):
    """Some of them make polars panic, which is no Exception."""
    write(tmp_path, "parquet", logs=frame("logs"))
    data = bytearray((tmp_path / "logs.parquet").read_bytes())
    data[at % len(data)] ^= 0xFF
    (tmp_path / "logs.parquet").write_bytes(data)
    try:
        read(config(tmp_path))
    except InputError as error:
        assert "logs.parquet" in str(error)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pl.Series([1.5, 2.5]), "'time_unix_nano' is Float64, not Int64.*nanoseconds"),
        (pl.Series([str(T0), str(T0)]), "'time_unix_nano' is String, not Int64"),
        (pl.Series([T0, T0]).cast(pl.Datetime("ns")), "'time_unix_nano' is Datetime.*nanoseconds since 1970, UTC"),
        (pl.Series([[T0], [T0]]), "'time_unix_nano' is List"),
        (pl.Series([True, False]), "'time_unix_nano' is Boolean"),
    ],
)
def test_a_parquet_column_of_a_wrong_type_is_refused(tmp_path, column, message):
    write(tmp_path, "parquet", logs=frame("logs", time_unix_nano=column))
    with pytest.raises(InputError, match=message):
        read(config(tmp_path))


def test_a_number_too_large_for_its_column_is_counted_also_where_it_may_be_null(tmp_path):
    """An optional column was filled with null instead."""
    late = pl.Series([2**63 + 5], dtype=pl.UInt64)
    write(tmp_path, "parquet", faults=frame("faults", onset_uncertain_from_unix_nano=late), logs=frame("logs"))
    with pytest.raises(InputError, match="invalid onset uncertain from unix nano"):
        read(config(tmp_path, on_bad_rows="error"))


def test_a_file_whose_name_looks_like_a_pattern(tmp_path):
    inside = tmp_path / "run [1] *"
    write(inside, "parquet", logs=frame("logs"))
    assert account_of(inside)[1].kept == 2


# --- directories, links, rights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_directory_or_a_link_to_nothing_in_the_place_of_a_table(tmp_path, suffix):
    write(tmp_path, "csv", metrics=frame("metrics"))
    (tmp_path / f"logs.{suffix}").symlink_to("nowhere")
    with pytest.raises(InputError, match=rf"logs\.{suffix} (cannot be read|is not a whole).*No such file"):
        read(config(tmp_path))
    (tmp_path / f"logs.{suffix}").unlink()
    (tmp_path / f"logs.{suffix}").mkdir()
    with pytest.raises(InputError, match=rf"logs\.{suffix} (cannot be read|is not a whole).*directory"):
        read(config(tmp_path))


@pytest.mark.parametrize(("name", "source"), [("logs.csv", "tables"), ("a", "otlp"), ("a", "jaeger_prometheus")])
def test_a_pipe_is_not_waited_for(tmp_path, name, source):
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=rf"{name} is no file but a pipe, a socket or a device; remove it"):
        read(config(tmp_path, source=source))


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    write(tmp_path, "csv", logs=frame("logs"))

    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", forbidden)
    with pytest.raises(InputError, match=r"logs\.csv cannot be read \(.*Permission denied\)"):
        read(config(tmp_path))


@pytest.mark.parametrize("source", ["jaeger_prometheus", "openstack", "nezha", "train_ticket_versions"])
def test_a_directory_that_may_not_be_read_is_not_left_out_silently(tmp_path, monkeypatch, source):
    def forbidden(where):
        raise PermissionError(13, "Permission denied", str(where))

    (tmp_path / "rca_data").mkdir()
    monkeypatch.setattr(os, "scandir", forbidden)
    monkeypatch.setattr(os, "listdir", forbidden)
    with pytest.raises(InputError, match="cannot be read .Permission denied.; mend or remove it"):
        read(config(tmp_path, source=source, pods=(".*",), utc_offset_hours=0.0))
    with pytest.raises(InputError, match="cannot be read .Permission denied."):
        fingerprint.raw_fingerprint(tmp_path)
    with pytest.raises(InputError, match="cannot be read .Permission denied."):
        spilled.num_partitions(tmp_path)


def test_links_that_lead_in_circles_end(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
        for other in "abc":
            (tmp_path / name / f"to_{other}").symlink_to(tmp_path, target_is_directory=True)
    assert train_ticket_versions.scenarios(tmp_path) == []
    assert list(raw_files.under(tmp_path)) == []


def test_links_to_directories_are_followed_each_directory_once(tmp_path):
    raw, far = tmp_path / "raw", tmp_path / "far"
    for directory in (raw / "day1", far / "day2" / "hour"):
        directory.mkdir(parents=True)
        (directory / "a.json").write_text("{}")
    for name, target in (("latest", raw / "day1"), ("hour", far / "day2" / "hour"), ("more", far), ("up", tmp_path)):
        (raw / name).symlink_to(target)
    (far / "back").symlink_to(raw)
    assert sorted(path.relative_to(raw).as_posix() for path in raw_files.under(raw)) == [
        "day1/a.json", "hour/a.json"
    ]  # fmt: skip


# --- JSON of APIs ----------------------------------------------------------------------------------------------------

PROCESSES = {"p1": apis.process("orders")}
SPAN = apis.span("t", "1", "p1", 0, 1)
SAMPLES = {"__name__": "up", "service": "a"}


def jaeger_account(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        apis.write(path, content)
    found = tables.Tables()
    part = jaeger.read(path, 0, 1, "quarantine")
    part[1].check()
    return found, *part


@pytest.mark.parametrize(
    ("change", "set_aside"),
    [
        ({"startTime": 0}, {"time_out_of_range": 1}),
        ({"startTime": -1}, {"time_out_of_range": 1}),
        ({"startTime": apis.T0}, {"time_out_of_range": 1}),
        ({"startTime": 1e30}, {"unreadable_span": 1}),
        ({"startTime": 1.5}, {"unreadable_span": 1}),
        ({"startTime": 2**63}, {"unreadable_span": 1}),
        ({"startTime": None}, {"unreadable_span": 1}),
        ({"duration": -1}, {"negative_duration": 1}),
        ({"duration": 2**52}, {"time_out_of_range": 1}),
        ({"spanID": ""}, {"null_span_id": 1}),
        ({"spanID": 7}, {"unreadable_span": 1}),
        ({"traceID": ""}, {}),
        ({"references": [{"refType": "CHILD_OF", "traceID": "t", "spanID": "1"}]}, {}),  # of its own
        ({"tags": [{"key": "http.status_code", "value": "9" * 5000}]}, {}),  # int() takes 4300 digits at most
        ({"tags": [{"key": "peer.service", "value": [[{}]]}]}, {}),
    ],
)
def test_a_bad_span_of_jaeger(tmp_path, change, set_aside):
    content = apis.traces(apis.trace([SPAN | change, apis.span("t", "2", "p1", 0, 1)], PROCESSES, "t"))
    _, spans, account = jaeger_account(tmp_path / "a.json", content)
    assert (account.read, account.set_aside) == (2, set_aside) and spans["parent_span_id"].null_count() == spans.height


@pytest.mark.parametrize("where", ["data", "span", "value"])
def test_json_nested_too_deep_is_set_aside(tmp_path, where):
    text = json.dumps(apis.traces(apis.trace([SPAN | {"warnings": "HERE"}], PROCESSES)))
    deep = "[" * DEEP + "]" * DEEP
    text = {"data": deep, "span": text.replace('"HERE"', deep), "value": text.replace('"orders"', deep)}[where]
    _, _, account = jaeger_account(tmp_path / "a.json", text)
    assert account.set_aside == {"unreadable_file": 1}
    (tmp_path / "b.json").write_text(text)
    assert prometheus.read(tmp_path / "b.json", 0, 1, (".*",), "quarantine")[1].set_aside == {"unreadable_file": 1}
    assert osprofiler.read_traces(str(tmp_path), ["b.json"], "quarantine")[1].set_aside == {"unreadable_trace": 1}


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 99, json.dumps(apis.traces()).encode("utf-16"), b"\xff\xfe", b"{"]
)
def test_a_file_that_is_no_json_is_set_aside(tmp_path, content):
    for name in ("a.json", "a.json.gz"):
        assert jaeger_account(tmp_path / name, content)[2].set_aside == {"unreadable_file": 1}
    whole = gzip.compress(json.dumps(apis.traces(apis.trace([SPAN], PROCESSES))).encode())
    assert jaeger_account(tmp_path / "a.json.gz", whole)[2].kept == 1
    for cut in (10, 20, -9, -1):
        assert jaeger_account(tmp_path / "a.json.gz", whole[:cut])[2].set_aside == {"unreadable_file": 1}


@pytest.mark.parametrize("second", [0, -5, 1e13, 1e300, -1e300, 18446744073.709 + apis.T0])
def test_times_of_prometheus_that_are_no_times(tmp_path, second):
    """The last one came back as a time of the year 2022: the product overflowed."""
    series = {"metric": SAMPLES, "values": [[second, "1"], [apis.T0, "2"]]}
    path = apis.write(tmp_path / "a.json", apis.matrix(series))
    samples, account = prometheus.read(path, 0, 1, (".*",), "quarantine")
    assert account.set_aside == {"time_out_of_range": 1} and samples["value"].to_list() == [2.0]
    assert prometheus.extent([path]) == (apis.T0 * apis.NS, apis.T0 * apis.NS)


def test_values_of_prometheus_that_are_no_numbers(tmp_path):
    texts = ["1e999", "-Inf", "NaN", "", "0x10", "1_0", "9" * 400, " 1", "8"]
    path = apis.write(tmp_path / "a.json", apis.matrix(apis.series(enumerate(texts), **SAMPLES)))
    samples, account = prometheus.read(path, 0, 1, (".*",), "quarantine")
    assert samples["value"].to_list() == [8.0]
    assert account.read == 9 == account.kept + sum(account.set_aside.values())


# --- OpenStack -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "stop", "finished", "set_aside"),
    [
        ("9999-12-31T23:59:59", None, 0, {"time_out_of_range": 1}),
        ("0001-01-01T00:00:00+23:59", "2019-11-25T12:00:00", 0, {"time_out_of_range": 1}),
        ("2019-11-25T12:00:00", None, 1e18, {"time_out_of_range": 1}),
        ("2019-11-25T12:00:00", None, 1e308, {"time_out_of_range": 1}),
        ("2019-02-30T12:00:00", None, 0, {"no_time": 1}),
        ("2019-11-25T12:00:00", "2019-11-25T11:00:00", 0, {"negative_duration": 1}),
    ],
)
def test_times_of_a_trace_report_that_no_column_holds(tmp_path, start, stop, finished, set_aside):
    """Found by the fuzzer: an overflow ended the reader."""
    info = {"name": "wsgi", "started": 0, "finished": finished}
    for which, time in (("start", start), ("stop", stop)):
        if time:
            info[f"meta.raw_payload.wsgi-{which}"] = {"timestamp": time}
    nodes = [{"info": info, "trace_id": "1"}]
    (tmp_path / "a.json").write_text(json.dumps({"info": {}, "children": nodes}))
    _, account = osprofiler.read_traces(str(tmp_path), ["a.json"], "quarantine")
    assert (account.read, account.set_aside) == (1, set_aside)


def test_a_trace_report_is_as_deep_as_it_can_be(tmp_path):
    for depth in (450, 499, 600, DEEP):
        (tmp_path / "a.json").write_text('{"info":{},"children":[' * depth + "]}" * depth)
        _, account = osprofiler.read_traces(str(tmp_path), ["a.json"], "quarantine")
        account.check()
        assert account.set_aside.keys() <= {"no_time", "unreadable_trace"} and account.read in (1, depth - 1)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"started_at": "noon"}, "states a fault that cannot be read"),
        ({"service_name": 7}, "states a fault that cannot be read"),
        ({"fault_type": None}, "states a fault that cannot be read"),
        ({"started_at": 1e300}, "row 1: time out of range"),
        ({"finished_at": -1e300}, "row 1: time out of range"),
        ({"finished_at": 1e9}, "row 1: negative duration"),
    ],
)
def test_a_fault_that_cannot_be_read_is_refused(tmp_path, stated, message):
    chart = {"fault_type": "cpu", "service_name": "nova", "started_at": 1.57e9, "finished_at": 1.58e9} | stated
    result = {"status": "x", "started_at": 1.57e9, "finished_at": 1.58e9, "output": {"complete": [{"data": chart}]}}
    path = some_openstack.write_report(tmp_path, [], [result])
    with pytest.raises(InputError, match=rf"output_image\.json.*{message}"):
        list(openstack._read_faults(path))


@pytest.mark.parametrize("moment", ["2019-02-30 12:00:00", "2019-11-25 25:00:00", "0000-01-01 00:00:00"])
def test_a_recording_that_starts_at_no_time(tmp_path, moment):
    path = tmp_path / openstack._EXPERIMENT
    path.write_text(f"START OF EXPERIMENTS - {moment}\nEND OF EXPERIMENTS - 2019-11-25 14:00:00\n")
    with pytest.raises(InputError, match="the start is no time .*; correct it"):
        openstack._experiment_window(path, 0.0)
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match="cannot be read .Is a directory."):
        openstack._experiment_window(path, 0.0)


@pytest.mark.parametrize(
    "at",
    ["9999-12-31T23:59:59Z", "1600-01-01T00:00:00Z", "2262-04-11T23:47:16-12:00", "2607-08-16T10:00:00+01:00",
     "2607-08-16 10:00:00 CEST", "1438-08-16T10:00:00Z", "x", ""],
)  # fmt: skip
def test_times_of_openstack_lines_that_no_column_holds(tmp_path, at):
    """The years 1438 and 2607 came back as 2022 and 2023."""
    row = some_openstack.log_row(at=at)
    row[openstack.LOG_COLUMNS.index("Timestamp")] = at
    some_openstack.write_logs(tmp_path, [row, some_openstack.log_row()])
    found = read(some_openstack.config(tmp_path))
    assert found.accounts["logs"].kept == 1 and sum(found.accounts["logs"].set_aside.values()) == 1


# --- Nezha -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", some_nezha.SPAN_COLUMNS.split(",")[:-1])
def test_a_trace_file_of_nezha_without_a_column_is_refused(tmp_path, missing):
    """Found by the fuzzer: of the times nobody had asked whether they are there."""
    path = tmp_path / "a.csv"
    some_nezha.write_csv(path, some_nezha.SPAN_COLUMNS.replace(missing, "x"), some_nezha.SPANS)
    with pytest.raises(InputError, match=rf"a\.csv lacks column '{missing}'; it needs"):
        nezha._read_files("trace", [str(path)], "quarantine")


def test_metric_files_of_nezha_with_no_metric_or_no_row_beside_good_ones(tmp_path):
    columns, pod = "Time,TimeStamp,PodName", some_nezha.TRAVEL
    some_nezha.write_csv(tmp_path / "a.csv", columns, [("x", T0 // 10**9, pod)])
    some_nezha.write_csv(tmp_path / "b.csv", f"{columns},Cpu", [])
    some_nezha.write_csv(tmp_path / "c.csv", f"{columns},Cpu", [("x", T0 // 10**9, pod, 1.5)])
    files = [str(tmp_path / name) for name in ("a.csv", "b.csv", "c.csv")]
    for some in (files, files[:1], files[:2]):
        samples, account = nezha._read_files("metric", some, "quarantine")
        account.check()
        assert samples["value"].to_list() == [1.5] * (len(some) == 3)


# --- parent links ----------------------------------------------------------------------------------------------------


def spans_with(parents):
    number = len(parents)
    return frame("spans").head(1).select(pl.all().repeat_by(number).explode()).with_columns(
        trace_id=pl.lit("t"), span_id=pl.Series([str(i) for i in range(number)]),
        parent_span_id=pl.Series([None if p is None else str(p) for p in parents], dtype=pl.String),
        kind=pl.lit("INTERNAL"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("parents", "roots"),
    [
        ([None, 0, 1], [0]),
        ([1, 0], [0]),
        ([1, 2, 0, 2], [0]),
        ([3, 0, 1, 2, 9], [0, 4]),
        ([1, 2, 3, 2], [2]),
        ([*range(1, 5000), 0], [0]),
    ],
    ids=["none", "two", "three and a branch", "four and a lost parent", "two and a tail", "long"],
)
def test_spans_that_call_one_another_in_a_circle_are_each_placed_once(parents, roots):
    """`own_part` never ended on them, and their times were never replayed."""
    requests = Requests(spans_with(parents), None)
    assert sorted(requests.order) == list(range(len(parents)))
    assert sorted(i for i, parent in enumerate(requests.parent) if parent < 0) == roots
    place = {span: at for at, span in enumerate(requests.order)}
    assert all(place[parent] < place[i] for i, parent in enumerate(requests.parent) if parent >= 0)
    assert all(len(requests.own_part(i)) <= len(parents) for i in range(min(len(parents), 5)))


def test_a_span_that_names_itself_as_parent_is_mended():
    checked, account = tables.check(spans_with([0, 0]), "spans", "some/file")
    assert checked["parent_span_id"].to_list() == [None, "0"] and account.repaired == {"own_parent": 1}


# --- sizes -----------------------------------------------------------------------------------------------------------

DATA = SimpleNamespace(
    tick_seconds=1.0, stride=5, window_length=20, segment_seconds=600.0, raw_dir="raw", recording_gap_hours=1.0
)


def test_a_single_time_of_another_year_does_not_become_a_hundred_million_windows():
    intervals = split.observed_intervals(tables.EARLIEST, T0, [])
    with pytest.raises(InputError, match="observed time from 2000-01-01 00:00 to 2023-11-14 .* more than 16777216; "):
        split.make_segments(intervals, prepare.faults_of(None), DATA)


def test_a_million_services_are_refused_with_the_number_and_the_remedy(monkeypatch):
    names = pl.Series([f"service-{i}" for i in range(1_000_000)])
    observed = small.observe(logs=[small.log(0, "a", "x")])
    logs = pl.DataFrame({vocabulary.NAME: names}).with_columns(template=pl.lit(-1, pl.Int32))
    stats = vocabulary.merge([vocabulary.count(observed | {"logs": logs})])
    options = SimpleNamespace(metric_units="all", min_template_count=1, max_templates_per_service=8)
    with pytest.raises(InputError, match="has 1000001 services or instances, more than 16384; set data.node_lev"):
        vocabulary.build(stats, observed["units"], None, options)
    stats = vocabulary.merge([vocabulary.count(observed | {"logs": logs.head(2)})])
    monkeypatch.setitem(vocabulary.MOST, "log templates", (2, "some remedy"))
    with pytest.raises(InputError, match="has 3 log templates, more than 2; some remedy, or leave services out"):
        vocabulary.build(stats, observed["units"], None, options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("start_time_unix_nano,end_time_unix_nano\n", "no observed segment overlaps"),
        ("start_time_unix_nano,end_time_unix_nano\n1,2\n", r"row 2: time out of range"),
        (f"start_time_unix_nano,end_time_unix_nano\n{T0 + 9},{T0}\n", r"row 2: negative duration"),
        (f"start_time_unix_nano,end_time_unix_nano\n{T0}\n", r"row 2: torn row"),
        ("start,end\n1,2\n", "lacks column 'start_time_unix_nano'"),
        ("", "is empty"),
    ],
)
def test_segments_that_cannot_be_read_are_refused_whatever_the_policy(tmp_path, text, message):
    write(tmp_path, "csv", logs=frame("logs"))
    (tmp_path / "segments").write_text(text)
    with pytest.raises(InputError, match=message):
        read(config(tmp_path, segments_path=str(tmp_path / "segments")))


def test_a_record_of_injected_faults_that_is_none(tmp_path):
    for text in ("", "[]", "{}", '{"settings"', "[" * DEEP):
        (tmp_path / injection.RECORD).write_text(text)
        with pytest.raises(InputError, match="no record of injected faults"):
            injection.settings_of(str(tmp_path))


# --- Spring Boot -----------------------------------------------------------------------------------------------------

HEADS = [versions.head(second, "exec-1", f"line {second}") for second in range(3)]
NO_SPANS = pl.DataFrame(schema=tables.SCHEMAS["spans"].columns)


def lines_of(path):
    parts = list(spring_boot.read(path, NO_SPANS, 8.0, "quarantine"))
    account = tables.Account()
    for _, part in parts:
        part.check()
        account.add(part)
    return pl.concat([rows for rows, _ in parts]), account


@pytest.mark.parametrize(
    ("content", "kept", "set_aside"),
    [
        ("\n".join(HEADS).encode("utf-8-sig"), 3, {}),
        ("\r\n".join(HEADS).encode(), 3, {}),
        ("\n".join(HEADS)[:-30].encode(), 2, {"torn_row": 1}),
        ("\n".join(HEADS).replace("line 1", "zwölf").encode("latin-1"), 3, {}),
        ("\n".join(HEADS).replace("line 1", "a\0b").encode(), 3, {}),
        ("\n".join([HEADS[0], "\tat x.Y(" + "z" * 10_000_000 + ")", *HEADS[1:]]).encode(), 3, {}),
        ("\n".join(["no head", *HEADS]).encode(), 3, {"no_head": 1}),
        ("\n".join([HEADS[0].replace("07-12", "02-31"), *HEADS]).encode(), 3, {"null_time_unix_nano": 1}),
        ("\n".join([HEADS[0].replace("2022", "9999"), *HEADS]).encode(), 3, {"time_out_of_range": 1}),
        ("\n".join([HEADS[0].replace("2022", "2607"), *HEADS]).encode(), 3, {"time_out_of_range": 1}),
        ("\n".join(HEADS).encode("utf-16"), 0, {"no_head": 3}),
        (b"\xff" * 50, 0, {"no_head": 1}),
    ],
    ids=["BOM", "CRLF", "torn", "latin-1", "NUL", "10 MB", "no head", "no day", "year 9999",
         "year 2607", "UTF-16", "bytes"],
)  # fmt: skip
def test_lines_of_spring_boot(tmp_path, content, kept, set_aside):
    (tmp_path / "LOGS_x.txt").write_bytes(content)
    _, account = lines_of(tmp_path / "LOGS_x.txt")
    assert (account.kept, account.set_aside) == (kept, set_aside)


def test_a_record_longer_than_a_block_is_divided_and_no_line_is_lost(tmp_path, monkeypatch):
    """All that followed its head was held in memory, and searched again for each block."""
    monkeypatch.setattr(spring_boot, "_BLOCK", 1000)
    (tmp_path / "LOGS_x.txt").write_text("\n".join([HEADS[0], *["\tat x.Y(Z.java)"] * 1000, *HEADS[1:]]))
    rows, account = lines_of(tmp_path / "LOGS_x.txt")
    joined = rows["body"].str.count_matches("Z.java", literal=True).sum()
    assert account.kept == 3 and 0 < joined < 200 and account.set_aside == {"no_head": 1000 - joined}


@pytest.mark.parametrize("cut", [0, 5, -9])
def test_spring_boot_lines_that_are_cut_gzip_or_none(tmp_path, cut):
    (tmp_path / "LOGS_x.txt.gz").write_bytes(gzip.compress("\n".join(HEADS).encode())[:cut])
    with pytest.raises(InputError, match=r"LOGS_x\.txt\.gz (cannot be read .*|is empty; remove it or )copy it again"):
        lines_of(tmp_path / "LOGS_x.txt.gz")
