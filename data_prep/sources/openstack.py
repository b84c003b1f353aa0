"""The raw layout of the multi-source OpenStack dataset (Nedelkoski et al., ESOCC 2020; Zenodo 3549604).

`raw_dir` is one recording (`concurrent data/`, `sequential_data/`), which has some of `logs/`, `metrics/`, `traces/`,
`reports/`, or a directory of such recordings. Traces and reports are on UTC; logs and metrics are on local time,
which their own offset tells or else `utc_offset_hours` (the metrics' zone label "CEST" is wrong in November).
"""

import datetime
import re
from concurrent.futures import Executor
from pathlib import Path

import polars as pl
from ml_collections import ConfigDict

from data_prep import csv_rows, tables
from data_prep.errors import InputError
from data_prep.sources import labels, osprofiler, rally

LOG_COLUMNS = (
    "_id,_index,_score,_type,Hostname,user_id,project_domain,Timestamp,@timestamp,log_level,Pid,Payload,tenant_id,"
    "programname,request_id,python_module,Logger,user_domain,domain_id,http_status,http_method,http_version,http_url,"
    "chunk,next_retry_seconds,error,retry_time,message,chunk_id,worker"
).split(",")
_LOG_COLUMNS_USED = ("Hostname", "Timestamp", "@timestamp", "log_level", "Payload", "programname")
METRICS = ("cpu.user", "mem.used", "load.cpucore", "load.min1", "load.min5", "load.min15")
_PARTS = ("logs", "metrics", "traces", "reports")
_FILES_A_TASK = 256
_EXPERIMENT = "IMPORTANT_experiment_start_end_data.txt"


def read(config_data: ConfigDict, executor: Executor | None = None) -> tables.Tables:
    """Whatever of spans, logs, metrics, topology, faults and gaps the recordings under raw_dir hold.

    Raises InputError if there is no telemetry or a report cannot be read (labels are never left out silently).
    """
    raw_dir, policy, offset = Path(config_data.raw_dir), config_data.on_bad_rows, config_data.utc_offset_hours
    recordings = [d for d in (raw_dir, *sorted(raw_dir.iterdir())) if any((d / part).is_dir() for part in _PARTS)]
    logs = [path for d in recordings for path in _files(d, "logs/*.csv")]
    metrics = [path for d in recordings for path in _files(d, "metrics/*_metrics*.csv")]
    traces = [str(path.relative_to(raw_dir)) for d in recordings for path in _files(d, "traces/**/*.json")]
    reports = [path for d in recordings for path in _files(d, "reports/*.json")]

    found = tables.Tables()
    tasks = [traces[at : at + _FILES_A_TASK] for at in range(0, len(traces), _FILES_A_TASK)]
    run = executor.map if executor else map
    repeat = len(tasks)
    found.add("spans", run(osprofiler.read_traces, [str(raw_dir)] * repeat, tasks, [policy] * repeat))
    found.add("logs", (_read_logs(path, offset, policy) for path in logs))
    found.add("metrics", (_read_metrics(path, offset, policy) for path in metrics))
    if not found.frames:
        raise InputError(
            f"{raw_dir} holds no logs/*.csv, metrics/*_metrics*.csv or traces/**/*.json; point config.data.raw_dir "
            "at 'concurrent data', at sequential_data or at the directory that holds them"
        )
    _add_topology(found)
    found.add("faults", (tables.check(rally.faults(rally.read_report(p)), "faults", str(p), "error") for p in reports))
    if not reports:
        found.warnings.append(f"{raw_dir} has no reports/*.json: no fault is known, nothing can be evaluated")
    windows = [_experiment_window(d / _EXPERIMENT, offset) for d in recordings if (d / _EXPERIMENT).exists()]
    if windows and len(windows) == len(recordings):  # otherwise a whole recording would count as not observed
        labels.add_gaps(found, windows, _EXPERIMENT)
    return found


def _files(recording: Path, pattern: str) -> list[Path]:
    return sorted([*recording.glob(pattern), *recording.glob(f"{pattern}.gz")])


def _read_logs(path: Path, offset_hours: float, on_bad_rows: str) -> tuple[pl.DataFrame, tables.Account]:
    header = csv_rows.first_record(path)
    by_position = "Payload" not in header and len(header) == len(LOG_COLUMNS)  # the published pieces have no header
    rows, torn = csv_rows.read(path, LOG_COLUMNS if by_position else None, multiline=True)
    missing = [column for column in _LOG_COLUMNS_USED if column not in rows.columns]
    if missing:
        raise InputError(f"{path} lacks column {missing[0]!r} of the archive's log files; copy it again")
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
    return tables.count_torn((part, account), torn, str(path), on_bad_rows)


def _read_metrics(path: Path, offset_hours: float, on_bad_rows: str) -> tuple[pl.DataFrame, tables.Account]:
    """Samples of one host. Those of one second are one sample, their mean; the others count as duplicates."""
    rows, torn = csv_rows.read(path)
    missing = [column for column in ("now", *METRICS) if column not in rows.columns]
    if missing:
        raise InputError(f"{path} lacks column {missing[0]!r}; it needs now, {', '.join(METRICS)}")
    host = path.name.split("_metrics")[0]
    second = _utc_nano(pl.col("now"), offset_hours) // 1_000_000_000 * 1_000_000_000
    frame = rows.with_columns(time_unix_nano=second).unpivot(
        METRICS, index=[tables.ROW, "time_unix_nano"], variable_name="metric_name", value_name="value"
    )
    frame = frame.with_columns(service_name=pl.lit(host), service_instance_id=pl.lit(host))
    samples, account = tables.check(frame, "metrics", str(path), on_bad_rows, text=True)
    means = samples.group_by(pl.exclude("value"), maintain_order=True).agg(pl.col("value").mean())
    account.duplicates = samples.height - means.height
    account.kept = means.height
    part = means.select(samples.columns)
    return tables.count_torn((part, account), [row for row in torn for _ in METRICS], str(path), on_bad_rows)


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
    own = clean.str.to_datetime(shape + "%#z", time_unit="ns", strict=False).dt.timestamp("ns")
    local = clean.str.to_datetime(shape, time_unit="ns", strict=False).dt.timestamp("ns")
    return pl.coalesce(own, local - round(offset_hours * 3600) * 1_000_000_000)


def _add_topology(found: tables.Tables) -> None:
    """Which instance runs on which host, as the names of logs and spans tell."""
    frames = [found.frames[name] for name in ("spans", "logs") if name in found.frames]
    if not frames:
        return
    instances = pl.concat(frame.select(source="service_instance_id") for frame in frames).unique()
    target = pl.col("source").str.split("@").list.last()
    frame = instances.with_columns(target=target, relation=pl.lit("runs_on")).filter(target != "unknown")
    found.add("topology", [tables.check(frame, "topology", "telemetry")])


def _experiment_window(path: Path, offset_hours: float) -> tuple[int, int]:
    """Start and end in unix nanoseconds: `START OF EXPERIMENTS - ..` is on UTC, `START ..: ..` on local time."""
    text = path.read_text(errors="replace")
    moment = r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)"
    bounds = []
    for edge in ("START", "END"):
        utc = re.search(rf"^\s*{edge} OF EXPERIMENTS\s*-\s*{moment}", text, re.M)
        local = re.search(rf"^\s*{edge}(?! OF EXPERIMENTS)[^:\n]*:\s*{moment}", text, re.M)
        if not utc and not local:
            raise InputError(f"{path} has no line '{edge} OF EXPERIMENTS - <date> <time>'; correct or remove it")
        when = datetime.datetime.fromisoformat((utc or local)[1]).replace(tzinfo=datetime.UTC)
        seconds = int(when.timestamp()) - (0 if utc else round(offset_hours * 3600))
        bounds.append(seconds * 1_000_000_000)
    return bounds[0], bounds[1]
