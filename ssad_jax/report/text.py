"""Numbers, times and telemetry text as people read them. Escaping is not done here: templates and `svg` do it."""

import math
import re

import numpy as np

from data_prep.visible import visible

ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")  # terminal colours, common in container logs


def plain(text, most: int = 600) -> str:
    """Telemetry text that shows all it holds: terminal colours dropped, other invisible or reordering characters
    written as \\uXXXX (they could make a line read differently from what it is), at most `most` characters."""
    return clip(visible(ANSI.sub("", str(text))[: 2 * most]), most)


def clip(text: str, most: int) -> str:
    """At most `most` characters, an ellipsis in the place of the rest."""
    return text if len(text) <= most else text[: max(most - 1, 0)] + "…"


def clip_middle(text: str, most: int) -> str:
    """As `clip`, but begin and end stay: names often differ in either."""
    if len(text) <= most:
        return text
    keep = max(most - 1, 0)
    return text[: keep - keep // 2] + "…" + text[len(text) - keep // 2 :]


def arrows(name: str) -> str:
    """The name of a dependency, "caller -> callee", with a real arrow."""
    return name.replace(" -> ", " → ")


def time_text(unix_nano: int) -> str:
    """UTC to the second: 2023-01-29 10:49:10."""
    return str(np.datetime64(int(unix_nano), "ns").astype("datetime64[s]")).replace("T", " ")


def clock_text(unix_nano: int) -> str:
    """UTC time of day to the millisecond, without zeros that say nothing."""
    text = str(np.datetime64(int(unix_nano), "ns").astype("datetime64[ms]"))[11:]
    return text.removesuffix(".000")


def duration_text(seconds: float) -> str:
    """45 s, 4 min 10 s, 3 h 5 min, 2 d 4 h."""
    seconds = round(max(seconds, 0))
    for size, name, next_size, next_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            rest = seconds % size // next_size
            return f"{seconds // size} {name}" + (f" {rest} {next_name}" if rest else "")
    return f"{seconds} s"


def number(value) -> str:
    """Three significant digits: 0.0123, 4.57, 1,230, 2.6 G, −15 M; a dash for None and what is not finite."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if value < 0:
        return f"−{number(-value)}"
    if value < 1e-4 or value >= 1e15:
        return f"{value:.2e}"
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{number(value / size)} {prefix}"
    digits = max(0, 2 - math.floor(math.log10(value)))
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def quantity(value, unit: str) -> str:
    """A number and its unit, none after a dash."""
    text = number(value)
    return text if text == "–" or not unit else f"{text} {unit}"


def percent(share) -> str:
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.0f}%"


def two_digits(value) -> str:
    """Scores and blame: 4.00; a dash for None and what is not finite."""
    return "–" if value is None or not math.isfinite(value) else f"{round(value, 2) + 0.0:,.2f}".replace("-", "−")
