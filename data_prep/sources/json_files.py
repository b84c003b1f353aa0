"""JSON files, plain or gzip, decoded into typed structs; a large one is shared out over several tasks."""

import gzip
import zlib
from pathlib import Path

import msgspec

from data_prep.errors import InputError

ERRORS = (OSError, EOFError, zlib.error, ValueError, RecursionError)  # msgspec's and Unicode's are ValueErrors
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SHARE_BYTES = 16 << 20  # of the file as text; while it is read it takes some 15 times as much
_GZIP_RATIO = 10
# Bytes of text that a gzip file may hold: it is decoded as a whole, and what is small on disk must not fill the memory
# (gzip makes 10 GB of 10 MB). A plain file has no such limit: its size is there to be seen.
MOST_UNPACKED = 1 << 30


def decode(path: Path, type):
    """The content of a file as `type`, in which `msgspec.Raw` stays undecoded.

    Raises one of ERRORS if it is none, and InputError if it is a gzip file of more than `MOST_UNPACKED` bytes of text.
    """
    data = _unpacked(path) if path.suffix == ".gz" else path.read_bytes()
    return msgspec.json.decode(data.removeprefix(_BYTE_ORDER_MARK), type=type)


def _unpacked(path: Path) -> bytes:
    with gzip.open(path) as file:
        data = file.read(MOST_UNPACKED + 1)
    if len(data) > MOST_UNPACKED:
        raise InputError(
            f"{path} holds more than {MOST_UNPACKED / 2**20:.0f} MiB of text; divide it, or unpack it if all of that "
            "is telemetry"
        )
    return data


def start(path: Path, size: int = 4096) -> bytes:
    """The first `size` bytes of the text; none where it cannot be read."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            return file.read(size)
    except (OSError, EOFError, zlib.error):
        return b""


def shares(path: Path) -> list[tuple[int, int]]:
    """(share, of so many): a task reads every so many-th trace or series of a file, beginning with its own."""
    size = path.stat().st_size * (_GZIP_RATIO if path.suffix == ".gz" else 1)
    count = -(-size // _SHARE_BYTES) or 1
    return [(share, count) for share in range(count)]
