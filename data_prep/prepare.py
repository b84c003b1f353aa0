"""The driver: raw telemetry -> telemetry tables -> segments -> templates -> signals -> event graphs -> dataset.

Rows are spilled as they are read and observed shard by shard (`spilled`); `fit` is a map over shards of time whose
partial statistics add up; `transform` is a map over segments. All run through a `concurrent.futures.Executor`, in
memory that does not grow with the recorded time but for some hundred bytes a window, and the result is the same, byte
for byte, for any number of workers.
"""

import contextlib
import dataclasses
import datetime
import itertools
import operator
import shutil
import time
from concurrent.futures import Executor
from importlib.metadata import version
from pathlib import Path

import numpy as np
import polars as pl
from absl import logging

from data_prep import (
    clock_skew,
    event_graph,
    executors,
    fitted,
    injection,
    map_shards,
    padding,
    row_groups,
    scaling,
    settings,
    sources,
    spilled,
    split,
    templates,
    vocabulary,
)
from data_prep.errors import InputError
from data_prep.executors import ordered
from data_prep.fingerprint import label_fingerprints, raw_fingerprint
from data_prep.observations import TIME
from data_prep.simulate import simulate
from data_prep.tables import TELEMETRY, extent_of, merged
from ssad_jax.prepared import Prepared, Windows, Writer

NS = split.NS
_CHANGED = (
    "files under raw_dir changed while they were read: what was added, renamed or removed meanwhile may be missing; "
    "prepare from a copy, or from files that nothing writes to any more"
)


def prepare(config, spilled_rows=None) -> None:
    """Turn `config.data.raw_dir` into the prepared dataset `config.data.prepared_dir`.

    `spilled_rows`: where raw files have been read already (`shard_jobs`): a function as `SpilledTables` takes it.

    Raises:
        InputError: the configuration or the raw telemetry cannot be used; the message says what to mend.
    """
    settings.check(config)
    data, clock = config.data, _Clock()
    with Writer(data.prepared_dir) as writer, _executor(data) as executor:
        if not data.raw_dir and config.simulate.hours > 0:
            with clock("simulate"):
                _simulate(config.simulate, writer.path / "raw")
            data = reading(data, writer.path / "raw")
        elif data.raw_dir:
            data = reading(data, data.raw_dir)
        shards, scratch = writer.path / "observations", writer.path / "scratch"
        with clock("read"):
            options = spilled.Options(data.node_level, tuple(data.metrics), data.metric_baseline_minutes)
            there = Path(data.raw_dir).is_dir()
            num = spilled.num_partitions(data.raw_dir) if there else 1
            before = raw_fingerprint(data.raw_dir) if there and config.data.raw_dir else None
            found = spilled.SpilledTables(
                shards, scratch, executor, options, num, spilled_rows, data.correct_clock_skew
            )
            sources.read(data, executor, found)
            if before and before != raw_fingerprint(data.raw_dir):
                found.warnings.append(_CHANGED)
            shutil.rmtree(scratch, ignore_errors=True)
        prepared = prepare_tables(found, config, writer.path, shards, executor, clock)
        shutil.rmtree(writer.path / "raw", ignore_errors=True)
        with clock("write"):
            writer.finish(prepared, clock.seconds)
    counts = prepared.manifest["counts"]
    logging.info("prepared %s: %s in %.1f s", data.prepared_dir, counts, sum(clock.seconds.values()))


def _simulate(options, directory: Path) -> None:
    simulate(
        directory, hours=options.hours, seed=options.seed, fault_kinds=tuple(options.fault_kinds),
        faults_per_hour=options.faults_per_hour,
    )  # fmt: skip


def reading(data, raw_dir: Path | str):
    """The data settings with the absolute place of the raw telemetry: workers need not have been started here."""
    data = data.copy_and_resolve_references()
    with data.unlocked():
        data.raw_dir = str(Path(raw_dir).absolute())
    return data


def prepare_tables(
    tables: spilled.SpilledTables, config, path: Path, shards: Path, executor: Executor, clock
) -> Prepared:
    """Everything after reading; writes tables, per-tick signals and large arrays into `path`, returns the others.

    `shards`: where the observations of `tables` lie; removed at the end.
    """
    data = config.data
    frames, units = tables.frames, tables.units()
    tick_ns = split.tick_ns(data)
    faults = faults_of(frames.get("faults"))
    shards.mkdir(exist_ok=True)
    with clock("split"):
        intervals = intervals_between(tables, frames.get("gaps"), data)
        silent = _silent(spilled.silence(shards, intervals))
        for warning in silent:  # before the work that it tells to be in vain
            logging.warning(warning)
        segments = split.make_segments(intervals, faults, data)
        windows = split.make_windows(segments, faults, data)
        fit_time = split.fit_intervals(windows)
    with clock("templates"):
        seen = set()
        seen.update(*ordered(executor, map_shards.distinct_bodies, itertools.repeat(shards), fit_time))
        fitted_templates = templates.Templates(seen)
        map_shards.number_templates(shards, tables.bodies(), fitted_templates)
    with clock("fit"):
        counts = list(ordered(executor, map_shards.count_shard, itertools.repeat(shards), fit_time))
        v = vocabulary.build(vocabulary.merge(counts), units, frames.get("topology"), data)
        turn = map_shards.turns(segments.group, data.calibration_folds)
        counted = turn[[segment for segment, _, _ in fit_time]]
        usual = {
            t: vocabulary.with_latencies_of(v, vocabulary.merge(map_shards.others(counts, counted, t)))
            for t in range(turn.max() + 1)
        }
        jobs = map_shards.segment_jobs(segments, windows, tick_ns, data.window_length)
        usual = [usual.get(t, v) for t in turn.tolist()]
        coincidences = _Sum()
        parts = ordered(executor, map_shards.tick_shard, itertools.repeat(shards), usual, jobs)
        statistics = map_shards.fit_statistics(map(coincidences.pass_on, parts), turn, v, data)
        nodes = event_graph.make_nodes(v, fitted_templates.texts)
        log_units = np.array([u for u, _ in v.logs])
        pairs = event_graph.cooccurring(coincidences.together, coincidences.num_ticks, log_units)
        edges = event_graph.make_edges(nodes, v, pairs, _topology(frames.get("topology"), v))
        budget = padding.node_budget(len(nodes.names))
        everything = statistics[map_shards.EVERYTHING]
        offsets = clock_skew.corrected_offsets(tables.clock_skew)
        kept = fitted.Fitted(v, everything, edges, sorted(seen), budget, settings.of_preparation(data), offsets)
        fitted.save(kept, path / fitted.DIRECTORY)
    with clock("transform"):
        system = event_graph.make_system(nodes, v, budget, data.mask_units, tick_ns)
        length = data.window_length
        transforms = {t: map_shards.Transform(v, s, edges, budget, length, shards) for t, s in statistics.items()}
        most = max(ordered(executor, operator.call, [transforms[t] for t in turn.tolist()], jobs))
        edge_slots = padding.edge_budget(2 * most)
        map_shards.gather(shards, jobs, path, edges, edge_slots, budget - 1)
    warnings = [*tables.warnings, *_unknown(units, v)]
    if "metrics" in tables.accounts and not v.metrics:
        warnings.append("no metric is used: config.data.metrics fits the name of none that has readings in fit time")
    for warning in warnings:
        logging.warning(warning)
    warnings += silent
    with clock("write"):
        unseen = _write_tables(shards, v, nodes, path / "tables", executor)
        shutil.rmtree(shards)
    parts = [("fit", "calibration", "test")[p] for p in segments.part]
    written = {name: np.load(path / "windows" / f"{name}.npy", mmap_mode="r") for name in ("nodes", *map_shards.PADDED)}
    prepared_windows = Windows(
        **written,
        start_unix_nano=windows.start, end_unix_nano=windows.end,
        start_tick=_global_ticks(segments, windows, tick_ns, data.window_length), segment=windows.segment,
        part=windows.part, group=np.where(windows.part >= 0, segments.group[windows.segment], -1).astype(np.int8),
        label=windows.label, fault=windows.fault,
    )  # fmt: skip
    calibration_runs = split.runs(windows, split.FIT if data.calibration_folds else split.CALIBRATION, data.stride)
    manifest = {
        "source": data.source,
        "simulated": {k: settings.plain(v) for k, v in config.simulate.items()} if not data.raw_dir else None,
        "injected": injection.settings_of(data.raw_dir),
        "raw_files": raw_fingerprint(data.raw_dir) if data.raw_dir else None,
        "label_files": label_fingerprints(data) if data.raw_dir else None,
        "data_config": settings.of_preparation(data),
        "tick_seconds": data.tick_seconds, "window_length": data.window_length, "stride": data.stride,
        "rows": {name: dataclasses.asdict(account) for name, account in sorted(tables.accounts.items())},
        "warnings": warnings,
        "clock_skew": tables.clock_skew,
        "segments": [
            {"start_unix_nano": int(a), "end_unix_nano": int(b), "recording": int(r), "part": part, "group": int(group)}
            for a, b, r, part, group in zip(
                segments.start, segments.end, segments.recording, parts, segments.group, strict=True
            )
        ],
        "counts": {
            "nodes": len(nodes.names), "node_budget": budget,
            "candidate_edges": len(edges.kind), "edge_budget": edge_slots,
            "windows": len(windows.part), "fit_windows": int((windows.part == split.FIT).sum()),
            "calibration_windows": int((calibration_runs >= 0).sum()),
            "test_windows": int((windows.part == split.TEST).sum()), "faults": faults.height,
            "recordings": int(segments.recording.max()) + 1, "ticks": sum(job.num_ticks for job in jobs),
            "unseen_templates": unseen, "unknown_units": int((~units["unit"].is_in(v.units)).sum()),
        },
        "templates": fitted_templates.texts,
        "operations": dict(zip(v.units, v.operations, strict=True)),
        "fitted": _fitted(v, everything),
        "versions": {name: version(name) for name in ("numpy", "polars", "drain3-improved")},
    }  # fmt: skip
    return Prepared(
        system, prepared_windows,
        split.training_sequences(windows, data.stride, data.train_stride, data.sequence_length),
        calibration_runs, split.runs(windows, split.TEST, data.stride),
        faults, manifest, None,
    )  # fmt: skip


class _Clock:
    """Seconds by stage."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, stage):
        begin = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - begin
        logging.info("%s: %.1f s", stage, self.seconds[stage])


class _Sum:
    """Coincidences of log events and fit ticks, added up while the moments beside them are passed on."""

    together, num_ticks = 0, 0

    def pass_on(self, part):
        moments, together, ticks = part
        if together is not None:
            self.together, self.num_ticks = self.together + together, self.num_ticks + ticks
        return moments


_executor = executors.executor  # another engine is another Executor


def faults_of(frame: pl.DataFrame | None) -> pl.DataFrame:
    schema = {split.START: pl.Int64, split.END: pl.Int64, "service_name": pl.String, "fault_type": pl.String,
              split.UNCERTAIN: pl.Int64}  # fmt: skip
    if frame is None:
        return pl.DataFrame(schema=schema)
    # An onset is never uncertain from after its start on.
    frame = frame.with_columns(pl.min_horizontal(split.UNCERTAIN, split.START).alias(split.UNCERTAIN))
    return frame.select(list(schema)).sort(split.START, split.END, "service_name", "fault_type")


def intervals_of(frames, data):
    """Observed intervals: from the first to the last span or log line (else metric), less the gaps."""
    extents = {name: extent_of(frame, name) for name, frame in frames.items() if name in TELEMETRY}
    return _intervals(lambda names: merged(extents.get(name) for name in names), frames.get("gaps"), data)


def intervals_between(tables, gaps, data):
    """As `intervals_of`, of tables that know their extent."""
    return _intervals(tables.extent, gaps, data)


def _intervals(extent, gaps, data):
    observed = extent(("spans", "logs")) or extent(("metrics",))
    if observed is None:
        raise InputError(f"{data.raw_dir} holds no span, log line or metric: there is nothing to window")
    rows = [] if gaps is None else gaps.select(split.START, split.END).rows()
    return split.observed_intervals(*observed, rows)


def _silent(silence: tuple[float, float, tuple[int, int]]) -> list[str]:
    """What is to be said where most of the observed time has no row."""
    silent, hours, (first, last) = silence
    if silent <= hours / 2:
        return []
    begin, end = (datetime.datetime.fromtimestamp(ns // NS, datetime.UTC) for ns in (first, last))
    return [
        f"{silent:,.1f} of {hours:,.1f} hours of observed time have no span, log line or metric, most of all from "
        f"{begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M}, and count as silence: remove rows of a wrong time, or name "
        "what was not recorded in the table gaps or what was in config.data.segments_path"
    ]


def _unknown(units: pl.DataFrame, v: vocabulary.Vocabulary) -> list[str]:
    """What is to be said of units that have no node."""
    names = units.filter(~pl.col("unit").is_in(v.units))["unit"].sort().to_list()
    if not names:
        return []
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return [
        f"{len(names)} of {units.height} services or instances have no node, for they do not occur in fit time (or by "
        f"metrics alone, which config.data.metric_units leaves out): {shown}; their spans and log lines count as "
        f"{vocabulary.UNKNOWN}"
    ]


def _topology(frame, v: vocabulary.Vocabulary):
    """(source, target, relation) of the units that the topology names and the vocabulary has."""
    if frame is None:
        return []
    index = {name: i for i, name in enumerate(v.units)}
    rows = sorted(set(frame.select("source", "target", "relation").iter_rows()))
    return [(index[a], index[b], relation) for a, b, relation in rows if a in index and b in index and a != b]


def _global_ticks(segments, windows, tick_ns, length) -> np.ndarray:
    """Start ticks on one axis: true distances in time, with long silences shortened so that int32 is enough."""
    silence = np.maximum(segments.start[1:] - segments.end[:-1], 0)
    shortened = np.minimum(silence, 10 * length * tick_ns)
    base = np.concatenate([[0], np.cumsum((segments.end - segments.start)[:-1] + shortened)]) // tick_ns
    return (base[windows.segment] + windows.offset).astype(np.int32)


def _write_tables(shards: Path, v: vocabulary.Vocabulary, nodes, directory: Path, executor: Executor) -> int:
    """Templated logs, spans and metrics for explanations and other methods; `node` is the log event's node number.

    Returns how many log lines have a template that fit time does not have.
    """
    directory.mkdir()
    first = nodes.first(event_graph.LOG)
    keys = pl.DataFrame(
        [(v.units[u], t, first + i) for i, (u, t) in enumerate(v.logs)],
        schema={"unit": pl.String, "template": pl.Int32, "node": pl.Int32}, orient="row",
    )  # fmt: skip
    files = spilled.cells(shards, "logs")
    named = ordered(executor, map_shards.name_nodes, itertools.repeat(shards), files, itertools.repeat(keys))
    unseen = sum(named)
    for name, schema in map_shards.TABLES.items():
        files = spilled.cells(shards, f"named_{name}" if name == "logs" else name)
        frame = pl.scan_parquet(files) if files else pl.LazyFrame(schema=schema)
        frame = frame.rename({TIME: "time_unix_nano"}, strict=False).select(list(schema))
        row_groups.write(frame, directory / f"{name}.parquet")
    return unseen


def _fitted(v: vocabulary.Vocabulary, statistics: scaling.Statistics) -> dict:
    """The statistics themselves, for the record: small enough for the manifest."""
    return {
        "mean_counts": {name: np.round(mean, 6).tolist() for name, mean in statistics.mean.items()},
        "metric_scale": np.round(v.metric_scale, 6).tolist(),
        "self_time": v.self_time.to_dicts(), "duration": v.duration.to_dicts(), "gap": v.gap.to_dicts(),
        "ridge": [np.round(c, 6).tolist() for c in statistics.coefficients],
    }  # fmt: skip
