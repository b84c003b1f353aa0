"""CSV files read as text, row by row accountable: torn rows are found and named, never dropped or filled in.

polars either stops at a row with too many fields or, told to go on, loses its neighbours, and it fills a row that
is too short with nulls. So a file is first parsed by polars and its line ends and commas are balanced against the
parsed values; only a file that does not balance is parsed again line by line. A large file is read in blocks, each
of which ends where a record ends.
"""

import csv
import gzip
import io
import itertools
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from data_prep.errors import InputError

ROW = "_row"  # the record's number in its file, the header being row 1
_LONGEST_RECORD = 1000  # lines; a quote left open longer than this is a torn row
_BLOCK = 8 << 20  # bytes; parsed they are some five times as many
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
LARGEST_RECORD = 256 << 20  # bytes; a row without an end would fill the memory, and a gzip file hides how long it is
csv.field_size_limit(LARGEST_RECORD)  # otherwise a long value is a torn row
_FIELD = re.compile(r'("(?:[^"]|"")*"|[^,]*)(?:,|\Z)')  # of a well-formed record, with its quotes


def read(path: Path, header: list[str] | None = None, multiline: bool = False) -> tuple[pl.DataFrame, list[int]]:
    """One String column a field, plus `_row`, and the numbers of the torn rows (which the frame does not hold).

    `header` names the columns of a file that has no header row; `multiline` says that quoted values may hold
    newlines. Raises InputError for a file that cannot be read or is empty.
    """
    parts = list(blocks(path, header, multiline))
    return pl.concat([frame for frame, _ in parts], rechunk=True), [row for _, torn in parts for row in torn]


def blocks(
    path: Path, header: list[str] | None = None, multiline: bool = False, size: int = _BLOCK
) -> Iterator[tuple[pl.DataFrame, list[int]]]:
    """The records of a file as `read` gives them, in their order, some `size` bytes of the file at a time."""
    names = header or first_record(path)
    schema = dict.fromkeys(names, pl.String)
    if len(schema) < len(names):
        raise InputError(f"{path} names a column twice in its first row; rename one of them")
    if ROW in schema:
        raise InputError(f"{path} has a column {ROW!r}, which is the row's number here; rename it")
    first_row = 1 if header else 2
    number = 1  # of the next record
    data, last = b"", False
    with _open(path) as file:
        while not last:
            more = _next(file, size, path)
            data, last = data + more, len(more) < size
            if number == 1 and last and not data.strip():
                raise InputError(f"{path} is empty; remove it or copy it again")
            end = len(data) if last else _end_of_records(data)
            header_rows = first_row - 1 if number == 1 else 0
            frame = _parse(data[:end], schema, header_rows)
            if frame is not None and _balances(data[:end], frame, header_rows, multiline):
                torn, first = [], number + header_rows
                number = first + frame.height
                frame = frame.with_row_index(ROW, offset=first)
            else:
                rows, torn, end, number = _parse_lines(data, len(names), number, first_row, last)
                frame = pl.DataFrame([record for _, record in rows], schema=schema, orient="row")
                frame = frame.insert_column(0, pl.Series(ROW, [row for row, _ in rows], dtype=pl.UInt32))
            data = data[end:]
            if len(data) > LARGEST_RECORD:
                raise InputError(
                    f"{path}, row {number}: no row ends within {LARGEST_RECORD / 2**20:.0f} MiB; remove it or copy the "
                    "file again"
                )
            if frame.height or torn or last:
                yield frame, torn


def first_record(path: Path) -> list[str]:
    """The fields of the first row: the header, where the file has one. Raises InputError as `read` does."""
    try:
        with _open(path) as file:
            if file.read(2) in _UTF_16:
                raise InputError(f"{path} is UTF-16; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)")
            file.seek(0)
            text = io.TextIOWrapper(file, "utf-8-sig", errors="replace", newline="")
            if text.readline(_BLOCK).endswith("\r"):
                raise InputError(f"{path} ends its lines with carriage returns alone; convert it (tr '\\r' '\\n')")
            text.seek(0)
            return next(csv.reader(iter(lambda: text.readline(_BLOCK), "")), [])  # no longer line than a block
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}); copy it again") from error


def _open(path: Path):
    try:
        return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}); copy it again") from error


def _next(file, size: int, path: Path) -> bytes:
    try:
        return file.read(size)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}); copy it again") from error


def _end_of_records(data: bytes) -> int:
    """Where the last record that is whole ends: behind the last newline that lies in no quotes; 0 if none does."""
    end = data.rfind(b"\n")
    quotes = data.count(b'"', 0, max(end, 0))
    while end >= 0 and quotes % 2:
        before = data.rfind(b"\n", 0, end)
        quotes -= data.count(b'"', max(before, 0), end)
        end = before
    return end + 1


def _parse(data: bytes, schema: dict, header_rows: int) -> pl.DataFrame | None:
    """What polars makes of whole records, if it takes them."""
    if not data:
        return None
    try:
        return pl.read_csv(data, has_header=bool(header_rows), schema=schema, encoding="utf8-lossy")
    except pl.exceptions.PolarsError:
        return None


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


def _parse_lines(data: bytes, width: int, number: int, first_row: int, last: bool):
    """Strict parse that starts anew after each torn line, so that a torn row costs no other row.

    Unless these are the `last` bytes of the file, the end is left for later: a record there may go on.

    Returns: rows (number, values), numbers of the torn rows, how many bytes are done with, number of the next record.
    """
    whole = data.split(b"\n")
    lines = [line.decode("utf-8", "replace") for line in whole]
    rows, torn = [], []
    at, until = 0, len(lines) if last else len(lines) - _LONGEST_RECORD
    while at < until:
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
                rows.append((number, _values(record, lines[at : at + reader.line_num])))
            else:
                torn.append(number)
        at += reader.line_num if len(record) == width else 1
        number += 1
    return rows, torn, len(data) if last else sum(len(line) + 1 for line in whole[:at]), number


def _values(record: list[str], lines: list[str]) -> list[str | None]:
    """A record as polars has it: `""` is an empty text, nothing at all is null."""
    if "" not in record or not any('""' in line for line in lines):
        return [value or None for value in record]
    text = "\n".join(line.rstrip("\r") for line in lines)
    quoted = [field.startswith('"') for field in _FIELD.findall(text)]
    return [value if value or q else None for value, q in zip(record, quoted, strict=False)]
