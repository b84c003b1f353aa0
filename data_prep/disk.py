"""A disk that takes nothing more (full, over quota, read-only), told in a sentence by whichever library met it."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from data_prep.errors import Failure

# The system's words: Python, polars and tensorstore raise errors of different types, and all of them quote these.
_WORDS = re.compile(r"No space left on device|Disk quota exceeded|File too large|Read-only file system")


def reason(error: BaseException | None) -> str | None:
    """The system's words where `error`, or what led to it, is about a disk that takes nothing more; else None."""
    while error is not None:
        if found := _WORDS.search(str(error)):
            return found[0]
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def needed(place, then: str) -> Iterator[None]:
    """What is done here writes into `place`.

    Args:
        then: what the same command will do when there is room.

    Raises:
        Failure: in the place of an error about a disk that takes nothing more.
    """
    try:
        yield
    except Exception as error:
        if (words := reason(error)) is None:
            raise
        raise Failure(f"{place} cannot be written: {words}; make room, then the same command {then}") from None


def sync(path: Path) -> None:
    """Returns when a file, or all that lies in a directory, is on the disk itself.

    Without it, what has been renamed may be empty after a power cut: a name can reach the disk before its content.
    """
    for where, _, files in os.walk(path) if path.is_dir() else [(path.parent, (), [path.name])]:
        for name in files:
            _sync(os.path.join(where, name))
        with contextlib.suppress(OSError):  # some file systems do not do this for directories
            _sync(where)


def _sync(path: Path | str) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
