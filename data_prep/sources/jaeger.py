"""What Jaeger's query API answers (`/api/traces`) -> spans. A file is such an answer, a list of traces or one trace.

A trace lies in the answer for each of its services: the copies of a span are duplicates by trace and span id.
"""

import re
from pathlib import Path
from typing import Annotated, Any

import msgspec
import polars as pl

from data_prep import tables
from data_prep.sources import json_files
from data_prep.sources.part import Part

# The first of these process tags names the instance, else the service: a pod's name is what metrics call it, too.
INSTANCE_TAGS = ("k8s.pod.name", "hostname", "service.instance.id", "host.name", "ip")
# The first of these tags of a span names a callee that may record no span of its own.
PEER_TAGS = ("peer.service", "db.system", "db.type")
_KINDS = {kind.lower(): kind for kind in tables.SCHEMAS["spans"].allowed["kind"]}
_SERVER_ERROR = re.compile("[5-9][0-9]{2}")  # of HTTP
_COLUMNS = {**tables.SCHEMAS["spans"].columns, tables.FILE: pl.String(), tables.ROW: pl.UInt32()}
_Microseconds = Annotated[int, msgspec.Meta(ge=-(2**52), le=2**52)]  # two of them are still an int64 in nanoseconds


class _Tag(msgspec.Struct):
    key: str
    value: Any = None


class _Reference(msgspec.Struct):
    spanID: str
    refType: str = "CHILD_OF"
    traceID: str = ""


class _Process(msgspec.Struct):
    serviceName: str = ""
    tags: list[_Tag] | None = None


class _Span(msgspec.Struct):
    spanID: str
    operationName: str
    startTime: _Microseconds
    duration: _Microseconds
    traceID: str = ""
    processID: str = ""
    process: _Process | None = None  # where a span was exported alone
    references: list[_Reference] | None = None
    tags: list[_Tag] | None = None


class _Trace(msgspec.Struct):
    spans: list[msgspec.Raw] | None = None
    traceID: str = ""
    processes: dict[str, _Process] | None = None


class _Answer(_Trace):
    """One trace, or the traces in `data`."""

    data: list[msgspec.Raw] | None = None
    errors: list[Any] | None = None


def part(files: list[Path], on_bad_rows: str) -> Part:
    """The spans of some files."""
    tasks = [(path, *share, on_bad_rows) for path in files for share in json_files.shares(path)]
    return Part("spans", read, tasks, in_workers=True)


def read(path: Path, share: int, shares: int, on_bad_rows: str) -> tuple[pl.DataFrame, tables.Account]:
    """Checked spans of the traces `share`, `share` + `shares`, ... of a file, and their account.

    A file that is not whole or has no trace, a trace and a span that cannot be read count as one row each, set aside;
    the row that is named is the trace's place in the file. Runs in a worker: picklable values only.
    """
    found, account = rows(path, share, shares, on_bad_rows)
    frame = pl.DataFrame(found, schema=_COLUMNS, orient="row")
    part, checked = tables.check(frame, "spans", str(path), on_bad_rows)
    account.add(checked)
    return part, account


def rows(path: Path, share: int, shares: int, on_bad_rows: str) -> tuple[list[tuple], tables.Account]:
    """The spans that `read` checks, as rows of _COLUMNS, and the account of what cannot be read."""
    found, account = [], tables.Account()

    def aside(reason: str, place: int):
        account.read += 1
        account.aside(reason, 1, str(path), place, on_bad_rows)

    traces, problem = _traces(path)
    if problem and share == 0:
        aside(problem, 1)
    for place, raw in list(enumerate(traces, start=1))[share::shares]:
        try:
            trace = raw if isinstance(raw, _Trace) else msgspec.json.decode(raw, type=_Trace)
        except (ValueError, RecursionError):
            trace = _Trace()
        if trace.spans is None:
            aside("unreadable_trace", place)
            continue
        processes = {key: _names(process) for key, process in (trace.processes or {}).items()}
        for raw_span in trace.spans:
            try:
                span = msgspec.json.decode(raw_span, type=_Span, strict=False)  # numbers may be texts
                names = _names(span.process) if span.process else processes.get(span.processID, (None, None))
                found.append((*_row(span, trace.traceID, *names), str(path), place))
            except (ValueError, RecursionError):
                aside("unreadable_span", place)
    return found, account


def _traces(path: Path) -> tuple[list, str | None]:
    """The traces of a file, most of them undecoded, and what is wrong if there are none."""
    try:
        answer = json_files.decode(path, _Answer | list[msgspec.Raw])
    except json_files.ERRORS:
        return [], "unreadable_file"
    if isinstance(answer, list):
        return answer, None if answer else "empty_answer"
    if answer.spans is not None:
        return [answer], None
    if answer.data:
        return answer.data, None
    return [], "error_answer" if answer.errors else "empty_answer"


def _names(process: _Process) -> tuple[str | None, str | None]:
    """Service and instance."""
    service = process.serviceName or None
    return service, _first(_values(process.tags), INSTANCE_TAGS) or service


def _row(span: _Span, trace_id: str, service: str | None, instance: str | None) -> tuple:
    """Values in the order of the columns of `spans`."""
    trace_id, tags = span.traceID or trace_id or None, _values(span.tags)
    start, kind = span.startTime * 1000, _KINDS.get(str(tags.get("span.kind")).lower())
    return (
        start,
        start + span.duration * 1000,
        trace_id,
        span.spanID or None,
        _parent(span, trace_id),
        service,
        instance,
        span.operationName,
        _status(tags),
        kind,
        None if kind in ("SERVER", "CONSUMER") else _first(tags, PEER_TAGS),  # of those the peer is the caller
    )


def _values(tags: list[_Tag] | None) -> dict[str, Any]:
    return {tag.key: tag.value for tag in tags or ()}


def _first(values: dict[str, Any], keys: tuple[str, ...]) -> str | None:
    return next((str(values[key]) for key in keys if values.get(key)), None)


def _parent(span: _Span, trace_id: str | None) -> str | None:
    """The first span of the same trace that this one is a child of, else the first that it follows from."""
    own = [r for r in span.references or () if r.traceID in (trace_id, "") and r.spanID not in (span.spanID, "")]
    return next((r.spanID for kind in ("CHILD_OF", "FOLLOWS_FROM") for r in own if r.refType == kind), None)


def _status(tags: dict[str, Any]) -> str:
    """ERROR by `error`, `otel.status_code` or an HTTP status of 500 and above; Jaeger knows no other failures."""
    code = str(tags.get("otel.status_code")).upper()
    http = str(tags.get("http.status_code", tags.get("http.response.status_code")))
    failed = str(tags.get("error")).lower() == "true" or code == "ERROR" or _SERVER_ERROR.fullmatch(http)
    return "ERROR" if failed else "OK" if code == "OK" else "UNSET"
