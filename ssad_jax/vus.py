"""VUS-PR: the volume under the precision-recall surface over scores and label buffers.

Paparrizos et al., "Volume Under the Surface", PVLDB 15 (2022), in the form that TSB-AD computes (Liu and Paparrizos,
NeurIPS 2024): labels are widened on both sides of an event by a buffer of l // 2 windows whose worth falls as
sqrt(1 - d / l); recall is multiplied by the share of events that were touched; the area under precision over that
recall at 250 thresholds is averaged over l = 0 ... L. A detector that is a little early or late is not punished
as one that misses.

Here the series is the labelled test windows, segment after segment. Windows without a label are left out, and no event
or buffer reaches into another segment.
"""

import numpy as np

THRESHOLDS = 250


def vus_pr(label, score, segment, start_unix_nano, longest: int, weights: np.ndarray | None = None) -> np.ndarray:
    """VUS-PR for each of B weightings of the windows (one of ones by default).

    Args:
        label: [M] 1 faulty, 0 normal, -1 null (left out).
        score: [M], finite.
        segment, start_unix_nano: [M] place of each window.
        longest: L, the longest buffer, in windows.
        weights: [B, M] how often each window was drawn; events are drawn with their first window.

    Returns:
        [B] float64; nan where a weighting holds one class only.
    """
    label = np.asarray(label)
    weights = np.ones((1, len(label))) if weights is None else np.asarray(weights, np.float64)
    order = np.lexsort((start_unix_nano, segment))
    order = order[label[order] >= 0]
    y, s, seg = label[order] == 1, np.asarray(score, np.float64)[order], np.asarray(segment)[order]
    w = weights[:, order]
    positive, total = w @ y, w.sum(1)
    one_class = (positive == 0) | (positive == total)
    if not y.any() or y.all():
        return np.full(len(w), np.nan)
    events = _events(y, seg)
    thresholds = -np.sort(-s)[np.linspace(0, len(s) - 1, THRESHOLDS).astype(int)]
    alert = (s[:, None] >= thresholds).astype(np.float64)
    hits, alerts = w[:, y] @ alert[y], w @ alert
    areas = [
        _area(w, alert, hits, alerts, positive, _buffer(events, seg, y, length), _merged(events, seg, length))
        for length in range(longest + 1)
    ]
    return np.where(one_class, np.nan, np.mean(areas, axis=0))


def _area(w, alert, hits, alerts, positive, buffer, regions) -> np.ndarray:
    """[B] the area under the range-based precision-recall curve with one buffer."""
    near = np.flatnonzero(buffer)
    soft = w[:, near] @ (buffer[near, None] * alert[near])
    found = np.stack([alert[a : b + 1].max(0) for a, b, _ in regions])
    times = w[:, [first for _, _, first in regions]]
    with np.errstate(divide="ignore", invalid="ignore"):
        existence = times @ found / times.sum(1, keepdims=True)
        # TSB-AD: the mean of the hard labels' mass and of the widened labels' mass where they were alerted.
        recall = np.minimum((hits + soft) / (positive[:, None] + soft / 2), 1.0) * existence
        precision = np.where(alerts > 0, (hits + soft) / alerts, 0.0)
    return (np.diff(recall, axis=1, prepend=0.0) * precision).sum(1)


def _events(y: np.ndarray, segment: np.ndarray) -> list[tuple[int, int]]:
    """First and last position of each run of faulty windows within a segment."""
    new = np.append(True, segment[1:] != segment[:-1])
    first = np.flatnonzero(y & (new | ~np.append(False, y[:-1])))
    last = np.flatnonzero(y & (np.append(new[1:], True) | ~np.append(y[1:], False)))
    return list(zip(first.tolist(), last.tolist(), strict=True))


def _reach(event: tuple[int, int], segment: np.ndarray, length: int) -> tuple[int, int]:
    """The event widened by length // 2 windows on both sides, within its segment."""
    low = np.searchsorted(segment, segment[event[0]], side="left")
    high = np.searchsorted(segment, segment[event[0]], side="right") - 1
    return max(event[0] - length // 2, int(low)), min(event[1] + length // 2, int(high))


def _buffer(events, segment, y, length: int) -> np.ndarray:
    """[M] what the buffers add to the labels: 0 at faulty windows, at most 1 elsewhere."""
    out = np.zeros(len(y))
    for event in events:
        low, high = _reach(event, segment, length)
        before, after = np.arange(low, event[0]), np.arange(event[1] + 1, high + 1)
        out[before] += np.sqrt(1 - (event[0] - before) / max(length, 1))
        out[after] += np.sqrt(1 - (after - event[1]) / max(length, 1))
    return np.where(y, 0.0, np.minimum(out, 1.0))


def _merged(events, segment, length: int) -> list[tuple[int, int, int]]:
    """The widened events, those that touch joined: (first, last, first faulty window)."""
    out: list[tuple[int, int, int]] = []
    for event in events:
        low, high = _reach(event, segment, length)
        if out and segment[out[-1][0]] == segment[low] and low <= out[-1][1]:
            out[-1] = (out[-1][0], high, out[-1][2])
        else:
            out.append((low, high, event[0]))
    return out
