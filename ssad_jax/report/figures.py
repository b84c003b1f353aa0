"""The report's plots, each as a data URI of an SVG or PNG image: inside an <img> no script in it could run."""

import base64
import io

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from ssad_jax.report.pairs import PairDistances
from ssad_jax.scoring.assess import Detector, TestWindows

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
SCORE, ALERT, FAULT, UNSURE = "#1d4ed8", "#c2410c", "#fca5a5", "#e5e7eb"
SERIES = ("#1d4ed8", "#c2410c", "#0f766e", "#7c3aed", "#b45309", "#be185d", "#4d7c0f", "#0369a1", "#6b7280")
STYLE = {
    "font.family": "sans-serif", "font.size": 9, "axes.edgecolor": MUTED, "axes.labelcolor": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "xtick.color": INK, "ytick.color": INK, "axes.grid": True, "grid.color": GRID,
    "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 8,
    "svg.hashsalt": "ssad", "text.parse_math": False,  # names from telemetry may hold dollar signs
}  # fmt: skip
ROWS, WINDOWS_PER_ROW = 12, 240  # of the timeline


def _figure(width, height, **kwargs):
    return Figure(figsize=(width, height), layout="constrained", **kwargs)


def _uri(figure, form="svg") -> str:
    buffer = io.BytesIO()
    extra = {"metadata": {"Date": None}} if form == "svg" else {"dpi": 160}
    figure.savefig(buffer, format=form, **extra)
    media = "image/svg+xml" if form == "svg" else "image/png"
    return f"data:{media};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def styled(draw):
    """Draw with the report's style, whatever the caller's settings are."""

    def wrapped(*args, **kwargs):
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapped


@styled
def timeline(test: TestWindows, detector: Detector) -> tuple[str, int]:
    """Score over test time: (image, number of windows shown).

    Segments stand side by side with the unobserved time between them cut out. Where there is more test time than
    fits, rows with faults come before rows without; rows stay in time order.
    """
    rows = _timeline_rows(test)
    figure = _figure(10.6, 0.35 + 1.15 * len(rows))
    axes = np.atleast_1d(figure.subplots(len(rows), 1))
    finite = detector.score[np.isfinite(detector.score)]
    low = min(float(finite.min()), 0.0) if len(finite) else 0.0
    top = max(float(finite.max()), detector.threshold) if len(finite) else 1.0
    linear = max(abs(detector.threshold), 1.0)
    shown = 0
    for axis, members in zip(axes, rows, strict=True):
        x, shown = np.arange(len(members)), shown + len(members)
        for value, colour in ((1, FAULT), (-1, UNSURE)):
            for first, last in _stretches(test.label[members] == value):
                axis.axvspan(first - 0.5, last + 0.5, color=colour, alpha=0.55, linewidth=0)
        cuts = np.flatnonzero(np.diff(test.segment[members])) + 1
        for part in np.split(x, cuts):
            axis.plot(part, detector.score[members][part], color=SCORE, linewidth=1.0)
        raised = detector.alert[members]
        axis.plot(x[raised], detector.score[members][raised], ".", color=ALERT, markersize=3.5)
        axis.axhline(detector.threshold, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        for c in cuts:
            axis.axvline(c - 0.5, color=MUTED, linewidth=0.7)
        _time_ticks(axis, test, members, np.concatenate([[0], cuts]))
        axis.set_yscale("symlog", linthresh=linear)
        axis.set_ylim(low * 1.1 - 0.1, top * 1.4)
        axis.set_xlim(-0.5, max(len(m) for m in rows) - 0.5)
        _plain_numbers(axis.yaxis)
        axis.grid(False, axis="x")
        axis.tick_params(labelsize=7, length=2)
    return _uri(figure, "png" if shown > 4000 else "svg"), shown


def _timeline_rows(test: TestWindows) -> list[np.ndarray]:
    rows, current = [], []
    for s in np.unique(test.segment):
        members = np.flatnonzero(test.segment == s)
        for block in np.array_split(members, -(-len(members) // WINDOWS_PER_ROW)):
            if current and sum(map(len, current)) + len(block) > WINDOWS_PER_ROW:
                rows.append(np.concatenate(current))
                current = []
            current.append(block)
    rows.append(np.concatenate(current))
    faulty = [bool((test.label[r] == 1).any()) for r in rows]
    order = sorted(range(len(rows)), key=lambda i: (not faulty[i], i))[:ROWS]
    return [rows[i] for i in sorted(order)]


def _time_ticks(axis, test: TestWindows, members, starts) -> None:
    """Time of day (UTC) at the first window of segments that have room for it; the date at the first of a row."""
    kept = [s for i, s in enumerate(starts) if i == 0 or s - starts[i - 1] >= WINDOWS_PER_ROW / 16]
    times = test.start_unix_nano[members][kept].astype("datetime64[ns]").astype("datetime64[s]")
    labels = [str(t).replace("T", " ") if i == 0 else str(t)[11:] for i, t in enumerate(times)]
    axis.set_xticks(kept, labels, ha="left")


def _plain_numbers(axis) -> None:
    """Ticks of a symmetric logarithmic axis at 0, 1, 2, 5, 10, ... (powers would need math text, which is off)."""
    axis.set_minor_locator(ticker.NullLocator())
    low, high = axis.get_view_interval()
    steps = [m * 10.0**e for e in range(7) for m in (1, 2, 5)]
    wanted = [v for v in [-v for v in steps] + [0.0] + steps if low <= v <= high]
    thin = wanted if len(wanted) <= 8 else [v for v in wanted if v == 0 or np.log10(abs(v)) % 1 == 0]
    axis.set_major_locator(ticker.FixedLocator(thin))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))


def _stretches(mask: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
    return [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]


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
            whiskerprops={"color": SERIES[i], "linewidth": 1.0}, capprops={"color": SERIES[i]},
        )  # fmt: skip
        for box in boxes["boxes"]:
            box.set(facecolor=SERIES[i], alpha=0.55, edgecolor=SERIES[i])
        axis.plot([], [], color=SERIES[i], linewidth=5, alpha=0.55, label=name)
    axis.set_yticks([-g for g in range(len(groups))], [f"{name} ({int(m.sum())})" for name, m in groups])
    axis.set_xscale("symlog", linthresh=2)
    _plain_numbers(axis.xaxis)
    axis.axvline(1, color=MUTED, linewidth=0.8, linestyle=":")
    axis.set(xlabel="calibrated term (above 1: 5% of normal windows)")
    figure.legend(loc="outside upper center", ncols=len(terms))
    return _uri(figure)


@styled
def expectation(names: list[str], observed: np.ndarray, expected: np.ndarray, here: int) -> str:
    """Observed and expected values of a few signals ([k, T] each) over the windows around an alert."""
    figure = _figure(10.2, 1.55)
    for axis, name, seen, wanted in zip(
        np.atleast_1d(figure.subplots(1, len(names))), names, observed, expected, strict=True
    ):
        x = np.arange(len(seen)) - here
        axis.axvline(0, color=FAULT, linewidth=6, alpha=0.6)
        axis.plot(x, wanted, color=MUTED, linewidth=1.1, linestyle=(0, (4, 2)), label="expected")
        axis.plot(x, seen, color=SCORE, linewidth=1.3, label="observed")
        axis.set_title(name if len(name) <= 44 else name[:43] + "…", fontsize=8, fontweight="normal")
        axis.tick_params(labelsize=7, length=2)
        axis.set_xlabel("windows from the alert", fontsize=7)
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=7)
    return _uri(figure)
