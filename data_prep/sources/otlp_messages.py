"""OTLP messages from JSON or protobuf. The structs have the names of protobuf, so that one code reads either.

JSON is decoded leniently where exporters differ: keys in camelCase or snake_case, integers as numbers or strings,
enums as numbers or names, doubles as `"NaN"`. Google's json_format must not be used: it decodes hexadecimal ids as
base64, without an error.
"""

import base64
import math
import re
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

TRACES, LOGS, METRICS = "traces", "logs", "metrics"
ERRORS = (ValueError, RecursionError, DecodeError)  # msgspec's and Unicode's are ValueErrors
Unsigned = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None
Integer = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None
Enum = int | str | None
_NOTHING = msgspec.Raw()


class _Message(msgspec.Struct, rename="camel", gc=False):
    """All that is not known is skipped, and what is absent or null has protobuf's default."""


class AnyValue(_Message):
    string_value: str | None = None
    bool_value: bool | None = None
    int_value: Integer = None
    double_value: float | None = None
    array_value: "_Values | None" = None
    kvlist_value: "_KeyValues | None" = None
    bytes_value: str | None = None

    def WhichOneof(self, _) -> str | None:
        return next((name for name in self.__struct_fields__ if getattr(self, name) is not None), None)


class _Values(_Message):
    values: list[AnyValue] | None = None


class KeyValue(_Message):
    key: str = ""
    value: AnyValue | None = None


class _KeyValues(_Message):
    values: list[KeyValue] | None = None


class Resource(_Message):
    attributes: list[KeyValue] | None = None


class Event(_Message):
    time_unix_nano: Unsigned = 0
    name: str | None = ""
    attributes: msgspec.Raw = _NOTHING


class Status(_Message):
    code: Enum = 0


class Span(_Message):
    """`attributes` and `events` stay undecoded: only some are looked at."""

    trace_id: str | None = ""
    span_id: str | None = ""
    parent_span_id: str | None = ""
    name: str | None = ""
    kind: Enum = 0
    start_time_unix_nano: Unsigned = 0
    end_time_unix_nano: Unsigned = 0
    attributes: msgspec.Raw = _NOTHING
    events: msgspec.Raw = _NOTHING
    status: Status | None = None


class ScopeSpans(_Message):
    spans: list[Span] | None = None


class ResourceSpans(_Message):
    resource: Resource | None = None
    scope_spans: list[ScopeSpans] | None = None


class Traces(_Message):
    resource_spans: list[ResourceSpans] | None = None


class LogRecord(_Message):
    time_unix_nano: Unsigned = 0
    observed_time_unix_nano: Unsigned = 0
    severity_number: Enum = 0
    severity_text: str | None = ""
    body: AnyValue | None = None
    attributes: msgspec.Raw = _NOTHING
    trace_id: str | None = ""
    span_id: str | None = ""
    event_name: str | None = ""


class ScopeLogs(_Message):
    log_records: list[LogRecord] | None = None


class ResourceLogs(_Message):
    resource: Resource | None = None
    scope_logs: list[ScopeLogs] | None = None


class Logs(_Message):
    resource_logs: list[ResourceLogs] | None = None


class Point(_Message):
    """Of any kind of data: a number, or count and sum of a distribution."""

    attributes: msgspec.Raw = _NOTHING
    start_time_unix_nano: Unsigned = 0
    time_unix_nano: Unsigned = 0
    as_double: float | None = None
    as_int: Integer = None
    count: Unsigned = 0
    sum: float | None = None
    flags: Unsigned = 0

    def WhichOneof(self, _) -> str | None:
        return "as_int" if self.as_int is not None else "as_double" if self.as_double is not None else None

    def HasField(self, name: str) -> bool:
        return getattr(self, name) is not None


class Data(_Message):
    data_points: list[Point] | None = None
    aggregation_temporality: Enum = 0
    is_monotonic: bool | None = False


class Metric(_Message):
    name: str | None = ""
    gauge: Data | None = None
    sum: Data | None = None
    histogram: Data | None = None
    exponential_histogram: Data | None = None
    summary: Data | None = None

    def WhichOneof(self, _) -> str | None:
        return next((kind for kind in self.__struct_fields__[1:] if getattr(self, kind) is not None), None)


class ScopeMetrics(_Message):
    metrics: list[Metric] | None = None


class ResourceMetrics(_Message):
    resource: Resource | None = None
    scope_metrics: list[ScopeMetrics] | None = None


class Metrics(_Message):
    resource_metrics: list[ResourceMetrics] | None = None


# What a message is made of: where something in it cannot be read, the rest of it can.
_CHILDREN = {
    Traces: ("resource_spans", ResourceSpans), ResourceSpans: ("scope_spans", ScopeSpans), ScopeSpans: ("spans", Span),
    Logs: ("resource_logs", ResourceLogs), ResourceLogs: ("scope_logs", ScopeLogs),
    ScopeLogs: ("log_records", LogRecord), Metrics: ("resource_metrics", ResourceMetrics),
    ResourceMetrics: ("scope_metrics", ScopeMetrics), ScopeMetrics: ("metrics", Metric),
}  # fmt: skip
_OUTER = {
    kind: msgspec.defstruct(
        kind.__name__,
        [
            (name, list[msgspec.Raw] | None if name == field else Resource | None, None)
            for name in kind.__struct_fields__
        ],
        rename="camel",
    )
    for kind, (field, _) in _CHILDREN.items()
}
_TYPES = {TRACES: Traces, LOGS: Logs, METRICS: Metrics}
_DECODERS = {kind: msgspec.json.Decoder(kind, strict=False) for kind in [*_OUTER, Span, LogRecord, Metric]}
_PROTOBUF = {
    TRACES: ExportTraceServiceRequest, LOGS: ExportLogsServiceRequest, METRICS: ExportMetricsServiceRequest
}  # fmt: skip
_KEY = re.compile(rb'"resource_?(spans|logs|metrics)"\s*:', re.I)
_KEY_WITHIN = 1 << 12  # bytes from a message's begin
_SNAKE = re.compile(rb'"([a-z]+(?:_[a-z]+)+)"(?=\s*:)')  # a quote within a text has a backslash before it
_SIGNS_OF_SNAKE = (b'"resource_', b'"scope_', b'_unix_nano"', b'_id"', b'_value"')
_LIBRARY = b'"instrumentationLibrary'  # what scopes were called before OTLP 0.19
_OF_LIBRARY = re.compile(rb'"instrumentationLibrary(Spans|Logs|Metrics)"(?=\s*:)')
_attributes = msgspec.json.Decoder(list[KeyValue] | None, strict=False)
_events = msgspec.json.Decoder(list[Event] | None, strict=False)


def signal_of_json(data: bytes) -> str | None:
    """Whether a text holds traces, logs or metrics; None: neither."""
    match = _KEY.search(data, 0, _KEY_WITHIN)
    return match and {b"spans": TRACES, b"logs": LOGS, b"metrics": METRICS}[match[1].lower()]


def holds(data: bytes, signal: str) -> bool:
    """Whether the key of a signal stands anywhere in a text that has one: a message may hold several."""
    key = _CHILDREN[_TYPES[signal]][0].encode()
    return b'"%s"' % (key if b"_" in _KEY.search(data, 0, _KEY_WITHIN)[0] else _camel(key)) in data


def groups(request: _Message) -> list | None:
    """What a request from JSON holds; None where it has no such key."""
    return getattr(request, _CHILDREN[type(request)][0])


def signal_of_protobuf(data: bytes) -> str | None:
    """The same of a protobuf message, of which only the fields tell: times are where no other message has any."""
    for signal, message in _PROTOBUF.items():
        try:
            parsed = message.FromString(data)
        except DecodeError:
            continue
        if any(_SHOWS[signal](leaf) for leaf in leaves(parsed)):
            return signal
    return None


def leaves(request) -> Iterable:
    """The spans, log records or metrics of a request."""
    for group in _of(request, "resource_spans", "resource_logs", "resource_metrics"):
        for scope in _of(group, "scope_spans", "scope_logs", "scope_metrics"):
            yield from _of(scope, "spans", "log_records", "metrics")


def _of(message, *names):
    return next((getattr(message, name) for name in names if hasattr(message, name)), None) or ()


_SHOWS = {
    TRACES: lambda span: span.start_time_unix_nano or span.end_time_unix_nano,
    LOGS: lambda record: record.time_unix_nano or record.observed_time_unix_nano,
    METRICS: lambda metric: metric.name and metric.WhichOneof("data"),
}


def parse(data: bytes, signal: str, is_json: bool) -> tuple[Any, int]:
    """A request (None: nothing of it can be read) and how many parts of it cannot: spans, log records, metrics, or
    what they lie in.

    Raises one of ERRORS if it is no protobuf or JSON.
    """
    if not is_json:
        return _PROTOBUF[signal].FromString(data), 0
    if any(sign in data for sign in _SIGNS_OF_SNAKE):
        data = _SNAKE.sub(lambda key: b'"%s"' % _camel(key[1]), data)
    if _LIBRARY in data:
        data = _OF_LIBRARY.sub(rb'"scope\1"', data)
    try:
        return _DECODERS[_TYPES[signal]].decode(data), 0
    except (ValueError, RecursionError):
        msgspec.json.decode(data, type=msgspec.Raw)
        return _readable(data, _TYPES[signal])


def _camel(key: bytes) -> bytes:
    first, *others = key.split(b"_")
    return first + b"".join(word.capitalize() for word in others)


def _readable(data, kind) -> tuple[Any, int]:
    """What can be read of a `kind` (None: nothing), and how many parts cannot."""
    try:
        return _DECODERS[kind].decode(data), 0
    except (ValueError, RecursionError):
        if kind not in _CHILDREN:
            return None, 1
    try:
        outer = msgspec.json.decode(data, type=_OUTER[kind], strict=False)
    except (ValueError, RecursionError):
        return None, 1
    field, child = _CHILDREN[kind]
    parts = [_readable(part, child) for part in getattr(outer, field) or ()]
    values = {name: getattr(outer, name) for name in kind.__struct_fields__}
    values[field] = [part for part, _ in parts if part is not None]
    return kind(**values), sum(lost for _, lost in parts)


def attributes(found) -> dict[str, AnyValue]:
    """The attributes of a message; none where they cannot be read."""
    if isinstance(found, msgspec.Raw):
        try:
            found = _attributes.decode(found) if found != _NOTHING else None
        except (ValueError, RecursionError):
            found = None
    return {pair.key: pair.value for pair in found or ()}


def events(found) -> Iterable[Event]:
    """The events of a span; none where they cannot be read."""
    if not isinstance(found, msgspec.Raw):
        return found
    try:
        return (_events.decode(found) if found != _NOTHING else None) or ()
    except (ValueError, RecursionError):
        return ()


def text(value) -> str | None:
    """An AnyValue as text: as JSON, but for strings themselves; None where it is empty."""
    if value is None:
        return None
    if value.string_value:
        return value.string_value
    found = _plain(value)
    if found is None or isinstance(found, str):
        return found or None
    return msgspec.json.encode(found).decode()


def _plain(value):
    """An AnyValue as JSON has it; doubles that are no numbers and bytes (as base64) are strings."""
    kind = value.WhichOneof("value") if value is not None else None
    if kind is None:
        return None
    found = getattr(value, kind)
    if kind == "array_value":
        return [_plain(item) for item in found.values or ()]
    if kind == "kvlist_value":
        return {pair.key: _plain(pair.value) for pair in found.values or ()}
    if kind == "double_value" and not math.isfinite(found):
        return "NaN" if math.isnan(found) else "Infinity" if found > 0 else "-Infinity"
    return base64.b64encode(found).decode() if isinstance(found, bytes) else found
