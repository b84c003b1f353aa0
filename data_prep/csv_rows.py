"""CSV files read as text, row by row accountable: torn rows are found and named, never dropped or filled in.

polars either stops at a row with too many fields or, told to go on, loses its neighbours, and it fills a row that
is too short with nulls. So a file is first parsed by polars and its line ends and commas are balanced against the
parsed values; only a file that does not balance is parsed again line by line.
"""

import csv
import gzip
import itertools
import zlib
from pathlib import Path

import polars as pl

from data_prep.errors import InputError

ROW = "_row"  # the record's number in its file, the header being row 1
_LONGEST_RECORD = 1000  # lines; a quote left open longer than this is a torn row


def read(path: Path, header: list[str] | None = None, multiline: bool = False) -> tuple[pl.DataFrame, list[int]]:
    """One String column a field, plus `_row`, and the numbers of the torn rows (which the frame does not hold).

    `header` names the columns of a file that has no header row; `multiline` says that quoted values may hold
    newlines. Raises InputError for a file that cannot be read or is empty.
    """
    data = _bytes(path)
    if not data.strip():
        raise InputError(f"{path} is empty; remove it or copy it again")
    first_row = 1 if header else 2
    names = header or first_record(path)
    schema = dict.fromkeys(names, pl.String)
    if len(schema) < len(names):
        raise InputError(f"{path} names a column twice in its first row; rename one of them")
    try:
        frame = pl.read_csv(data, has_header=not header, schema=schema, encoding="utf8-lossy")
    except pl.exceptions.PolarsError:
        frame = None
    if frame is not None and _balances(data, frame, first_row - 1, multiline):
        return frame.with_row_index(ROW, offset=first_row), []
    rows, torn = _parse_lines(data.decode("utf-8", "replace"), len(names), first_row)
    frame = pl.DataFrame(
        [[None if value == "" else value for value in record] for _, record in rows], schema=schema, orient="row"
    )
    return frame.insert_column(0, pl.Series(ROW, [number for number, _ in rows], dtype=pl.UInt32)), torn


def first_record(path: Path) -> list[str]:
    """The fields of the first row: the header, where the file has one. Raises InputError as `read` does."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", errors="replace", newline="") as file:
            return next(csv.reader(file), [])
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}); copy it again") from error


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}); copy it again") from error


def _balances(data: bytes, frame: pl.DataFrame, header_rows: int, multiline: bool) -> bool:
    """Whether every line end and every comma of the file is a separator of the frame or lies inside a value."""
    lines = data.count(b"\n") + (not data.endswith(b"\n"))
    newlines = commas = 0
    if b'"' in data:  # otherwise no value can hold a separator
        counts = frame.select(
            newlines=pl.sum_horizontal(pl.all().str.count_matches("\n", literal=True).sum()),
            commas=pl.sum_horizontal(pl.all().str.count_matches(",", literal=True).sum()),
        )
        newlines, commas = counts.row(0)
        if newlines and not multiline:
            return False
        first = data.split(b"\n", 1)[0]
        if header_rows and b'"' in first:
            commas += first.count(b",") - (frame.width - 1)
    rows = frame.height + header_rows
    return lines == rows + newlines and data.count(b",") == rows * (frame.width - 1) + commas


def _parse_lines(text: str, width: int, first_row: int) -> tuple[list[tuple[int, list[str]]], list[int]]:
    """Strict parse that starts anew after each torn line, so that a torn row costs no other row."""
    lines = text.split("\n")
    rows, torn = [], []
    at, number = 0, 1
    while at < len(lines):
        if not lines[at].strip("\r"):
            at += 1
            continue
        rest = (line.rstrip("\r") + "\n" for line in itertools.islice(lines, at, at + _LONGEST_RECORD))
        reader = csv.reader(rest, strict=True)
        try:
            record = next(reader)
        except csv.Error:
            record = []
        if number >= first_row:
            if len(record) == width:
                rows.append((number, record))
            else:
                torn.append(number)
        at += reader.line_num if len(record) == width else 1
        number += 1
    return rows, torn
