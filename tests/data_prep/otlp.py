"""OTLP requests, as dictionaries of the JSON form, written as JSON lines or protobuf in the Collector's ways."""

import gzip
import json
import re

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

REQUESTS = {
    "resourceSpans": ExportTraceServiceRequest, "resourceLogs": ExportLogsServiceRequest,
    "resourceMetrics": ExportMetricsServiceRequest,
}  # fmt: skip
KINDS = {None: 0, "INTERNAL": 1, "SERVER": 2, "CLIENT": 3, "PRODUCER": 4, "CONSUMER": 5}
STATUS = {"UNSET": 0, "OK": 1, "ERROR": 2}


def value(found):
    """An AnyValue."""
    if isinstance(found, list):
        return {"arrayValue": {"values": [value(item) for item in found]}}
    if isinstance(found, dict):
        return {"kvlistValue": {"values": attributes(found)}}
    if isinstance(found, bool):
        return {"boolValue": found}
    if isinstance(found, int):
        return {"intValue": str(found)}
    return {"doubleValue": found} if isinstance(found, float) else {"stringValue": found}


def attributes(found):
    return [{"key": key, "value": value(item)} for key, item in found.items()]


def resource(service=None, **found):
    """Keys of `found` with `_` for `.`."""
    found = {key.replace("_", "."): item for key, item in found.items()}
    return {"attributes": attributes(({"service.name": service} if service else {}) | found)}


def spans(*found, **of):
    scope = {"scope": {"name": "test"}, "spans": list(found)}
    return {"resourceSpans": [{"resource": resource(**of), "scopeSpans": [scope]}]}


def logs(*found, **of):
    return {"resourceLogs": [{"resource": resource(**of), "scopeLogs": [{"scope": {}, "logRecords": list(found)}]}]}


def metrics(*found, **of):
    return {"resourceMetrics": [{"resource": resource(**of), "scopeMetrics": [{"scope": {}, "metrics": list(found)}]}]}


def span(trace, number, parent, start, end, name="GET /", kind=2, **more):
    """Ids as numbers, times in nanoseconds; `more` replaces fields."""
    return {
        "traceId": f"{trace:032x}", "spanId": f"{number:016x}", "parentSpanId": f"{parent:016x}" if parent else "",
        "name": name, "kind": kind, "startTimeUnixNano": str(start), "endTimeUnixNano": str(end), "attributes": [],
        "status": {}, **more,
    }  # fmt: skip


def record(time, body, number=9, **more):
    body = {} if body is None else {"body": value(body)}
    return {"timeUnixNano": str(time), "observedTimeUnixNano": str(time), "severityNumber": number, **body, **more}


def point(time, number, start=0, **found):
    """A number's data point; keys of `found` with `_` for `.`."""
    which = {"asInt": str(number)} if isinstance(number, int) else {"asDouble": number}
    if number == float("inf"):
        which = {"asDouble": "Infinity"}
    own = attributes({key.replace("_", "."): item for key, item in found.items()})
    return {"attributes": own, "startTimeUnixNano": str(start), "timeUnixNano": str(time), **which}


def protobuf(request):
    """The bytes of a request."""
    [(key, _)] = request.items()
    message = REQUESTS[key]()
    _fill(message, request)
    return message.SerializeToString()


def _fill(message, found):
    for key, item in found.items():
        name = re.sub("([A-Z])", lambda letter: "_" + letter[1].lower(), key)
        field = message.DESCRIPTOR.fields_by_name[name]
        if isinstance(item, list):
            for one in item:
                if field.message_type:
                    _fill(getattr(message, name).add(), one)
                else:
                    getattr(message, name).append(_scalar(field, one))
        elif isinstance(item, dict):
            getattr(message, name).SetInParent()
            _fill(getattr(message, name), item)
        else:
            setattr(message, name, _scalar(field, item))


def _scalar(field, item):
    if field.type == field.TYPE_BYTES:
        return bytes.fromhex(item)
    if field.type in (field.TYPE_DOUBLE, field.TYPE_FLOAT):
        return float(item)
    return int(item) if isinstance(item, str) and field.type != field.TYPE_STRING else item


def framed(*messages):
    return b"".join(len(message).to_bytes(4, "big") + message for message in messages)


def lines(*requests):
    return b"".join(json.dumps(request, ensure_ascii=False).encode() + b"\n" for request in requests)


def write(path, data):
    """`data`: bytes, or requests to write as JSON lines; compressed where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = data if isinstance(data, bytes) else lines(*data)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def of_tables(rows, size=50):
    """Rows of telemetry tables (`small.span` and so on) -> requests of some `size` rows; ids are numbers as texts."""
    made = []
    for name, make in (("spans", _of_span), ("logs", _of_log), ("metrics", _of_metric)):
        owners = {}
        for row in rows.get(name, ()):
            owners.setdefault((row["service_name"], row["service_instance_id"]), []).append(make(row))
        wrap = {"spans": spans, "logs": logs, "metrics": metrics}[name]
        for (service, instance), found in owners.items():
            for at in range(0, len(found), size):
                made.append(wrap(*found[at : at + size], service=service, service_instance_id=instance))
    return made


def _of_span(row):
    peer = row.get("peer_service_name")
    return span(
        int(row["trace_id"], 16), int(row["span_id"], 16), int(row["parent_span_id"] or "0", 16),
        row["start_time_unix_nano"], row["end_time_unix_nano"], row["span_name"], KINDS[row["kind"]],
        attributes=attributes({"peer.service": peer} if peer else {}), status={"code": STATUS[row["status_code"]]},
    )  # fmt: skip


def _of_log(row):
    ids = {key: row[name] for key, name in (("traceId", "trace_id"), ("spanId", "span_id")) if row.get(name)}
    return record(row["time_unix_nano"], row["body"], 0, severityText=row["severity_text"] or "", **ids)


def _of_metric(row):
    points = {"dataPoints": [point(row["time_unix_nano"], row["value"])]}
    if row["is_counter"]:
        return {"name": row["metric_name"], "sum": points | {"aggregationTemporality": 2, "isMonotonic": True}}
    return {"name": row["metric_name"], "gauge": points}
