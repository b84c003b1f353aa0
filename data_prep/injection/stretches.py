"""Which time is known to be normal, and whole stretches of it."""

import dataclasses

import numpy as np

from data_prep import split
from data_prep.errors import InputError

NS = split.NS
AFTER_FAULT_SECONDS = 60.0  # a system recovers for a while after a fault's end
LEAST_WINDOWS = 1.2  # a stretch holds a window at least, and room for a second one to begin


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Normal time [start, end) ns, in whole seconds; `recording` numbers the recording it lies in."""

    start: int
    end: int
    recording: int


def known_normal(intervals, faults, config_data, until_share: float) -> list[Stretch]:
    """The stretches of `intervals` that no fault touches, in order of time.

    Args:
        intervals: observed [(start, end)] in ns; faults: the faults table, uncertain onsets filled in.
        until_share: only the first so many of each recording's segments are looked at, as `chronological` trains on.

    Returns:
        Stretches of LEAST_WINDOWS windows or more, the longest ones, so many that they share out evenly over folds.

    Raises:
        InputError: there are fewer than one for each fold.
    """
    data = config_data.copy_and_resolve_references()
    with data.unlocked():
        data.protocol, data.train_on = "fold:0", "all"  # which parts they get does not matter here
    segments = split.make_segments(intervals, faults, data)
    avoid = faults.select(split.UNCERTAIN, split.END).rows()
    found = []
    for g in np.flatnonzero(~split.later(segments.recording, until_share)):
        # A second less: segments that follow one another must stay apart when nothing but stretches is observed.
        follows = g + 1 < len(segments) and segments.start[g + 1] == segments.end[g]
        parts = [(int(segments.start[g]), int(segments.end[g]) - (NS if follows else 0))]
        for first, last in avoid:
            last += int(AFTER_FAULT_SECONDS * NS)
            parts = [p for a, b in parts for p in ((a, min(b, first)), (max(a, last), b)) if p[0] < p[1]]
        found += [Stretch(-(-a // NS) * NS, b // NS * NS, int(segments.recording[g])) for a, b in parts]
    least = LEAST_WINDOWS * data.window_length * split.tick_ns(data)
    found = [s for s in found if s.end - s.start >= least]
    number = len(found) // split.FOLDS * split.FOLDS
    if not number:
        raise InputError(
            f"{len(found)} stretches of known-normal time are {least / NS:g} s long ({LEAST_WINDOWS} windows) or "
            f"longer, {split.FOLDS} are needed, one for each fold: shorten data.window_length or "
            "data.segment_seconds, bring more normal telemetry, or raise --until_share"
        )
    longest = sorted(found, key=lambda s: (s.start - s.end, s.start))[:number]
    return sorted(longest, key=lambda s: s.start)
