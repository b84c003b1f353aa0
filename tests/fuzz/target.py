"""What a target of the fuzzer is, and what every reader's answer must be like."""

import atexit
import dataclasses
import os
import shutil
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import polars as pl

from data_prep import tables

SCRATCH = Path("/dev/shm" if os.path.isdir("/dev/shm") else "/tmp", f"ssad_jax-fuzz-{os.getpid()}")  # in memory
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class Target:
    """Bytes for one reader.

    Attributes:
        name: of the target, as `--target` takes it.
        what: what the bytes are, for people.
        run: reads them. InputError is an answer, any other exception is a finding.
        seeds: good input to begin with.
        form: how the mutator takes them apart: 'json', 'csv', 'text' or 'bytes'.
    """

    name: str
    what: str
    run: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    form: str = "bytes"


def placed(data: bytes, name: str = "input") -> Path:
    """The bytes as a file, the same one each time."""
    SCRATCH.mkdir(exist_ok=True)
    path = SCRATCH / name
    path.write_bytes(data)
    return path


def sampled(data: bytes, every: int = 16) -> bool:
    """One input in so many: checking a table takes far longer than reading a few rows of JSON."""
    return zlib.crc32(data) % every == 0


def check_rows(found: tuple[list[tuple], tables.Account], columns: dict) -> None:
    """Rows that are still to be checked: they fit the columns, and what was set aside is counted."""
    rows, account = found
    account.check()
    assert all(len(row) == len(columns) for row in rows)
    for row in rows:
        for value in row:
            assert not isinstance(value, int) or -(2**63) <= value < 2**63, value


def check_parts(name: str, parts: Iterable[tuple[pl.DataFrame, tables.Account]]) -> tables.Tables:
    """The table that a reader's parts make: its rows are accounted for, sorted, and in exactly the schema's columns."""
    found = tables.Tables()
    found.add(name, parts)
    found.check()
    if name in found.frames:
        frame = found.frames[name]
        assert frame.schema == pl.Schema(tables.SCHEMAS[name].columns), frame.schema
        for column in tables.SCHEMAS[name].times:
            inside = frame[column].drop_nulls().is_between(tables.EARLIEST, tables.LATEST)
            assert inside.all(), f"{column} out of range"
        first = next(iter(tables.SCHEMAS[name].columns))
        assert frame[first].is_sorted()
    return found
