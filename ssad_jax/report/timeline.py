"""Score over time with faults and alarms, and under it, on the same axis, the blame of each service."""

import dataclasses

import numpy as np
from markupsafe import Markup

from ssad_jax.report import axis as time_axis
from ssad_jax.report import heat, svg
from ssad_jax.report.axis import Panel, Stretch
from ssad_jax.report.text import clip_middle, duration_text, number, plain, time_text
from ssad_jax.scoring.assess import Detector, TestWindows

LEFT, RIGHT, WIDTH = 178.0, 8.0, 1180.0  # service names; margin; all
STRIP, SCORE, AXIS, ROW = 17.0, 104.0, 20.0, 13.0  # heights: alarm numbers, score, time, one service
SERVICES = 24  # rows of the heat map
LETTER = 6.5  # pixels of a digit of an alarm's number


@dataclasses.dataclass(frozen=True)
class Timeline:
    """What the page shows, and what it has to say of it."""

    panels: list[Markup]
    legend: Markup
    windows_per_cell: int
    services_shown: int
    blamed: int  # services that could have been shown
    services: int


def draw(
    test: TestWindows,
    detector: Detector,
    alarms: list[dict],
    listed: set[int],
    names: tuple[str, ...],
    blame: np.ndarray,
) -> Timeline:
    """The panels of all test windows.

    Args:
        alarms: alert records (`start_unix_nano`, `end_unix_nano`, `alert`).
        listed: numbers of the alarms that the page tells more of.
        names: of services; blame: [M, services].
    """
    wanted = _services(test, names, blame)
    rows = sorted(wanted[:SERVICES], key=lambda s: (-blame[:, s].max(initial=0), names[s]))
    shares = heat.blame_share(blame[:, rows], blame_top(blame)) if len(rows) else np.zeros((len(blame), 0))
    scale = _Scale(detector)
    found, together = time_axis.panels(test, WIDTH - LEFT - RIGHT)
    drawn = [_panel(panel, test, detector, alarms, listed, names, rows, shares, scale) for panel in found]
    return Timeline(drawn, heat.legend(blame_top(blame)), together, len(rows), len(wanted), len(names))


def blame_top(blame: np.ndarray) -> float:
    """Where the colours end."""
    return max(float(blame.max()), 10.0) if blame.size else 10.0


def _services(test: TestWindows, names, blame: np.ndarray) -> list[int]:
    """What the heat map could show, most important first: known culprits, then by peak of blame."""
    culprits = {str(test.faults["service_name"][int(f)]) for f in np.unique(test.fault[test.fault >= 0])}
    peak = blame.max(0) if len(blame) else np.zeros(len(names))
    wanted = [s for s in range(len(names)) if peak[s] > 1 or names[s] in culprits]
    return sorted(wanted, key=lambda s: (names[s] not in culprits, -peak[s], names[s]))


class _Scale:
    """Scores to heights: linear up to about the threshold, logarithmic beyond."""

    def __init__(self, detector: Detector):
        finite = detector.score[np.isfinite(detector.score)]
        self.threshold = detector.threshold
        self.linear = max(abs(detector.threshold), 1e-6)
        self.low = min(float(finite.min()), 0.0) if len(finite) else 0.0
        self.high = max(float(finite.max()), detector.threshold) if len(finite) else 1.0
        ends = np.arcsinh(np.array([self.low, self.high]) / self.linear)
        self.bottom, self.span = ends[0], max(ends[1] - ends[0], 1e-9)

    def y(self, score):
        share = (np.arcsinh(np.asarray(score, np.float64) / self.linear) - self.bottom) / self.span
        return STRIP + SCORE - 3 - share * (SCORE - 9)

    def ticks(self) -> list[float]:
        """0 and round numbers, no two closer than 15 pixels nor on the threshold's label."""
        steps = [m * 10.0**e for e in range(-4, 8) for m in (1, 2, 3, 5)]
        wanted = [0.0] + [v for v in steps if v <= self.high][::-1]
        kept, taken = [], [float(self.y(self.threshold))]
        for value in wanted:
            y = float(self.y(value))
            if all(abs(y - other) >= 15 for other in taken):
                kept.append(value)
                taken.append(y)
        return kept


def _panel(panel: Panel, test, detector, alarms, listed, names, rows, shares, scale: _Scale) -> Markup:
    height = STRIP + SCORE + AXIS + ROW * len(rows) + 4
    right = max(s.x + len(s.cells) * panel.cell for s in panel.stretches)
    parts = [_frame(panel, names, rows, right, height, scale)]
    for stretch in panel.stretches:
        parts += _labels(panel, stretch, test) if (test.label == 1).any() else []
        parts += _scores(panel, stretch, detector, scale)
        parts += _heat(panel, stretch, test, names, rows, shares)
    parts += _alarms(panel, test, alarms, listed)
    y = float(scale.y(scale.threshold))
    parts.append(svg.element("line", x1=0, x2=right, y1=y, y2=y, class_="threshold"))
    shifted = svg.element("g", *parts, transform=f"translate({LEFT:g} 0)")
    return svg.picture(WIDTH, height, "Score and blame of services over time", [shifted], "timeline")


def _frame(panel: Panel, names, rows, right: float, height: float, scale: _Scale) -> Markup:
    top = STRIP + SCORE + AXIS
    parts = [svg.label(-8, STRIP - 5, "alarm", class_="tick end")]
    for value in scale.ticks():
        y = float(scale.y(value))
        parts.append(svg.element("line", x1=0, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(svg.label(-8, y + 3.5, number(value), class_="tick end"))
    y = float(scale.y(scale.threshold))
    parts.append(svg.label(-8, y + 3.5, f"threshold {number(scale.threshold)}", class_="tick end strong"))
    for x, text in panel.ticks:
        parts.append(svg.element("line", x1=x, x2=x, y1=STRIP + SCORE, y2=STRIP + SCORE + 4, class_="axis"))
        parts.append(svg.label(x, STRIP + SCORE + 14, text, class_="tick"))
    for i, s in enumerate(rows):
        if i % 2 == 0:
            parts.append(svg.element("rect", x=0, y=top + ROW * i, width=right, height=ROW, class_="stripe"))
        name = svg.label(-8, top + ROW * i + 9.5, clip_middle(plain(names[s]), 27), class_="tick end")
        parts.append(svg.element("g", svg.tooltip(plain(names[s])), name))
    for x, seconds in panel.gaps:
        width = min(time_axis.GAP, next(s.x for s in panel.stretches if s.x > x) - x)
        told = svg.tooltip(f"no test windows for {duration_text(seconds)}")
        parts.append(svg.element("rect", told, x=x, y=STRIP, width=width, height=SCORE, class_="gap"))
        if rows:
            parts.append(svg.element("rect", told, x=x, y=top, width=width, height=ROW * len(rows), class_="gap"))
    return svg.element("g", *parts)


def _labels(panel: Panel, stretch: Stretch, test: TestWindows) -> list[Markup]:
    """Shades of what the labels say: faulty, or unclear."""
    state = np.array([_label(test.label[rows]) for rows in stretch.cells])
    fault = np.array([test.fault[rows].max() for rows in stretch.cells])
    types = test.faults["fault_type"].to_list() if test.faults.height else []
    parts = []
    for first, last in _spans(np.where(state == 1, fault + 2, state)):
        if state[first] == 0:
            continue
        x, width = panel.place(stretch, first, last)
        text = "unclear by the labels, not counted"
        inner = []
        if state[first] == 1:
            row = int(fault[first])
            kind = plain(types[row]) if row >= 0 else "fault"
            where = f" at {plain(test.faults['service_name'][row])}" if row >= 0 else ""
            text = f"known fault: {kind}{where}"
            if width > 6.2 * len(kind) + 6:
                inner = [svg.label(x + 4, STRIP + 11, kind, class_="tick faint")]
        shade = svg.element(
            "rect", svg.tooltip(text), x=x, y=STRIP, width=width, height=SCORE,
            class_="faulty" if state[first] == 1 else "unclear",
        )  # fmt: skip
        parts += [shade, *inner]
    return parts


def _label(labels: np.ndarray) -> int:
    return 1 if (labels == 1).any() else (-1 if (labels < 0).any() else 0)


def _spans(values: np.ndarray) -> list[tuple[int, int]]:
    """First and last index of each run of equal values."""
    cuts = np.flatnonzero(np.diff(values)) + 1
    firsts = np.concatenate([[0], cuts]).astype(int)
    return [(int(a), int(b) - 1) for a, b in zip(firsts, [*firsts[1:], len(values)], strict=True)]


def _scores(panel: Panel, stretch: Stretch, detector: Detector, scale: _Scale) -> list[Markup]:
    # A score that is not finite is drawn at the top: it must not look like quiet time.
    score = np.array([_drawn(detector.score[r], scale).max() for r in stretch.cells])
    x = stretch.x + (np.arange(len(score)) + 0.5) * panel.cell
    y = scale.y(score)
    parts = [svg.polyline(x, y, class_="score")] if len(x) > 1 else []
    alert = np.array([bool(detector.alert[rows].any()) for rows in stretch.cells])
    if len(x) == 1 and not alert[0]:
        parts.append(svg.element("circle", cx=float(x[0]), cy=float(y[0]), r=1.6, class_="point"))
    for first, last in _spans(alert):
        if not alert[first]:
            continue
        if last > first:
            parts.append(svg.polyline(x[first : last + 1], y[first : last + 1], class_="alerting"))
        else:
            parts.append(svg.element("circle", cx=float(x[first]), cy=float(y[first]), r=1.9, class_="alert"))
    return parts


def _drawn(score: np.ndarray, scale: _Scale) -> np.ndarray:
    return np.nan_to_num(score, nan=scale.high, posinf=scale.high, neginf=scale.low)


def _heat(panel: Panel, stretch: Stretch, test, names, rows, shares) -> list[Markup]:
    if not rows:
        return []
    top = STRIP + SCORE + AXIS
    image = np.stack([shares[members].max(0) for members in stretch.cells], axis=1)  # [services, cells]
    x, width = panel.place(stretch, 0, len(stretch.cells) - 1)
    parts = [
        svg.element(
            "image", href=heat.png(heat.pixels(image)), x=x, y=top, width=width, height=ROW * len(rows),
            preserveAspectRatio="none", class_="heat",
        )  # fmt: skip
    ]
    fault = np.array([test.fault[members].max() for members in stretch.cells])
    for first, last in _spans(fault):
        if fault[first] < 0:
            continue
        culprit = str(test.faults["service_name"][int(fault[first])])
        for i, s in enumerate(rows):
            if names[s] == culprit:
                x, width = panel.place(stretch, first, last)
                told = svg.tooltip(f"culprit by the labels: {plain(culprit)}")
                parts.append(
                    svg.element("rect", told, x=x, y=top + ROW * i, width=width, height=ROW, class_="culprit")
                )
    return parts


def _alarms(panel: Panel, test: TestWindows, alarms: list[dict], listed: set[int]) -> list[Markup]:
    """A bar from the first to the last window of each alarm, with its number where there is room."""
    parts, free = [], -np.inf
    for stretch in panel.stretches:
        rows = np.concatenate(stretch.cells)
        cell = np.repeat(np.arange(len(stretch.cells)), [len(c) for c in stretch.cells])
        start, end = test.start_unix_nano[rows], test.end_unix_nano[rows]
        for alarm in sorted(alarms, key=lambda a: a["start_unix_nano"]):
            if alarm["start_unix_nano"] >= stretch.end_unix_nano or alarm["end_unix_nano"] <= stretch.start_unix_nano:
                continue
            raised = cell[(start >= alarm["start_unix_nano"]) & (end <= alarm["end_unix_nano"])]
            if not len(raised):
                continue
            x, width = panel.place(stretch, int(raised.min()), int(raised.max()))
            middle = x + width / 2
            bar = svg.element("rect", x=x, y=STRIP - 3, width=max(width, 2.0), height=4, class_="alarm")
            inner = [svg.tooltip(f"alarm {alarm['alert']}, until {time_text(alarm['end_unix_nano'])}"), bar]
            room = LETTER * len(str(alarm["alert"])) + 4
            if middle - room / 2 >= free:
                inner.append(svg.label(middle, STRIP - 5, str(alarm["alert"]), class_="number"))
                free = middle + room / 2
            target = f"#alarm-{alarm['alert']}" if alarm["alert"] in listed else None
            parts.append(svg.element("a" if target else "g", *inner, href=target))
    return parts
