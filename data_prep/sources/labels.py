"""Faults and observed segments that lie outside the raw telemetry, in files named by the config."""

from pathlib import Path

import polars as pl
from ml_collections import ConfigDict

from data_prep import tables
from data_prep.errors import InputError

USUAL = {"faults_path": "faults.csv", "segments_path": "observed_segments.csv"}


def attach(found: tables.Tables, config_data: ConfigDict) -> None:
    """Adds `faults` from `faults_path` and `gaps` from `segments_path`, in place of those that `found` may have."""
    for key in USUAL:
        if (path := find(config_data, key)) != getattr(config_data, key):
            found.warnings.append(f"config.data.{key} is empty: {Path(path).name}, in or beside raw_dir, is used")
    if path := find(config_data, "faults_path"):
        found.add("faults", [_read(path, "faults", "faults_path")])
    if path := find(config_data, "segments_path"):
        segments, _ = _read(path, "gaps", "segments_path")
        add_gaps(found, segments.select("start_time_unix_nano", "end_time_unix_nano").rows(), path)


def find(config_data: ConfigDict, key: str) -> str:
    """The file that `key` names, else ''. Train Ticket's archive has no labels: there a file of the usual name counts
    that lies in `raw_dir` or beside it."""
    named = getattr(config_data, key)
    if named or config_data.source != "nezha":
        return named
    raw = Path(config_data.raw_dir)
    return next((str(p) for p in (raw / USUAL[key], raw.resolve().parent / USUAL[key]) if p.is_file()), "")


def add_gaps(found: tables.Tables, segments: list[tuple[int, int]], file: str) -> None:
    """Adds as `gaps` all time between the first and the last telemetry that no observed segment [start, end) covers.

    Raises InputError if no segment overlaps the telemetry: then nothing would be left.
    """
    extent = found.extent()
    if extent is None:
        return
    first, last = extent
    if not any(start < last and end > first for start, end in segments):
        raise InputError(f"{file}: no observed segment overlaps the telemetry; times are nanoseconds since 1970, UTC")
    gaps, covered = [], first
    for start, end in [*sorted(segments), (last, last)]:
        if covered < min(start, last):
            gaps.append((covered, min(start, last)))
        covered = max(covered, end)
    frame = pl.DataFrame(gaps, schema=tables.SCHEMAS["gaps"].columns, orient="row")
    found.add("gaps", [tables.check(frame, "gaps", file)])


def _read(path: str, name: str, key: str) -> tuple[pl.DataFrame, tables.Account]:
    if not Path(path).is_file():
        raise InputError(f"config.data.{key}={path!r} is not a file; name a CSV or Parquet file or leave it empty")
    # A label that cannot be read would silently change the result, so it is an error whatever on_bad_rows says.
    return tables.read_table(Path(path), name, "error")
