"""sweep.png: figures over the values of a setting, in the form of the paper's Figure 3."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ssad_jax.config import flatten
from ssad_jax.report.figures import BAND, INK, MUTED, SCORE, SERIES, styled
from ssad_jax.sensitivity.tables import TITLES, score_title, show

DASHES = ((0, (5, 3)), (0, (1, 2)))  # of the references
LABELS = {
    "untrained": "untrained network", "cross_service_untrained": "untrained network",
    "closed_form": "closed-form expectations",
}  # fmt: skip
INTERVAL, WORDS = "95% interval over fault events", "words"
DPI = 120


@styled
def draw(results: dict, path: Path) -> None:
    """Write the picture, a panel a figure: mean over seeds, each seed, 95% interval over fault events.

    Of the score that is compared also the references; of further scores the mean alone.
    """
    count = len(results["shown"])
    rows = -(-count // 2) if count > 1 else 1
    size = (6.4, 4.2) if count == 1 else (9.6, 3.4 * rows + 0.8)
    figure = Figure(figsize=size, layout="constrained", dpi=DPI)
    panels = figure.subplots(rows, min(count, 2), squeeze=False).ravel()
    for axes, name in zip(panels, results["shown"], strict=False):
        _panel(axes, results, name)
    for axes in panels[count:]:
        axes.set_axis_off()
    tested = "test windows" if results["protocol"] != "folds" else "test windows of five folds"
    figure.suptitle(f"{results['config']['name']}: sensitivity to {results['parameter']}, {tested}", color=INK)
    labelled = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
    figure.legend(labelled.values(), labelled.keys(), loc="outside lower center", ncols=3)
    figure.savefig(path, metadata={"Software": None})


def _panel(axes, results: dict, name: str) -> None:
    entries, method = results["values"], results["method"]
    x, scale = positions([entry["value"] for entry in entries])
    order = np.argsort(x)
    x, entries = x[order], [entries[i] for i in order]
    main = [entry["detectors"][method] for entry in entries]
    mean, (low, high) = _means(main, name), np.array([_ends(facts, name) for facts in main]).T
    label = f"mean of {len(results['seeds'])} seeds" if len(results["seeds"]) > 1 else "one seed"
    if scale == WORDS:  # between words there is nothing
        axes.vlines(x, low, high, color=BAND, linewidth=14, label=INTERVAL, zorder=1)
        axes.plot(x, mean, "_", color=SCORE, markersize=22, markeredgewidth=2, label=label, zorder=4)
    else:
        axes.fill_between(x, low, high, color=BAND, linewidth=0, label=INTERVAL, zorder=1)
        axes.plot(x, mean, "-", color=SCORE, linewidth=2, label=label, zorder=4)
        axes.set_xscale(scale)
    for i, reference in enumerate(results["references"]):
        level = _means([entry["detectors"][reference] for entry in entries], name)
        axes.plot(x, level, color=SERIES[i + 1], linestyle=DASHES[i], linewidth=1.3, label=LABELS[reference], zorder=2)
    for i, score in enumerate(results["scores"][1:], start=1 + len(results["references"])):
        level = _means([entry["detectors"][f"{method}: {score}"] for entry in entries], name)
        axes.plot(x, level, color=SERIES[i], linewidth=1.5, label=score_title(results, score), zorder=3)
    dots = [(at, row[name]) for at, facts in zip(x, main, strict=True) for row in facts["per_seed"]]
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
    axes.set(xlabel=results["parameter"], ylabel=TITLES[name])


def positions(values: list) -> tuple[np.ndarray, str]:
    """Where values lie on the axis, and its scale: numbers in place, logarithmic where they span a decade."""
    if any(isinstance(value, bool | str) for value in values):
        return np.arange(len(values), dtype=float), WORDS
    x = np.array(values, float)
    return x, "log" if x.min() > 0 and x.max() / x.min() >= 10 else "linear"


def _means(blocks: list[dict], name: str) -> np.ndarray:
    return np.array([block["mean"][name] for block in blocks], float)  # None becomes nan


def _ends(facts: dict, name: str) -> tuple[float, float]:
    return tuple(facts["interval_95"].get(name) or (np.nan, np.nan))
