"""Raw layouts -> telemetry tables, one file each; `config.data.source` names the one to use."""

from concurrent.futures import Executor
from pathlib import Path

from ml_collections import ConfigDict

from data_prep.errors import InputError
from data_prep.sources import jaeger_prometheus, labels, nezha, openstack, otlp, tables, train_ticket_versions
from data_prep.sources.part import Part
from data_prep.tables import Tables

SOURCES = {
    "jaeger_prometheus": jaeger_prometheus,
    "nezha": nezha,
    "openstack": openstack,
    "otlp": otlp,
    "tables": tables,
    "train_ticket_versions": train_ticket_versions,
}


def read(config_data: ConfigDict, executor: Executor | None = None, found: Tables | None = None) -> Tables:
    """The telemetry under `config_data.raw_dir`, checked and accounted for.

    Files are read through `executor` where one is given (a process pool must not be forked: polars has threads); the
    result does not depend on it. `found` takes the tables up: by default in memory. Labels named in the config replace
    those of the raw data. Raises InputError as `parts` does, and what the sources raise.
    """
    found = Tables() if found is None else found
    for part in parts(config_data):
        found.read(part, executor)
    SOURCES[config_data.source].finish(found, config_data)
    labels.attach(found, config_data)
    found.relative_to(config_data.raw_dir)
    found.check()
    return found


def parts(config_data: ConfigDict) -> list[Part]:
    """How each table under `config_data.raw_dir` is read. Reads nothing but names and headers.

    Raises InputError for an unknown source and a directory that is not there.
    """
    if config_data.source not in SOURCES:
        raise InputError(
            f"config.data.source={config_data.source!r} is not known; use one of {', '.join(sorted(SOURCES))}"
        )
    if config_data.on_bad_rows not in ("quarantine", "error"):
        raise InputError(f"config.data.on_bad_rows={config_data.on_bad_rows!r}; use quarantine or error")
    if not config_data.raw_dir or not Path(config_data.raw_dir).is_dir():
        raise InputError(f"config.data.raw_dir={config_data.raw_dir!r} is not a directory; set it to the raw telemetry")
    return SOURCES[config_data.source].parts(config_data)
