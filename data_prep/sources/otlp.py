"""Anyone's OpenTelemetry: a tree of OTLP files, as the Collector's file exporter writes them, in any order.

What a file is, its first bytes tell (`otlp_files`); names do not matter, and one file may hold traces, logs and
metrics. Each table is read from all files; of messages that are not its own only the first bytes are looked at.
Telemetry tables that lie in `raw_dir` itself are read as well.
"""

import dataclasses
import operator
from collections.abc import Callable
from pathlib import Path

import polars as pl
from ml_collections import ConfigDict

from data_prep import raw_files, tables
from data_prep.errors import InputError
from data_prep.sources import otlp_files, otlp_messages, otlp_rows
from data_prep.sources import tables as table_files
from data_prep.sources.otlp_files import LINES, TEXT
from data_prep.sources.otlp_messages import LOGS, METRICS, TRACES
from data_prep.sources.part import Part

LONGEST_TEXT = 1 << 20  # bytes of a log line or name; more is no message for people
_NAMED = 5  # files that a warning names
_ASIDE = "_aside"  # why a row is of no use
_IDS = ("trace_id", "span_id", "parent_span_id")


@dataclasses.dataclass(frozen=True)
class File:
    """`signal`: what its first message holds."""

    path: Path
    form: str
    signal: str


@dataclasses.dataclass(frozen=True)
class _Reader:
    """How a table is read from the messages of one signal. `answers`: it counts what cannot be read."""

    table: str
    signal: str
    rows: Callable
    columns: tuple[str, ...]
    answers: bool = True
    hint: bytes = b""  # what a message must contain


_EVENT = ("time_unix_nano", "service_name", "service_instance_id", "event_name", "body")
_READERS = {
    "spans": _Reader("spans", TRACES, otlp_rows.spans, (
        "start_time_unix_nano", "end_time_unix_nano", "trace_id", "span_id", "parent_span_id", "service_name",
        "service_instance_id", "span_name", "status_code", "kind", "peer_service_name",
    )),
    "logs": _Reader("logs", LOGS, otlp_rows.logs, (
        "time_unix_nano", "service_name", "service_instance_id", "severity_text", "body", "trace_id", "span_id",
    )),
    "metrics": _Reader("metrics", METRICS, otlp_rows.metrics, (
        "time_unix_nano", "service_name", "service_instance_id", "metric_name", "value", "is_counter", "attributes",
        _ASIDE,
    )),
    "exceptions": _Reader("events", TRACES, otlp_rows.events_of_spans, _EVENT, False, b"exception"),
    "events": _Reader("events", LOGS, otlp_rows.events_of_logs, _EVENT, False),
}  # fmt: skip


def parts(config_data: ConfigDict) -> list[Part]:
    """Spans, logs, metrics, events and what tables lie beside them. Raises InputError if there is no OTLP."""
    raw_dir, policy = Path(config_data.raw_dir), config_data.on_bad_rows
    files, beside = found_under(raw_dir)[0], tables.named(raw_dir)
    if not files:
        raise InputError(
            f"{raw_dir} holds no OTLP that can be read (resourceSpans, resourceLogs or resourceMetrics, as JSON or "
            "protobuf); point config.data.raw_dir at what the OpenTelemetry Collector's file exporter wrote"
        )
    shares = [(file, *share) for file in files for share in otlp_files.shares(file.path, file.form)]
    tasks = {table: [] for table in tables.TELEMETRY}
    for name, reader in _READERS.items():
        tasks[reader.table] += [(read, name, *share, policy) for share in shares]
    for table in beside.keys() & tasks.keys():
        path = beside.pop(table)
        tasks[table] += [(tables.read_table, path, table, policy, [first]) for first in tables.slices(path)]
    own = [Part(table, operator.call, some, in_workers=True, optional=True) for table, some in tasks.items()]
    return [*own, *table_files.of(beside, policy)]


def finish(found: tables.Tables, config_data: ConfigDict) -> None:
    """Warns of the files that are left out."""
    raw_dir = Path(config_data.raw_dir)
    others = found_under(raw_dir)[1]
    if others:
        names = ", ".join(path.relative_to(raw_dir).as_posix() for path in others[:_NAMED])
        more = ", ..." if len(others) > _NAMED else ""
        found.warnings.append(
            f"{len(others)} files hold no OTLP or cannot be read; they are left out: {names}{more}"
        )


def found_under(directory: Path) -> tuple[list[File], list[Path]]:
    """The OTLP files, and the others but for telemetry tables. Reads the first message of each."""
    files, others, beside = [], [], set(tables.named(directory).values())
    for path in sorted(raw_files.under(directory)):
        form = otlp_files.form_of(path)
        signal = form and _first_signal(path, form)
        if signal:
            files.append(File(path, form, signal))
        elif path not in beside:
            others.append(path)
    return files, others


def _first_signal(path: Path, form: str) -> str | None:
    for tried, (_, data) in enumerate(otlp_files.messages(path, form)):
        if data and (signal := _signal(data, form)):
            return signal
        if tried == 100:  # a torn or empty message may come first
            break
    return None


def _signal(data: bytes, form: str) -> str | None:
    return (otlp_messages.signal_of_json if _is_json(data, form) else otlp_messages.signal_of_protobuf)(data)


def _is_json(data: bytes, form: str) -> bool:
    """A message behind its length may be JSON, too: so the exporter writes it where it compresses."""
    return form in (LINES, TEXT) or data.startswith(b"{")


def read(
    name: str, file: File, begin: int, end: int | None, on_bad_rows: str
) -> tuple[pl.DataFrame, tables.Account]:
    """The checked rows that reader `name` finds in the messages of [begin, end) of a file, and their account.

    A message, span, record or metric that cannot be read counts as one row that is set aside; the row that is named is
    the message's number in the file (of JSON lines: the line). Messages that are nobody's count where the file's first
    message does. Runs in a worker: picklable values only.
    """
    reader, path = _READERS[name], str(file.path)
    account, rows, numbers = tables.Account(), [], []
    for number, data in otlp_files.messages(file.path, file.form, begin, end):
        try:
            found, lost = _rows(data, reader, file)
        except otlp_messages.ERRORS:
            found, lost = [], 1
        if lost and reader.answers:
            account.read += lost
            account.aside("unreadable_message", lost, path, number, "quarantine")
        rows += found
        numbers += [number] * len(found)
    frame = _without_the_useless(_frame(rows, numbers, reader, path), reader.table, account)
    part, checked = tables.check(frame, reader.table, path)
    account.add(checked)
    account.repair("service_unknown", part.filter(service_name=otlp_rows.UNKNOWN).height)
    if file.form == LINES and begin and account.examples:
        before = otlp_files.lines_before(file.path, begin)
        account.examples = {reason: (path, number + before) for reason, (_, number) in account.examples.items()}
    for reason, count in account.set_aside.items():  # only now the numbers of the lines are known
        tables.Account().aside(reason, count, *account.examples[reason], on_bad_rows)
    return part, account


def _rows(data: bytes | None, reader: _Reader, file: File) -> tuple[list[tuple], int]:
    """The reader's rows in a message, and how many parts of it cannot be read."""
    signal = _signal(data, file.form) if data else None
    is_json = bool(data) and _is_json(data, file.form)
    if signal != reader.signal and not (signal and is_json and otlp_messages.holds(data, reader.signal)):
        return [], int(signal is None and reader.signal == file.signal)
    if reader.hint not in data:
        return [], 0
    request, lost = otlp_messages.parse(data, reader.signal, is_json)
    if request is not None and is_json and otlp_messages.groups(request) is None:  # the key lies deeper, in an envelope
        return [], int(signal == reader.signal)
    return list(reader.rows(request, data)) if request is not None else [], lost


def _frame(rows: list[tuple], numbers: list[int], reader: _Reader, file: str) -> pl.DataFrame:
    """Ids that are empty or zero become null; what does not fit its column, too."""
    types = {**tables.SCHEMAS[reader.table].columns, _ASIDE: pl.String()}
    schema = {column: types[column] for column in reader.columns}
    columns = zip(*rows, strict=True) if rows else [[] for _ in schema]
    frame = pl.DataFrame(dict(zip(schema, columns, strict=True)), schema=schema, strict=False)
    ids = (pl.col(column) for column in _IDS if column in schema)
    return frame.with_columns(
        *(pl.when(~own.str.contains("^0*$")).then(own.str.to_lowercase()) for own in ids),
        pl.lit(file).alias(tables.FILE), pl.Series(tables.ROW, numbers, dtype=pl.UInt32),
    )  # fmt: skip


def _without_the_useless(frame: pl.DataFrame, table: str, account: tables.Account) -> pl.DataFrame:
    """`frame` without rows that its reader marked, that are no text for people or log nothing; they are counted."""
    texts = [column for column, dtype in frame.schema.items() if dtype == pl.String]
    reasons = [pl.col(_ASIDE)] if _ASIDE in frame.columns else []
    reasons.append(pl.when(pl.max_horizontal(pl.col(texts).str.len_bytes()) > LONGEST_TEXT).then(pl.lit("huge_text")))
    if table == "logs":
        reasons.append(pl.when(pl.col("body").is_null()).then(pl.lit("empty_payload")))
    frame = frame.with_columns(pl.coalesce(reasons).alias(_ASIDE))
    bad = frame.filter(pl.col(_ASIDE).is_not_null()).group_by(_ASIDE, maintain_order=True).agg(
        pl.len(), pl.col(tables.FILE).first(), pl.col(tables.ROW).first()
    )
    for reason, count, file, row in bad.iter_rows():
        account.read += count
        account.aside(reason, count, file, row, "quarantine")
    return frame.filter(pl.col(_ASIDE).is_null()).drop(_ASIDE)
