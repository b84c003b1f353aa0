"""Time -> observed segments -> windows with their part (fit, calibration, test) and label.

Everything here is decided by time alone. Labels are used for two things only, as the protocol says: known faults
stay out of training and calibration, and no cut between segments falls into a fault.
"""

import dataclasses
import datetime
import math

import numpy as np
import polars as pl

from data_prep.errors import InputError

NS = 1_000_000_000
FIT, CALIBRATION, TEST, UNUSED = 0, 1, 2, -1
FOLDS = 5
MAX_WINDOWS = 1 << 24  # some 100 bytes each while windows are made; 2.6 years at a window every 5 s
START, END, UNCERTAIN = "start_time_unix_nano", "end_time_unix_nano", "onset_uncertain_from_unix_nano"


@dataclasses.dataclass(frozen=True)
class Segments:
    """Observed stretches of time, in order; no window leaves its segment."""

    start: np.ndarray  # [G] int64 ns
    end: np.ndarray  # [G] int64 ns, exclusive
    recording: np.ndarray  # [G] int32: recordings are far apart in time
    part: np.ndarray  # [G] int8: FIT, CALIBRATION or TEST
    group: np.ndarray  # [G] int8: calibration group, -1 none; what judges a group is not fitted on it

    def __len__(self):
        return len(self.start)


@dataclasses.dataclass(frozen=True)
class Windows:
    """All windows of all segments, ordered by start."""

    segment: np.ndarray  # [W] int32
    offset: np.ndarray  # [W] int32: first tick, counted from the segment's start
    start: np.ndarray  # [W] int64 ns
    end: np.ndarray  # [W] int64 ns
    part: np.ndarray  # [W] int8, UNUSED where the window must not be used
    label: np.ndarray  # [W] int8: 1 faulty, 0 normal, -1 null
    fault: np.ndarray  # [W] int32, row of the faults table or -1


def tick_ns(config) -> int:
    """A tick in whole nanoseconds."""
    return round(config.tick_seconds * NS)


def observed_intervals(first: int, last: int, gaps) -> list[tuple[int, int]]:
    """What `gaps` (pairs of ns) leave of [first, last], in whole seconds: [(start, end), ...] in ns."""
    first, last = first // NS * NS, (last + 1) // NS * NS
    intervals, position = [], first
    for start, end in sorted(gaps):
        if start > position:
            intervals.append((position, min(start, last)))
        position = max(position, end)
    intervals.append((position, last))
    whole = ((-(-a // NS) * NS, b // NS * NS) for a, b in intervals)
    return [(a, b) for a, b in whole if b > a]


def cut(intervals, segment_ns: int, faults: pl.DataFrame) -> list[tuple[int, int]]:
    """Cut long intervals into segments of about `segment_ns`; a cut that would divide a fault moves behind it."""
    spans = [(row[UNCERTAIN], row[END]) for row in faults.iter_rows(named=True)]
    out = []
    for start, end in intervals:
        while end - start > 1.5 * segment_ns:
            edge = start + segment_ns
            while inside := [b for a, b in spans if a < edge < b]:
                edge = -(-max(inside) // NS) * NS
            if edge >= end:
                break
            out.append((start, edge))
            start = edge
        out.append((start, end))
    return out


def make_segments(intervals, faults: pl.DataFrame, config) -> Segments:
    """Segments and their parts under `config.protocol`.

    `chronological`: of each recording, the first `train_share` of the segments train, the rest test. `fold:K`: segment
    i tests if i mod 5 = K. Of the training segments that hold usable windows every n-th is held out for calibration,
    spread evenly over time; with `calibration_folds` all of them are calibrated on instead, in so many groups that take
    turns (cross-fitting). Segments too short for one window are left out.

    Raises:
        InputError: a protocol that does not exist, more than MAX_WINDOWS, or no segment is as long as a window.
    """
    num_windows = sum(end - start for start, end in intervals) // (tick_ns(config) * config.stride)
    if num_windows > MAX_WINDOWS:
        ends = (intervals[0][0] // NS, intervals[-1][1] // NS)
        first, last = (datetime.datetime.fromtimestamp(second, datetime.UTC) for second in ends)
        raise InputError(
            f"observed time from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M}, less the gaps, has {num_windows} "
            f"windows, more than {MAX_WINDOWS}; remove rows of a wrong time, name the observed time in "
            "data.segments_path or the table gaps, or enlarge data.stride"
        )
    window_ns = tick_ns(config) * config.window_length
    cuts = [s for s in cut(intervals, int(config.segment_seconds * NS), faults) if s[1] - s[0] >= window_ns]
    if len(cuts) < 2:
        raise InputError(
            f"{len(cuts)} observed segment(s) hold a window of {config.window_length} ticks x {config.tick_seconds} s; "
            "at least two are needed: shorten data.window_length or data.segment_seconds, or bring more telemetry"
        )
    start, end = np.array(cuts, np.int64).T
    silence = np.concatenate([[0], start[1:] - end[:-1]])
    recording = np.cumsum(silence > config.recording_gap_hours * 3600 * NS).astype(np.int32)
    test = _test_segments(recording, config)
    part = np.where(test, TEST, FIT).astype(np.int8)
    usable = [g for g in np.flatnonzero(~test) if _has_normal_window(start[g], end[g], faults, config)]
    group = np.full(len(start), -1, np.int8)
    if config.calibration_folds:
        group[usable] = np.arange(len(usable)) % config.calibration_folds
    else:
        every = max(2, round(1 / config.calibration_share))
        held_out = usable[every // 2 :: every] or usable[-1:]
        part[held_out], group[held_out] = CALIBRATION, 0
    if not test.any() or len(usable) < max(2, config.calibration_folds):
        raise InputError(
            f"{len(cuts)} segments, {len(usable)} of them with normal training windows, are too few for fitting, "
            f"calibration and testing (data.train_share {config.train_share}); shorten data.segment_seconds, bring "
            "more telemetry, or set data.train_on=all"
        )
    return Segments(start, end, recording, part, group)


def _has_normal_window(start, end, faults, config) -> bool:
    tick, length = tick_ns(config), config.window_length
    first = np.arange(start, end - length * tick + 1, config.stride * tick)
    return config.train_on == "all" or not _touched(first, first + length * tick, faults).all()


def _touched(start, end, faults: pl.DataFrame) -> np.ndarray:
    """Which intervals reach into a known fault, its uncertain beginning included."""
    touched = np.zeros(len(start), bool)
    for f in faults.iter_rows(named=True):
        touched |= (end > f[UNCERTAIN]) & (start < f[END])
    return touched


def _test_segments(recording, config) -> np.ndarray:
    protocol = config.protocol
    if protocol == "chronological":
        return later(recording, config.train_share)
    if protocol.startswith("fold:") and protocol[5:] in map(str, range(FOLDS)):
        return np.arange(len(recording)) % FOLDS == int(protocol[5:])
    raise InputError(f"data.protocol={protocol!r} is unknown; use chronological or fold:0 ... fold:{FOLDS - 1}")


def later(recording, share: float) -> np.ndarray:
    """[G] which segments come after the first `share` of those of their recording."""
    out = np.zeros(len(recording), bool)
    for r in np.unique(recording):
        members = np.flatnonzero(recording == r)
        out[members[round(share * len(members)) :]] = True
    return out


def label_windows(start, end, faults: pl.DataFrame):
    """Labels by the contract's rule.

    Args: start, end: [W] int64 ns; faults: the faults table.
    Returns: label [W] int8 (1 at least half the window lies in a fault after its onset, 0 it ends before the
        uncertain onset or starts after the end, -1 otherwise), fault [W] int32 (row, or -1).
    """
    start, end = np.asarray(start, np.int64), np.asarray(end, np.int64)
    label, fault = np.zeros(len(start), np.int8), np.full(len(start), -1, np.int32)
    most = np.zeros(len(start), np.int64)  # of two faults in one window, the longer one in it is its fault
    for row, f in enumerate(faults.iter_rows(named=True)):
        touched = (end > f[UNCERTAIN]) & (start < f[END])
        inside = np.minimum(end, f[END]) - np.maximum(start, f[START])
        faulty = inside * 2 >= end - start
        label[touched & (label == 0)] = -1
        label[faulty] = 1
        fault[faulty & (inside > most)] = row
        most = np.where(faulty, np.maximum(most, inside), most)
    return label, fault


def make_windows(segments: Segments, faults: pl.DataFrame, config) -> Windows:
    """Windows of `window_length` ticks, anchored at each segment's start.

    Test windows lie `stride` ticks apart, training windows as dense as training sequences need them. A window is UNUSED
    for training or calibration if it touches a known fault (`train_on=normal`) or lies within one window length of
    a segment of a later part or of another calibration group (the purge: what is judged is never next to what was
    fitted).

    Raises:
        InputError: an unknown `train_on`, or nothing is left to fit on, to calibrate on, or of a calibration group.
    """
    tick, length = tick_ns(config), config.window_length
    columns = {"segment": [], "offset": []}
    for g in range(len(segments)):
        ticks = (segments.end[g] - segments.start[g]) // tick
        step = math.gcd(config.stride, config.train_stride) if segments.part[g] == FIT else config.stride
        offset = np.arange(0, ticks - length + 1, step, dtype=np.int32)
        columns["offset"].append(offset)
        columns["segment"].append(np.full(len(offset), g, np.int32))
    segment, offset = (np.concatenate(columns[name]) for name in ("segment", "offset"))
    start = segments.start[segment] + offset.astype(np.int64) * tick
    end = start + length * tick
    label, fault = label_windows(start, end, faults)
    part = segments.part[segment].copy()
    if config.train_on == "normal":
        part[_touched(start, end, faults) & (part != TEST)] = UNUSED
    elif config.train_on != "all":
        raise InputError(f"data.train_on={config.train_on!r} is unknown; use normal or all")
    purge = length * tick
    for g in range(len(segments)):  # windows are in order of time: those near a segment are one slice
        first = np.searchsorted(end, segments.start[g] - purge, side="right")
        near = slice(first, np.searchsorted(start, segments.end[g] + purge, side="left"))
        theirs, mine = segments.part[segment[near]], segments.part[g]
        turns = (mine == FIT) & (segments.group[g] >= 0) & (segments.group[segment[near]] != segments.group[g])
        part[near][(theirs < mine) | ((theirs == FIT) & turns)] = UNUSED
    if not (part == FIT).any() or not ((part == CALIBRATION).any() or config.calibration_folds):
        raise InputError(
            "no window is left to fit or to calibrate on (known faults and the purge between parts take them all); "
            "bring more normal time, or set data.train_on=all"
        )
    judged = segments.group[segment[(part == FIT) & (offset % config.stride == 0)]]
    for group in range(config.calibration_folds):
        if group not in judged:
            raise InputError(
                f"calibration group {group} of {config.calibration_folds} has no window (known faults and the purge "
                "between groups take them all); lower data.calibration_folds, lengthen data.segment_seconds or bring "
                "more normal time"
            )
    return Windows(segment, offset, start, end, part, label, fault)


def fit_intervals(windows: Windows) -> list[tuple[int, int, int]]:
    """Time that statistics may be fitted on: unions of overlapping fit windows, as (segment, start ns, end ns)."""
    out = []
    rows = np.flatnonzero(windows.part == FIT)
    columns = (windows.segment[rows].tolist(), windows.start[rows].tolist(), windows.end[rows].tolist())
    for g, a, b in zip(*columns, strict=True):
        if out and out[-1][0] == g and a <= out[-1][2]:
            out[-1] = (g, out[-1][1], b)
        else:
            out.append((g, a, b))
    return out


def training_sequences(windows: Windows, stride: int, train_stride: int, length: int) -> np.ndarray:
    """[Q, length] int32 ids of fit windows `stride` ticks apart; -1 pads a run that is shorter than `length`.

    Sequences start at every `train_stride`-th tick of a run that leaves room for a whole one, else at its first.
    """
    fit = np.flatnonzero(windows.part == FIT)
    at = {(int(windows.segment[w]), int(windows.offset[w])): int(w) for w in fit}
    out, covered = [], set()
    for (g, offset), first in at.items():
        ids = [first]
        while len(ids) < length and (following := at.get((g, offset + len(ids) * stride))) is not None:
            ids.append(following)
        whole = len(ids) == length and offset % train_stride == 0
        starts_run = (g, offset - stride) not in at
        if whole or (starts_run and first not in covered):
            covered.update(ids)
            out.append(ids + [-1] * (length - len(ids)))
    return np.array(out, np.int32).reshape(-1, length)


def runs(windows: Windows, part: int, stride: int) -> np.ndarray:
    """[R, L] int32: maximal runs of windows of `part` that are `stride` ticks apart; -1 pads the end.

    Windows between the strides (training windows may be denser) are passed over.
    """
    ids = np.flatnonzero((windows.part == part) & (windows.offset % stride == 0))
    follows = (np.diff(windows.segment[ids], prepend=-1) == 0) & (np.diff(windows.offset[ids], prepend=-1) == stride)
    groups = np.split(ids, np.flatnonzero(~follows)[1:])
    out = np.full((len(groups), max(map(len, groups), default=0)), -1, np.int32)
    for row, group in enumerate(groups):
        out[row, : len(group)] = group
    return out
