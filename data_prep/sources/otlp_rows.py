"""OTLP requests -> rows of the telemetry tables, as tuples. Ids are hexadecimal, zero where there is none.

Whose something is, its resource tells: the service is `service.name`, else the workload or host that collectors name
for what no SDK reports on, else `unknown_service`; the instance is the first of INSTANCE, else the service.
"""

from collections.abc import Iterator

from data_prep.sources import otlp_messages as otlp
from data_prep.sources import prometheus
from data_prep.sources.otlp_messages import text

UNKNOWN = "unknown_service"  # what SDKs say, too
WORKLOADS = (
    "k8s.deployment.name", "k8s.statefulset.name", "k8s.daemonset.name", "k8s.cronjob.name", "k8s.job.name",
)  # fmt: skip
HOSTS = ("k8s.node.name", "host.name")
INSTANCE = ("k8s.pod.name", "service.instance.id", "host.name", "k8s.node.name")
# The first of these attributes of a client's or producer's span names a callee that may record no span of its own.
PEER = (
    "service.peer.name", "peer.service", "db.system.name", "db.system", "messaging.system", "server.address",
    "net.peer.name",
)  # fmt: skip
# Attributes that cut one quantity into pieces, as Prometheus' labels or OpenTelemetry's conventions call them.
SUMMED = prometheus.SUMMED | {
    "cpu.logical_number", "system.cpu.logical_number", "system.device", "system.filesystem.mountpoint",
    "system.filesystem.type", "network.interface.name", "disk.device", "hw.id",
}  # fmt: skip
# Attributes of a resource that are parts of one instance: containers of a pod, processes of a host.
PARTS = ("k8s.container.name", "k8s.volume.name", "process.pid")
COUNT, SUM = "_count", "_sum"

_KINDS = dict(enumerate((None, "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")))
_KINDS |= {str(number): kind for number, kind in _KINDS.items()}
_KINDS |= {f"SPAN_KIND_{kind}": kind for kind in _KINDS.values() if kind}
_CALLING = frozenset({"CLIENT", "PRODUCER"})
_STATUS = {0: "UNSET", 1: "OK", 2: "ERROR", None: "UNSET"}
_STATUS |= {str(number): name for number, name in _STATUS.items()}
_STATUS |= {f"STATUS_CODE_{name}": name for name in ("UNSET", "OK", "ERROR")}
_SEVERITIES = ("TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL")  # four numbers each, from 1 on
_NAMES = {number: _SEVERITIES[(number - 1) // 4] for number in range(1, 25)}
_NAMES |= {str(number): name for number, name in _NAMES.items()}
_NAMES |= {f"SEVERITY_NUMBER_{name}{i}": name for name in _SEVERITIES for i in ("", 2, 3, 4)}
_DELTA, _CUMULATIVE = "delta", "cumulative"
_TEMPORALITY = {
    1: _DELTA, "1": _DELTA, "AGGREGATION_TEMPORALITY_DELTA": _DELTA,
    2: _CUMULATIVE, "2": _CUMULATIVE, "AGGREGATION_TEMPORALITY_CUMULATIVE": _CUMULATIVE,
}  # fmt: skip
_NO_RECORDED_VALUE = 1  # the first bit of a point's flags
_EXCEPTION = "exception"
_REASON, _OBJECT_KIND, _OBJECT_NAME = "k8s.event.reason", "k8s.object.kind", "k8s.object.name"
_REASON_BYTES = _REASON.encode()


def spans(request, data: bytes) -> Iterator[tuple]:
    """start, end, trace, span, parent, service, instance, name, status, kind, peer"""
    for group in request.resource_spans or ():
        service, instance = owner(group.resource)
        for scope in group.scope_spans or ():
            for span in scope.spans or ():
                kind, status = _KINDS.get(span.kind), span.status
                code = status.code if status is not None else 0
                yield (
                    span.start_time_unix_nano, span.end_time_unix_nano, _id(span.trace_id), _id(span.span_id),
                    _id(span.parent_span_id), service, instance, span.name, _STATUS.get(code) or str(code), kind,
                    _first(otlp.attributes(span.attributes), PEER) if kind in _CALLING else None,
                )  # fmt: skip


def logs(request, data: bytes) -> Iterator[tuple]:
    """time, service, instance, severity, body, trace, span; what `events` takes is left out"""
    for _, whose, record, time, body in _records(request, _REASON_BYTES in data, events=False):
        severity = _severity(record.severity_text or "", record.severity_number)
        yield time, *whose, severity, body, _id(record.trace_id), _id(record.span_id)


def events_of_logs(request, data: bytes) -> Iterator[tuple]:
    """time, service, instance, name, body of Kubernetes' events and of records that have a name but no body"""
    kubernetes = _REASON_BYTES in data
    for resource, whose, record, time, body in _records(request, kubernetes, events=True):
        reason = _first(otlp.attributes(record.attributes), (_REASON,)) if kubernetes else None
        yield time, *(reason and _owner_of_object(resource) or whose), reason or record.event_name, body


def _records(request, kubernetes: bool, events: bool) -> Iterator[tuple]:
    """(resource, service and instance, record, time, body) of the log records that are events, or of all others.

    kubernetes: whether there may be events of Kubernetes among them.
    """
    for group in request.resource_logs or ():
        whose = owner(group.resource)
        for scope in group.scope_logs or ():
            for record in scope.log_records or ():
                body = text(record.body)
                if _is_event(record, body, kubernetes) == events:
                    yield group.resource, whose, record, record.time_unix_nano or record.observed_time_unix_nano, body


def events_of_spans(request, data: bytes) -> Iterator[tuple]:
    """time, service, instance, name, body of the exceptions that spans recorded"""
    for group in request.resource_spans or ():
        service, instance = owner(group.resource)
        for scope in group.scope_spans or ():
            for span in scope.spans or ():
                for event in otlp.events(span.events):
                    if event.name == _EXCEPTION:
                        said = otlp.attributes(event.attributes)
                        parts = (text(said.get(f"exception.{part}")) for part in ("type", "message"))
                        body = ": ".join(part for part in parts if part) or None
                        yield event.time_unix_nano or span.end_time_unix_nano, service, instance, event.name, body


def metrics(request, data: bytes) -> Iterator[tuple]:
    """time, service, instance, name, value, is_counter, attributes, reason to set the row aside"""
    for group in request.resource_metrics or ():
        whose, own, known = owner(group.resource), _of_resource(group.resource), {}
        part = {name: own[name] for name in PARTS if name in own}
        for scope in group.scope_metrics or ():
            for metric in scope.metrics or ():
                kind = metric.WhichOneof("data")
                points = getattr(metric, kind).data_points if kind else None
                if not points:
                    yield None, *whose, metric.name, None, None, None, "no_value"
                for point in points or ():
                    kinds, pieces = _labels(point.attributes, part, known)
                    for end, value, temporality in _values(kind, getattr(metric, kind), point):
                        reason = None
                        if temporality == _DELTA:
                            value, reason = _rate(value, point)
                        elif temporality is None:
                            reason = "unknown_temporality"
                        yield (
                            point.time_unix_nano, *whose, f"{metric.name}{end}{kinds}" if metric.name else None,
                            value, temporality == _CUMULATIVE, pieces, reason,
                        )  # fmt: skip


def owner(resource) -> tuple[str, str]:
    """Service and instance."""
    found = _of_resource(resource)
    service = _first(found, ("service.name", *WORKLOADS))
    if not service:
        pod = _first(found, ("k8s.pod.name",))
        service = prometheus.service_of(pod) if pod else _first(found, HOSTS) or UNKNOWN
    return service, _first(found, INSTANCE) or service


def _of_resource(resource) -> dict:
    return otlp.attributes(resource.attributes) if resource is not None else {}


def _id(found: str | bytes | None) -> str | None:
    return found.hex() if isinstance(found, bytes) else found


def _first(found: dict, keys: tuple[str, ...]) -> str | None:
    return next((value for key in keys if key in found and (value := text(found[key]))), None)


def _owner_of_object(resource) -> tuple[str, str] | None:
    """Service and instance of what a Kubernetes event is about."""
    found = _of_resource(resource)
    name = _first(found, (_OBJECT_NAME,))
    if not name:
        return None
    return prometheus.service_of(name) if _first(found, (_OBJECT_KIND,)) == "Pod" else name, name


def _is_event(record, body: str | None, kubernetes: bool) -> bool:
    if not body and record.event_name:
        return True
    return kubernetes and _REASON in otlp.attributes(record.attributes)


def _severity(written: str, number) -> str | None:
    """What is written, such as `warning`; where that is nothing or a sign (`E`, `3`), the name of the number."""
    return written if len(written) > 2 else _NAMES.get(number) or written or None


def _labels(found, part: dict, known: dict) -> tuple[str, str | None]:
    """What a point's attributes add to the metric's name, and the pieces, of which `part` (of the instance) is one.

    `known`: those of the points before.
    """
    key = bytes(found) if isinstance(found, otlp.msgspec.Raw) else tuple((p.key, str(p.value)) for p in found)
    if key not in known:
        own = otlp.attributes(found)
        kinds = _written({name: value for name, value in own.items() if name not in SUMMED})
        pieces = _written(part | {name: value for name, value in own.items() if name in SUMMED})
        known[key] = (f"{{{kinds}}}" if kinds else "", pieces or None)
    return known[key]


def _written(labels: dict) -> str:
    texts = ((name, text(value)) for name, value in sorted(labels.items()))
    return ",".join(f'{name}="{value}"' for name, value in texts if value)


def _values(kind: str, data, point) -> Iterator[tuple[str, float | None, str | None]]:
    """(end of the name, value, temporality; of a gauge "") of a point; values of distributions: count and sum."""
    recorded = not (point.flags or 0) & _NO_RECORDED_VALUE
    if kind in ("gauge", "sum"):
        which = point.WhichOneof("value")
        value = float(getattr(point, which)) if which and recorded else None
        temporality = _TEMPORALITY.get(data.aggregation_temporality) if kind == "sum" else ""
        if temporality == _CUMULATIVE and not data.is_monotonic:
            temporality = ""  # a level, such as the length of a queue
        yield "", value, temporality
        return
    temporality = _CUMULATIVE if kind == "summary" else _TEMPORALITY.get(data.aggregation_temporality)
    yield COUNT, float(point.count or 0) if recorded else None, temporality
    if kind == "summary" or point.HasField("sum"):
        yield SUM, (point.sum or 0.0) if recorded else None, temporality


def _rate(value: float | None, point) -> tuple[float | None, str | None]:
    """A gain -> what was gained a second; a reason where its time is not told."""
    begin, end = point.start_time_unix_nano or 0, point.time_unix_nano or 0
    if value is None:
        return None, None
    return (value / ((end - begin) / 1e9), None) if 0 < begin < end else (None, "delta_without_interval")
