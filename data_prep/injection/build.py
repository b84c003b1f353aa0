"""Real telemetry -> telemetry tables of its normal stretches twice: as they were, and later again with faults."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import polars as pl

from data_prep import prepare, split, tables
from data_prep.errors import InputError
from data_prep.injection import RECORD, kinds
from data_prep.injection.requests import END, START, Requests
from data_prep.injection.stretches import Stretch, known_normal

NS, DAY = split.NS, 86_400 * split.NS
HISTORY_SECONDS = 3600.0  # of metrics before a recording's first stretch: their own past is what they are judged by


def inject(found: tables.Tables, config_data, seed: int, until_share: float, copies: int = 1):
    """Tables with simulated faults in the normal time of `found`.

    Every normal stretch is there as it was, at its own time, and `copies` times more, whole days later, each with one
    fault that lasts from its beginning to its end. Stretch i of the originals and of each copy test in the same fold of
    `data.protocol=fold:K`, so that no network is judged on a copy of what it was fitted on.

    Args:
        found: telemetry tables, known faults included; config_data: segments and windows are made as it says.
        seed: decides services, operations and sizes.
        until_share: the share of each recording's segments, from its begin, that is used.

    Returns:
        (tables, record): `record` lists the injected faults with all that was drawn.

    Raises:
        InputError: there are no spans, or too little normal time.
    """
    frames = {name: frame for name, frame in found.frames.items()}
    if "spans" not in frames:
        raise InputError("there are no spans: faults are injected into requests, and their consequences follow traces")
    faults = prepare.faults_of(frames.get("faults"))
    stretches = known_normal(prepare.intervals_of(frames, config_data), faults, config_data, until_share)
    shift = _shift(stretches, config_data)
    originals = _originals(frames, stretches)
    blocks, record = [originals], []
    for copy in range(1, copies + 1):
        block, injected = _copy(originals, frames, stretches, config_data, seed, copy, copy * shift)
        blocks.append(block)
        record += injected
    out = tables.Tables(warnings=list(found.warnings))
    for name in originals:
        out.add(name, [tables.check(pl.concat([block[name] for block in blocks]), name, name, "error")])
    if "topology" in frames:
        out.add("topology", [tables.check(frames["topology"], "topology", "topology", "error")])
    label = (START, END, "service_name", "fault_type")
    rows = [{c: r[c] for c in label} | {split.UNCERTAIN: r[START]} for r in record]
    out.add("faults", [tables.check(pl.DataFrame(rows, schema=_schema("faults")), "faults", "faults", "error")])
    times = [(s.start + c * shift, s.end + c * shift) for c in range(copies + 1) for s in stretches]
    out.add("gaps", [tables.check(_gaps(out, times), "gaps", "gaps", "error")])
    _check(out, times, config_data)
    return out, record


def check_directory(directory: Path | str) -> None:
    """Raises InputError where `write` could not write, or would replace anything but an earlier injection."""
    directory = Path(directory)
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory} is a file; name another --output_dir")
    if directory.exists() and any(directory.iterdir()) and not (directory / RECORD).is_file():
        raise InputError(f"{directory} is not empty and holds no injected faults; name another --output_dir")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{directory} cannot be written ({error.strerror}); name another --output_dir") from None


def write(out: tables.Tables, record: list[dict], directory: Path | str, **settings) -> None:
    """The tables and, beside them, the record of what was injected; replaces what is there, whole."""
    directory = Path(directory).absolute()
    partial = directory.with_name(f".{directory.name}.partial-{os.getpid()}")
    old = directory.with_name(f".{directory.name}.old")
    try:
        tables.write_tables(out, partial)
        text = json.dumps({"settings": settings, "faults": record}, indent=1, sort_keys=True)
        Path(partial, RECORD).write_text(text + "\n")
        shutil.rmtree(old, ignore_errors=True)
        if directory.exists():
            directory.rename(old)
        partial.rename(directory)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _shift(stretches: list[Stretch], config_data) -> int:
    """Whole days (the hour of the day stays) that take a copy into a recording of its own."""
    apart = stretches[-1].end - stretches[0].start + int((config_data.recording_gap_hours + 1) * 3600 * NS)
    return -(-apart // DAY) * DAY


def _originals(frames, stretches: list[Stretch]) -> dict[str, pl.DataFrame]:
    """The telemetry of the stretches, whole traces, with the number of the stretch (`_stretch`) that each row is of.

    A trace that reaches over a stretch's border is kept whole and belongs to the first stretch that it touches.
    Metrics and events lie outside requests: those from before the stretches to their end are kept, without a number.
    """
    spans = frames["spans"]
    touched = [
        spans.filter((pl.col(START) < s.end) & (pl.col(END) >= s.start)).select("trace_id", _stretch=pl.lit(number))
        for number, s in enumerate(stretches)
    ]
    of_trace = pl.concat(touched).group_by("trace_id").agg(pl.col("_stretch").min())
    out = {"spans": spans.join(of_trace, on="trace_id", maintain_order="left")}
    if "logs" in frames:
        time, none = pl.col("time_unix_nano"), pl.lit(None, pl.Int32)
        inside = pl.coalesce(
            none, *(pl.when(time.is_between(s.start, s.end, "left")).then(i) for i, s in enumerate(stretches))
        )
        logs = frames["logs"].join(of_trace, on="trace_id", how="left", maintain_order="left")
        logs = logs.with_columns(_stretch=pl.coalesce("_stretch", inside))
        out["logs"] = logs.filter(pl.col("_stretch").is_not_null())
    last = {s.recording: s.end for s in stretches}
    first = {s.recording: s.start - int(HISTORY_SECONDS * NS) for s in reversed(stretches)}
    time = pl.col("time_unix_nano")
    known = pl.any_horizontal([time.is_between(first[r], last[r]) for r in last])
    return out | {name: frames[name].filter(known) for name in ("metrics", "events") if name in frames}


def _copy(originals, frames, stretches, config_data, seed, copy, shift):
    """A block of copies, `shift` ns later, with a fault in each; and the record of the faults."""
    names = list(kinds.KINDS)
    order = np.random.default_rng([seed]).permutation((np.arange(len(stretches)) + seed) % len(names))
    logs, metrics = originals.get("logs"), originals.get("metrics")
    has_status = (frames["spans"]["status_code"] != "UNSET").any()
    alerts = None if logs is None else logs.filter(pl.col("severity_text").str.contains(kinds.ALERT))
    window = config_data.window_length * split.tick_ns(config_data)
    parts, record = {name: [] for name in ("spans", "logs") if name in originals}, []
    for number, stretch in enumerate(stretches):
        own = {name: originals[name].filter(pl.col("_stretch") == number) for name in parts}
        requests = Requests(own["spans"], own.get("logs"))
        least = max(kinds.LEAST_CALLS, -(-kinds.LEAST_CALLS * (stretch.end - stretch.start) // window))
        place = kinds.Place(requests, metrics, stretch.start, stretch.end, least, has_status, alerts)
        rng = np.random.default_rng([seed, copy, number])
        for turn in range(len(names)):  # a stretch that has no place for its kind takes the next one
            kind = names[(order[number] + copy - 1 + turn) % len(names)]
            if fault := kinds.KINDS[kind](place, rng):
                break
        else:
            raise InputError(
                f"no service serves {least} calls in the normal stretch that begins at {stretch.start} ns: bring "
                "telemetry with more traffic, or make data.segment_seconds longer"
            )
        metrics = fault.metrics
        spans, lines = requests.replay(fault.changes)
        for name, frame in (("spans", spans), ("logs", lines)):
            if name in parts:
                parts[name].append(_renamed(frame, f"-copy{copy}-{number}"))
        record.append({
            START: stretch.start + shift, END: stretch.end + shift, "service_name": fault.service, "fault_type": kind,
            "stretch": number, "copy": copy, **fault.details,
        })  # fmt: skip
    block = {name: pl.concat(frames) for name, frames in parts.items()}
    block |= {"metrics": metrics} if metrics is not None else {}
    block |= {name: originals[name] for name in ("events",) if name in originals}
    moved = {name: frame.with_columns(pl.col("^.*_unix_nano$") + shift) for name, frame in block.items()}
    return moved, record


def _renamed(frame: pl.DataFrame, suffix: str) -> pl.DataFrame:
    """`frame` with other trace and span ids: the same trace must not be there twice."""
    ids = [name for name in ("trace_id", "span_id", "parent_span_id") if name in frame.columns]
    return frame.with_columns(pl.col(ids) + suffix)


def _gaps(out: tables.Tables, times: list[tuple[int, int]]) -> pl.DataFrame:
    """All time, from the first to the last telemetry, that lies in no stretch."""
    first, last = out.extent()
    ends = [min(first, times[0][0]) - NS] + [end for _, end in times]
    starts = [start for start, _ in times] + [max(last, times[-1][1]) + NS]
    return pl.DataFrame([(a, b) for a, b in zip(ends, starts, strict=True) if a < b], _schema("gaps"), orient="row")


def _schema(name: str) -> dict:
    return tables.SCHEMAS[name].columns


def _check(out: tables.Tables, times: list[tuple[int, int]], config_data) -> None:
    """Raises RuntimeError unless preparing `out` will make each stretch a segment, in folds as intended."""
    for fold in range(split.FOLDS):
        data = config_data.copy_and_resolve_references()
        with data.unlocked():
            data.protocol = f"fold:{fold}"
        faults = prepare.faults_of(out.frames["faults"])
        made = split.make_segments(prepare.intervals_of(out.frames, data), faults, data)
        tests = np.flatnonzero(made.part == split.TEST).tolist()
        inside = [a <= start and end <= b for start, end, (a, b) in zip(made.start, made.end, times, strict=False)]
        if len(made) != len(times) or not all(inside) or tests != list(range(fold, len(times), split.FOLDS)):
            raise RuntimeError(f"{len(times)} stretches became {len(made)} segments, {tests} of them in fold {fold}")
