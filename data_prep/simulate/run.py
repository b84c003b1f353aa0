"""`simulate`: runs the cluster for some hours and writes the raw files, all or nothing."""

import functools
import os
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_prep.errors import InputError
from data_prep.simulate.background import Background
from data_prep.simulate.cluster import COMPUTES, HOSTS
from data_prep.simulate.engine import Engine
from data_prep.simulate.faults import KINDS, Fault, Injector, schedule
from data_prep.simulate.flows import FLOWS
from data_prep.simulate.spool import Iterations, LogLines, Traces
from data_prep.simulate.workloads import WORKLOADS, Rally
from data_prep.simulate.writers import (
    Clock,
    log_order,
    write_logs,
    write_metrics,
    write_period,
    write_report,
    write_trace,
)

START = "2019-11-25T15:12:13"  # naive UTC, of the archive's concurrent run


def simulate(directory: str | os.PathLike, hours: float, seed: int = 0, fault_kinds: Sequence[str] = KINDS,
             faults_per_hour: float = 10.0, concurrency: Mapping[str, int] | None = None, day_hours: float = 2.0,
             load: float = 1.0, start: str = START, plan: list[Fault] | None = None) -> dict[str, int]:
    """Simulates the cluster and writes its telemetry to `directory` in the archive's raw layout.

    The first fifth of the time has no faults; `faults_per_hour` counts in the rest. `concurrency` overrides
    Rally's workers by workload (boot 2, image 5, network 1); `load` scales the rate of iterations and
    `day_hours` is the length of the compressed day over which it swings. `plan`: faults to inject instead of those
    that `fault_kinds` and `faults_per_hour` lead to (`faults.schedule`). Same arguments, same bytes.
    Returns counts (logs, metric rows, trace files, spans, iterations, faults). Raises InputError where
    `directory` is not empty, or an argument cannot be used.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError(f"{directory} exists and is not an empty directory; choose another one for the simulation")
    concurrency = dict(concurrency or {})
    for name, workers in concurrency.items():
        if name not in WORKLOADS or workers < 0:
            raise InputError(f"simulate.concurrency: {name}={workers}; give a count for {', '.join(WORKLOADS)}")
    if hours <= 0 or load <= 0 or day_hours <= 0:
        raise InputError("simulate: hours, load and day_hours must be positive")
    seconds = int(hours * 3600)
    plan = schedule(seconds, seed, tuple(fault_kinds), faults_per_hour) if plan is None else plan
    clock, rng = Clock(start), random.Random(f"{seed}/log rows")
    partial = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
    spool = partial / "spool"
    spool.mkdir(parents=True)
    try:
        counts = {"logs": 0, "metrics": 0, "traces": 0, "spans": 0}
        folders = {name: partial / "traces" / workload.directory for name, workload in WORKLOADS.items()}
        for folder in folders.values():
            folder.mkdir(parents=True)

        def write(name: str, trace) -> None:
            if trace.spans:
                write_trace(folders[name], trace, clock)
                counts["traces"] += 1
                counts["spans"] += len(trace.spans)

        logs, traces = LogLines(spool / "logs", log_order(rng, seconds)), Traces(write)
        finished = {name: Iterations(spool / name, functools.partial(traces.finish, name)) for name in WORKLOADS}
        engine, _, injector = run(seconds, seed, plan, concurrency, day_hours, load, (logs, traces, finished))
        traces.close()
        counts["logs"] = write_logs(partial / "logs" / "logs_aggregated_concurrent.csv", logs, clock, rng)
        counts["metrics"] = write_metrics(partial / "metrics", engine, clock, seed)
        for name, workload in WORKLOADS.items():
            write_report(partial / "reports" / f"output_{name}.json", workload, finished[name], injector.done,
                         clock, concurrency.get(name, workload.concurrency), engine.uuid)
            counts[f"iterations_{name}"] = len(finished[name])
        counts["faults"] = len(injector.done)
        write_period(partial / "IMPORTANT_experiment_start_end_data.txt", clock, seconds)
        shutil.rmtree(spool)
        if directory.exists():
            directory.rmdir()
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return counts


def run(seconds: int, seed: int, plan: list[Fault], concurrency: Mapping[str, int] | None = None,
        day_hours: float = 2.0, load: float = 1.0, records: tuple | None = None) -> tuple[Engine, Rally, Injector]:
    """Runs the cluster with the planned faults; what happened lies in the three objects. Writes nothing.

    `records`: what takes up the log lines, the traces and the finished iterations of each workload, in place of the
    lists and the dict that keep them (see `spool`).
    """
    engine = build_engine(seconds, seed)
    if records:
        engine.logs, engine.traces, _ = records
    rally = Rally(engine, seed, dict(concurrency or {}), day_hours * 3600.0, load)
    if records:
        rally.finished = records[2]
    Background(engine, seed)
    injector = Injector(engine, rally, plan)
    engine.env.run(until=seconds)
    return engine, rally, injector


def build_engine(seconds: int, seed: int) -> Engine:
    """An engine with the names that stay the same for a whole run: images, providers, users of periodic tasks."""
    engine = Engine(seconds, seed, FLOWS)
    rng = random.Random(f"{seed}/names")
    shares = rng.sample((0.43, 0.27, 0.26, 0.04), 4)  # of the instances, by host, in the real run
    engine.compute_weights = dict(zip(COMPUTES, (max(share, 0.12) for share in shares), strict=True))
    engine.servers = {}
    engine.orphans, engine.undeleted = [], []
    engine.ubuntu_image, engine.router = engine.uuid(), engine.uuid()
    engine.base_file = f"{rng.getrandbits(160):040x}"
    engine.providers = {host: engine.uuid() for host in COMPUTES}
    engine.event_requests = {host: engine.uuid() for host in COMPUTES}
    engine.periodic_requests = {host: engine.uuid() for host in HOSTS}
    engine.operator = (f"{rng.getrandbits(128):032x}", f"{rng.getrandbits(128):032x}")
    return engine
