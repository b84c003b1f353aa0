"""Telemetry tables as CSV and Parquet files, labels, and the checks that every table goes through."""

import io
import json
import re

import polars as pl

from data_prep import csv_rows, tables
from data_prep.sources import labels
from tests.data_prep.test_tables import SOME_TABLES, T0
from tests.fuzz.target import Target, check_parts, placed

_NAMES = ("spans", "logs", "metrics", "faults")


def _csv(data: bytes) -> None:
    """The header tells the table."""
    header = data.split(b"\n", 1)[0]
    name = next((n for n, mark in (("spans", b"span_id"), ("logs", b"body"), ("metrics", b"value")) if mark in header),
                "faults")  # fmt: skip
    check_parts(name, tables.read_slice(placed(data, "input.csv"), name, "quarantine", None))


def _csv_blocks(data: bytes) -> None:
    """In small blocks the file is the same as in one."""
    path = placed(data, "input.csv")
    rows, torn = csv_rows.read(path, multiline=True)
    parts = list(csv_rows.blocks(path, multiline=True, size=max(len(data) // 3, 64)))
    apart = pl.concat([frame for frame, _ in parts])
    assert apart.height + sum(len(some) for _, some in parts) >= 0
    assert rows.columns == apart.columns and len(torn) == len(set(torn))


def _gzip(data: bytes) -> None:
    list(csv_rows.blocks(placed(data, "input.csv.gz"), multiline=True))


def _parquet(data: bytes) -> None:
    path = placed(data, "input.parquet")
    parts = [part for first in tables.slices(path) for part in tables.read_slice(path, "metrics", "quarantine", first)]
    check_parts("metrics", parts)


def _check(data: bytes) -> None:
    """Columns of any types and values, as JSON: {table: {column: [values]}}."""
    if b"[[[" in data:  # polars itself takes minutes to make a column of lists in lists
        return
    try:
        found = json.loads(data)
        name = next(n for n in tables.SCHEMAS if n in found)
        frame = pl.DataFrame(found[name], strict=False)
    except Exception:  # no frame to check
        return
    for text in (False, True):
        check_parts(name, [tables.check(frame, name, "some/file", text=text)])


def _labels(data: bytes) -> None:
    found = tables.Tables()
    found.frames["logs"] = _LOGS
    path = placed(data, "segments.csv")
    config = _Config(faults_path=str(placed(data, "faults.csv")), segments_path="")
    if re.match(rb"start_time_unix_nano,end_time_unix_nano\b(?!,service)", data):
        config = _Config(faults_path="", segments_path=str(path))
    labels.attach(found, config)


class _Config:
    source = "tables"

    def __init__(self, **values):
        self.__dict__.update(values)


def _written(kind: str, frame: pl.DataFrame) -> bytes:
    file = io.BytesIO()
    getattr(frame, f"write_{kind}")(file)
    return file.getvalue()


_FRAMES = {name: pl.DataFrame(SOME_TABLES[name]) for name in _NAMES}
_LOGS = pl.DataFrame({"time_unix_nano": [T0, T0 + 10**12]}).with_columns(
    [pl.lit("a").alias(c) for c in list(tables.SCHEMAS["logs"].columns)[1:]]
)
_CSV = tuple(_written("csv", frame) for frame in _FRAMES.values())
_SEGMENTS = f"start_time_unix_nano,end_time_unix_nano\n{T0},{T0 + 10**9}\n{T0 + 2 * 10**9},{T0 + 4 * 10**9}\n".encode()
_GZIP = csv_rows.gzip.compress(_CSV[1], mtime=0)

TARGETS = (
    Target("csv", "a telemetry table as CSV, to the table", _csv, _CSV, "csv"),
    Target("csv_blocks", "a CSV file, block by block", _csv_blocks, (_CSV[1], b'a,b\n"x\ny",2\n3,"4\n'), "csv"),
    Target("csv_gzip", "a compressed CSV file", _gzip, (_GZIP,)),
    Target("parquet", "a telemetry table as Parquet", _parquet, (_written("parquet", _FRAMES["metrics"]),)),
    Target("tables_check", "columns of any types", _check,
           tuple(json.dumps({n: SOME_TABLES[n]}).encode() for n in _NAMES), "json"),
    Target("labels", "files of faults and of observed segments", _labels, (_CSV[3], _SEGMENTS), "csv"),
)  # fmt: skip
