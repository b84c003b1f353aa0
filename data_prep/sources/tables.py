"""A directory of telemetry tables, Parquet or CSV, as `data_prep.tables` describes them."""

from ml_collections import ConfigDict

from data_prep import tables
from data_prep.sources.part import Part


def parts(config_data: ConfigDict) -> list[Part]:
    """A task for some rows of a Parquet file, or a whole CSV file. Raises InputError where there is no telemetry."""
    policy = config_data.on_bad_rows
    return [
        Part(name, tables.read_slice, [(path, name, policy, first) for first in tables.slices(path)])
        for name, path in tables.files(config_data.raw_dir).items()
    ]


def finish(found: tables.Tables, config_data: ConfigDict) -> None:
    """Nothing is left to do."""
