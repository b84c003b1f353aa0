"""What the studies share: a trained detector, intervals, and how results are kept and written."""

import json
import math
from pathlib import Path

import numpy as np
from scipy.stats import beta

import data_prep
import ssad_jax
from data_prep.errors import InputError
from ssad_jax import methods, parallel, settings, train, workdir
from ssad_jax.comparison.cells import program
from ssad_jax.evaluation_log import config_hash
from ssad_jax.prepared import Prepared
from ssad_jax.scoring import output
from ssad_jax.scoring.detectors import Scored, score_dataset
from ssad_jax.scoring.terms import scorer


def begin(config, directory: Path, results: Path, hours: float) -> None:
    """Check the settings and both directories before hours are spent; `directory` keeps cells of one study alone.

    Args: hours: simulated time of a system, which cells depend on as on the config.

    Raises:
        InputError: a setting cannot be used, a directory cannot be written, or it keeps cells of other settings or of
            another program.
    """
    settings.check(config)
    if not math.isfinite(hours):
        raise InputError("--hours is not a number; give the simulated hours of a system")
    workdir.make(results, "output")
    path = workdir.make(directory) / "settings.json"
    now = {"config": config_hash(config), "program": program(ssad_jax, data_prep), "hours": hours}
    try:
        same = not path.is_file() or json.loads(path.read_text()) == now
    except ValueError:
        same = False
    if not same:
        raise InputError(
            f"{directory} keeps results of other settings, or of another version of the program; delete it or name "
            "another --workdir"
        )
    output.write_json(path, now)


def trained(prepared: Prepared, config, workdir: Path) -> Scored:
    """The dataset scored by the method that the config names, trained on it."""
    state = train.train(config, prepared, workdir)
    method = methods.get(config.method).create(config, prepared.system, train.find_knowledge(config, prepared))
    return score_dataset(scorer(method), parallel.fetch(state["params"]), prepared, config.score)


def binomial_interval(hits: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's interval of a share: valid for independent cases, never too narrow."""
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, hits, count - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, count - hits)) if hits < count else 1.0
    return low, high


def interval_over(values, repeats: int = 2000, level: float = 0.95) -> tuple[float, float]:
    """Bootstrap interval of the mean of independent values (days, seeds)."""
    values = np.asarray(values, np.float64)
    drawn = np.random.default_rng(0).integers(0, len(values), (repeats, len(values)))
    low, high = np.quantile(values[drawn].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def percent(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    return f"{100 * value:.2f}%"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write_results(directory: Path, name: str, results: dict, page: str) -> None:
    """`<name>.json` and `<name>.md` in `directory`."""
    output.write_json(Path(directory) / f"{name}.json", results)
    output.write_atomically(Path(directory) / f"{name}.md", lambda p: p.write_text(page, encoding="utf-8"))
