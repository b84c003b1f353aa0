"""OTLP, worked out by hand."""

import json
import os
import pickle
import re
import tarfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pyarrow
import pytest
from polars.testing import assert_frame_equal

from data_prep import shard_jobs, tables
from data_prep.errors import InputError
from data_prep.fingerprint import label_fingerprints
from data_prep.prepare import prepare
from data_prep.sources import otlp_files, parts, read
from ssad_jax import prepared
from tests.data_prep.otlp import (
    attributes,
    framed,
    lines,
    logs,
    metrics,
    of_tables,
    point,
    protobuf,
    record,
    resource,
    span,
    spans,
    value,
    write,
)
from tests.data_prep.small import SECOND, T0, event
from tests.data_prep.small import log as log_row
from tests.data_prep.small import metric as metric_row
from tests.data_prep.small import span as span_row
from tests.data_prep.test_prepare import contents, fault, make_config, telemetry
from tests.data_prep.test_prepare import write as write_tables

ARCHIVE = Path(os.environ.get("SSAD_REAL_DATA", "/nonexistent"), "train_ticket/nezha_train_ticket.tar.xz")


def config(raw_dir, **changed):
    values = {"source": "otlp", "raw_dir": str(raw_dir), "faults_path": "", "segments_path": ""}
    return SimpleNamespace(**{**values, "on_bad_rows": "quarantine", **changed})


def read_both(path, *requests):
    """The tables of requests, which are the same from JSON and from protobuf."""
    write(path / "json/a.jsonl", requests)
    write(path / "protobuf/a.pb", framed(*map(protobuf, requests)))
    one, other = (read(config(path / form)) for form in ("json", "protobuf"))
    assert one.frames.keys() == other.frames.keys()
    for name, frame in one.frames.items():
        assert_frame_equal(frame, other.frames[name])
        assert one.accounts[name].set_aside == other.accounts[name].set_aside
    return one


def read_json(path, content, **changed):
    """`content`: bytes of a file, or requests."""
    write(path / "a.jsonl", content)
    return read(config(path, **changed))


def rows(frame, *columns):
    return frame.select(columns).rows()


# Spans


def test_ids_times_kinds_and_status_of_spans(tmp_path):
    found = read_both(tmp_path, spans(
        span(1, 0xAB, None, T0, T0 + 40, kind=2, status={"code": 1}),
        span(1, 2, 0xAB, T0 + 1, T0 + 30, kind=3, status={"code": 2, "message": "no"}),
        span(1, 3, 0, T0 + 2, T0 + 3, kind=0, parentSpanId="0" * 16),
        span(2, 4, 9, T0 + 4, T0 + 5, "parent unknown", kind=5),
        service="orders",
    ))  # fmt: skip
    frame, trace = found.frames["spans"], f"{1:032x}"
    assert rows(frame, "trace_id", "span_id", "parent_span_id", "kind", "status_code") == [
        (trace, "00000000000000ab", None, "SERVER", "OK"),
        (trace, "0000000000000002", "00000000000000ab", "CLIENT", "ERROR"),
        (trace, "0000000000000003", None, None, "UNSET"),
        (f"{2:032x}", "0000000000000004", "0000000000000009", "CONSUMER", "UNSET"),
    ]
    assert rows(frame, "start_time_unix_nano", "end_time_unix_nano", "span_name")[1] == (T0 + 1, T0 + 30, "GET /")
    assert (found.accounts["spans"].read, found.accounts["spans"].kept) == (4, 4)


def test_spellings_of_other_exporters_mean_the_same(tmp_path):
    usual = span(0xABC, 0xDEF, 0x123, T0, T0 + 5, kind=2, status={"code": 2})
    other = usual | {
        "traceId": usual["traceId"].upper(), "spanId": usual["spanId"].upper(), "kind": "SPAN_KIND_SERVER",
        "status": {"code": "STATUS_CODE_ERROR"}, "startTimeUnixNano": T0, "endTimeUnixNano": T0 + 5, "links": None,
        "attributes": None, "unheardOf": {"a": [1]},
    }  # fmt: skip
    group = spans(other, service="a")["resourceSpans"][0]
    text = json.dumps(spans(other, service="a"))
    snake = re.sub(r'"([a-z]+[A-Z]\w*)":', lambda key: re.sub("([A-Z])", r"_\1", key[0]).lower(), text)
    assert '"start_time_unix_nano"' in snake and '"resource_spans"' in snake
    library = {"resourceSpans": [{"resource": group["resource"], "instrumentationLibrarySpans": group["scopeSpans"]}]}
    texts = [json.dumps(spans(usual, service="a")), text, snake, json.dumps(library)]
    frames = [read_json(tmp_path / str(i), text.encode() + b"\n").frames["spans"] for i, text in enumerate(texts)]
    for frame in frames[1:]:
        assert_frame_equal(frame, frames[0])


def test_keys_in_texts_are_no_keys(tmp_path):
    body = 'the key "trace_id": "x" and "resource_spans": []'
    found = read_both(tmp_path, logs(record(T0, body), service="a"))
    assert found.frames["logs"]["body"].to_list() == [body]


@pytest.mark.parametrize(
    ("of", "whose"),
    [
        ({"service": "a"}, ("a", "a")),
        ({"service": "a", "host_name": "h"}, ("a", "h")),
        ({"service": "a", "host_name": "h", "service_instance_id": "i"}, ("a", "i")),
        ({"service": "a", "host_name": "h", "service_instance_id": "i", "k8s_pod_name": "a-0"}, ("a", "a-0")),
        ({"k8s_deployment_name": "a", "k8s_pod_name": "a-7d9f8b6c5-x2x4z"}, ("a", "a-7d9f8b6c5-x2x4z")),
        ({"k8s_pod_name": "a-7d9f8b6c5-x2x4z"}, ("a", "a-7d9f8b6c5-x2x4z")),
        ({"host_name": "h"}, ("h", "h")),
        ({}, ("unknown_service", "unknown_service")),
    ],
)
def test_service_and_instance(tmp_path, of, whose):
    found = read_both(tmp_path, spans(span(1, 1, None, T0, T0 + 1), **of))
    assert rows(found.frames["spans"], "service_name", "service_instance_id") == [whose]
    assert found.accounts["spans"].repaired == ({"service_unknown": 1} if not of else {})


def test_a_message_without_a_resource_is_of_an_unknown_service(tmp_path):
    request = spans(span(1, 1, None, T0, T0 + 1))
    del request["resourceSpans"][0]["resource"]
    assert read_both(tmp_path, request).frames["spans"]["service_name"].to_list() == ["unknown_service"]


@pytest.mark.parametrize(
    ("kind", "said", "peer"),
    [
        (3, {"peer.service": "stock", "server.address": "10.0.0.1"}, "stock"),
        (3, {"server.address": "10.0.0.1", "db.system": "mysql"}, "mysql"),
        (3, {"db.system.name": "postgresql", "db.system": "other"}, "postgresql"),
        (4, {"messaging.system": "kafka"}, "kafka"),
        (3, {"peer.service": ""}, None),
        (2, {"server.address": "me", "peer.service": "caller"}, None),
        (1, {"peer.service": "x"}, None),
    ],
)
def test_the_peer_of_a_call(tmp_path, kind, said, peer):
    call = span(1, 1, None, T0, T0 + 1, kind=kind, attributes=attributes(said))
    found = read_both(tmp_path, spans(call, service="a"))
    assert found.frames["spans"]["peer_service_name"].to_list() == [peer]


def test_a_span_that_is_its_own_parent_has_none(tmp_path):
    found = read_both(tmp_path, spans(span(1, 7, 7, T0, T0 + 1), service="a"))
    assert found.frames["spans"]["parent_span_id"].to_list() == [None]
    assert found.accounts["spans"].repaired == {"own_parent": 1}


def test_impossible_spans_are_set_aside(tmp_path):
    found = read_both(tmp_path, spans(
        span(1, 1, None, T0, T0 + 1), span(1, 2, None, T0, T0 - 1), span(0, 3, None, T0, T0 + 1),
        span(1, 0, None, T0, T0 + 1), span(1, 4, None, 0, T0), span(1, 5, None, T0, T0 + 1, status={"code": 7}),
        service="a",
    ))  # fmt: skip
    assert found.accounts["spans"].set_aside == {
        "negative_duration": 1, "null_trace_id": 1, "null_span_id": 1, "time_out_of_range": 1, "invalid_status_code": 1
    }  # fmt: skip


# Logs


@pytest.mark.parametrize(
    ("said", "body"),
    [
        ("plain", "plain"),
        (True, "true"),
        (42, "42"),
        (1.5, "1.5"),
        ([1, "a", [False]], '[1,"a",[false]]'),
        ({"msg": "no", "n": 2, "of": {"x": 0.5}}, '{"msg":"no","n":2,"of":{"x":0.5}}'),
        ("a\0b\nc", "a\0b\nc"),
    ],
)
def test_bodies_of_any_kind_become_text(tmp_path, said, body):
    assert read_both(tmp_path, logs(record(T0, said), service="a")).frames["logs"]["body"].to_list() == [body]


def test_bytes_and_numbers_that_are_none_in_a_body(tmp_path):
    raw = {"arrayValue": {"values": [{"doubleValue": "NaN"}, {"doubleValue": "-Infinity"}, {"bytesValue": "AAE="}, {}]}}
    [body] = read_json(tmp_path, [logs(record(T0, None) | {"body": raw}, service="a")]).frames["logs"]["body"]
    assert body == '["NaN","-Infinity","AAE=",null]'


def test_times_severities_and_ids_of_logs(tmp_path):
    found = read_both(tmp_path, logs(
        record(T0, "a", 17, severityText="", traceId=f"{1:032x}", spanId=f"{2:016x}"),
        record(0, "b", 13, severityText="Warnung", observedTimeUnixNano=str(T0 + 5)),
        record(T0 + 6, "c", 0), record(T0 + 7, "d", 24), record(T0 + 8, "e", 1), service="a",
    ))  # fmt: skip
    assert rows(found.frames["logs"], "time_unix_nano", "severity_text", "body", "trace_id", "span_id") == [
        (T0, "ERROR", "a", f"{1:032x}", f"{2:016x}"), (T0 + 5, "Warnung", "b", None, None),
        (T0 + 6, None, "c", None, None), (T0 + 7, "FATAL", "d", None, None), (T0 + 8, "TRACE", "e", None, None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("written", "number", "severity"),
    [("", "SEVERITY_NUMBER_WARN2", "WARN"), ("", "17", "ERROR"), ("E", 17, "ERROR"), ("E", 0, "E"), ("err", 9, "err")],
)
def test_severities_as_texts_signs_and_numbers(tmp_path, written, number, severity):
    found = read_json(tmp_path, [logs(record(T0, "a", number, severityText=written), service="a")])
    assert found.frames["logs"]["severity_text"].to_list() == [severity]


def test_a_line_without_a_text_is_no_error(tmp_path):
    content = [logs(record(T0, None), record(T0, ""), record(T0, "x"), service="a")]
    account = read_json(tmp_path, content, on_bad_rows="error").accounts["logs"]
    assert (account.read, account.kept, account.set_aside) == (3, 1, {"empty_payload": 2})


# Events


def test_exceptions_of_spans_and_events_of_logs_become_events(tmp_path):
    failed = {"name": "exception", "timeUnixNano": str(T0 + 3), "attributes": attributes(
        {"exception.type": "KeyError", "exception.message": "id", "exception.stacktrace": "..."})}  # fmt: skip
    other = {"name": "retry", "timeUnixNano": str(T0 + 4), "attributes": []}
    killing = {"attributes": attributes({"k8s.event.reason": "Killing"})}
    found = read_both(
        tmp_path,
        spans(span(1, 1, None, T0, T0 + 5, events=[other, failed]), service="a"),
        logs(record(T0 + 1, "Stopping container", **killing),
             k8s_object_kind="Pod", k8s_object_name="b-7d9f8b6c5-x2x4z"),
        logs(record(T0 + 2, None, eventName="deployed"), record(T0 + 2, "with a body", eventName="named"), service="c"),
    )  # fmt: skip
    assert rows(found.frames["events"], *tables.SCHEMAS["events"].columns) == [
        (T0 + 1, "b", "b-7d9f8b6c5-x2x4z", "Killing", "Stopping container"),
        (T0 + 2, "c", "c", "deployed", None),
        (T0 + 3, "a", "a", "exception", "KeyError: id"),
    ]
    assert found.frames["logs"]["body"].to_list() == ["with a body"]


# Metrics


def number_metric(kind, *points, **more):
    return {"name": "m", kind: {"dataPoints": list(points), **more}}


def test_gauges_and_sums(tmp_path):
    found = read_both(
        tmp_path,
        metrics(
            number_metric("gauge", point(T0, 2.5), point(T0 + 1, 3)),
            number_metric("sum", point(T0 + 2, 7), aggregationTemporality=2, isMonotonic=True),
            number_metric("sum", point(T0 + 3, 8), aggregationTemporality=2, isMonotonic=False),
            service="a",
        ),
    )
    assert rows(found.frames["metrics"], "time_unix_nano", "metric_name", "value", "is_counter", "attributes") == [
        (T0, "m", 2.5, False, None), (T0 + 1, "m", 3.0, False, None),
        (T0 + 2, "m", 7.0, True, None), (T0 + 3, "m", 8.0, False, None),
    ]  # fmt: skip


def test_a_delta_becomes_a_rate(tmp_path):
    more = {"aggregationTemporality": 1, "isMonotonic": True}
    found = read_both(
        tmp_path,
        metrics(
            number_metric("sum", point(T0 + 10 * SECOND, 30, T0), point(T0 + 20 * SECOND, 5), **more),
            number_metric("sum", point(T0 + 30 * SECOND, 5, T0 + 40 * SECOND), **more),
            number_metric("sum", point(T0 + 50 * SECOND, 5)),
            service="a",
        ),
    )
    assert rows(found.frames["metrics"], "time_unix_nano", "value", "is_counter") == [(T0 + 10 * SECOND, 3.0, False)]
    assert found.accounts["metrics"].set_aside == {"delta_without_interval": 2, "unknown_temporality": 1}


@pytest.mark.parametrize("kind", ["histogram", "exponentialHistogram"])
def test_a_histogram_is_its_count_and_its_sum(tmp_path, kind):
    one = {"startTimeUnixNano": str(T0), "timeUnixNano": str(T0 + 2 * SECOND), "count": "4", "sum": 10.0}
    without = one | {"timeUnixNano": str(T0 + 4 * SECOND)}
    del without["sum"]
    found = read_both(
        tmp_path,
        metrics(
            number_metric(kind, one, without, aggregationTemporality=2) | {"name": "m"},
            number_metric(kind, one, aggregationTemporality=1) | {"name": "d"},
            service="a",
        ),
    )
    frame = found.frames["metrics"].sort("metric_name", "time_unix_nano")
    assert rows(frame, "metric_name", "value", "is_counter") == [
        ("d_count", 2.0, False), ("d_sum", 5.0, False), ("m_count", 4.0, True), ("m_count", 4.0, True),
        ("m_sum", 10.0, True),
    ]  # fmt: skip


def test_a_summary_is_its_count_and_its_sum(tmp_path):
    one = {"timeUnixNano": str(T0), "count": "4", "sum": 10.0, "quantileValues": [{"quantile": 0.5, "value": 2.0}]}
    found = read_both(tmp_path, metrics({"name": "m", "summary": {"dataPoints": [one]}}, service="a"))
    assert rows(found.frames["metrics"], "metric_name", "value", "is_counter") == [
        ("m_count", 4.0, True), ("m_sum", 10.0, True)
    ]  # fmt: skip


def test_attributes_are_kinds_or_pieces(tmp_path):
    points = [point(T0, 1.0, state="idle", cpu="cpu0"), point(T0, 2.0, state="idle", cpu="cpu1"),
              point(T0, 3.0, state="user", cpu="cpu0", up=True)]  # fmt: skip
    found = read_both(tmp_path, metrics(number_metric("gauge", *points), service="a"))
    assert rows(found.frames["metrics"], "metric_name", "value", "attributes") == [
        ('m{state="idle"}', 1.0, 'cpu="cpu0"'), ('m{state="idle"}', 2.0, 'cpu="cpu1"'),
        ('m{state="user",up="true"}', 3.0, 'cpu="cpu0"'),
    ]  # fmt: skip


def test_containers_of_one_pod_are_pieces(tmp_path):
    gauge = number_metric("gauge", point(T0, 1.0, cpu="0"))
    found = read_both(tmp_path, *(metrics(gauge, k8s_pod_name="a-0", k8s_container_name=name) for name in ("x", "y")))
    assert rows(found.frames["metrics"], "service_name", "metric_name", "attributes") == [
        ("a", "m", 'cpu="0",k8s.container.name="x"'), ("a", "m", 'cpu="0",k8s.container.name="y"')
    ]  # fmt: skip


def test_a_point_without_a_value(tmp_path):
    absent = {"timeUnixNano": str(T0), "attributes": []}
    found = read_both(
        tmp_path,
        metrics(
            number_metric("gauge", point(T0, 1.0) | {"flags": 1}, absent, point(T0, float("inf")), point(T0 + 9, 0.0)),
            {"name": "nothing"},
            service="a",
        ),
    )
    assert rows(found.frames["metrics"], "time_unix_nano", "value") == [(T0 + 9, 0.0)]
    assert found.accounts["metrics"].set_aside == {"no_value": 4}


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
def test_doubles_that_are_none_may_be_texts(tmp_path, text):
    points = [point(T0, 1.0), point(T0 + 1, 1.0) | {"asDouble": text}, point(T0 + 2, 1.0) | {"asDouble": "2.5"}]
    found = read_json(tmp_path, [metrics(number_metric("gauge", *points), service="a")])
    assert found.frames["metrics"]["value"].to_list() == [1.0, 2.5]
    assert found.accounts["metrics"].set_aside == {"no_value": 1}


# Files

ONE = spans(span(1, 1, None, T0, T0 + 1), service="a")
TWO = spans(span(1, 2, 1, T0, T0 + 1), service="b")
BOTH = {"resourceSpans": ONE["resourceSpans"] + TWO["resourceSpans"]}


def zstd(data):
    return pyarrow.compress(data, codec="zstd", asbytes=True)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("lines", lines(ONE, TWO)),
        ("lines-with-marks", b"\xef\xbb\xbf" + lines(ONE) + b"\r\n\n" + lines(TWO).strip()),
        ("list", json.dumps([ONE, TWO]).encode()),
        ("list-over-lines", json.dumps([ONE, TWO], indent=2).encode()),
        ("one-over-lines", json.dumps(BOTH, indent=1).encode()),
        ("framed", framed(protobuf(ONE), protobuf(TWO))),
        ("framed-zstd", framed(zstd(protobuf(ONE)), zstd(protobuf(TWO)))),
        ("framed-of-both", framed(zstd(json.dumps(ONE).encode()), protobuf(TWO))),
        ("framed-json-zstd", framed(zstd(json.dumps(ONE).encode()), zstd(json.dumps(TWO).encode()))),
        ("whole", protobuf(ONE) + protobuf(TWO)),  # protobuf: messages put together are one
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_every_form_of_a_file(tmp_path, name, data, suffix):
    write(tmp_path / f"any name{suffix}", data)
    found = read(config(tmp_path))
    assert rows(found.frames["spans"], "span_id", "service_name") == [(f"{1:016x}", "a"), (f"{2:016x}", "b")]
    assert found.frames.keys() == {"spans"} and found.warnings == []


def test_one_file_may_hold_all_signals(tmp_path):
    requests = [ONE, logs(record(T0, "x"), service="a"), metrics(number_metric("gauge", point(T0, 1)), service="a")]
    found = read_both(tmp_path, *requests)
    assert {name: account.read for name, account in found.accounts.items()} == {"spans": 1, "logs": 1, "metrics": 1}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("binary", [False, True])
def test_a_large_file_is_shared_out_by_bytes(tmp_path, monkeypatch, compressed, binary):
    requests = [spans(span(1, i, None, T0, T0 + 1), service="s" * i) for i in range(1, 40)]
    requests[20] = spans(span(1, 21, None, T0, T0 - 1), service="late")
    data = framed(*map(protobuf, requests)) if binary else lines(*requests)
    path = write(tmp_path / ("a.gz" if compressed else "a"), data)
    whole = read(config(tmp_path))
    for size in (257, 4000):
        monkeypatch.setattr(otlp_files, "_SHARE_BYTES", {False: size, True: size})
        assert len(otlp_files.shares(path, otlp_files.form_of(path))) > 1
        shared = read(config(tmp_path))
        assert_frame_equal(shared.frames["spans"], whole.frames["spans"])
        account = shared.accounts["spans"]
        assert (account.read, account.kept) == (39, 38)
        assert account.examples == {"negative_duration": (path.name, 21)}


@pytest.mark.parametrize("spelled", ["camel", "snake"])
def test_one_message_may_hold_all_signals(tmp_path, spelled):
    gauge = {"name": "m", "gauge": {"dataPoints": [point(T0, 1)]}}
    message = json.dumps(ONE | logs(record(T0, "x"), service="a") | metrics(gauge, service="a")).encode()
    if spelled == "snake":
        for signal in (b"Spans", b"Logs", b"Metrics"):
            message = message.replace(b"resource" + signal, b"resource_" + signal.lower())
    found = read_json(tmp_path, message)
    assert {name: account.kept for name, account in found.accounts.items()} == {"spans": 1, "logs": 1, "metrics": 1}


def test_a_name_of_another_signal_is_not_that_signal(tmp_path):
    found = read_json(tmp_path, [spans(span(1, 1, None, T0, T0 + 1, name="resourceLogs"), service="a")])
    assert found.frames.keys() == {"spans"} and found.accounts["spans"].set_aside == {}


@pytest.mark.parametrize("envelope", ["result", "trace"])
def test_what_lies_in_an_envelope_is_counted(tmp_path, envelope):
    """As Jaeger's /api/v3 and Tempo answer."""
    account = read_json(tmp_path, lines(ONE, {envelope: ONE})).accounts["spans"]
    assert (account.read, account.kept, account.set_aside) == (2, 1, {"unreadable_message": 1})


def test_files_that_were_joined_have_several_byte_order_marks(tmp_path):
    account = read_json(tmp_path, b"\xef\xbb\xbf" + lines(ONE) + b"\xef\xbb\xbf" + lines(ONE)).accounts["spans"]
    assert (account.read, account.kept, account.duplicates) == (2, 1, 1)


def test_what_no_collector_wrote_is_named(tmp_path):
    write(tmp_path / "a.jsonl", [ONE])
    write(tmp_path / "dashboard.json", b'{"title": "x"}')
    write(tmp_path / "README", b"\nnotes")
    write(tmp_path / "cut.gz", b"")
    (tmp_path / "cut.gz").write_bytes(b"\x1f\x8b\x08")
    write(tmp_path / "logs-2.csv", b"x")
    write(tmp_path / "picture.png", b"\x89PNG")
    write(tmp_path / "empty", b"")
    [warning] = read(config(tmp_path)).warnings
    assert warning == (
        "6 files hold no OTLP or cannot be read; they are left out: README, cut.gz, dashboard.json, empty, "
        "logs-2.csv, ..."
    )


def test_a_directory_without_any(tmp_path):
    write(tmp_path / "a.json", b'{"title": "x"}')
    with pytest.raises(InputError, match="holds no OTLP .* point config.data.raw_dir at what .* file exporter wrote"):
        read(config(tmp_path))


def test_tables_beside_it(tmp_path):
    raw = write_tables(tmp_path / "raw", {
        "logs": [log_row(1, "a", "hello")], "faults": [fault(2, 3)], "events": [event(4, "a", "deployed")],
        "topology": [{"source": "a", "target": "b", "relation": "invokes"}],
        "gaps": [{"start_time_unix_nano": T0 + SECOND, "end_time_unix_nano": T0 + 2 * SECOND}],
    })  # fmt: skip
    failed = {"name": "exception", "timeUnixNano": str(T0 + 3)}
    write(raw / "a.jsonl", [spans(span(1, 1, None, T0, T0 + 1, events=[failed]), service="a")])
    found = read(config(raw))
    assert found.frames.keys() == {"spans", "logs", "events", "faults", "topology", "gaps"} and found.warnings == []
    assert found.frames["events"]["event_name"].to_list() == ["exception", "deployed"]
    assert label_fingerprints(make_config(raw, "out", source="otlp").data)["faults.parquet"]
    write(raw / "b.jsonl", [logs(record(T0, "x"), service="a")])
    assert read(config(raw)).frames["logs"]["body"].to_list() == ["x", "hello"]


# What is broken costs itself alone


@pytest.mark.parametrize(
    "bad",
    [
        b'{"resourceSpans": [{"resource": {"attri',
        b"\0" * 5000,
        json.dumps(ONE).encode().replace(b"GET /", b"\xff\xfe"),
        json.dumps(ONE).encode("utf-16"),
        b'{"resourceSpans": [{"x": ' + b"[" * 100_000,
        b'{"resourceSpans": 7}',
        b"no JSON",
        b'{"something": "else"}',
    ],
)
def test_a_line_that_cannot_be_read(tmp_path, bad):
    content = lines(ONE) + bad.replace(b"\n", b" ") + b"\n" + lines(TWO)
    account = read_json(tmp_path, content).accounts["spans"]
    assert (account.read, account.kept, account.set_aside) == (3, 2, {"unreadable_message": 1})
    assert account.examples == {"unreadable_message": ("a.jsonl", 2)}
    with pytest.raises(InputError, match=r"a\.jsonl, row 2: unreadable message .*on_bad_rows=quarantine"):
        read_json(tmp_path, content, on_bad_rows="error")


@pytest.mark.parametrize("form", ["lines", "framed"])
def test_a_torn_gzip_file_of_few_lines_is_read_up_to_there(tmp_path, form):
    both = ONE, spans(*(span(i**20, i**9, None, T0, T0 + 1) for i in range(1, 80)), service="b")
    path = write(tmp_path / "a.gz", lines(*both) if form == "lines" else framed(*map(protobuf, both)))
    path.write_bytes(path.read_bytes()[:-50])
    account = read(config(tmp_path)).accounts["spans"]
    assert (account.kept, account.examples) == (1, {"unreadable_message": ("a.gz", 2)})


def test_a_torn_list_counts_as_one_message(tmp_path):
    write(tmp_path / "a.json", json.dumps([ONE, TWO]).encode()[:-20])
    write(tmp_path / "b.json", [ONE])
    account = read(config(tmp_path)).accounts["spans"]
    assert (account.kept, account.examples) == (1, {"unreadable_message": ("a.json", 1)})


@pytest.mark.parametrize("form", ["lines", "framed", "zstd", "text"])
def test_damage_of_any_kind_is_counted_or_named(tmp_path, form):
    """Bytes changed, lost and put in at random; the accounts are checked by `read`."""
    rng = np.random.default_rng(zlib.crc32(form.encode()))
    both = logs(record(T0, {"a": [1, 2.5]}), service="a"), metrics(number_metric("gauge", point(T0, 1)), service="a")
    data = {
        "lines": lines(ONE, *both, TWO), "framed": framed(*map(protobuf, (ONE, *both, TWO))),
        "zstd": framed(*(zstd(protobuf(request)) for request in (ONE, *both, TWO))), "text": json.dumps(ONE).encode(),
    }[form]  # fmt: skip
    intact = 0
    for attempt in range(20):
        damaged = bytearray(data)
        for at in rng.integers(0, len(data), rng.integers(1, 6)):
            damaged[at : at + rng.integers(0, 5)] = rng.bytes(rng.integers(0, 5))
        path = write(tmp_path / f"{attempt}/a", bytes(damaged))
        write(path.with_name("b"), [TWO])
        try:
            found = read(config(path.parent))
            intact += found.accounts["spans"].kept > 0
            lost = any(account.set_aside for account in found.accounts.values())
            assert lost or found.warnings or sum(a.read for a in found.accounts.values()) >= 1
        except InputError as error:
            assert re.search(r"none of \d+ rows can be used", str(error))
    assert intact > 0


def test_a_torn_last_line_of_a_file_of_logs_is_a_log(tmp_path):
    content = lines(logs(record(T0, "x"), service="a")) + lines(logs(record(T0, "y"), service="a"))[:50]
    found = read_json(tmp_path, content)
    assert found.accounts.keys() == {"logs"} and found.accounts["logs"].set_aside == {"unreadable_message": 1}


@pytest.mark.parametrize(
    ("changed", "kept"),
    [({"startTimeUnixNano": "noon"}, 3), ({"name": 7}, 3), ({"startTimeUnixNano": 10**30}, 3), ({"kind": [1]}, 3)],
)
def test_a_span_that_cannot_be_read_costs_no_other(tmp_path, changed, kept):
    found = [span(1, i, None, T0, T0 + 1) for i in (1, 2, 3)]
    bad = span(1, 4, None, T0, T0 + 1) | changed
    account = read_json(tmp_path, [spans(*found, bad, service="a")]).accounts["spans"]
    assert (account.read, account.kept, account.set_aside) == (4, kept, {"unreadable_message": 1})


def test_attributes_that_cannot_be_read_cost_no_span(tmp_path):
    deep = b'[{"key":"a","value":' + b'{"arrayValue":{"values":[' * 300 + b"]}}" * 300 + b"}]"
    content = json.dumps(spans(span(1, 1, None, T0, T0 + 1, kind=3), service="a")).encode()
    content = content.replace(b'"attributes": [], "status"', b'"attributes": ' + deep + b', "status"')
    found = read_json(tmp_path, content)
    assert found.frames["spans"]["peer_service_name"].to_list() == [None]


def test_a_body_too_deep_to_be_written_costs_its_message(tmp_path):
    deep = b'{"arrayValue":{"values":[' * 400 + b"]}}" * 400
    content = json.dumps(logs(record(T0, "x"), service="a")).encode().replace(b'{"stringValue": "x"}', deep)
    account = read_json(tmp_path, content + b"\n" + lines(logs(record(T0, "y"), service="a"))).accounts["logs"]
    assert account.read == 2 and account.kept in (1, 2)  # how deep is too deep hangs on what calls the reader


def test_texts_without_an_end_are_set_aside(tmp_path):
    content = [logs(record(T0, "x" * (1 << 20)), record(T0, "y" * ((1 << 20) + 1)), service="a")]
    account = read_json(tmp_path, content).accounts["logs"]
    assert (account.kept, account.set_aside) == (1, {"huge_text": 1})


def test_a_message_larger_than_memory_should_hold_is_set_aside(tmp_path, monkeypatch):
    monkeypatch.setattr(otlp_files, "LARGEST", 2000)
    large = spans(span(1, 9, None, T0, T0 + 1, "x" * 5000), service="a")
    account = read_json(tmp_path / "lines", [ONE, large, TWO]).accounts["spans"]
    assert (account.kept, account.examples) == (2, {"unreadable_message": ("a.jsonl", 2)})
    write(tmp_path / "frames/a", framed(protobuf(ONE), protobuf(TWO), protobuf(large)))
    account = read(config(tmp_path / "frames")).accounts["spans"]
    assert (account.kept, account.examples) == (2, {"unreadable_message": ("a", 3)})


@pytest.mark.parametrize(
    "rest", [b"\0\0", b"\0" * 4000, b"\0\0\0\x09\x0a", b"\xff\xff\xff\xff\x0a\x0b", b"\0\0\0\x02\x0a\x7f"]
)
def test_the_torn_end_of_protobuf(tmp_path, rest):
    write(tmp_path / "a", framed(protobuf(ONE), protobuf(TWO)) + rest)
    account = read(config(tmp_path)).accounts["spans"]
    assert (account.read, account.kept, account.examples) == (3, 2, {"unreadable_message": ("a", 3)})


@pytest.mark.parametrize("size", [4000, 1 << 20])
def test_the_torn_end_of_gzip(tmp_path, monkeypatch, size):
    monkeypatch.setattr(otlp_files, "_SHARE_BYTES", {False: size, True: size})
    requests = [spans(span(i**20, i**9, None, T0, T0 + 1), service=f"{i**30}") for i in range(1, 400)]
    path = write(tmp_path / "a.gz", requests)
    path.write_bytes(path.read_bytes()[:-3000])
    account = read(config(tmp_path)).accounts["spans"]
    assert 100 < account.kept < 399 and 0 < account.set_aside["unreadable_message"] < 9


# The same telemetry in each form


def as_otlp(path, rows_of):
    requests = of_tables(rows_of)
    write(path / "json/all.jsonl", requests)
    write(path / "protobuf/all.pb", framed(*map(protobuf, requests)))
    return path


def hexadecimal(rows_of):
    """Ids as OTLP has them."""
    def written(row):
        trace = int(row["trace_id"].removeprefix("t")) + 1
        parent = row["parent_span_id"] and f"{int(row['parent_span_id']):016x}"
        return row | {"trace_id": f"{trace:032x}", "span_id": f"{int(row['span_id']):016x}", "parent_span_id": parent}

    return rows_of | {"spans": [written(row) for row in rows_of["spans"]]}


def test_json_protobuf_and_tables_give_equal_tables(tmp_path):
    rows_of = hexadecimal(telemetry(until=60))
    rows_of["spans"].append(span_row("t9", 5, 3, "訂單", "db", 5, 6, kind="CLIENT", peer_service_name="mysql"))
    rows_of["spans"][-1] |= {"trace_id": f"{9:032x}", "span_id": f"{5:016x}", "parent_span_id": f"{3:016x}"}
    rows_of["metrics"] += [metric_row(i, "訂單", "calls", i, is_counter=True) for i in range(9)]
    rows_of = {name: rows_of[name] for name in ("spans", "logs", "metrics")}
    as_otlp(tmp_path, rows_of)
    for row in rows_of["metrics"]:
        row["is_counter"] = bool(row["is_counter"])
    write_tables(tmp_path / "tables", rows_of)
    expected = read(config(tmp_path / "tables", source="tables"))
    for form in ("json", "protobuf"):
        found = read(config(tmp_path / form))
        assert found.frames.keys() == expected.frames.keys()
        for name, frame in expected.frames.items():
            assert_frame_equal(found.frames[name], frame)


def test_tasks_can_be_done_anywhere_and_in_jobs(tmp_path):
    raw = as_otlp(tmp_path / "raw", hexadecimal(telemetry()))
    prepare(make_config(raw / "json", tmp_path / "out", source="otlp"))
    config = make_config(raw / "json", tmp_path / "sharded", source="otlp")
    for part in parts(config.data):
        assert pickle.loads(pickle.dumps(part)) == part
    for shard in ("2/2", "1/2", "merge"):
        shard_jobs.run(config, shard)
    assert contents(tmp_path / "sharded") == contents(tmp_path / "out")


def test_an_export_becomes_a_dataset(tmp_path):
    rows_of = hexadecimal(telemetry())
    raw = as_otlp(tmp_path / "raw", rows_of)
    write(raw / "json/events.jsonl", [logs(record(T0 + 17 * SECOND, None, eventName="restart"), service="訂單")])
    pl.DataFrame(rows_of["faults"], schema=tables.SCHEMAS["faults"].columns).write_csv(raw / "json/faults.csv")
    prepare(make_config(raw / "json", tmp_path / "out", source="otlp"))
    data = prepared.load(tmp_path / "out")
    names = {"gateway", "訂單", "gateway -> 訂單", "gateway: cpu", "訂單: restart"}
    assert names <= set(data.system.node_names) and data.manifest["counts"]["faults"] == 2
    assert data.manifest["rows"]["spans"]["kept"] == len(rows_of["spans"])


@pytest.mark.skipif(not ARCHIVE.is_file(), reason="SSAD_REAL_DATA does not name the real telemetry")
def test_real_spans_survive_the_way_through_otlp(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        minute = next(member for member in archive if re.search(r"rca_data/2.*/trace/.*_trace\.csv$", member.name))
        archive.extract(minute, tmp_path / "raw", filter="data")
    (top,) = (tmp_path / "raw").rglob("rca_data")
    expected = read(config(top.parent, source="nezha")).frames["spans"]
    as_otlp(tmp_path, {"spans": expected.to_dicts()})
    assert expected.height > 500
    for form in ("json", "protobuf"):
        assert_frame_equal(read(config(tmp_path / form)).frames["spans"], expected)


def test_resources_of_the_generator_are_what_tests_say():
    assert resource("a", k8s_pod_name="p")["attributes"][1] == {"key": "k8s.pod.name", "value": value("p")}
