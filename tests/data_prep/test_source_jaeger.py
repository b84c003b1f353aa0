"""Jaeger's JSON, worked out by hand."""

import pytest

from data_prep.errors import InputError
from data_prep.sources import jaeger, json_files
from tests.data_prep.apis import NS, T0, process, span, trace, traces, write

PROCESSES = {
    "p1": process("ts-order-service", hostname="ts-order-service-7d9f8b6c5-x2x4z", ip="10.0.0.7"),
    "p2": process("ts-station-service", ip="10.0.0.8"),
    "p3": process("ts-ui"),
}


def read(path, content, shares=1, on_bad_rows="quarantine"):
    write(path, content)
    parts = [jaeger.read(path, share, shares, on_bad_rows) for share in range(shares)]
    return parts[0] if shares == 1 else parts


def rows(frame, *columns):
    return frame.sort("span_id").select(columns).rows()


def test_times_names_parents_and_kinds(tmp_path):
    spans = [
        span("t", "1", "p3", 0, 40, span_kind="server"),
        span("t", "2", "p1", 0.001, 30, parent="1", operation="addOrder", span_kind="client", peer_service="mongo"),
        span("t", "3", "p2", 0.002, 0.5, parent="2", ref="FOLLOWS_FROM", span_kind="unheard of"),
        span("t", "4", "p2", 0.003, 1, parent="x"),
    ]
    spans[2]["references"] += [{"refType": "FOLLOWS_FROM", "traceID": "t", "spanID": "1"}]
    spans[3]["references"] = [
        {"refType": "CHILD_OF", "traceID": "of another trace", "spanID": "9"},
        {"refType": "FOLLOWS_FROM", "traceID": "t", "spanID": "3"},
        {"refType": "CHILD_OF", "traceID": "t", "spanID": "2"},
    ]
    frame, account = read(tmp_path / "a.json", traces(trace(spans, PROCESSES)))
    assert rows(frame, "trace_id", "span_id", "parent_span_id", "service_name", "service_instance_id", "kind") == [
        ("t", "1", None, "ts-ui", "ts-ui", "SERVER"),
        ("t", "2", "1", "ts-order-service", "ts-order-service-7d9f8b6c5-x2x4z", "CLIENT"),
        ("t", "3", "2", "ts-station-service", "10.0.0.8", None),
        ("t", "4", "2", "ts-station-service", "10.0.0.8", None),
    ]
    assert rows(frame, "start_time_unix_nano", "end_time_unix_nano", "span_name", "peer_service_name")[1] == (
        T0 * NS + 1_000_000, T0 * NS + 31_000_000, "addOrder", "mongo"
    )  # fmt: skip
    assert (account.read, account.kept) == (4, 4)


@pytest.mark.parametrize(("kind", "peer"), [("client", "x"), ("producer", "x"), ("server", None), ("consumer", None)])
def test_the_peer_of_a_served_span_is_its_caller_and_no_callee(tmp_path, kind, peer):
    frame, _ = read(
        tmp_path / "a.json", traces(trace([span("t", "1", "p3", 0, 1, span_kind=kind, peer_service="x")], PROCESSES))
    )
    assert frame["peer_service_name"].to_list() == [peer]


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ({}, "UNSET"),
        ({"error": True}, "ERROR"),
        ({"error": "true"}, "ERROR"),
        ({"error": False, "http_status_code": 404}, "UNSET"),
        ({"otel_status_code": "ERROR"}, "ERROR"),
        ({"otel_status_code": "OK"}, "OK"),
        ({"http_status_code": 500}, "ERROR"),
        ({"http_response_status_code": "503"}, "ERROR"),
    ],
)
def test_status(tmp_path, values, status):
    one = span("t", "1", "p1", 0, 1)
    one["tags"] = [{"key": _dotted(key), "value": value} for key, value in values.items()]
    frame, _ = read(tmp_path / "a.json", traces(trace([one], PROCESSES)))
    assert frame["status_code"].to_list() == [status]


def _dotted(key):
    return {"http_status_code": "http.status_code", "otel_status_code": "otel.status_code"}.get(
        key, key.replace("http_response_", "http.response.")
    )


@pytest.mark.parametrize("form", ["answer", "list", "trace", "gzip"])
def test_every_form_of_an_export(tmp_path, form):
    one = trace([span("t", "1", "p1", 0, 1)], PROCESSES)
    content = {"list": [one], "trace": one}.get(form, traces(one))
    frame, _ = read(tmp_path / ("a.json.gz" if form == "gzip" else "a.json"), content)
    assert rows(frame, "span_id", "service_name") == [("1", "ts-order-service")]


def test_a_large_file_is_shared_out_by_traces(tmp_path, monkeypatch):
    found = [trace([span(f"t{i}", "1", "p1", i, 1)], PROCESSES) for i in range(5)]
    path = tmp_path / "a.json"
    (one, _), (two, _) = read(path, traces(*found), shares=2)
    assert one["trace_id"].to_list() == ["t0", "t2", "t4"] and two["trace_id"].to_list() == ["t1", "t3"]
    assert json_files.shares(path) == [(0, 1)]
    monkeypatch.setattr(json_files, "_SHARE_BYTES", path.stat().st_size // 2 - 1)
    assert jaeger.part([path], "error").tasks == [(path, share, 3, "error") for share in range(3)]


def test_times_may_be_texts_or_whole_floats(tmp_path):
    plain = span("t", "1", "p1", 0, 1)
    texts = plain | {key: str(plain[key]) for key in ("startTime", "duration")}
    floats = plain | {key: float(plain[key]) for key in ("startTime", "duration")}
    one, two, three = (
        read(tmp_path / f"{i}.json", traces(trace([own], PROCESSES)))[0] for i, own in enumerate((plain, texts, floats))
    )
    assert one.height == 1 and one.equals(two) and one.equals(three)


def test_bad_spans_and_traces_cost_only_themselves(tmp_path):
    good = span("t", "1", "p1", 0, 1)
    late = span("t", "2", "p1", 1, -1)
    wrong = span("t", "3", "p1", 1, 1) | {"startTime": "noon"}
    far = span("t", "4", "p1", 1, 1) | {"startTime": 10**30}
    nobody = span("t", "5", "p9", 1, 1)
    content = traces(trace([good, late, wrong, far, nobody], PROCESSES), {"spans": None}, 7)
    frame, account = read(tmp_path / "a.json", content)
    assert frame["span_id"].to_list() == ["1"]
    assert (account.read, account.kept) == (7, 1)
    assert account.set_aside == {
        "unreadable_span": 2, "unreadable_trace": 2, "null_service_name": 1, "negative_duration": 1
    }  # fmt: skip
    assert account.examples["unreadable_trace"] == (str(tmp_path / "a.json"), 2)
    with pytest.raises(InputError, match=r"a\.json, row 1: unreadable span .*on_bad_rows=quarantine"):
        read(tmp_path / "a.json", content, on_bad_rows="error")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"data": [{"traceID": "t", "spans": [', "unreadable_file"),
        ("not JSON", "unreadable_file"),
        ({"data": {"no": "list"}}, "unreadable_file"),
        ({"data": None, "errors": [{"code": 404, "msg": "trace not found"}]}, "error_answer"),
        (traces(), "empty_answer"),
        ([], "empty_answer"),
    ],
)
def test_files_without_a_trace_are_counted(tmp_path, content, reason):
    (one, first), (two, second) = read(tmp_path / "a.json", content, shares=2)
    assert one.height == two.height == 0
    assert (first.read, first.set_aside, second.read) == (1, {reason: 1}, 0)
    if reason == "empty_answer":  # a service that nobody called is no error
        read(tmp_path / "a.json", content, on_bad_rows="error")
    else:
        with pytest.raises(InputError, match=rf"a\.json, row 1: {reason.replace('_', ' ')}"):
            read(tmp_path / "a.json", content, on_bad_rows="error")


def test_text_that_is_no_utf8(tmp_path):
    path = write(tmp_path / "a.json", traces(trace([span("t", "1", "p1", 0, 1, operation="?")], PROCESSES)))
    path.write_bytes(path.read_bytes().replace(b'"?"', b'"\xff"'))
    _, account = jaeger.read(path, 0, 1, "quarantine")
    assert account.set_aside == {"unreadable_span": 1}
