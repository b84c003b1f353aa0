"""Alert records as the page shows them: in words, with the curves of the signals that deviate."""

import dataclasses
import re

import numpy as np
from markupsafe import Markup

from ssad_jax.prepared import CONTEXT_DIM, NODE_KINDS, Prepared
from ssad_jax.report import svg
from ssad_jax.report.text import arrows, clock_text, duration_text, number, plain, quantity, time_text
from ssad_jax.scoring.assess import TestWindows
from ssad_jax.scoring.attribution import lines_seen_and_expected
from ssad_jax.scoring.detectors import Scored

NS = 1_000_000_000
FIRST_LOOK, DETAILED, LISTED = 3, 60, 300  # alarms at the top, with all details, in the list
SUSPECTS, AROUND = 6, 12  # shown of an alarm; windows before and after its peak
SPARK_WIDTH, SPARK_HEIGHT = 150.0, 30.0
KIND_WORDS = {"log": "log template", "dependency": "call", "service": "service", "metric": "metric", "event": "event"}


@dataclasses.dataclass(frozen=True)
class View:
    """One alarm, ready for the template (which escapes all but the curves)."""

    number: int
    record: dict
    start: str
    end: str
    since: str
    lasted: str
    ongoing: bool  # it reaches the last window
    suspects: list[dict]
    others: int  # suspects that are not shown
    why: str
    sparks: list[Markup]  # one a deviation; '' where there is no curve
    lines: list[tuple[str, str, str]]  # time, service, body
    traces: list[tuple[str, str, str, str, str]]  # time, service, operation, ms, trace id


def strongest_first(records: list[dict], test: TestWindows) -> list[dict]:
    """Alarms that reach the last window, then the others, by score."""
    return sorted(records, key=lambda r: (not _ongoing(r, test), -_finite(r["score"]), r["alert"]))


def views(records: list[dict], prepared: Prepared, scored: Scored, test: TestWindows) -> list[View]:
    """The views of records, in their order."""
    return [_view(record, prepared, scored, test) for record in records]


def _finite(value) -> float:
    return np.inf if value is None or np.isnan(value) else float(value)  # what could not be scored comes first


def _ongoing(record: dict, test: TestWindows) -> bool:
    return len(test.window) > 0 and record["end_unix_nano"] >= int(test.end_unix_nano.max())


def _view(record: dict, prepared: Prepared, scored: Scored, test: TestWindows) -> View:
    start, end, since = (record[f"{name}_unix_nano"] for name in ("start", "end", "since"))
    lines = [
        (clock_text(e["time_unix_nano"]), plain(e["service"], 60), plain(e["body"])) for e in record["log_lines"]
    ]  # fmt: skip
    traces = [
        (clock_text(t["start_unix_nano"]), plain(t["service"], 60), plain(t["operation"], 90),
         number(t["duration_ms"]), plain(t["trace_id"], 64))
        for t in record["traces"]
    ]  # fmt: skip
    suspects = [s | {"service": plain(s["service"], 80)} for s in record["suspects"]]
    return View(
        number=record["alert"],
        record=record,
        start=time_text(start),
        end=time_text(end),
        since=time_text(since),
        lasted=duration_text((end - since) / NS),
        ongoing=_ongoing(record, test),
        suspects=suspects[:SUSPECTS],
        others=max(len(suspects) - SUSPECTS, 0),
        why=sentence(record),
        sparks=_sparks(record, prepared, scored, test),
        lines=lines,
        traces=traces,
    )


def sentence(record: dict) -> str:
    """Why, in one sentence."""
    suspects, deviations = record["suspects"], record["deviations"]
    if not deviations:
        return "No single signal stands out: the score comes from the temporal or the prior term."
    mine = suspects[0]["service"] if suspects else None
    first = next((d for d in deviations if d["service"] == mine), deviations[0])
    word = KIND_WORDS.get(first["kind"], first["kind"]).capitalize()
    unit = plain(first["unit"].split(" (")[0].removeprefix("units of the metric").strip(" ,"), 60)
    channel = channel_text(first["channel"])
    channel = "" if unit.endswith("in the window") else f"{channel} "  # such a unit says what is counted
    more = sum(d["service"] == first["service"] for d in deviations) - 1
    rest = f"; {more} more of its signals deviate" if more > 0 else ""
    name = arrows(plain(first["name"], 100))
    return f"{word} {name}: {channel}{quantity(first['observed'], unit)}, expected {number(first['expected'])}{rest}."


def channel_text(channel: str) -> str:
    """As it is said: "net latency, mean" is the mean net latency."""
    return re.sub(r"^(.*), (mean|maximum)$", r"\2 \1", plain(channel, 60))


def _sparks(record: dict, prepared: Prepared, scored: Scored, test: TestWindows) -> list[Markup]:
    """Observed and expected values of each deviating signal around the alarm's peak."""
    inside = (test.start_unix_nano >= record["peak_start_unix_nano"]) & (
        test.end_unix_nano <= record["peak_end_unix_nano"]
    )
    if not inside.any():
        return [Markup("")] * len(record["deviations"])
    row = int(np.flatnonzero(inside)[0])
    around = np.arange(max(0, row - AROUND), min(len(test.window), row + AROUND + 1))
    around = around[test.segment[around] == test.segment[row]]
    out = []
    for deviation in record["deviations"]:
        if deviation["kind"] == "log":
            lines = lines_seen_and_expected(prepared.windows.nodes[test.window[around]], deviation["node"])
            out.append(spark(*(np.asarray(x, np.float64) for x in lines), int(np.searchsorted(around, row))))
            continue
        column = _column(scored, prepared, deviation)
        if column is None:
            out.append(Markup(""))
            continue
        place = scored.place.node[column], CONTEXT_DIM + scored.place.channel[column]
        seen = np.asarray(prepared.windows.nodes[test.window[around], place[0], place[1]], np.float64)
        expected = seen - scored.terms.residual[around, column]
        out.append(spark(seen, expected, int(np.searchsorted(around, row))))
    return out


def _column(scored: Scored, prepared: Prepared, deviation: dict) -> int | None:
    """The residual column of a deviation; None where there is none."""
    for column in np.flatnonzero(scored.place.node == deviation["node"]):
        names = prepared.system.channels.get(NODE_KINDS[scored.place.kind[column]], [])
        channel = int(scored.place.channel[column])
        if channel < len(names) and names[channel] == deviation["channel"]:
            return int(column)
    return None


def spark(seen: np.ndarray, expected: np.ndarray, here: int) -> Markup:
    """A small curve: observed (solid) and expected (dashed) over the windows around `here`."""
    both = np.nan_to_num(np.stack([seen, expected]))
    low, high = float(both.min()), float(both.max())
    y = SPARK_HEIGHT - 3 - (both - low) / max(high - low, 1e-9) * (SPARK_HEIGHT - 6)
    step = (SPARK_WIDTH - 8) / max(len(seen) - 1, 1)
    x = 4 + step * np.arange(len(seen))
    parts = [
        svg.element("rect", x=float(x[here]) - 3, y=0, width=6, height=SPARK_HEIGHT, class_="peak"),
        svg.polyline(x, y[1], class_="expected"),
        svg.polyline(x, y[0], class_="observed"),
        svg.element("circle", cx=float(x[here]), cy=float(y[0][here]), r=2.2, class_="alert"),
    ]
    return svg.picture(SPARK_WIDTH, SPARK_HEIGHT, "observed and expected around the peak", parts, "spark")
