"""sweep.png: AUROC over the values of a setting, in the form of the paper's Figure 3."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ssad_jax.config import flatten
from ssad_jax.report.figures import BAND, INK, MUTED, SCORE, SERIES, styled
from ssad_jax.sensitivity.tables import show

FIGURE, TITLE = "auroc", "AUROC"
REFERENCES = {"untrained": (SERIES[1], (0, (5, 3))), "closed_form": (SERIES[2], (0, (1, 2)))}  # color, dashes
LABELS = {"untrained": "untrained network", "closed_form": "closed-form expectations"}
INTERVAL, WORDS = "95% interval over fault events", "words"
DPI = 120


@styled
def draw(results: dict, path: Path) -> None:
    """Write the picture: mean over seeds, each seed, 95% interval over fault events, and the references."""
    entries = results["values"]
    x, scale = positions([entry["value"] for entry in entries])
    order = np.argsort(x)
    x, entries = x[order], [entries[i] for i in order]
    figure = Figure(figsize=(6.4, 4.2), layout="constrained", dpi=DPI)
    axes = figure.subplots()
    main = [entry["detectors"]["knowledge_ssl"] for entry in entries]
    mean, (low, high) = _means(main), np.array([_ends(facts) for facts in main]).T
    label = f"mean of {len(results['seeds'])} seeds" if len(results["seeds"]) > 1 else "one seed"
    if scale == WORDS:  # between words there is nothing
        axes.vlines(x, low, high, color=BAND, linewidth=14, label=INTERVAL, zorder=1)
        axes.plot(x, mean, "_", color=SCORE, markersize=22, markeredgewidth=2, label=label, zorder=4)
    else:
        axes.fill_between(x, low, high, color=BAND, linewidth=0, label=INTERVAL, zorder=1)
        axes.plot(x, mean, "-", color=SCORE, linewidth=2, label=label, zorder=4)
        axes.set_xscale(scale)
    for name in results["references"]:
        color, dashes = REFERENCES[name]
        level = _means([entry["detectors"][name] for entry in entries])
        axes.plot(x, level, color=color, linestyle=dashes, linewidth=1.3, label=LABELS[name], zorder=2)
    dots = [(at, row[FIGURE]) for at, facts in zip(x, main, strict=True) for row in facts["per_seed"]]
    seeds = np.array([(at, value) for at, value in dots if value is not None]).reshape(-1, 2)
    axes.plot(*seeds.T, "o", color=SCORE, markersize=4.5, markeredgecolor="white", label="a seed", zorder=5)
    for at, entry in zip(x, entries, strict=True):
        if entry["diverged"]:
            text = f"{len(entry['diverged'])} of {len(results['seeds'])} diverged"
            place = {"xycoords": axes.get_xaxis_transform(), "ha": "center", "va": "bottom", "fontsize": 8}
            axes.annotate(text, (at, 0.02), color=MUTED, **place)
    configured = flatten(results["config"])[results["parameter"]]
    names = [show(entry["value"]) + "\n(config)" * (entry["value"] == configured) for entry in entries]
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(x, names)
    axes.grid(axis="x", visible=False)
    axes.margins(x=0.4 if scale == WORDS else 0.1, y=0.12)
    axes.set(xlabel=results["parameter"], ylabel=f"{TITLE} on test windows")
    axes.set_title(f"{results['config']['name']}: sensitivity to {results['parameter']}", color=INK)
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path, metadata={"Software": None})


def positions(values: list) -> tuple[np.ndarray, str]:
    """Where values lie on the axis, and its scale: numbers in place, logarithmic where they span a decade."""
    if any(isinstance(value, bool | str) for value in values):
        return np.arange(len(values), dtype=float), WORDS
    x = np.array(values, float)
    return x, "log" if x.min() > 0 and x.max() / x.min() >= 10 else "linear"


def _means(blocks: list[dict]) -> np.ndarray:
    return np.array([block["mean"][FIGURE] for block in blocks], float)  # None becomes nan


def _ends(facts: dict) -> tuple[float, float]:
    return tuple(facts["interval_95"].get(FIGURE) or (np.nan, np.nan))
