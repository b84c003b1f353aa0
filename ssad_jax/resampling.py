"""Intervals by a block bootstrap: which windows stand or fall together, and every figure on resampled blocks.

Windows overlap, and the windows of one fault stand or fall together: resampling windows would give intervals that are
far too narrow. A block is a fault event with the windows around it, or a stretch of a segment without faults
(`event_blocks`). The draws depend on the blocks and the seed alone, so that those of two detectors on the same windows
are pairs.
"""

import numpy as np

from ssad_jax import metrics
from ssad_jax.metrics import ALERTING, HIT_RATES, RANKING

EVENT_FIGURES = ("event_recall", "delay_seconds_median", "false_alarms_per_hour", *HIT_RATES)
FIGURES = (*RANKING, "vus_pr", *ALERTING, *EVENT_FIGURES)


def event_blocks(segment: np.ndarray, start_unix_nano: np.ndarray, fault: np.ndarray) -> np.ndarray:
    """[M] the block of each window: of its fault event, or of its segment where that has no fault.

    Every other window of a segment belongs to the event whose faulty windows are nearest in time (the earlier one
    where two are equally near): time between two faults is cut halfway.

    Args: fault: [M] the fault whose faulty window this is, -1 for other windows.
    """
    block = np.empty(len(segment), np.int64)
    most = int(fault.max(initial=-1)) + 1
    for i, s in enumerate(np.unique(segment)):
        mine = np.flatnonzero(segment == s)
        events = np.unique(fault[mine][fault[mine] >= 0])
        times = start_unix_nano[mine]
        if not len(events):
            block[mine] = most + i
            continue
        first, last = (np.array([f(times[fault[mine] == e]) for e in events]) for f in (np.min, np.max))
        order = np.argsort(first, kind="stable")
        distance = np.maximum(np.maximum(first[order] - times[:, None], times[:, None] - last[order]), 0)
        nearest = events[order][np.argmin(distance, axis=1)]
        block[mine] = np.where(fault[mine] >= 0, fault[mine], nearest)
    return block


def block_draws(block: np.ndarray, repeats: int, seed: int = 0) -> np.ndarray:
    """[repeats, M] how often each window occurs when whole blocks are drawn with replacement, as many as there are."""
    ids, inverse = np.unique(block, return_inverse=True)
    drawn = np.random.default_rng(seed).integers(0, max(len(ids), 1), (repeats, len(ids)))
    times = np.zeros((repeats, len(ids)), np.float32)
    np.add.at(times, (np.arange(repeats)[:, None], drawn), 1.0)
    return times[:, inverse]


def draw_windows(label, score, alert, weights: np.ndarray, chunk: int = 100) -> dict[str, np.ndarray]:
    """Figures over windows for each weighting [B, M]: name -> [B], nan for a draw of one class only."""
    use = label >= 0
    if not use.any():
        return {}
    y, s = label[use] == 1, np.asarray(score, np.float64)[use]
    finite = np.isfinite(s).all()
    raised = np.asarray(alert)[use]
    cells = np.stack([raised & y, raised & ~y, ~raised & y, ~raised & ~y], axis=1)
    parts = []
    for first in range(0, len(weights), chunk):
        w = weights[first : first + chunk, use].astype(np.float64)
        part = metrics.weighted_ranking(y, s, w) if finite else dict.fromkeys(RANKING, np.full(len(w), np.nan))
        both = ((w @ y) > 0) & ((w @ ~y) > 0)  # the same draws for every metric
        part |= {k: np.where(both, v, np.nan) for k, v in metrics.alert_rates(w @ cells).items()}
        parts.append(part)
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]} if parts else {}


def draw_events(delays: dict[int, float | None], ranks: dict[int, int | None], weights: np.ndarray) -> dict:
    """Figures over fault events for each weighting of the events: name -> [B], nan where nothing was drawn.

    Args:
        delays: fault -> seconds, None where it was never alerted; `ranks`: fault -> rank of the culprit, or {}.
        weights: [B, number of faults], in the order of `delays`.
    """
    if not delays:
        return {}
    found = np.array([d is not None for d in delays.values()])
    seconds = np.array([d for d in delays.values() if d is not None])
    drawn = weights[:, found].astype(int)
    median = [np.median(np.repeat(seconds, n)) if n.any() else np.nan for n in drawn]
    with np.errstate(divide="ignore", invalid="ignore"):
        total = weights.sum(1)
        out = {"event_recall": weights @ found / total, "delay_seconds_median": np.array(median)}
        if ranks:
            rank = np.array([np.inf if ranks[f] is None else ranks[f] for f in delays])
            out |= {name: weights @ (rank <= k) / total for name, k in HIT_RATES.items()}
    return out


def interval(values: np.ndarray) -> list[float] | None:
    """[low, high] that holds 95% of the finite values; None without any."""
    values = values[np.isfinite(values)]
    return [float(q) for q in np.quantile(values, [0.025, 0.975])] if len(values) else None


def intervals(draws: dict[str, np.ndarray]) -> dict[str, list[float] | None]:
    """95% intervals of draws: figure -> [low, high], None where no draw gives the figure."""
    return {k: interval(v) for k, v in draws.items()}


def paired_difference(first: dict, first_draws: dict, second: dict, second_draws: dict) -> dict[str, dict]:
    """`first` minus `second`: figure -> {'difference', 'interval_95'}, for figures that both have.

    Args: figures of two detectors on the same windows, and their draws of the same blocks under the same seed.
    """
    out = {}
    for k in FIGURES:
        if first.get(k) is not None and second.get(k) is not None:
            drawn = k in first_draws and k in second_draws
            both = interval(first_draws[k] - second_draws[k]) if drawn else None
            out[k] = {"difference": first[k] - second[k], "interval_95": both}
    return out
