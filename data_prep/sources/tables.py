"""A directory of telemetry tables, Parquet or CSV, as `data_prep.tables` describes them."""

from pathlib import Path

from ml_collections import ConfigDict

from data_prep import tables
from data_prep.sources.part import Part

_NAMED = 5  # files that a warning names


def parts(config_data: ConfigDict) -> list[Part]:
    """A part for each table. Raises InputError where there is no telemetry."""
    return of(tables.files(config_data.raw_dir), config_data.on_bad_rows)


def of(files: dict[str, Path], on_bad_rows: str) -> list[Part]:
    """A task for some rows of a Parquet file, or a whole CSV file; `files` by the names of their tables."""
    return [
        Part(name, tables.read_slice, [(path, name, on_bad_rows, first) for first in tables.slices(path)])
        for name, path in files.items()
    ]


def finish(found: tables.Tables, config_data: ConfigDict) -> None:
    """Warns of files that may be meant to be tables."""
    others = tables.nearly_named(config_data.raw_dir)
    if others:
        found.warnings.append(
            f"tables are called <table>.parquet or <table>.csv; not read are {', '.join(others[:_NAMED])}"
            + (f" and {len(others) - _NAMED} more" if len(others) > _NAMED else "")
        )
