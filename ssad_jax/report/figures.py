"""The report's statistical plots, each as a data URI of an SVG image: inside an <img> no script in it could run."""

import base64
import io

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure
from scipy.stats import binom
from sklearn.metrics import precision_recall_curve, roc_curve

from ssad_jax.report.pairs import PairDistances
from ssad_jax.report.text import clip_middle, plain
from ssad_jax.scoring.assess import Detector, TestWindows

INK, MUTED, GRID, BAND = "#1b2733", "#6b7a89", "#e4e9ee", "#d3dde7"
SCORE, ALERT = "#0b5cad", "#c7410b"
SERIES = ("#0b5cad", "#d55e00", "#009e73", "#9467bd", "#b8860b", "#cc79a7", "#56b4e9", "#555555")  # after Okabe and Ito
TERMS = ("#0b5cad", "#009e73", "#cc79a7")  # reconstruction, temporal, prior: as in the style sheet
STYLE = {
    "font.family": "sans-serif", "font.size": 9, "axes.edgecolor": MUTED, "axes.labelcolor": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "xtick.color": INK, "ytick.color": INK, "axes.grid": True, "grid.color": GRID,
    "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 8,
    "svg.hashsalt": "ssad", "text.parse_math": False,  # names from telemetry may hold dollar signs
}  # fmt: skip


def _figure(width, height, **kwargs):
    return Figure(figsize=(width, height), layout="constrained", **kwargs)


def _uri(figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def styled(draw):
    """Draw with the report's style, whatever the caller's settings are."""

    def wrapped(*args, **kwargs):
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapped


def _plain_numbers(axis) -> None:
    """Ticks of a symmetric logarithmic axis at 0, 1, 2, 5, 10, ... (powers would need math text, which is off)."""
    axis.set_minor_locator(ticker.NullLocator())
    low, high = axis.get_view_interval()
    steps = [m * 10.0**e for e in range(7) for m in (1, 2, 5)]
    wanted = [v for v in [-v for v in steps] + [0.0] + steps if low <= v <= high]
    thin = wanted if len(wanted) <= 8 else [v for v in wanted if v == 0 or np.log10(abs(v)) % 1 == 0]
    axis.set_major_locator(ticker.FixedLocator(thin))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))


@styled
def curves(test: TestWindows, detectors: list[Detector]) -> str:
    """ROC and precision-recall curves of detectors with both classes at hand, the first one emphasised."""
    use = test.label >= 0
    y = test.label[use] == 1
    figure = _figure(10.6, 4.1)
    roc, pr = figure.subplots(1, 2)
    for i, detector in enumerate(detectors):
        score = detector.score[use]
        if not np.isfinite(score).all():
            continue
        look = {"color": SERIES[i % len(SERIES)], "linewidth": 2.2 if i == 0 else 1.0, "zorder": 3 if i == 0 else 2}
        fpr, tpr, _ = roc_curve(y, score)
        precision, recall, _ = precision_recall_curve(y, score)
        roc.plot(fpr, tpr, **look, label=detector.name)
        pr.plot(recall, precision, **look, drawstyle="steps-post", label=detector.name)
    first = detectors[0].alert[use]
    roc.plot(first[~y].mean(), first[y].mean(), "o", color=SERIES[0], markersize=7, zorder=4, label="at the threshold")
    roc.axvline(0.05, color=MUTED, linewidth=0.7, linestyle=":")
    pr.axhline(y.mean(), color=MUTED, linewidth=0.8, linestyle=":", label=f"prevalence {y.mean():.2f}")
    roc.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC (dotted: 5% false positives)")
    pr.set(xlabel="recall", ylabel="precision", title="Precision and recall", ylim=(0, 1.03))
    handles = dict(zip(*reversed(roc.get_legend_handles_labels()), strict=True))
    handles |= dict(zip(*reversed(pr.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside right center")
    return _uri(figure)


@styled
def pair_histogram(pairs: PairDistances) -> str:
    """The paper's Figure 2: distances of positive and of negative pairs."""
    figure = _figure(5.2, 3.1)
    axis = figure.subplots()
    high = max(float(np.max(d)) for d in pairs if len(d))
    bins = np.linspace(0, max(high, 1e-3) * 1.02, 50)
    for values, colour, label in (
        (pairs.positive, SCORE, "positive: two views of a window"),
        (pairs.negative, ALERT, "negative: windows apart in time"),
    ):
        if len(values):
            weights = np.full(len(values), 100 / len(values))
            axis.hist(values, bins, weights=weights, color=colour, alpha=0.6, label=f"{label} ({len(values)})")
    axis.set(xlabel="cosine distance between embeddings", ylabel="% of pairs")
    axis.legend()
    return _uri(figure)


@styled
def terms_by_type(test: TestWindows, terms: dict[str, np.ndarray]) -> str:
    """Distribution of each calibrated term in normal windows and in those of each fault type."""
    types = np.array([t or "" for t in test.fault_type], dtype=object)
    groups = [("normal", test.label == 0)] + [(t, types == t) for t in sorted(set(types) - {""})]
    groups = [(name, mask) for name, mask in groups if mask.any()]
    figure = _figure(5.2, max(2.0, 0.36 * len(groups) * len(terms) / 1.6 + 1.0))
    axis = figure.subplots()
    step = 0.8 / len(terms)
    for i, (name, values) in enumerate(terms.items()):
        data = [values[m][np.isfinite(values[m])] for _, m in groups]
        place = [-g + 0.4 - step * (i + 0.5) for g in range(len(groups))]
        boxes = axis.boxplot(
            data, positions=place, widths=step * 0.75, orientation="horizontal", patch_artist=True, whis=(5, 95),
            showfliers=False, manage_ticks=False, medianprops={"color": INK, "linewidth": 1.2},
            whiskerprops={"color": TERMS[i], "linewidth": 1.0}, capprops={"color": TERMS[i]},
        )  # fmt: skip
        for box in boxes["boxes"]:
            box.set(facecolor=TERMS[i], alpha=0.55, edgecolor=TERMS[i])
        axis.plot([], [], color=TERMS[i], linewidth=5, alpha=0.55, label=name)
    labels = [f"{clip_middle(plain(name), 40)} ({int(m.sum())})" for name, m in groups]
    axis.set_yticks([-g for g in range(len(groups))], labels)
    axis.set_xscale("symlog", linthresh=2)
    _plain_numbers(axis.xaxis)
    axis.axvline(1, color=MUTED, linewidth=0.8, linestyle=":")
    axis.set(xlabel="calibrated term (most normal runs stay below 1)")
    figure.legend(loc="outside upper center", ncols=len(terms))
    return _uri(figure)


@styled
def false_alarm_rates(p_values: np.ndarray, independent: int, least: float, normal: bool) -> str:
    """Nominal against observed false alarm rate: how often windows held to be normal get a p-value that small.

    Args:
        p_values: [m] conformal p-values of windows that should be normal.
        independent: how many of them share no time (they widen the band of what chance explains).
        least: the smallest p-value that there is.
        normal: whether labels call the windows normal.
    """
    figure = _figure(5.4, 3.5)
    axis = figure.subplots()
    nominal = np.geomspace(min(max(least, 1e-4), 0.1), 1.0, 80)
    observed = np.searchsorted(np.sort(p_values), nominal, side="right") / len(p_values)
    low, high = (binom.ppf(q, max(independent, 1), nominal) / max(independent, 1) for q in (0.025, 0.975))
    floor = 0.4 * min(nominal[0], 1 / len(p_values))
    axis.fill_between(nominal, np.maximum(low, floor), np.maximum(high, floor), color=BAND, linewidth=0,
                      label=f"95% of chance ({independent} disjoint windows)")  # fmt: skip
    axis.plot(nominal, nominal, color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)), label="as promised")
    axis.plot(nominal, np.maximum(observed, floor), color=SCORE, linewidth=1.8, drawstyle="steps-post",
              label=f"observed ({len(p_values)} windows)")  # fmt: skip
    axis.set(xscale="log", yscale="log", xlim=(nominal[0], 1), ylim=(floor, 1.15))
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_locator(ticker.FixedLocator([10.0**e for e in range(-4, 1) if 10.0**e >= floor]))
        side.set_minor_locator(ticker.NullLocator())
        side.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    which = "normal" if normal else "all"
    axis.set(xlabel="nominal rate (p-value at which to alert)", ylabel=f"share of {which} test windows")
    figure.legend(loc="outside upper center", ncols=3, columnspacing=1.2)
    return _uri(figure)
