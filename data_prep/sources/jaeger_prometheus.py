"""Anyone's Jaeger and Prometheus: a tree of `*.json` and `*.json.gz`, answers of their query APIs in any order.

What a file is, its first bytes tell; names do not matter. Of `raw_dir` itself the telemetry tables `logs`, `events`,
`topology`, `faults` and `gaps` are read as well, where there are such files: neither API has these.
"""

import re
from pathlib import Path

from ml_collections import ConfigDict

from data_prep import raw_files, tables
from data_prep.errors import InputError
from data_prep.sources import jaeger, json_files, prometheus
from data_prep.sources import tables as table_files
from data_prep.sources.part import Part

_PROMETHEUS = re.compile(rb'"resultType"\s*:|"data"\s*:\s*\{\s*"result"\s*:|^\s*\{\s*"status"\s*:')
_JAEGER = re.compile(rb'"(?:traceID|spans|processes)"\s*:|"data"\s*:\s*(?:\[|null)')
_NAMED = 5  # files that a warning names


def parts(config_data: ConfigDict) -> list[Part]:
    """Spans, metrics and what tables lie beside them. Raises InputError if there are neither spans nor metrics."""
    raw_dir, policy = Path(config_data.raw_dir), config_data.on_bad_rows
    beside = tables.named(raw_dir)
    for name in ("spans", "metrics"):
        if name in beside:
            raise InputError(f"{beside[name]}: {name} come from JSON here; remove it or set config.data.source=tables")
    traces, metrics, _ = by_kind(json_under(raw_dir))
    if not (traces or metrics):
        raise InputError(
            f"{raw_dir} holds no *.json or *.json.gz that Jaeger (/api/traces) or Prometheus (/api/v1/query_range) "
            "answered; point config.data.raw_dir at such files"
        )
    return [
        jaeger.part(traces, policy),
        prometheus.part(metrics, config_data.pods, policy),
        *table_files.of(beside, policy),
    ]


def finish(found: tables.Tables, config_data: ConfigDict) -> None:
    """Warns of the files that are left out."""
    raw_dir = Path(config_data.raw_dir)
    files = json_under(raw_dir)
    strange = [path for path in raw_files.under(raw_dir) if ".json" in path.name.lower()]  # `a.JSON`, `a.json.1`
    warn_of_others(found, [*by_kind(files)[2], *sorted(set(strange) - set(files))], raw_dir)


def json_under(directory: Path) -> list[Path]:
    return sorted(path for path in raw_files.under(directory) if path.name.endswith((".json", ".json.gz")))


def by_kind(files: list[Path]) -> tuple[list[Path], list[Path], list[Path]]:
    """Those of Jaeger, those of Prometheus, and the others. Reads the first bytes of each."""
    of_jaeger, of_prometheus, others = [], [], []
    for path in files:
        start = json_files.start(path)
        kind = of_prometheus if _PROMETHEUS.search(start) else of_jaeger if _JAEGER.search(start) else others
        kind.append(path)
    return of_jaeger, of_prometheus, others


def warn_of_others(found: tables.Tables, others: list[Path], raw_dir: Path) -> None:
    if others:
        names = ", ".join(path.relative_to(raw_dir).as_posix() for path in others[:_NAMED])
        more = ", ..." if len(others) > _NAMED else ""
        found.warnings.append(
            f"{len(others)} JSON files are no answers of Jaeger or Prometheus, or cannot be read; they are left out: "
            f"{names}{more}"
        )
