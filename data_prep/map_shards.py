"""Maps over shards of time, and what their partial statistics add up to.

Each function of a shard reads the observations of its own stretch of time and can run in any process; a segment is the
shard of everything that follows fitting. Segments that calibrate take turns to be left out of what is fitted for them.
"""

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl

from data_prep import event_graph, scaling, signals, split, vocabulary
from data_prep.errors import InputError
from data_prep.observations import TIME
from ssad_jax.prepared import SIGNAL_DIM

NS = split.NS
EVERYTHING = -1  # the turn of segments that are not calibrated on
TURNS = 20


@dataclasses.dataclass(frozen=True)
class SegmentJob:
    """One segment: its ticks, its windows, and which of them are fitted on."""

    number: int
    start: int
    num_ticks: int
    tick_ns: int
    offsets: np.ndarray  # of all its windows
    fit_offsets: np.ndarray
    length: int


def segment_jobs(segments, windows, tick_ns, length) -> list[SegmentJob]:
    jobs = []
    for g in range(len(segments)):
        rows = slice(*np.searchsorted(windows.segment, [g, g + 1]))
        offsets = windows.offset[rows]
        fit = offsets[windows.part[rows] == split.FIT]
        ticks = int((segments.end[g] - segments.start[g]) // tick_ns)
        jobs.append(SegmentJob(g, int(segments.start[g]), ticks, tick_ns, offsets, fit, length))
    return jobs


def _read(shards: Path, start: int, end: int) -> dict[str, pl.DataFrame]:
    """Observations of [start, end); metrics begin earlier, for readings that are carried forward."""
    out = {}
    for name in ("spans", "calls", "logs", "metrics", "events"):
        first = start - int(signals.METRIC_MAX_AGE_SECONDS * NS) if name == "metrics" else start
        frame = pl.scan_parquet(shards / f"{name}.parquet")
        out[name] = frame.filter((pl.col(TIME) >= first) & (pl.col(TIME) < end)).collect()
    return out


def count_shard(shards: Path, interval):
    _, start, end = interval
    obs = _read(shards, start, end)
    return vocabulary.count(vocabulary.within(obs, start, end))


def tick_shard(shards: Path, v: vocabulary.Vocabulary, job: SegmentJob):
    """Writes the raw ticks of a segment; returns moments and coincidences over its fit time, and that time's ticks."""
    obs = _read(shards, job.start, job.start + job.num_ticks * job.tick_ns)
    ticks = signals.per_tick(obs, v, job.start, job.num_ticks, job.tick_ns)
    np.savez(shards / f"ticks-{job.number}.npz", **ticks)
    if not len(job.fit_offsets):
        return None, None, 0
    fit_ticks = np.zeros(job.num_ticks, bool)
    for offset in job.fit_offsets:
        fit_ticks[offset : offset + job.length] = True
    together, count = event_graph.coincidences(ticks["logs"][fit_ticks])
    return scaling.moments(signals.aggregate(ticks, job.length, job.fit_offsets), v), together, count


def turns(group: np.ndarray, folds: int) -> np.ndarray:
    """[segments] which of at most TURNS turns a segment takes to be left out of usual latencies and expectations.

    Where groups take turns in calibrating (`folds` of them), a window's own expectations come from other segments, as
    those of a test window do. These are cheap to fit, unlike networks: more turns than groups leave less out at a time.
    -1: fitted on as a whole, or not at all.
    """
    turn = np.full(len(group), EVERYTHING)
    own = np.flatnonzero(group >= 0) if folds else []
    turn[own] = np.arange(len(own)) % TURNS
    return turn


def fit_statistics(moments, turn: np.ndarray, v: vocabulary.Vocabulary, data) -> dict[int, scaling.Statistics]:
    """Fitted on the moments of all segments (EVERYTHING), and on those without each turn's segments."""
    fitted = [m is not None for m in moments]
    moments, own = [m for m in moments if m is not None], turn[fitted]

    def fit(some, mean=None):
        return scaling.fit(sum(some[1:], some[0]), v, data.ridge, mean)

    everything = fit(moments)
    return {EVERYTHING: everything} | {
        t: fit(others(moments, own, t), everything.mean) for t in range(turn.max() + 1)
    }


def others(parts: list, turn: np.ndarray, left_out: int) -> list:
    """The parts (one for each of `turn`) of other turns.

    Raises:
        InputError: there are none.
    """
    others = [part for part, t in zip(parts, turn.tolist(), strict=True) if t != left_out]
    if not others:
        raise InputError(
            "one segment holds all windows that can be fitted on; bring more normal time, shorten data.segment_seconds "
            "or set data.calibration_folds=0"
        )
    return others


@dataclasses.dataclass(frozen=True)
class Transform:
    """Raw ticks of a segment -> its windows' attributes and its scaled ticks (both written), and its active edges."""

    v: vocabulary.Vocabulary
    statistics: dict[int, scaling.Statistics]  # by turn
    edges: event_graph.Edges
    budget: int
    length: int
    shards: str

    def __call__(self, job: SegmentJob, turn: int) -> np.ndarray:
        shards, statistics = Path(self.shards), self.statistics[turn]
        with np.load(shards / f"ticks-{job.number}.npz") as file:
            ticks = dict(file)
        windows = signals.aggregate(ticks, self.length, job.offsets)
        signal, context = scaling.scale(windows, self.v, statistics)
        np.save(shards / f"nodes-{job.number}.npy", event_graph.node_attributes(signal, context, self.budget))
        single = signals.aggregate(ticks, 1, np.arange(job.num_ticks))
        signal, context = scaling.scale(single, self.v, statistics, share=1 / self.length)
        scaled = event_graph.node_attributes(signal, context, self.budget)[..., -SIGNAL_DIM:].astype(np.float16)
        np.save(shards / f"scaled-{job.number}.npy", scaled)
        return event_graph.active_edges(self.edges, windows)


def gather(shards: Path, jobs, path: Path):
    """The segments' arrays as one: windows' attributes (memory-mapped) and, in `ticks/`, the scaled ticks."""
    ticks_dir = path / "ticks"
    ticks_dir.mkdir()
    sizes = [(len(job.offsets), job.num_ticks) for job in jobs]
    out = []
    for name, total, target in (
        ("nodes", sum(a for a, _ in sizes), shards / "nodes.npy"),
        ("scaled", sum(b for _, b in sizes), ticks_dir / "signals.npy"),
    ):
        first = np.load(shards / f"{name}-{jobs[0].number}.npy", mmap_mode="r")
        whole = np.lib.format.open_memmap(target, mode="w+", dtype=first.dtype, shape=(total, *first.shape[1:]))
        row = 0
        for job in jobs:
            part = np.load(shards / f"{name}-{job.number}.npy", mmap_mode="r")
            whole[row : row + len(part)] = part
            row += len(part)
        whole.flush()
        out.append(whole)
    np.save(ticks_dir / "segment.npy", np.repeat([job.number for job in jobs], [b for _, b in sizes]).astype(np.int32))
    starts = [job.start + np.arange(job.num_ticks, dtype=np.int64) * job.tick_ns for job in jobs]
    np.save(ticks_dir / "start_unix_nano.npy", np.concatenate(starts))
    return out[0], len(out[1])
