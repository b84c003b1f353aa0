"""Tells whether a prepared dataset was made of these raw files and these labels."""

import hashlib
import os
from pathlib import Path

from data_prep.sources.labels import USUAL, find


def raw_fingerprint(directory) -> str:
    """A hash of the names and sizes of the raw files under `directory`.

    Hidden directories, prepared datasets and working directories that lie there too are left out.
    """
    lines = []
    for where, folders, files in os.walk(directory):
        if {"manifest.json", "checkpoints"} & {*files, *folders}:
            folders.clear()
            continue
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        paths = [Path(where, name) for name in files if not name.startswith(".")]
        lines += [f"{path.relative_to(directory).as_posix()} {path.stat().st_size}" for path in paths]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def label_fingerprints(config_data) -> dict[str, str]:
    """Hashes of the contents of the label and segment files that the settings lead to, by setting; '' for none."""
    paths = {key: find(config_data, key) for key in USUAL}
    if config_data.source == "tables":  # they lie among the raw files; a corrected onset may leave the size as it was
        names = [f"{table}.{suffix}" for table in ("faults", "gaps") for suffix in ("parquet", "csv")]
        paths |= {name: str(Path(config_data.raw_dir, name)) for name in names}
    return {
        key: hashlib.sha256(Path(path).read_bytes()).hexdigest() if path and Path(path).is_file() else ""
        for key, path in paths.items()
    }
