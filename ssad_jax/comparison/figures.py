"""Figures of one protocol: each detector's cells pooled over the splits, measured, and compared pair by pair."""

import dataclasses
import warnings

import numpy as np

from ssad_jax import metrics, resampling
from ssad_jax.compared import COMPACT
from ssad_jax.comparison.families import COMBINED, CROSS, MAIN, RECIPE, Family
from ssad_jax.comparison.splits import Split
from ssad_jax.scoring.assess import Detector, TestWindows, assess, draws

SHOWN = (*resampling.FIGURES, "oracle_best_f1", "delay_seconds_p90")
BY_TYPE = ("auroc", "hit_rate_at_1", "event_recall", "delay_seconds_median", "num_windows", "num_faults")
BLOCKS = ("events", "segments")
ORDER = ("trained", "combined", "untrained", "recipe", "floor", "pyod")  # of kinds of families in the tables


@dataclasses.dataclass
class Measured:
    """One detector under one protocol."""

    family: Family
    rows: list[dict]  # figures of each seed
    draws: dict[str, dict[str, np.ndarray]]  # kind of blocks -> figure -> [repeats], mean over seeds
    cost: dict = dataclasses.field(default_factory=dict)

    def mean(self, name: str) -> float | None:
        values = [row[name] for row in self.rows if row[name] is not None]
        return float(np.mean(values)) if values else None


def measure(
    family: Family, test: TestWindows, per_seed: dict[int, Detector], repeats: int, facts: list[list[dict]] = ()
) -> Measured:
    """Figures of a detector, seed by seed, and the mean over seeds of each draw of blocks.

    Args:
        facts: of its cells, for each seed those of all splits.
    """
    rows, drawn = [], {name: [] for name in BLOCKS}
    for seed, detector in per_seed.items():
        rows.append({"seed": seed, **assess(test, detector, {})})
        drawn["events"].append(draws(test, detector, repeats))
        drawn["segments"].append(draws(test, detector, repeats, test.segment))
    return Measured(family, rows, {name: _seed_mean(parts) for name, parts in drawn.items()}, cost(facts))


def cost(facts: list[list[dict]]) -> dict:
    """What cells took: medians over seeds and splits; windows that were not judged, of all splits, median over seeds.

    None where no cell says it: of a sum of other detectors, and of cells that an older program wrote.
    """

    def median(values):
        values = [v for v in values if v is not None]
        return float(np.median(values)) if values else None

    cells = [cell for splits in facts for cell in splits]
    out = {name: median(cell.get(name) for cell in cells) for name in ("train_seconds", "windows_per_second")}
    unjudged = [[cell.get("unjudged_windows") for cell in splits] for splits in facts]
    out["unjudged_windows"] = median(None if None in own else sum(own) for own in unjudged)
    return out | {"device": ", ".join(sorted({cell["device"] for cell in cells if "device" in cell})) or None}


def _seed_mean(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    names = set.intersection(*(set(p) for p in parts)) if parts else set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a draw that gives no seed the figure is nan
        return {name: np.nanmean([p[name] for p in parts], axis=0) for name in sorted(names)}


def summary(measured: Measured) -> dict:
    """Mean, least and greatest over the seeds, 95% intervals of the mean, and figures by fault type."""
    out = {
        "family": measured.family.name,
        "kind": measured.family.kind,
        "settings": dict(measured.family.overrides),
        "seeds": [row["seed"] for row in measured.rows],
        "deterministic": measured.family.deterministic,
        "cost": measured.cost,
        "mean": {name: measured.mean(name) for name in SHOWN},
    }
    if measured.family.name in COMPACT:
        out["compared"] = COMPACT[measured.family.name]._asdict()
    for title, pick in (("min", min), ("max", max)):
        values = {name: [row[name] for row in measured.rows if row[name] is not None] for name in SHOWN}
        out[title] = {name: pick(v) if v else None for name, v in values.items()}
    out["interval_95"] = resampling.intervals(measured.draws["events"])
    out["interval_95_over_segments"] = resampling.intervals(measured.draws["segments"])
    types = measured.rows[0]["by_fault_type"] if measured.rows else {}
    out["by_fault_type"] = {
        kind: {name: _mean(row["by_fault_type"][kind][name] for row in measured.rows) for name in BY_TYPE}
        for kind in types
    }
    out["per_seed"] = measured.rows
    return out


def _mean(values) -> float | None:
    values = [v for v in values if v is not None]
    return float(np.mean(values)) if values else None


def paired(first: Measured, second: Measured) -> dict[str, dict]:
    """`first` minus `second` on the same draws: figure -> difference of the means over seeds, 95% intervals."""
    means = [{name: m.mean(name) for name in resampling.FIGURES} for m in (first, second)]
    out = resampling.paired_difference(means[0], first.draws["events"], means[1], second.draws["events"])
    over = resampling.paired_difference(means[0], first.draws["segments"], means[1], second.draws["segments"])
    return {k: v | {"interval_95_over_segments": over[k]["interval_95"]} for k, v in out.items()}


def compare_protocol(splits: list[Split], test: TestWindows, measured: dict[str, Measured]) -> dict:
    """Everything that comparison.json says of one protocol; method A first."""
    measured = dict(sorted(measured.items(), key=lambda item: ORDER.index(item[1].family.kind)))
    point, _ = metrics.point_metrics(test.label, np.zeros(len(test.label)), None)
    block = resampling.event_blocks(test.segment, test.start_unix_nano, test.fault)
    out = {
        "splits": {s.name: s.prepared.manifest["dataset_hash"] for s in splits},
        "num_windows": point["num_windows"],
        "num_null_windows": int((test.label < 0).sum()),
        "num_anomalous": point["num_anomalous"],
        "prevalence": point["prevalence"],
        "all_positive_f1": point["all_positive_f1"],
        "num_faults": len(test.fault_rows),
        "num_blocks": {"events": len(np.unique(block)), "segments": len(np.unique(test.segment))},
        "detectors": {name: summary(m) for name, m in measured.items()},
        "paired": {},
    }
    if MAIN in measured:
        out["paired"][f"minus {MAIN}"] = {n: paired(m, measured[MAIN]) for n, m in measured.items() if n != MAIN}
    for base, names in ((RECIPE, (MAIN, CROSS, COMBINED)), (CROSS, (COMBINED,))):
        there = [name for name in names if name in measured and base in measured]
        if there:
            out["paired"][f"minus {base}"] = {name: paired(measured[name], measured[base]) for name in there}
    return out


def point_adjustment(test: TestWindows, per_seed: dict[int, Detector]) -> float | None:
    """F1 after point adjustment at the best threshold on these labels, mean over seeds: for a warned footnote only."""
    use = test.label >= 0
    y = test.label[use] == 1
    if not y.any() or y.all():
        return None
    return _mean(
        metrics.best_f1(y, metrics.point_adjusted(d.score[use], test.fault[use]))
        for d in per_seed.values()
        if np.isfinite(d.score).all()
    )
