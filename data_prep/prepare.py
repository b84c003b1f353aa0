"""The driver: raw telemetry -> telemetry tables -> segments -> templates -> signals -> event graphs -> dataset.

`fit` is a map over shards of time whose partial statistics add up; `transform` is a map over segments. Both run through
a `concurrent.futures.Executor`, and the result is the same, byte for byte, for any number of workers.
"""

import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import shutil
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
import polars as pl
from absl import logging

from data_prep import (
    event_graph,
    injection,
    map_shards,
    observations,
    padding,
    scaling,
    settings,
    sources,
    split,
    templates,
    vocabulary,
)
from data_prep.errors import InputError
from data_prep.fingerprint import label_fingerprints, raw_fingerprint
from data_prep.observations import TIME
from data_prep.simulate import simulate
from data_prep.tables import Tables
from ssad_jax.prepared import Prepared, Windows, Writer

NS = split.NS


def prepare(config) -> None:
    """Turn `config.data.raw_dir` into the prepared dataset `config.data.prepared_dir`.

    Raises:
        InputError: the configuration or the raw telemetry cannot be used; the message says what to mend.
    """
    settings.check(config)
    data, clock = config.data, _Clock()
    with Writer(data.prepared_dir) as writer, _executor(data.num_workers) as executor:
        if not data.raw_dir and config.simulate.hours > 0:
            with clock("simulate"):
                data = _simulated(config, writer.path / "raw")
        with clock("read"):
            tables = sources.read(data, executor)
            for warning in tables.warnings:
                logging.warning(warning)
        prepared = prepare_tables(tables, config, writer.path, executor, clock)
        shutil.rmtree(writer.path / "raw", ignore_errors=True)
        with clock("write"):
            writer.finish(prepared, clock.seconds)
    counts = prepared.manifest["counts"]
    logging.info("prepared %s: %s in %.1f s", data.prepared_dir, counts, sum(clock.seconds.values()))


def _simulated(config, directory: Path):
    """Simulate raw telemetry into `directory`; returns the data settings that read it."""
    options = config.simulate
    simulate(
        directory, hours=options.hours, seed=options.seed, fault_kinds=tuple(options.fault_kinds),
        faults_per_hour=options.faults_per_hour,
    )  # fmt: skip
    data = config.data.copy_and_resolve_references()
    with data.unlocked():
        data.raw_dir = str(directory)
    return data


def prepare_tables(tables: Tables, config, path: Path, executor: Executor, clock) -> Prepared:
    """Everything after reading; writes tables and per-tick signals into `path`, returns the arrays."""
    data = config.data
    frames = tables.frames
    tick_ns = split.tick_ns(data)
    faults = faults_of(frames.get("faults"))
    with clock("observe"):
        obs = observations.observe(frames, data.node_level, data.metrics, data.metric_baseline_minutes)
        segments = split.make_segments(intervals_of(frames, data), faults, data)
        windows = split.make_windows(segments, faults, data)
        fit_time = split.fit_intervals(windows)
    with clock("templates"):
        logs = obs["logs"]
        seen = (logs.filter((pl.col(TIME) >= a) & (pl.col(TIME) < b))["masked"].unique() for _, a, b in fit_time)
        fitted_templates = templates.Templates(pl.concat(seen).drop_nulls().to_list())
        obs["logs"] = logs.with_columns(template=fitted_templates.assign(logs["masked"])).drop("masked")
    with clock("fit"):
        shards = _write_observations(obs, path / "observations")
        counts = list(executor.map(map_shards.count_shard, itertools.repeat(shards), fit_time))
        v = vocabulary.build(vocabulary.merge(counts), obs["units"], frames.get("topology"), data)
        turn = map_shards.turns(segments.group, data.calibration_folds)
        counted = turn[[segment for segment, _, _ in fit_time]]
        usual = {
            t: vocabulary.with_latencies_of(v, vocabulary.merge(map_shards.others(counts, counted, t)))
            for t in range(turn.max() + 1)
        }
        jobs = map_shards.segment_jobs(segments, windows, tick_ns, data.window_length)
        usual = [usual.get(t, v) for t in turn.tolist()]
        parts = list(executor.map(map_shards.tick_shard, itertools.repeat(shards), usual, jobs))
        statistics = map_shards.fit_statistics([m for m, _, _ in parts], turn, v, data)
        nodes = event_graph.make_nodes(v, fitted_templates.texts)
        together = sum(part[1] for part in parts if part[1] is not None)
        num_ticks = sum(part[2] for part in parts)
        pairs = event_graph.cooccurring(together, num_ticks, np.array([u for u, _ in v.logs]))
        edges = event_graph.make_edges(nodes, v, pairs, _topology(frames.get("topology"), v))
    with clock("transform"):
        budget = padding.node_budget(len(nodes.names))
        system = event_graph.make_system(nodes, v, budget, data.mask_units)
        transform = map_shards.Transform(v, statistics, edges, budget, data.window_length, str(shards))
        active = np.concatenate(list(executor.map(transform, jobs, turn.tolist())))
        edge_slots = padding.edge_budget(2 * int(active.sum(1).max()))
        padded = padding.pad_edges(edges.pairs, edges.kind, active, edge_slots, budget - 1)
        attributes, ticks = map_shards.gather(shards, jobs, path)
    with clock("write"):
        _write_tables(obs, v, nodes, path / "tables")
        for file in shards.iterdir():
            file.unlink()
        shards.rmdir()
    parts = [("fit", "calibration", "test")[p] for p in segments.part]
    prepared_windows = Windows(
        nodes=attributes, **dict(zip(("senders", "receivers", "edge_kind", "n_edge"), padded, strict=True)),
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
        "warnings": list(tables.warnings),
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
            "recordings": int(segments.recording.max()) + 1, "ticks": int(ticks),
            "unseen_templates": int((obs["logs"]["template"] == templates.UNSEEN).sum()),
            "unknown_units": int((~obs["units"]["unit"].is_in(v.units)).sum()),
        },
        "templates": fitted_templates.texts,
        "operations": dict(zip(v.units, v.operations, strict=True)),
        "fitted": _fitted(v, statistics[map_shards.EVERYTHING]),
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


@contextlib.contextmanager
def _executor(num_workers: int):
    """A process pool, or this process itself for one worker. Another engine is another Executor."""
    num_workers = num_workers or os.cpu_count() or 1
    if num_workers == 1:
        yield _Serial()
        return
    # One polars thread in each worker: the workers are the parallelism.
    before = os.environ.get("POLARS_MAX_THREADS")
    os.environ["POLARS_MAX_THREADS"] = "1"
    try:
        with ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn")) as pool:
            yield pool
    finally:
        os.environ.pop("POLARS_MAX_THREADS") if before is None else os.environ.update(POLARS_MAX_THREADS=before)


class _Serial(Executor):
    def submit(self, fn, /, *args, **kwargs):
        raise RuntimeError("only map is used")

    def map(self, fn, *iterables, timeout=None, chunksize=1):
        return map(fn, *iterables)




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
    first, last = [], []
    for names in (("spans", "logs"), ("metrics",)):
        for name in names:
            frame = frames.get(name)
            if frame is not None and frame.height:
                begin = frame["start_time_unix_nano" if name == "spans" else "time_unix_nano"]
                end = frame["end_time_unix_nano" if name == "spans" else "time_unix_nano"]
                first.append(begin.min())
                last.append(end.max())
        if first:
            break
    if not first:
        raise InputError(f"{data.raw_dir} holds no span, log line or metric: there is nothing to window")
    gaps = frames.get("gaps")
    rows = [] if gaps is None else gaps.select(split.START, split.END).rows()
    return split.observed_intervals(min(first), max(last), rows)


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


def _write_observations(obs, directory: Path) -> Path:
    directory.mkdir()
    for name in ("spans", "calls", "logs", "metrics", "events"):
        frame = obs[name].drop("body", "service_name", "trace_id", strict=False).sort(TIME, maintain_order=True)
        frame.write_parquet(directory / f"{name}.parquet", compression="zstd", row_group_size=50_000)
    return directory


def _write_tables(obs, v: vocabulary.Vocabulary, nodes, directory: Path) -> None:
    """Templated logs, spans and metrics for explanations and other methods; `node` is the log event's node number."""
    directory.mkdir()
    first = nodes.first(event_graph.LOG)
    keys = pl.DataFrame(
        [(v.units[u], t, first + i) for i, (u, t) in enumerate(v.logs)],
        schema={"unit": pl.String, "template": pl.Int32, "node": pl.Int32}, orient="row",
    )  # fmt: skip
    other = keys.filter(pl.col("template") < 0).select("unit", pl.col("node").alias("other"))
    logs = obs["logs"].join(keys, on=["unit", "template"], how="left", maintain_order="left")
    logs = logs.join(other, on="unit", how="left", maintain_order="left")
    logs = logs.select(
        pl.col(TIME).alias("time_unix_nano"), "service_name", "unit", "alert", "body", "template",
        node=pl.coalesce("node", "other").fill_null(first + len(v.logs) - 1),  # `<unknown>`, as in signals.per_tick
    )  # fmt: skip
    logs.write_parquet(directory / "logs.parquet", compression="zstd")
    for name in ("spans", "calls", "metrics", "events"):
        frame = obs[name].rename({TIME: "time_unix_nano"})
        frame.write_parquet(directory / f"{name}.parquet", compression="zstd")


def _fitted(v: vocabulary.Vocabulary, statistics: scaling.Statistics) -> dict:
    """The statistics themselves, for the record: small enough for the manifest."""
    return {
        "mean_counts": {name: np.round(mean, 6).tolist() for name, mean in statistics.mean.items()},
        "metric_scale": np.round(v.metric_scale, 6).tolist(),
        "self_time": v.self_time.to_dicts(), "duration": v.duration.to_dicts(), "gap": v.gap.to_dicts(),
        "ridge": [np.round(c, 6).tolist() for c in statistics.coefficients],
    }  # fmt: skip
