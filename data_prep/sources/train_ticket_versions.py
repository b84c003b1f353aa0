"""The raw layout of "Anomalies in Microservice Architecture (train-ticket) based on version configurations".

Zenodo 6979726. `raw_dir` is one scenario (`ts-order-service_mongodb_4.2.2_2022-07-12/`) or a directory of scenarios.
A scenario has some of

    LOGS_<name>.txt                             all services' Spring Boot lines, newest first, in local time (UTC+8)
    Monitoring_<name>.json_<date>/*.json        a Prometheus answer for each metric, of the whole cluster
    Traces_<name>_<date>/*.json                 a Jaeger answer for each service; the same traces in several

The archive was not at hand when this was written: the layout is as others describe it. So nothing depends on the names
of directories and JSON files, which are known to be irregular: what a JSON file is, it says itself.
`potentialAnomalies_*.txt` (free text, not labels), the structured copies of logs and MicroRCA's tables are not read.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import polars as pl
from ml_collections import ConfigDict

from data_prep import raw_files, tables
from data_prep.errors import InputError
from data_prep.sources import jaeger, labels, prometheus, spring_boot
from data_prep.sources.jaeger_prometheus import by_kind, json_under, warn_of_others
from data_prep.sources.part import Part

_LOGS = re.compile(r"LOGS_.*\.txt(\.gz)?$", re.I)
_FOLDER = re.compile(r"(Monitoring|Traces?)_", re.I)
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_VERSION = re.compile(r"\d+(?:\.\d+)+(?:\.[A-Z]+)?")
_SERVICE = re.compile(r"ts-(?:[a-z0-9]+-)*service|ts-[a-z0-9]+")


@dataclasses.dataclass(frozen=True)
class Change:
    """What was changed in a scenario, as its directory's name says; None: it does not. For people, not for models."""

    service: str | None
    library: str | None
    version: str | None
    date: str | None

    @staticmethod
    def of(name: str) -> "Change":
        """`ts-order-service_mongodb_4.2.2_2022-07-12`, also with parts in another order, missing or joined by `-`."""
        found = {}
        for part, pattern in (("date", _DATE), ("version", _VERSION), ("service", _SERVICE)):
            match = pattern.search(name)
            found[part] = match and match[0]
            name = name.replace(match[0], "_", 1) if match else name
        return Change(library=name.strip("-_.: ") or None, **found)

    @property
    def unknown(self) -> list[str]:
        return [part for part, value in dataclasses.asdict(self).items() if value is None]

    def __str__(self) -> str:
        return " ".join(value for value in dataclasses.astuple(self) if value)


@dataclasses.dataclass(frozen=True)
class Scenario:
    directory: Path
    logs: list[Path]
    traces: list[Path]
    metrics: list[Path]
    others: list[Path]  # JSON files that are neither


def parts(config_data: ConfigDict) -> list[Part]:
    """Spans, logs and metrics of all scenarios. Raises InputError if there is none."""
    raw_dir, policy, found = Path(config_data.raw_dir), config_data.on_bad_rows, scenarios(config_data.raw_dir)
    if not any(s.logs or s.traces or s.metrics for s in found):
        raise InputError(
            f"{raw_dir} holds no scenario with LOGS_*.txt, Monitoring_*/*.json or Traces_*/*.json; "
            "point config.data.raw_dir at a scenario's directory or at the directory that holds the scenarios"
        )
    offset = config_data.utc_offset_hours
    logs = [(path, s.traces, offset, policy) for s in found for path in s.logs]
    return [
        jaeger.part([path for s in found for path in s.traces], policy),
        Part("logs", _read_logs, logs),
        prometheus.part([path for s in found for path in s.metrics], config_data.pods, policy),
    ]


def finish(found: tables.Tables, config_data: ConfigDict) -> None:
    """Adds gaps: a scenario is observed while it was monitored; its logs reach back for weeks, to when pods started.

    Warns of what the archive lacks and of what could not be told.
    """
    raw_dir, known = Path(config_data.raw_dir), scenarios(config_data.raw_dir)
    if not config_data.segments_path:
        monitored = [prometheus.extent(s.metrics) for s in known]
        if all(monitored):
            labels.add_gaps(found, monitored, "Monitoring_*")
        else:
            found.warnings.append(
                "a scenario has no monitoring, which would tell when it was recorded, and config.data.segments_path "
                "is empty: time with single log lines will look like silence"
            )
    changes = {s.directory.name: Change.of(s.directory.name) for s in known}
    if not config_data.faults_path:
        found.warnings.append(
            "the archive has no labels and config.data.faults_path is empty: no fault is known, nothing can be "
            f"evaluated; what was changed: {'; '.join(str(change) for change in changes.values())}"
        )
    for name, change in changes.items():
        if change.unknown:
            found.warnings.append(f"the name of scenario {name} does not tell the {', '.join(change.unknown)}")
    if "logs" in found.accounts and not found.accounts["logs"].repaired.get("service_by_span"):
        found.warnings.append(
            "no log line reports a span that the traces hold: the services of all log lines are unknown, and "
            f"config.data.utc_offset_hours={config_data.utc_offset_hours:g} could not be checked"
        )
    warn_of_others(found, [path for s in known for path in s.others], raw_dir)


def scenarios(directory: Path | str) -> list[Scenario]:
    """Those under `directory`, itself included, in order of their names."""
    directory = Path(directory)
    inside = raw_files.inside(directory)
    logs = [path for path in inside if _LOGS.match(path.name) and path.is_file()]
    above = directory.resolve()  # a link that leads back there would be followed for ever
    folders = [p for p in inside if p.is_dir() and not p.name.startswith(".") and not above.is_relative_to(p.resolve())]
    if logs or any(_FOLDER.match(path.name) for path in folders):
        return [Scenario(directory, logs, *by_kind(json_under(directory)))]
    return [scenario for folder in folders for scenario in scenarios(folder)]


def _read_logs(
    path: Path, traces: list[Path], offset_hours: float, on_bad_rows: str
) -> Iterator[tuple[pl.DataFrame, tables.Account]]:
    # What is wrong with the traces is counted where they are read for their own sake.
    spans = [rows for _, rows, _ in jaeger.part(traces, "quarantine").rows()]
    every = pl.concat([pl.DataFrame(schema=tables.SCHEMAS["spans"].columns), *spans])
    yield from spring_boot.read(path, every, offset_hours, on_bad_rows)
