"""A directory of telemetry tables, Parquet or CSV, as `data_prep.tables` describes them."""

from concurrent.futures import Executor

from ml_collections import ConfigDict

from data_prep import tables


def read(config_data: ConfigDict, executor: Executor | None = None) -> tables.Tables:
    """The tables of `config_data.raw_dir`. `executor` is not used: polars reads such a file with all cores."""
    return tables.read_tables(config_data.raw_dir, config_data.on_bad_rows)
