import csv
import json
import multiprocessing
import os
import tarfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

from data_prep.errors import InputError
from data_prep.sources import read

GATEWAY, TRAVEL, ORDER = "ts-gateway-service-6f6-h5m2n", "ts-travel-service-644-25zj6", "ts-order-service-5b6-mv5hb"
T0 = 1_674_981_742_000_000_000  # 2023-01-29T08:42:22Z
SPAN_COLUMNS = "TraceID,SpanID,ParentID,PodName,OperationName,StartTimeUnixNano,EndTimeUnixNano,Duration"
LOG_COLUMNS = "Timestamp,TimeUnixNano,Node,PodName,Container,TraceID,SpanID,Log"
SPANS = [
    ("t", "1", "root", GATEWAY, "/*", T0, T0 + 9_000, 9),
    ("t", "2", "1", GATEWAY, "HTTP POST", T0 + 1_000, T0 + 8_000, 7),
    ("t", "3", "2", TRAVEL, "/api/trips", T0 + 2_000, T0 + 7_000, 5),
    ("t", "4", "3", TRAVEL, "SELECT Trip", T0 + 3_000, T0 + 4_000, 1),
    ("t", "5", "3", TRAVEL, "<default> send", T0 + 3_000, T0 + 4_000, 1),
    ("t", "6", "5", ORDER, "queue process", T0 + 5_000, T0 + 6_000, 1),
]
SELECTED = [("t", "9", "root", GATEWAY, "/*", T0, T0 + 9_000, 9)]


def log_row(number, message, time=None, timestamp="2023-01-29T08:42:22.5Z"):
    text = f"16:42:22.500 WARN  t.s.TravelServiceImpl#{number} TraceID: t SpanID: 3 {message}\n"
    inner = json.dumps({"log": text, "stream": "stdout", "time": timestamp}, ensure_ascii=False)
    return (timestamp, time or T0 + number, "33.33.33.1", TRAVEL, "server", "t", "3", inner)


def write_csv(path, columns, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([columns.split(","), *rows])


def config(raw_dir, **changed):
    values = {"source": "nezha", "raw_dir": str(raw_dir), "faults_path": "", "segments_path": ""}
    return SimpleNamespace(**{**values, "on_bad_rows": "quarantine", **changed})


@pytest.fixture
def archive(tmp_path):
    """Two overlapping minutes, a construct set that repeats the metrics, a torn row, a Go zero time."""
    day, construct = tmp_path / "rca_data/2023-01-29", tmp_path / "construct_data/2023-01-29"
    write_csv(day / "trace/08_43_trace.csv", SPAN_COLUMNS, SPANS)
    write_csv(day / "trace/08_44_trace.csv", SPAN_COLUMNS, SPANS[3:] + SELECTED)
    write_csv(construct / "trace/08_43_trace.csv", SPAN_COLUMNS, SELECTED)
    logs = [
        log_row(2, 'said "left, 票"\tand \\ went'),
        log_row(1, "[first]"),
        log_row(3, "[no clock]", time=-6795364578871345152, timestamp="2023-01-29T08:42:22.125"),
    ]
    write_csv(day / "log/08_43_log.csv", LOG_COLUMNS, logs)
    with (day / "log/08_43_log.csv").open("a") as file:
        file.write('2023-01-29T08:42:23Z,1,n,p,server,t,3,"{""log"":""a""}"tail"",""stream"":""stdout"",""x""\n')
        file.write(f'2023-01-29T08:42:23Z,{T0},n,{TRAVEL},server,t,3,no JSON\n')
    write_csv(day / "log/08_44_log.csv", LOG_COLUMNS, logs[1:2])
    for folder in (day, construct):
        metric = "Time,TimeStamp,PodName,CpuUsage(m),PodServerLatencyP90(s)"
        samples = [("2023-01-29 08:42:22 +0000 UTC m=+1.4", T0 // 10**9, TRAVEL, 16.5, "NaN")]
        write_csv(folder / f"metric/{TRAVEL}_metric.csv", metric, samples)
        front = [("2023-01-29 08:42:22 +0000 UTC m=+0.1", T0 // 10**9, "Frontend", 0.25)]
        write_csv(folder / "metric/front_service.csv", "Time,TimeStamp,ServiceName,LatencyP50(s)", front)
    return tmp_path


def test_spans_are_read_once_with_the_kinds_their_names_and_parents_tell(archive):
    found = read(config(archive))
    spans = found.frames["spans"].filter(pl.col("span_id") != "9").sort("span_id")
    assert spans["kind"].to_list() == ["SERVER", "CLIENT", "SERVER", "INTERNAL", "PRODUCER", "CONSUMER"]
    assert spans["parent_span_id"].to_list() == [None, "1", "2", "3", "3", "5"]
    assert spans["service_name"].unique().sort().to_list() == [
        "ts-gateway-service", "ts-order-service", "ts-travel-service"
    ]  # fmt: skip
    assert spans["service_instance_id"][0] == GATEWAY
    account = found.accounts["spans"]
    assert (account.read, account.kept, account.duplicates) == (11, 7, 4)
    assert len(found.warnings) == 2


def test_log_lines_are_unwrapped_and_the_torn_one_is_named(archive):
    found = read(config(archive))
    logs, account = found.frames["logs"], found.accounts["logs"]
    assert logs.select("time_unix_nano", "severity_text", "body").rows() == [
        (T0 + 1, "WARN", "t.s.TravelServiceImpl#1 [first]"),
        (T0 + 2, "WARN", 't.s.TravelServiceImpl#2 said "left, 票"\tand \\ went'),
        (T0 + 125_000_000, "WARN", "t.s.TravelServiceImpl#3 [no clock]"),
    ]
    assert logs["trace_id"].to_list() == ["t"] * 3
    assert (account.read, account.kept, account.duplicates) == (6, 3, 1)
    assert account.set_aside == {"null_body": 1, "torn_row": 1}
    assert account.examples["torn_row"] == ("rca_data/2023-01-29/log/08_43_log.csv", 5)
    assert account.repaired == {"go_zero_time": 1}
    with pytest.raises(InputError, match=r"08_43_log\.csv, row 6: null body"):
        read(config(archive, on_bad_rows="error"))


def test_metrics_are_long_and_a_latency_without_requests_has_no_value(archive):
    found = read(config(archive))
    assert found.frames["metrics"].drop("is_counter", "attributes").rows() == [
        (T0, "front-service", "front-service", "LatencyP50(s)", 0.25),
        (T0, "ts-travel-service", TRAVEL, "CpuUsage(m)", 16.5),
    ]
    account = found.accounts["metrics"]
    assert (account.read, account.kept, account.duplicates, account.set_aside) == (6, 2, 2, {"no_value": 2})


def test_one_set_alone_and_what_is_not_the_layout(archive, tmp_path):
    assert read(config(archive / "construct_data")).frames["spans"]["span_id"].to_list() == ["9"]
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match=r"other holds no <day>/trace.*rca_data and construct_data"):
        read(config(tmp_path / "other"))
    write_csv(archive / "rca_data/2023-01-29/trace/08_45_trace.csv", "TraceID,SpanID", [("t", "1")])
    with pytest.raises(InputError, match=r"08_45_trace\.csv lacks column 'ParentID'"):
        read(config(archive))


def test_workers_change_nothing(archive):
    alone = read(config(archive))
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        shared = read(config(archive), executor)
    assert alone.accounts == shared.accounts
    assert all(frame.equals(shared.frames[name]) for name, frame in alone.frames.items())


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    """Both days of the real archive, read once."""
    if not os.environ.get("SSAD_REAL_DATA"):
        pytest.skip("SSAD_REAL_DATA does not name the directory of the real data")
    data = Path(os.environ["SSAD_REAL_DATA"], "train_ticket")
    raw = tmp_path_factory.mktemp("train_ticket")
    with tarfile.open(data / "nezha_train_ticket.tar.xz", "r:xz") as archive:
        archive.extractall(raw, filter="data")
    labels = {"faults_path": str(data / "faults.csv"), "segments_path": str(data / "observed_segments.csv")}
    return read(config(raw, **labels))


def test_real_rows_reconcile_with_the_figures_of_the_archive(real):
    spans, logs, metrics = (real.accounts[name] for name in ("spans", "logs", "metrics"))
    # 7,644 and 1,014 identities repeat across files, 136 within one; some of them in three files
    assert (spans.read, spans.kept, spans.set_aside) == (328_848 + 179_170 + 4_890 + 4_595, 508_610, {})
    assert logs.read == 172_722 + 94_703 + 2_489 + 2_485
    # README of the archive counts one malformed row; row 760 of the same file is torn as well.
    assert logs.set_aside == {"torn_row": 2}
    assert logs.examples["torn_row"] == ("rca_data/2023-01-29/log/10_06_log.csv", 631)
    assert logs.repaired == {"go_zero_time": 124}
    assert (logs.kept, logs.duplicates) == (267_716, 4_681)
    values = 19 * (43_193 - 919 + 34_827 - 741) + 5 * (919 + 741)  # 46 pods and the gateway, two days
    assert metrics.read == 2 * values  # construct_data repeats every file
    assert metrics.duplicates == metrics.kept == values - metrics.set_aside["no_value"] // 2
    for account in real.accounts.values():
        account.check()


def test_real_telemetry_is_what_the_archive_says(real):
    spans, logs, metrics = (real.frames[name] for name in ("spans", "logs", "metrics"))
    assert not spans.select("trace_id", "span_id").is_duplicated().any()
    pods = metrics.filter(pl.col("service_name") != "front-service")
    assert pods["service_name"].n_unique() == 46
    assert (spans["service_name"].n_unique(), logs["service_name"].n_unique()) == (28, 27)
    assert spans["span_name"].n_unique() == 201
    assert spans.filter(pl.col("parent_span_id").is_null())["span_name"].unique().to_list() == ["/*"]
    assert logs["severity_text"].unique().sort().to_list() == ["ERROR", "INFO", "WARN"]
    assert logs["body"].str.contains(r"^\S+#\d+ ").all()
    assert logs.join(spans, on=["trace_id", "span_id"], how="anti").height == 0
    assert (real.frames["faults"].height, real.warnings) == (45, [])
    calls = spans.join(
        spans.select("trace_id", parent_span_id="span_id", caller="service_name"), on=["trace_id", "parent_span_id"]
    ).filter(pl.col("caller") != pl.col("service_name"))
    assert set(calls["kind"].unique()) == {"SERVER", "CONSUMER"}


def test_real_gaps_and_segments_fill_the_time_of_the_telemetry(real):
    segments = pl.read_csv(Path(os.environ["SSAD_REAL_DATA"], "train_ticket", "observed_segments.csv"))
    gaps = real.frames["gaps"]
    first, last = real.frames["metrics"]["time_unix_nano"].min(), real.frames["metrics"]["time_unix_nano"].max()
    length = pl.col("end_time_unix_nano") - pl.col("start_time_unix_nano")
    assert segments.select(length.sum()).item() + gaps.select(length.sum()).item() == last - first
