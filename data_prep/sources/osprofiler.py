"""OSProfiler's JSON trace reports -> spans. One file is one trace and its name is the trace id."""

import datetime
import functools
import re
from pathlib import Path

import msgspec
import polars as pl

from data_prep import tables
from data_prep.sources import json_files

# A trace point's service is named after the API's endpoint or worker; these say nothing beyond the project.
_ENDPOINTS = {"public", "admin", "main", "internal", ""}
# uuid, object id, number: what differs from call to call in a path (`.json` is neutron's suffix of a resource)
_ID = re.compile(r"^(?:[0-9a-f]{8}(?:-?[0-9a-f]{4}){3}-?[0-9a-f]{12}|[0-9a-f]{16,}|[0-9]+)(?=(?:\.json)?$)", re.I)
_TABLE = re.compile(r"\b(?:from|into|update)\s+[`\"]?([\w.]+)", re.I)
_DATABASE = "mariadb"  # runs every statement, and records no span of its own

_COLUMNS = {**tables.SCHEMAS["spans"].columns, tables.FILE: pl.String(), tables.ROW: pl.UInt32()}


class _Request(msgspec.Struct):
    path: str = ""
    method: str = ""


class _Database(msgspec.Struct):
    statement: str = ""


class _Function(msgspec.Struct):
    name: str = ""


class _Details(msgspec.Struct):
    request: _Request | None = None
    db: _Database | None = None
    function: _Function | None = None
    etype: str | None = None


class _Point(msgspec.Struct):
    """The raw message of a span's start or stop; the timestamp is naive UTC."""

    timestamp: str
    info: _Details | None = None


class _Node(msgspec.Struct):
    """A span: `trace_id` is its span id. The root of a report has no ids and is no span."""

    info: dict[str, _Point | str | float | int | bool | list | None]
    trace_id: str = ""
    children: list["_Node"] = []


def read_traces(root: str, files: list[str], on_bad_rows: str) -> tuple[pl.DataFrame, tables.Account]:
    """Checked spans of some trace files under `root`, and their account.

    A file that is not a whole report counts as one row, set aside. Runs in a worker: picklable values only.
    """
    found, account = rows(root, files, on_bad_rows)
    frame = pl.DataFrame(found, schema=_COLUMNS, orient="row")
    untimed = frame.filter(pl.col("start_time_unix_nano").is_null())
    account.read += untimed.height
    if untimed.height:
        account.aside("no_time", untimed.height, *untimed.row(0)[-2:], on_bad_rows)
    part, checked = tables.check(frame.filter(pl.col("start_time_unix_nano").is_not_null()), "spans", root, on_bad_rows)
    account.add(checked)
    return part, account


def rows(root: str, files: list[str], on_bad_rows: str) -> tuple[list[tuple], tables.Account]:
    """The spans that `read_traces` checks, as rows of _COLUMNS, and the account of what cannot be read."""
    found, account = [], tables.Account()
    for file in files:
        path = Path(root, file)
        try:
            trace = json_files.decode(path, _Node)
        except json_files.ERRORS:
            account.read += 1
            account.aside("unreadable_trace", 1, str(path), 1, on_bad_rows)
            continue
        spans = []
        for node in trace.children:
            _append_spans(node, None, None, spans, account)
        trace_id = path.name.removesuffix(".gz").removesuffix(".json")
        found += [(*span[:2], trace_id, *span[2:], str(path), row) for row, span in enumerate(spans, start=1)]
    return found, account


def _append_spans(node: _Node, parent: _Node | None, caller: str | None, spans: list, account: tables.Account):
    """Appends the spans of the subtree; returns the program, start and end of its top, in nanoseconds or None.

    Messages get lost: a missing end becomes what the report says, else the end of the last child, else the start; a
    missing start becomes the start of the first child, else the end.
    """
    info = node.info
    name = str(info.get("name") or "unknown")
    begin, stop = (_point(info.get(f"meta.raw_payload.{name}-{which}")) for which in ("start", "stop"))
    program = _program(str(info.get("project") or ""), str(info.get("service") or ""))
    own = len(spans)
    spans.append(None)  # parents before children
    below = [_append_spans(child, node, program, spans, account) for child in node.children]
    start, end = begin and _nano(begin.timestamp), stop and _nano(stop.timestamp)
    if start is not None and end is None:
        reported = _milliseconds(info.get("finished")) - _milliseconds(info.get("started"))
        ends = [e for _, _, e in below if e is not None]
        end = start + reported * 1_000_000 if reported > 0 else max([start, *ends])
        account.repair("missing_stop", 1)
    elif start is None and end is not None:
        start = min([end, *(s for _, s, _ in below if s is not None)])
        account.repair("missing_start", 1)
    details = (begin or stop).info if begin or stop else None
    failed = info.get("exception") not in (None, "None", "") or (stop and stop.info and stop.info.etype)
    is_database = name.startswith("db") or name == "neutron.db" or bool(details and details.db)
    if is_database:
        kind = "CLIENT"
    elif name.startswith("wsgi") or (caller is not None and caller != program):
        kind = "SERVER"
    else:
        kind = "CLIENT" if any(callee != program for callee, _, _ in below) else "INTERNAL"
    spans[own] = (
        tables.int64(start),
        tables.int64(end),
        node.trace_id or None,
        parent.trace_id if parent else None,
        program,
        f"{program}@{info.get('host') or 'unknown'}",
        _span_name(name, details),
        "ERROR" if failed else "UNSET",
        kind,
        _DATABASE if is_database else None,
    )
    return program, start, end


def _point(value) -> _Point | None:
    return value if isinstance(value, _Point) else None


def _nano(timestamp: str) -> int | None:
    try:
        moment = datetime.datetime.fromisoformat(timestamp)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    since = moment - datetime.datetime.fromtimestamp(0, datetime.UTC)
    return ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1000


def _milliseconds(value) -> int:
    return round(value) if isinstance(value, int | float) else 0


@functools.cache
def _program(project: str, service: str) -> str:
    """The program that logs under the same name: (nova, osapi_compute) -> nova-api, (keystone, public) -> keystone."""
    if not project or service in _ENDPOINTS:
        return project or service or "unknown"
    if service == "osapi_compute":
        return f"{project}-api"
    return service if service.startswith(project) else f"{project}-{service}"


def _span_name(name: str, details: _Details | None) -> str:
    """`wsgi GET /v2/images/<id>`, `db SELECT instances`, `rpc ComputeManager.build_and_run_instance`."""
    if details is None:
        return name
    if details.request:
        return f"{name} {details.request.method} {path_template(details.request.path)}"
    if details.db:
        return f"{name} {statement_template(details.db.statement)}"
    if details.function:
        return f"{name} {'.'.join(details.function.name.split('.')[-2:])}"
    return name


def path_template(path: str) -> str:
    """`path` with ids, which differ from call to call, replaced by `<id>`."""
    return "/".join(_ID.sub("<id>", segment) for segment in path.split("?", 1)[0].split("/"))


def statement_template(statement: str) -> str:
    """The verb and the first table of an SQL statement."""
    verb = re.match(r"\W*(\w+)", statement)
    table = _TABLE.search(statement)
    return " ".join(part for part in (verb and verb[1].upper(), table and table[1]) if part) or "statement"
