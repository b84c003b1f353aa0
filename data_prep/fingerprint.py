"""Tells whether a prepared dataset was made of these raw files and these labels."""

import hashlib
import os
from pathlib import Path

from data_prep import raw_files
from data_prep.sources.labels import USUAL, find


def raw_fingerprint(directory, times: bool = False) -> str:
    """A hash of the names and sizes of the raw files under `directory`, and of when they were changed if `times`.

    What is no raw file (`raw_files.under`) does not count. Raises InputError as `stat` does.
    """
    lines = []
    for path in raw_files.under(directory):
        facts = stat(path)
        changed = f" {facts.st_mtime_ns}" if times else ""
        lines.append(f"{path.relative_to(directory).as_posix()} {facts.st_size}{changed}")
    text = "\n".join(sorted(lines))  # names of files may be any bytes
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def stat(path) -> os.stat_result:
    """Of a raw file. Raises InputError where there is none, as behind a broken link."""
    try:
        return os.stat(path)
    except OSError as error:
        raw_files.refuse(error, path)


def program_fingerprint() -> str:
    """A hash of the sources of this package."""
    root, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def label_fingerprints(config_data) -> dict[str, str]:
    """Hashes of the contents of the label and segment files that the settings lead to, by setting; '' for none."""
    paths = {key: find(config_data, key) for key in USUAL}
    if config_data.source in ("tables", "jaeger_prometheus", "otlp"):  # they lie among the raw files
        # A corrected onset may leave the size as it was.
        names = [f"{table}.{suffix}" for table in ("faults", "gaps") for suffix in ("parquet", "csv")]
        paths |= {name: str(Path(config_data.raw_dir, name)) for name in names}
    return {
        key: hashlib.sha256(raw_files.content(Path(path))).hexdigest() if path and Path(path).is_file() else ""
        for key, path in paths.items()
    }
