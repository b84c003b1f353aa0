"""Exports of OpenTelemetry's Collector: JSON lines and protobuf behind lengths."""

from data_prep.sources import otlp, otlp_files
from tests.data_prep import otlp as some
from tests.fuzz.target import Target, check_parts, placed, sampled

_TABLES = {"spans": ("spans",), "logs": ("logs",), "metrics": ("metrics",), "events": ("exceptions", "events")}


def _otlp(data: bytes) -> None:
    """Half of the tables, by turns: the readers of each go through all messages."""
    path = placed(data, "input.otlp")
    form = otlp_files.form_of(path)
    signal = form and otlp._first_signal(path, form)
    if not signal:
        return
    file, shares = otlp.File(path, form, signal), otlp_files.shares(path, form)
    for table, readers in _TABLES.items():
        if sampled(data + table.encode(), 2):
            check_parts(table, [otlp.read(r, file, *share, "quarantine") for r in readers for share in shares])


_T0 = 1_700_000_000_000_000_000
_REQUESTS = (
    some.spans(some.span(1, 2, None, _T0, _T0 + 9), service="orders"),
    some.logs(some.record(_T0, "order saved"), service="orders"),
)

TARGETS = (
    Target("otlp_json", "an export as JSON lines", _otlp, tuple(some.lines(r) for r in _REQUESTS), "json"),
    Target("otlp_protobuf", "an export as protobuf behind lengths", _otlp,
           tuple(some.framed(some.protobuf(r)) for r in _REQUESTS)),
)  # fmt: skip
