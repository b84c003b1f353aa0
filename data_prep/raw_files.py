"""The raw files under a directory: all but what is hidden and what this program itself writes there."""

import os
from collections.abc import Iterator
from pathlib import Path


def under(directory: Path | str) -> Iterator[Path]:
    """Files under `directory`, in no order; prepared datasets and working directories that lie there are left out."""
    for where, folders, files in os.walk(directory):
        there = {*files, *folders}
        if there >= {"manifest.json", "windows", "system"} or there >= {"config.json", "checkpoints"}:
            folders.clear()
            continue
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        yield from (Path(where, name) for name in files if not name.startswith("."))
