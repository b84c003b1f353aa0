"""The raw files under a directory: all but what is hidden and what this program itself writes there."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from data_prep.errors import InputError


def under(directory: Path | str) -> Iterator[Path]:
    """Files under `directory`, in no order; prepared datasets and working directories that lie there are left out.

    Links to directories are followed, each directory once; those that lead to `directory` or above it are passed over.
    Raises InputError for a directory that cannot be read, a link to nothing and what is no file (a pipe, a socket):
    what they hold would be missing silently, or be waited for without end.
    """
    top, seen, roots = os.path.realpath(directory), set(), [str(directory)]
    for root in roots:
        if root is not roots[0] and Path(top).is_relative_to(os.path.realpath(root)):
            continue
        for where, folders, files in os.walk(root, onerror=refuse):
            there, real = {*files, *folders}, os.path.realpath(where)
            ours = there >= {"manifest.json", "windows", "system"} or there >= {"config.json", "checkpoints"}
            if ours or real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            roots += (path for name in folders if os.path.islink(path := os.path.join(where, name)))
            yield from (regular(Path(where, name)) for name in files if not name.startswith("."))


def regular(path: Path) -> Path:
    """The path itself. Raises InputError where it leads to nothing, or to what is neither a file nor a directory."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        refuse(error, path)
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"{path} is no file but a pipe, a socket or a device; remove it")
    return path


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
