"""Answers of query APIs: Jaeger, Prometheus."""

import json

from data_prep import tables
from data_prep.sources import jaeger, jaeger_prometheus, json_files, prometheus
from tests.data_prep.apis import matrix, process, series, span, trace, traces
from tests.fuzz.target import Target, check_parts, check_rows, placed, sampled


def _jaeger(data: bytes) -> None:
    path = placed(data, "input.json")
    check_rows(jaeger.rows(path, 0, 1, "quarantine"), jaeger._COLUMNS)
    if sampled(data):
        check_parts("spans", [jaeger.read(path, *share, "quarantine") for share in json_files.shares(path)])


def _prometheus(data: bytes) -> None:
    path = placed(data, "x.json_up.json")
    check_rows(prometheus.rows(path, 0, 1, (".*",), "quarantine"), prometheus._COLUMNS)
    if sampled(data):
        parts = [prometheus.read(path, *share, (".*",), "quarantine") for share in json_files.shares(path)]
        check_parts("metrics", parts)
    extent = prometheus.extent([path])
    assert extent is None or tables.EARLIEST <= extent[0] <= extent[1] <= tables.LATEST


def _kind(data: bytes) -> None:
    jaeger_prometheus.by_kind([placed(data, "input.json"), placed(data, "input.json.gz")])


_PROCESSES = {"p1": process("orders", hostname="orders-7d9f8b6c5-x2x4z", ip="10.0.0.7")}
_SPANS = [
    span("t", "1", "p1", 0, 40, span_kind="server", http_status_code=200, error=False),
    span("t", "2", "p1", 0.001, 30, parent="1", span_kind="client", peer_service="mongo", otel_status_code="OK"),
]
_TRACES = json.dumps(traces(trace(_SPANS, _PROCESSES))).encode()
_POD = {"__name__": "cpu_total", "pod": "orders-7d9f8b6c5-x2x4z", "namespace": "shop", "cpu": "0", "mode": "idle"}
_MATRIX = json.dumps(matrix(
    series([(0, 1), (15, 2.5), (30, "NaN")], **_POD, container="orders"), series([(0, 3)], **_POD),
    series([(0, 4)], __name__="node_load1", instance="10.0.0.1:9100", exported_pod="x"),
)).encode()  # fmt: skip
_BARE = json.dumps(trace(_SPANS, _PROCESSES)).encode()

TARGETS = (
    Target("jaeger", "an answer of /api/traces", _jaeger, (_TRACES, _BARE, b"[" + _BARE + b"]"), "json"),
    Target("prometheus", "an answer of /api/v1/query_range", _prometheus, (_MATRIX,), "json"),
    Target("api_kind", "the first bytes of any JSON file", _kind, (_TRACES, _MATRIX), "bytes"),
)
