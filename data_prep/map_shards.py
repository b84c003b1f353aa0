"""Maps over shards of time, and what their partial statistics add up to.

Each function of a shard reads the observations of its own stretch of time and can run in any process; a segment is the
shard of everything that follows fitting. Segments that calibrate take turns to be left out of what is fitted for them.
"""

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import polars as pl

from data_prep import event_graph, padding, scaling, signals, spilled, split, templates, vocabulary
from data_prep.errors import InputError
from data_prep.executors import replacing
from data_prep.observations import SCHEMAS, TIME
from ssad_jax.prepared import SIGNAL_DIM

NS = split.NS
EVERYTHING = -1  # the turn of segments that are not calibrated on
TURNS = 20
TEMPLATES = "templates.parquet"
_TEMPLATES = {"masked": pl.String, "template": pl.Int32}
PADDED = ("senders", "receivers", "edge_kind", "n_edge")  # what `padding.pad_edges` returns
IDS = ("body", "service_name", "trace_id", "span_id", "parent_span_id")  # texts that no signal is made of
# The tables of a prepared dataset.
TABLES = {
    "logs": {"time_unix_nano": pl.Int64, "service_name": pl.String, "unit": pl.String, "alert": pl.Boolean,
             "body": pl.String, "template": pl.Int32, "node": pl.Int32},
} | {
    name: {"time_unix_nano" if column == TIME else column: dtype for column, dtype in SCHEMAS[name].items()}
    for name in ("spans", "calls", "metrics", "events")
}  # fmt: skip
_ONE_SEGMENT = (
    "one segment holds all windows that can be fitted on; bring more normal time, shorten data.segment_seconds or set "
    "data.calibration_folds=0"
)


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
        frame = spilled.scan(shards, name, first, end).drop(IDS, strict=False)
        out[name] = _with_templates(frame.collect(), shards) if name == "logs" else frame.collect()
    return out


def _with_templates(logs: pl.DataFrame, shards: Path) -> pl.DataFrame:
    """`logs` with the template number of each masked body in the body's place."""
    known = pl.read_parquet(shards / TEMPLATES)
    number = logs["masked"].replace_strict(
        known["masked"], known["template"], default=templates.UNSEEN, return_dtype=pl.Int32
    )
    return logs.drop("masked").with_columns(number.alias("template"))


def distinct_bodies(shards: Path, interval) -> list[str]:
    """The distinct masked log bodies of an interval (segment, start, end)."""
    _, start, end = interval
    return spilled.scan(shards, "logs", start, end).select("masked").unique().collect()["masked"].drop_nulls().to_list()


def number_templates(shards: Path, bodies: pl.Series, fitted: templates.Templates) -> None:
    """Writes the template number of each of the distinct masked `bodies`, for all that read the shards."""
    bodies = bodies.drop_nulls()
    frame = pl.DataFrame({"masked": bodies, "template": fitted.assign(bodies)}, schema=_TEMPLATES)
    frame.write_parquet(shards / TEMPLATES)


def count_shard(shards: Path, interval):
    _, start, end = interval
    obs = _read(shards, start, end)
    return vocabulary.count(vocabulary.within(obs, start, end))


def tick_shard(shards: Path, v: vocabulary.Vocabulary, job: SegmentJob):
    """Writes the raw ticks of a segment; returns moments and coincidences over its fit time, and that time's ticks."""
    obs = _read(shards, job.start, job.start + job.num_ticks * job.tick_ns)
    ticks = signals.per_tick(obs, v, job.start, job.num_ticks, job.tick_ns)
    with replacing(shards / f"ticks-{job.number}.npz") as path:
        np.savez(path, **ticks)
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
    """Fitted on the moments of all segments (EVERYTHING), and on those without each turn's segments.

    `moments`: of each segment in order, None where it is not fitted on; they are added up as they come.
    """
    sums = dict.fromkeys([EVERYTHING, *range(turn.max() + 1)])
    for own, part in zip(turn.tolist(), moments, strict=True):
        for t, total in sums.items():
            if part is not None and (t == EVERYTHING or t != own):
                sums[t] = part if total is None else total + part
    if None in sums.values():
        raise InputError(_ONE_SEGMENT)
    everything = scaling.fit(sums.pop(EVERYTHING), v, data.ridge)
    return {EVERYTHING: everything} | {
        t: scaling.fit(total, v, data.ridge, everything.mean) for t, total in sums.items()
    }


def others(parts: list, turn: np.ndarray, left_out: int) -> list:
    """The parts (one for each of `turn`) of other turns. Raises InputError where there are none."""
    others = [part for part, t in zip(parts, turn.tolist(), strict=True) if t != left_out]
    if not others:
        raise InputError(_ONE_SEGMENT)
    return others


@dataclasses.dataclass(frozen=True)
class Transform:
    """Raw ticks of a segment -> its windows' attributes, scaled ticks and active edges (all written).

    Returns the most active edges of a window.
    """

    v: vocabulary.Vocabulary
    statistics: scaling.Statistics
    edges: event_graph.Edges
    budget: int
    length: int
    shards: Path

    def __call__(self, job: SegmentJob) -> int:
        shards = self.shards
        with np.load(shards / f"ticks-{job.number}.npz") as file:
            ticks = dict(file)
        windows = signals.aggregate(ticks, self.length, job.offsets)
        signal, context = scaling.scale(windows, self.v, self.statistics)
        single = signals.aggregate(ticks, 1, np.arange(job.num_ticks))
        alone, expected = scaling.scale(single, self.v, self.statistics, share=1 / self.length)
        scaled = event_graph.node_attributes(alone, expected, self.budget)[..., -SIGNAL_DIM:].astype(np.float16)
        active = event_graph.active_edges(self.edges, windows)
        for name, array in (
            ("nodes", event_graph.node_attributes(signal, context, self.budget)),
            ("scaled", scaled),
            ("active", active),
        ):
            with replacing(shards / f"{name}-{job.number}.npy") as path:
                np.save(path, array)
        return int(active.sum(1).max())


def name_nodes(shards: Path, cell: Path, keys: pl.DataFrame) -> int:
    """Writes the log lines of a cell with their templates and nodes; returns how many have no template of fit time.

    Args: keys: unit, template and node number of every log event, the last of them that of unknown units.
    """
    logs = _with_templates(pl.read_parquet(cell), shards).join(
        keys, on=["unit", "template"], how="left", maintain_order="left"
    )
    other = keys.filter(pl.col("template") < 0).select("unit", pl.col("node").alias("other"))
    logs = logs.join(other, on="unit", how="left", maintain_order="left")
    logs = logs.with_columns(pl.coalesce("node", "other").fill_null(keys["node"][-1]))  # as in signals.per_tick
    (shards / "named_logs").mkdir(exist_ok=True)
    with replacing(shards / "named_logs" / cell.name) as path:
        logs.rename({TIME: "time_unix_nano"}).select(list(TABLES["logs"])).write_parquet(path, compression="lz4")
    return int((logs["template"] == templates.UNSEEN).sum())


def gather(shards: Path, jobs, path: Path, edges: event_graph.Edges, edge_slots: int, padding_node: int) -> None:
    """The segments' arrays as one: in `windows/` attributes and padded edges, in `ticks/` the scaled ticks.

    Written through, a segment at a time, so that they never lie in memory.
    """
    ticks, windows = path / "ticks", path / "windows"
    for directory in (ticks, windows):
        directory.mkdir()
    num_windows, num_ticks = sum(len(job.offsets) for job in jobs), sum(job.num_ticks for job in jobs)
    with contextlib.ExitStack() as stack:
        files = {
            name: stack.enter_context(_Rows(directory / f"{name}.npy", rows))
            for directory, rows, names in (
                (windows, num_windows, ("nodes", *PADDED)),
                (ticks, num_ticks, ("signals", "segment", "start_unix_nano")),
            )
            for name in names
        }
        for job in jobs:
            read = {name: np.load(shards / f"{name}-{job.number}.npy") for name in ("nodes", "scaled", "active")}
            padded = padding.pad_edges(edges.pairs, edges.kind, read["active"], edge_slots, padding_node)
            files["nodes"].write(read["nodes"])
            for name, array in zip(PADDED, padded, strict=True):
                files[name].write(array)
            files["signals"].write(read["scaled"])
            files["segment"].write(np.full(job.num_ticks, job.number, np.int32))
            files["start_unix_nano"].write(job.start + np.arange(job.num_ticks, dtype=np.int64) * job.tick_ns)


class _Rows:
    """An array file of so many rows that is written from its first row to its last."""

    def __init__(self, path: Path, rows: int):
        self._file, self._rows = open(path, "wb"), rows

    def write(self, array: np.ndarray) -> None:
        if not self._file.tell():
            header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False,
                      "shape": (self._rows, *array.shape[1:])}  # fmt: skip
            np.lib.format.write_array_header_1_0(self._file, header)
        self._file.write(np.ascontiguousarray(array).data)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()
