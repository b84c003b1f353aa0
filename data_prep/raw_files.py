"""The raw files under a directory: all but what is hidden and what this program itself writes there."""

import os
from collections.abc import Iterator
from pathlib import Path

from data_prep.errors import InputError


def under(directory: Path | str) -> Iterator[Path]:
    """Files under `directory`, in no order; prepared datasets and working directories that lie there are left out.

    Raises InputError for a directory that cannot be read: its files would be missing silently.
    """
    for where, folders, files in os.walk(directory, onerror=refuse):
        there = {*files, *folders}
        if there >= {"manifest.json", "windows", "system"} or there >= {"config.json", "checkpoints"}:
            folders.clear()
            continue
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        yield from (Path(where, name) for name in files if not name.startswith("."))


def inside(directory: Path) -> list[Path]:
    """What lies in `directory` itself, in order. Raises InputError where it cannot be read."""
    try:
        return sorted(directory.iterdir())
    except OSError as error:
        refuse(error, directory)


def content(path: Path) -> bytes:
    """Of a small file. Raises InputError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        refuse(error, path)


def refuse(error: OSError, path: Path | str | None = None) -> None:
    """Raises InputError for what the system does not let be read."""
    raise InputError(f"{path or error.filename} cannot be read ({error.strerror}); mend or remove it") from None
