"""JSON files, plain or gzip, decoded into typed structs; a large one is shared out over several tasks."""

import gzip
import zlib
from pathlib import Path

import msgspec

ERRORS = (OSError, EOFError, zlib.error, ValueError, RecursionError)  # msgspec's and Unicode's are ValueErrors
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SHARE_BYTES = 16 << 20  # of the file as text; while it is read it takes some 15 times as much
_GZIP_RATIO = 10


def decode(path: Path, type):
    """The content of a file as `type`, in which `msgspec.Raw` stays undecoded. Raises one of ERRORS if it is none."""
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    return msgspec.json.decode(data.removeprefix(_BYTE_ORDER_MARK), type=type)


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
