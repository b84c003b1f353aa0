"""OTLP files -> their messages, one at a time: JSON lines, a whole JSON text, protobuf behind lengths, whole protobuf.

These are the forms in which the OpenTelemetry Collector's file exporter writes, and those in which a saved request
lies. Which one a file has, its first bytes tell; so they do whether it is gzip. A message that lies behind its length
may be compressed with zstd, as the exporter does it.
"""

import gzip
import io
import itertools
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pyarrow

LINES, TEXT, FRAMES, MESSAGE = "JSON lines", "a JSON text", "protobuf behind lengths", "a protobuf message"
LARGEST = 128 << 20  # bytes of a message; the Collector's own are of some megabytes
_START = 1 << 16  # bytes that tell the form
_SHARE_BYTES = {False: 16 << 20, True: 128 << 20}  # of the text; a share of gzip begins with all that lies before it
_GZIP_RATIO = 10
_LENGTH = 4  # bytes, big endian
_GZIP, _ZSTD, _BYTE_ORDER_MARK = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xef\xbb\xbf"
_FIRST_FIELD = b"\x0a"  # `resource_spans`, `resource_logs`, `resource_metrics`
_JSON = re.compile(rb"(?:\xef\xbb\xbf)?\s*[{\[]")
ERRORS = (OSError, EOFError, zlib.error)  # of reading compressed files


def form_of(path: Path) -> str | None:
    """The form that a file has if it holds OTLP at all; None: it cannot, or cannot be read."""
    start = _start(path)
    if _JSON.match(start):
        return LINES if _is_lines(start) else TEXT
    length, behind = int.from_bytes(start[:_LENGTH]), start[_LENGTH : 2 * _LENGTH]
    if 0 < length <= LARGEST and behind.startswith((_FIRST_FIELD, _ZSTD, b"{")):
        return FRAMES
    return MESSAGE if start.startswith(_FIRST_FIELD) else None


def shares(path: Path, form: str) -> list[tuple[int, int | None]]:
    """(begin, end) in bytes of the text: a task reads the messages that begin there. None: to the end of the file."""
    size, compressed = path.stat().st_size, _is_gzip(path)
    share = _SHARE_BYTES[compressed]
    if form in (TEXT, MESSAGE):
        return [(0, None)]
    begins = [*range(0, max(size * (_GZIP_RATIO if compressed else 1), 1), share)]
    return list(itertools.zip_longest(begins, begins[1:]))


def messages(path: Path, form: str, begin: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes | None]]:
    """(number, bytes) of the messages that begin in [begin, end); None in place of one that is torn or too large.

    Numbers are counted from 1, of JSON lines from `begin` on (`lines_before` tells how many come before), as otherwise
    every task would have to read the whole file.
    """
    reader = {LINES: _lines, TEXT: _texts, FRAMES: _frames, MESSAGE: _whole}[form]
    number = 0
    try:
        with _open(path) as file:
            try:
                file.seek(begin and form == LINES and begin - 1)
            except ERRORS:
                return  # broken before `begin`: another task has counted it
            for number, data in reader(file, begin, float("inf") if end is None else end):
                yield number, data
    except ERRORS:
        yield number + 1, None


def lines_before(path: Path, begin: int) -> int:
    """How many line ends lie before the line that a share of JSON lines begins with."""
    count, at = 0, 0
    with _open(path) as file:
        while at < begin - 1 and (data := file.read(min(1 << 20, begin - 1 - at))):
            count, at = count + data.count(b"\n"), at + len(data)
        return count + bool(begin)  # of the line that goes on at `begin - 1`


def _start(path: Path) -> bytes:
    """The first bytes of the text, or what can be read of them."""
    start = b""
    try:
        with _open(path) as file:
            while len(start) < _START and (more := file.read1(_START - len(start))):
                start += more
    except ERRORS:
        pass
    return start


def _is_gzip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == _GZIP


def _open(path: Path):
    return gzip.open(path) if _is_gzip(path) else open(path, "rb", buffering=1 << 20)


def _is_lines(start: bytes) -> bool:
    """Whether text that begins so has a message a line; one long line counts as that."""
    first, newline, rest = start.removeprefix(_BYTE_ORDER_MARK).lstrip().partition(b"\n")
    if not newline or rest.lstrip().startswith(b"{"):
        return not first.startswith(b"[")
    try:
        msgspec.json.decode(first, type=msgspec.Raw)
    except (ValueError, RecursionError):
        return False
    return not first.startswith(b"[")


def _lines(file, begin, end):
    if begin:
        _end_line(file)
    for number in itertools.count(1):
        at = file.tell()
        if at >= end or not (line := file.readline(LARGEST)):
            return
        if len(line) == LARGEST and not line.endswith(b"\n"):
            _end_line(file)
            yield number, None
        elif line := line.removeprefix(_BYTE_ORDER_MARK).strip():  # files that were joined have more than one mark
            yield number, line


def _end_line(file) -> None:
    while (line := file.readline(1 << 20)) and not line.endswith(b"\n"):
        pass


def _frames(file, begin, end):
    at, empty = 0, False
    for number in itertools.count(1):
        if at >= end or not (header := file.read(_LENGTH)):
            return
        length = int.from_bytes(header)
        if len(header) < _LENGTH or length > LARGEST:  # where the next message begins, nobody knows
            if at >= begin:
                yield number, None
            return
        if at < begin:
            file.seek(length, io.SEEK_CUR)
        elif length or not empty:  # a file that was cut off may end with any number of zeros
            data = file.read(length)
            yield number, _decompressed(data) if length and len(data) == length else None
        at, empty = at + _LENGTH + length, not length


def _whole(file, begin, end):
    data = file.read(LARGEST + 1)
    yield 1, data if len(data) <= LARGEST else None


def _texts(file, begin, end):
    """One message, or a list of them."""
    [(_, data)] = _whole(file, begin, end)
    data = data and data.removeprefix(_BYTE_ORDER_MARK).strip()
    try:
        found = msgspec.json.decode(data, type=list[msgspec.Raw]) if data and data.startswith(b"[") else [data]
    except (ValueError, RecursionError):
        found = [data]  # it counts as one message that cannot be read
    yield from enumerate((part and bytes(part) for part in found), start=1)


def _decompressed(data: bytes) -> bytes | None:
    if not data.startswith(_ZSTD):
        return data
    try:
        with pyarrow.CompressedInputStream(pyarrow.BufferReader(data), "zstd") as stream:
            text = stream.read(LARGEST + 1)
    except (OSError, pyarrow.ArrowException):
        return None
    return text if len(text) <= LARGEST else None
