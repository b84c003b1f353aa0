"""What a preparation has fitted on normal time, kept in the prepared dataset (`fitted/`): new telemetry needs no other.

Names and settings are JSON, usual latencies are Parquet tables, everything else is plain arrays. Templates are kept as
the masked bodies that they were fitted on: fitting is a function of these, and Drain's own persistence would have to be
unpickled.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import polars as pl

from data_prep import plain_arrays
from data_prep.errors import InputError
from data_prep.event_graph import Edges
from data_prep.scaling import COUNTS, Statistics
from data_prep.vocabulary import Vocabulary

DIRECTORY = "fitted"
_LATENCIES = ("self_time", "duration", "gap")
_ARRAYS = ("metric_scale", "metric_readings")
_PAIRS = ("logs", "metrics", "dependencies", "events")  # lists of tuples, which JSON does not have
_NAMES = ("units", "service_of_unit", "operations", "traced", "deployed", *_PAIRS)
_PLAIN = ("bodies", "node_budget", "settings", "clock_offsets")  # fields of `Fitted`, in their order
_EDGES = [field.name for field in dataclasses.fields(Edges)]


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Fitted on all fit time together, as the test part is prepared with it.

    `bodies`: the distinct masked log bodies of fit time; `settings`: `config.data` as far as it bears on preparing;
    `clock_offsets`: what is to be taken away from the times of `spans` and `logs` by instance, ns.
    """

    vocabulary: Vocabulary
    statistics: Statistics
    edges: Edges
    bodies: list[str]
    node_budget: int
    settings: dict
    clock_offsets: dict[str, dict[str, int]]


def save(fitted: Fitted, directory: Path) -> None:
    """Writes the files of `directory`, which must not be there."""
    directory.mkdir()
    v, statistics = fitted.vocabulary, fitted.statistics
    for name in _LATENCIES:
        getattr(v, name).write_parquet(directory / f"{name}.parquet")
    names = {name: getattr(fitted, name) for name in _PLAIN} | {"vocabulary": {n: getattr(v, n) for n in _NAMES}}
    (directory / "names.json").write_text(json.dumps(names, indent=1) + "\n")
    arrays = {f"vocabulary/{name}": getattr(v, name) for name in _ARRAYS}
    arrays |= {f"edges/{name}": getattr(fitted.edges, name) for name in _EDGES}
    arrays |= {f"mean/{name}": statistics.mean[name] for name in COUNTS}
    for name in ("coefficients", "lines_on_all"):
        arrays |= {f"{name}/{i}": array for i, array in enumerate(getattr(statistics, name))}
    np.savez(directory / "arrays.npz", **arrays)


def load(prepared_dir: str | Path) -> Fitted:
    """What was fitted for a prepared dataset.

    Raises:
        InputError: the dataset was prepared without it, or a file is damaged.
    """
    directory = Path(prepared_dir) / DIRECTORY
    if not directory.is_dir():
        raise InputError(f"{directory} is missing: delete {prepared_dir} and prepare the data again")
    try:
        names = json.loads((directory / "names.json").read_text())
        arrays = plain_arrays.load(directory / "arrays.npz")
        latencies = {name: pl.read_parquet(directory / f"{name}.parquet") for name in _LATENCIES}
        listed = names["vocabulary"]
        listed |= {name: [tuple(pair) for pair in listed[name]] for name in _PAIRS}
        vocabulary = Vocabulary(**listed, **latencies, **{name: arrays[f"vocabulary/{name}"] for name in _ARRAYS})
        regressions = range(sum(name.startswith("coefficients/") for name in arrays))
        statistics = Statistics(
            {name: arrays[f"mean/{name}"] for name in COUNTS},
            *([arrays[f"{name}/{i}"] for i in regressions] for name in ("coefficients", "lines_on_all")),
        )
        edges = Edges(*(arrays[f"edges/{name}"] for name in _EDGES))
        return Fitted(vocabulary, statistics, edges, *(names[name] for name in _PLAIN))
    except Exception as error:  # damage shows as many kinds of error, depending on the byte
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{directory} is damaged ({reason}); delete {prepared_dir} and prepare the data again"
        ) from None
