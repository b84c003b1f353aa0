"""The raw Train Ticket layout of Nezha (ESEC/FSE 2023): `<set>/<day>/{trace,log,metric}/*.csv`.

`raw_dir` holds the sets `rca_data/` and `construct_data/`, or is one of them. What is particular to these files:
minutes overlap, so spans and log lines repeat; construct_data repeats the metrics of rca_data; two log rows are torn;
some times are Go's zero time; pods have one suffix a day; there are no labels and no list of observed minutes (the
files named by `faults_path` and `segments_path` are the place for these).
"""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
from ml_collections import ConfigDict

from data_prep import csv_rows, raw_files, tables
from data_prep.errors import InputError
from data_prep.sources import labels
from data_prep.sources.clock import nanoseconds
from data_prep.sources.part import Part

_FILES_A_TASK = 32  # small enough to share out evenly, large enough that sending the rows back costs little
# `16:42:22.382 INFO  t.s.TravelServiceImpl#532 TraceID: .. SpanID: .. message`: the clock is local time (UTC+8).
_PREFIX = r"^[0-9:.]+ +([A-Z]+) +(\S+#[0-9]+) TraceID: \S* SpanID: \S* "
_CLIENT, _PRODUCER = r"^HTTP [A-Z]+$", r" send$"
_SPAN_COLUMNS = (
    "TraceID", "SpanID", "ParentID", "PodName", "OperationName", "StartTimeUnixNano", "EndTimeUnixNano",
)  # fmt: skip
_TABLES = {"trace": "spans", "log": "logs", "metric": "metrics"}


def parts(config_data: ConfigDict) -> list[Part]:
    """Spans, logs and metrics of all days found. Raises InputError if there is no such file under raw_dir."""
    days = sorted(_days(Path(config_data.raw_dir)))
    found = []
    for folder, name in _TABLES.items():
        files = [str(path) for day in days for path in sorted((day / folder).glob("*.csv"))]
        tasks = [
            (folder, files[at : at + _FILES_A_TASK], config_data.on_bad_rows)
            for at in range(0, len(files), _FILES_A_TASK)
        ]
        found.append(Part(name, _read_files, tasks, in_workers=True, whole=_with_kinds if name == "spans" else None))
    if not any(part.tasks for part in found):
        raise InputError(
            f"{config_data.raw_dir} holds no <day>/trace, <day>/log or <day>/metric CSV files; "
            "point config.data.raw_dir at the directory that holds rca_data and construct_data"
        )
    return found


def finish(found: tables.Tables, config_data: ConfigDict) -> None:
    """Warns of what the archive lacks."""
    if not labels.find(config_data, "segments_path"):
        found.warnings.append(
            "traces and logs cover single minutes, but config.data.segments_path is empty: "
            "minutes without them will look like silence"
        )
    if not labels.find(config_data, "faults_path"):
        found.warnings.append("the archive has no usable labels and config.data.faults_path is empty")


def _days(raw_dir: Path) -> Iterator[Path]:
    for root in (raw_dir, raw_dir / "rca_data", raw_dir / "construct_data"):
        if root.is_dir():
            yield from (day for day in raw_files.inside(root) if any((day / folder).is_dir() for folder in _TABLES))


def _read_files(folder: str, files: list[str], on_bad_rows: str) -> tuple[pl.DataFrame, tables.Account]:
    """Checked rows of some files of one kind. Runs in a worker, so it takes and gives picklable values only."""
    parts, torn_rows = [], []
    for file in files:
        rows, torn = csv_rows.read(Path(file))
        torn_rows += [(file, row) for row in torn]
        parts.append(_READERS[folder](rows, file).with_columns(pl.lit(file).alias(tables.FILE)))
    frame = pl.concat(parts)
    part, account = tables.check(frame, _TABLES[folder], files[0], on_bad_rows, text=True)
    account.read += len(torn_rows)
    account.aside("torn_row", len(torn_rows), *(torn_rows or [("", 0)])[0], on_bad_rows)
    if folder == "log":
        account.repair("go_zero_time", frame["_go_zero_time"].sum())
    return part, account


def _spans(rows: pl.DataFrame, file: str) -> pl.DataFrame:
    _require(rows, _SPAN_COLUMNS, file)
    return rows.select(
        tables.ROW,
        start_time_unix_nano="StartTimeUnixNano",
        end_time_unix_nano="EndTimeUnixNano",
        trace_id="TraceID",
        span_id="SpanID",
        parent_span_id=pl.when(pl.col("ParentID") != "root").then("ParentID"),
        service_name=_service("PodName"),
        service_instance_id="PodName",
        span_name="OperationName",
        status_code=pl.lit("UNSET"),  # not recorded
    )


def _logs(rows: pl.DataFrame, file: str) -> pl.DataFrame:
    _require(rows, ("Timestamp", "TimeUnixNano", "PodName", "TraceID", "SpanID", "Log"), file)
    go_zero = pl.col("TimeUnixNano").str.starts_with("-")
    timestamp = nanoseconds(pl.col("Timestamp").str.strip_suffix("Z"), "%Y-%m-%dT%H:%M:%S%.f")
    text = pl.col("Log").str.json_path_match("$.log")  # null where the value is not JSON
    return rows.with_columns(_text=text.str.strip_chars_end()).select(
        tables.ROW,
        _go_zero_time=go_zero,
        time_unix_nano=pl.when(go_zero).then(timestamp.cast(pl.String)).otherwise("TimeUnixNano"),
        service_name=_service("PodName"),
        service_instance_id="PodName",
        severity_text=pl.col("_text").str.extract(_PREFIX, 1),
        body=pl.col("_text").str.replace(_PREFIX, "${2} "),  # logger#line tells the place in the code
        trace_id="TraceID",
        span_id="SpanID",
    )


def _metrics(rows: pl.DataFrame, file: str) -> pl.DataFrame:
    pod = "PodName" if "PodName" in rows.columns else "ServiceName"  # the latter in front_service.csv
    _require(rows, ("TimeStamp", pod), file)
    name = _service("PodName") if pod == "PodName" else pl.lit("front-service")
    instance = pl.col("PodName") if pod == "PodName" else pl.lit("front-service")
    return (
        rows.with_columns(_service=name, _instance=instance, _time=pl.col("TimeStamp") + "000000000")
        .drop("TimeStamp", pod, "Time", strict=False)
        .unpivot(index=[tables.ROW, "_time", "_service", "_instance"], variable_name="metric_name", value_name="value")
        .with_columns(pl.col("value").cast(pl.String))  # of a file without metrics it has no type
        .rename({"_time": "time_unix_nano", "_service": "service_name", "_instance": "service_instance_id"})
    )


_READERS = {"trace": _spans, "log": _logs, "metric": _metrics}


def _require(rows: pl.DataFrame, columns: tuple[str, ...], file: str) -> None:
    missing = [column for column in columns if column not in rows.columns]
    if missing:
        raise InputError(f"{file} lacks column {missing[0]!r}; it needs {', '.join(columns)}")


def _service(pod: str) -> pl.Expr:
    """The pod's name without the hashes of its replica set and of itself."""
    return pl.col(pod).str.replace(r"-[^-]+-[^-]+$", "")


def _with_kinds(spans: pl.DataFrame) -> pl.DataFrame:
    """`spans` with the kind, which the files leave out, from names and from the service of the parent.

    Client spans are named `HTTP GET` and so on, messages `<queue> send`; the gateway's root span serves the user.
    """
    parents = spans.select(
        "trace_id", parent_span_id="span_id", _parent_service="service_name", _parent_name="span_name"
    )
    called = pl.col("_parent_service") != pl.col("service_name")
    kind = (
        pl.when(pl.col("span_name").str.contains(_CLIENT)).then(pl.lit("CLIENT"))
        .when(pl.col("span_name").str.contains(_PRODUCER)).then(pl.lit("PRODUCER"))
        .when(called & pl.col("_parent_name").str.contains(_PRODUCER)).then(pl.lit("CONSUMER"))
        .when(called | pl.col("parent_span_id").is_null()).then(pl.lit("SERVER"))
        .otherwise(pl.lit("INTERNAL"))
    )
    joined = spans.join(parents, on=["trace_id", "parent_span_id"], how="left", maintain_order="left")
    return joined.with_columns(kind=kind).select(spans.columns)
