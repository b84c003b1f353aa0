"""The raw layout of the multi-source OpenStack dataset (Nedelkoski et al., ESOCC 2020; Zenodo 3549604).

`raw_dir` is one recording (`concurrent data/`, `sequential_data/`), which has some of `logs/`, `metrics/`, `traces/`,
`reports/`, or a directory of such recordings. Traces and reports are on UTC; logs and metrics are on local time,
which their own offset tells or else `utc_offset_hours` (the metrics' zone label "CEST" is wrong in November).
"""

import datetime
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import polars as pl
from ml_collections import ConfigDict

from data_prep import csv_rows, raw_files, tables
from data_prep.errors import InputError
from data_prep.sources import labels, osprofiler, rally
from data_prep.sources.clock import nanoseconds
from data_prep.sources.part import Part

LOG_COLUMNS = (
    "_id,_index,_score,_type,Hostname,user_id,project_domain,Timestamp,@timestamp,log_level,Pid,Payload,tenant_id,"
    "programname,request_id,python_module,Logger,user_domain,domain_id,http_status,http_method,http_version,http_url,"
    "chunk,next_retry_seconds,error,retry_time,message,chunk_id,worker"
).split(",")
_LOG_COLUMNS_USED = ("Hostname", "Timestamp", "@timestamp", "log_level", "Payload", "programname")
METRICS = ("cpu.user", "mem.used", "load.cpucore", "load.min1", "load.min5", "load.min15")
_PARTS = ("logs", "metrics", "traces", "reports")
_FILES_A_TASK = 256
_METRIC_BLOCK = 4 << 20  # bytes: each row becomes six
_EXPERIMENT = "IMPORTANT_experiment_start_end_data.txt"


def parts(config_data: ConfigDict) -> list[Part]:
    """Whatever of spans, logs, metrics and faults the recordings under raw_dir hold.

    Raises InputError if there is no telemetry.
    """
    raw_dir, policy, offset = Path(config_data.raw_dir), config_data.on_bad_rows, config_data.utc_offset_hours
    recordings = _recordings(raw_dir)
    logs = [path for d in recordings for path in _files(d, "logs/*.csv")]
    metrics = [path for d in recordings for path in _files(d, "metrics/*_metrics*.csv")]
    traces = [str(path.relative_to(raw_dir)) for d in recordings for path in _files(d, "traces/**/*.json")]
    reports = [path for d in recordings for path in _files(d, "reports/*.json")]
    if not (logs or metrics or traces):
        raise InputError(
            f"{raw_dir} holds no logs/*.csv, metrics/*_metrics*.csv or traces/**/*.json; point config.data.raw_dir "
            "at 'concurrent data', at sequential_data or at the directory that holds them"
        )
    some = [traces[at : at + _FILES_A_TASK] for at in range(0, len(traces), _FILES_A_TASK)]
    return [
        Part("spans", osprofiler.read_traces, [(str(raw_dir), files, policy) for files in some], in_workers=True),
        Part("logs", _read_logs, [(path, offset, policy) for path in logs]),
        Part("metrics", _read_metrics, [(path, offset, policy) for path in metrics]),
        Part("faults", _read_faults, [(path,) for path in reports]),
    ]


def finish(found: tables.Tables, config_data: ConfigDict) -> None:
    """Adds topology and gaps. Raises InputError if a recording's own start and end cannot be read."""
    raw_dir = Path(config_data.raw_dir)
    _add_topology(found)
    if "faults" not in found.accounts:
        found.warnings.append("there are no reports/*.json: no fault is known, nothing can be evaluated")
    recordings = _recordings(raw_dir)
    windows = [
        _experiment_window(d / _EXPERIMENT, config_data.utc_offset_hours)
        for d in recordings if (d / _EXPERIMENT).exists()
    ]  # fmt: skip
    if windows and len(windows) == len(recordings):  # otherwise a whole recording would count as not observed
        labels.add_gaps(found, windows, _EXPERIMENT)


def _recordings(raw_dir: Path) -> list[Path]:
    directories = (raw_dir, *raw_files.inside(raw_dir))
    return [d for d in directories if any((d / part).is_dir() for part in _PARTS)]


def _read_faults(path: Path) -> Iterator[tuple[pl.DataFrame, tables.Account]]:
    """The faults of a report. One that cannot be read is an InputError: labels are never left out silently."""
    try:
        found = rally.faults(rally.read_report(path))
    except msgspec.ValidationError as error:
        raise InputError(f"{path} states a fault that cannot be read ({error}); correct or remove it") from None
    yield tables.check(found, "faults", str(path), "error")


def _files(recording: Path, pattern: str) -> list[Path]:
    return sorted([*recording.glob(pattern), *recording.glob(f"{pattern}.gz")])


def _read_logs(path: Path, offset_hours: float, on_bad_rows: str) -> Iterator[tuple[pl.DataFrame, tables.Account]]:
    header = csv_rows.first_record(path)
    by_position = "Payload" not in header and len(header) == len(LOG_COLUMNS)  # the published pieces have no header
    missing = [column for column in _LOG_COLUMNS_USED if column not in (LOG_COLUMNS if by_position else header)]
    for rows, torn in csv_rows.blocks(path, LOG_COLUMNS if by_position else None, multiline=True):
        if missing:
            raise InputError(f"{path} lacks column {missing[0]!r} of the archive's log files; copy it again")
        part = _check_logs(rows, path, offset_hours, on_bad_rows)
        yield tables.count_torn(part, torn, str(path), on_bad_rows)


def _check_logs(rows: pl.DataFrame, path: Path, offset_hours: float, on_bad_rows: str):
    empty = rows.filter(pl.col("Payload").str.strip_chars().fill_null("") == "")
    program, host = (pl.col(column).replace("-", None).fill_null("unknown") for column in ("programname", "Hostname"))
    frame = rows.filter(pl.col("Payload").str.strip_chars().fill_null("") != "").select(
        tables.ROW,
        time_unix_nano=pl.coalesce(_utc_nano(pl.col(c), offset_hours) for c in ("@timestamp", "Timestamp")),
        service_name=program,
        service_instance_id=pl.format("{}@{}", program, host),
        severity_text="log_level",
        body="Payload",
    )
    part, account = tables.check(frame, "logs", str(path), on_bad_rows)
    account.read += empty.height
    account.aside("empty_payload", empty.height, str(path), empty[tables.ROW].first(), on_bad_rows)
    return part, account


def _read_metrics(path: Path, offset_hours: float, on_bad_rows: str) -> Iterator[tuple[pl.DataFrame, tables.Account]]:
    """Samples of one host. Those of one second are one sample, their mean; the others count as duplicates.

    A second that comes again after a later one (the clock was set back), in another block, is a sample of its own.
    """
    second = _utc_nano(pl.col("now"), offset_hours) // 1_000_000_000 * 1_000_000_000
    held = None  # the last second of a block, which may go on in the next one
    for rows, torn in csv_rows.blocks(path, size=_METRIC_BLOCK):
        missing = [column for column in ("now", *METRICS) if column not in rows.columns]
        if missing:
            raise InputError(f"{path} lacks column {missing[0]!r}; it needs now, {', '.join(METRICS)}")
        rows = rows.select(tables.ROW, *METRICS, time_unix_nano=second)
        rows = rows if held is None else pl.concat([held, rows])
        is_last = (pl.col("time_unix_nano") == pl.col("time_unix_nano").max()).fill_null(False)
        held = rows.filter(is_last)
        part = _check_samples(rows.filter(~is_last), path, on_bad_rows)
        yield tables.count_torn(part, [row for row in torn for _ in METRICS], str(path), on_bad_rows)
    yield _check_samples(held, path, on_bad_rows)


def _check_samples(rows: pl.DataFrame, path: Path, on_bad_rows: str) -> tuple[pl.DataFrame, tables.Account]:
    host = pl.lit(path.name.split("_metrics")[0])
    frame = rows.unpivot(METRICS, index=[tables.ROW, "time_unix_nano"], variable_name="metric_name", value_name="value")
    frame = frame.with_columns(service_name=host, service_instance_id=host)
    samples, account = tables.check(frame, "metrics", str(path), on_bad_rows, text=True)
    means = samples.group_by(pl.exclude("value"), maintain_order=True).agg(pl.col("value").mean())
    account.duplicates = samples.height - means.height
    account.kept = means.height
    return means.select(samples.columns), account


def _utc_nano(text: pl.Expr, offset_hours: float) -> pl.Expr:
    """`2019-11-25T16:12:29.58+01:00` or `2019-11-25 16:12:29 CEST` -> nanoseconds; null where it is no time.

    An offset in numbers, `Z`, `UTC` and `GMT` are believed, any other zone name is not.
    """
    clean = (
        text.str.strip_chars()
        .str.replace(r"\s*(?:UTC|GMT|Z)$", "+0000")
        .str.replace(r"\s+[A-Za-z]+$", "")
        .str.replace(" ", "T", literal=True)
    )
    shape = "%Y-%m-%dT%H:%M:%S%.f"
    own, local = nanoseconds(clean, shape + "%#z"), nanoseconds(clean, shape)
    return pl.coalesce(own, local - round(offset_hours * 3600) * 1_000_000_000)


def _add_topology(found: tables.Tables) -> None:
    """Which instance runs on which host, as the names of logs and spans tell."""
    if not {"spans", "logs"} & found.accounts.keys():
        return
    instances = found.instances(("spans", "logs")).alias("source").to_frame()
    target = pl.col("source").str.split("@").list.last()
    frame = instances.with_columns(target=target, relation=pl.lit("runs_on")).filter(target != "unknown")
    found.add("topology", [tables.check(frame, "topology", "telemetry")])


def _experiment_window(path: Path, offset_hours: float) -> tuple[int, int]:
    """Start and end in unix nanoseconds: `START OF EXPERIMENTS - ..` is on UTC, `START ..: ..` on local time."""
    text = raw_files.content(path).decode("utf-8", "replace")
    moment = r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)"
    bounds = []
    for edge in ("START", "END"):
        utc = re.search(rf"^\s*{edge} OF EXPERIMENTS\s*-\s*{moment}", text, re.M)
        local = re.search(rf"^\s*{edge}(?! OF EXPERIMENTS)[^:\n]*:\s*{moment}", text, re.M)
        if not utc and not local:
            raise InputError(f"{path} has no line '{edge} OF EXPERIMENTS - <date> <time>'; correct or remove it")
        try:
            when = datetime.datetime.fromisoformat((utc or local)[1]).replace(tzinfo=datetime.UTC)
        except ValueError as error:
            raise InputError(f"{path}: the {edge.lower()} is no time ({error}); correct it") from None
        seconds = int(when.timestamp()) - (0 if utc else round(offset_hours * 3600))
        bounds.append(seconds * 1_000_000_000)
    return bounds[0], bounds[1]
