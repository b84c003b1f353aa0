"""How much live telemetry two cores keep up with: OTLP files -> windows -> scores, as fast as they go.

    python -m benchmarks.soak --minutes=30 --directory=DIR

Simulated hours of OpenStack are made busier by playing each request `--copies` times, each copy under its own ids and
some seconds later. One such hour is prepared, trained on and evaluated; another, with other faults, is written as OTLP
JSON lines and played again and again, hour after hour of simulated time: one process reads, checks and hands on
(`config.data.source=otlp`), the other makes windows (`data_prep.live`) and scores them. A JSON object goes to stdout:
rows and windows a second, what became of every row, and the most memory that each process had in each minute: at a
moment within a minute a process holds more or less of a step's rows, which is no growth.
"""

import contextlib
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import msgspec
import polars as pl
from absl import app, flags

from data_prep import sources
from data_prep.tables import SCHEMAS, TELEMETRY

DIRECTORY = flags.DEFINE_string(
    "directory", None, "For what is simulated and trained; used again if it is there.", required=True
)
MINUTES = flags.DEFINE_float("minutes", 30.0, "How long to play.", lower_bound=0.01)
COPIES = flags.DEFINE_integer("copies", 26, "Copies of each request.", lower_bound=1)
STEP_SECONDS = flags.DEFINE_integer("step_seconds", 60, "Simulated time that is pushed at a time; divides an hour.")
HOUR = 3600 * 1_000_000_000
JITTER = 5_000_000_000  # ns: a copy comes up to so much later
AHEAD = 2  # steps that are read before they are needed
REQUEST = 500  # records in one OTLP request
WARM_UP = 0.1  # share of the time before memory counts
KINDS = {"INTERNAL": 1, "SERVER": 2, "CLIENT": 3, "PRODUCER": 4, "CONSUMER": 5}
STATUS = {"UNSET": 0, "OK": 1, "ERROR": 2}


def config_of(workdir: Path):
    from configs import openstack

    config = openstack.get_config()
    config.data.update(
        {"source": "tables", "raw_dir": str(workdir / "tables"), "prepared_dir": str(workdir / "prepared")}
    )
    config.data.num_workers = 2
    config.train.num_epochs = 2
    config.score.bootstrap = 50
    return config


def simulated(directory: Path, seed: int) -> dict[str, pl.DataFrame]:
    """The telemetry tables of one simulated hour."""
    from configs import openstack
    from data_prep.simulate import simulate

    options, data = openstack.get_config().simulate, openstack.get_config().data
    if not directory.exists():
        simulate(
            directory, 1.0, seed=seed, fault_kinds=tuple(options.fault_kinds), faults_per_hour=options.faults_per_hour
        )
    data.raw_dir = str(directory)
    return sources.read(data).frames


def busier(frames: dict[str, pl.DataFrame], copies: int) -> dict[str, pl.DataFrame]:
    """The same system under `copies` times the load: spans and log lines, not metrics."""
    out = dict(frames)
    for name, key in (("spans", pl.col("trace_id")), ("logs", pl.int_range(pl.len()))):
        made = []
        for copy in range(copies):
            later = (key.hash(copy) % JITTER).cast(pl.Int64)
            times = [pl.col(column) + later for column in SCHEMAS[name].times]
            frame = frames[name].with_columns(*times)
            if name == "spans":
                frame = frame.with_columns(pl.concat_str(c, pl.lit(f"/{copy}")) for c in IDS)
            made.append(frame)
        out[name] = pl.concat(made).sort(SCHEMAS[name].times[0])
    return out


IDS = ("trace_id", "span_id", "parent_span_id")


def write_otlp(frames: dict[str, pl.DataFrame], directory: Path, start: int) -> None:
    """One directory a step, with what was recorded in it as JSON lines."""
    step = STEP_SECONDS.value * 1_000_000_000
    for number in range(HOUR // step):
        folder = directory / f"{number:04d}"
        folder.mkdir(parents=True)
        for name, encode in (("spans", _spans), ("logs", _logs), ("metrics", _metrics)):
            begin = start + number * step
            time = pl.col(SCHEMAS[name].times[0])
            rows = frames[name].filter(time.is_between(begin, begin + step, closed="left"))
            requests = [
                encode(service, instance, part.to_dicts())
                for (service, instance), of_one in rows.group_by("service_name", "service_instance_id")
                for part in of_one.iter_slices(REQUEST)
            ]
            (folder / f"{name}.json").write_bytes(b"".join(msgspec.json.encode(r) + b"\n" for r in requests))


def _attributes(**found):
    return [{"key": k.replace("_", "."), "value": {"stringValue": v}} for k, v in found.items() if v is not None]


def _of(service, instance, kind, scope, records):
    resource = {"attributes": _attributes(service_name=service, service_instance_id=instance)}
    return {f"resource{kind}": [{"resource": resource, f"scope{kind}": [{scope: records}]}]}


def _hex(text, digits):
    return "" if text is None else f"{hash(text) & (1 << 4 * min(digits, 15)) - 1:0{digits}x}"


def _spans(service, instance, rows):
    return _of(service, instance, "Spans", "spans", [
        {"traceId": _hex(r["trace_id"], 32), "spanId": _hex(r["span_id"], 16),
         "parentSpanId": _hex(r["parent_span_id"], 16), "name": r["span_name"], "kind": KINDS.get(r["kind"], 0),
         "startTimeUnixNano": str(r["start_time_unix_nano"]), "endTimeUnixNano": str(r["end_time_unix_nano"]),
         "status": {"code": STATUS[r["status_code"]]}, "attributes": _attributes(peer_service=r["peer_service_name"])}
        for r in rows
    ])  # fmt: skip


def _logs(service, instance, rows):
    return _of(service, instance, "Logs", "logRecords", [
        {"timeUnixNano": str(r["time_unix_nano"]), "severityText": r["severity_text"] or "",
         "body": {"stringValue": r["body"]}}
        for r in rows
    ])  # fmt: skip


def _metrics(service, instance, rows):
    return _of(service, instance, "Metrics", "metrics", [
        {"name": r["metric_name"],
         "gauge": {"dataPoints": [{"timeUnixNano": str(r["time_unix_nano"]), "asDouble": r["value"]}]}}
        for r in rows
    ])  # fmt: skip


def make(workdir: Path) -> int:
    """Everything that is needed to play, where it is not there yet; returns the first nanosecond of the hour."""
    from data_prep.prepare import intervals_of, prepare
    from ssad_jax import evaluate, prepared, train

    config = config_of(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    settings, made_with = {"copies": COPIES.value, "step_seconds": STEP_SECONDS.value}, workdir / "settings.json"
    if not made_with.exists():
        made_with.write_text(json.dumps(settings))
    elif (there := json.loads(made_with.read_text())) != settings:
        raise app.UsageError(f"{workdir} was made with {there}, not {settings}; name another --directory")
    if not prepared.exists(config.data.prepared_dir):
        (workdir / "tables").mkdir(parents=True, exist_ok=True)
        for name, frame in busier(simulated(workdir / "raw_fit", 0), COPIES.value).items():
            frame.write_parquet(workdir / "tables" / f"{name}.parquet")
        prepare(config)
    if not (workdir / "run" / "evaluation" / "calibration.npz").exists():
        train.train(config, prepared.load(config.data.prepared_dir), workdir / "run")
        with contextlib.redirect_stdout(sys.stderr):
            evaluate.evaluate(workdir / "run")
    frames = simulated(workdir / "raw_play", 1)
    start = int(intervals_of(frames, config.data)[0][0])
    if not (workdir / "otlp").exists():
        shutil.rmtree(workdir / "otlp.partial", ignore_errors=True)  # of a run that was killed
        write_otlp(busier(frames, COPIES.value), workdir / "otlp.partial", start)
        os.rename(workdir / "otlp.partial", workdir / "otlp")
    return start


def read(folder: Path, shift: int) -> tuple[dict[str, pl.DataFrame], dict[str, tuple[int, int]]]:
    """A step's rows, `shift` ns later, and (read, kept) of each table. Runs in a process of its own."""
    from ssad_jax.config import default_config

    data = default_config("soak").data
    data.update({"source": "otlp", "raw_dir": str(folder)})
    frames, counts = {}, {}
    for part in sources.parts(data):
        if part.table in TELEMETRY:
            for _, frame, account in part.rows():
                times = [pl.col(column) + shift for column in SCHEMAS[part.table].times]
                frames.setdefault(part.table, []).append(frame.with_columns(*times))
                had = counts.get(part.table, (0, 0))
                counts[part.table] = had[0] + account.read, had[1] + account.kept
    return {name: pl.concat(found) for name, found in frames.items()}, counts


def peak(process: int) -> float:
    """The most MB a process had in memory since this was last asked (proc(5): VmHWM, clear_refs)."""
    status = Path(f"/proc/{process}/status").read_text()
    Path(f"/proc/{process}/clear_refs").write_text("5")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def play(workdir: Path, start: int) -> dict:
    from data_prep import fitted
    from data_prep.live import LiveWindows
    from ssad_jax.streaming import Scorer

    scorer = Scorer.load(workdir / "run")
    live = LiveWindows(fitted.load(workdir / "prepared"), start)
    step = STEP_SECONDS.value * 1_000_000_000
    folders = sorted((workdir / "otlp").iterdir())
    windows = alerts = number = 0
    rows, memory, slowest = dict.fromkeys(TELEMETRY, 0), [], 0.0
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        ahead = deque()
        for first in range(AHEAD):
            ahead.append(pool.submit(read, folders[first], 0))
        ahead[0].result()
        (child,) = pool._processes
        begin = last = time.monotonic()
        while (now := time.monotonic()) - begin < 60 * MINUTES.value:
            following = number + AHEAD
            ahead.append(pool.submit(read, folders[following % len(folders)], following // len(folders) * HOUR))
            frames, counts = ahead.popleft().result()
            for name, (came, kept) in counts.items():
                if came != kept:
                    raise RuntimeError(f"{folders[number % len(folders)]}: {name}: {came} read, {kept} kept")
                rows[name] += came
            number += 1
            for window in live.push(frames, start + number * step):
                score = scorer.push(window)
                windows, alerts = windows + 1, alerts + score.is_alert
                _ = score.suspects if score.is_alert else None
            slowest = max(slowest, time.monotonic() - now)
            over = time.monotonic() - begin >= 60 * MINUTES.value
            if time.monotonic() - last >= 60 or (over and not memory):  # once at least
                last = time.monotonic()
                memory.append((round(last - begin), peak(os.getpid()), peak(child)))
                live.check()
                spent = last - begin
                told = ", ".join(f"{n / spent:,.0f} {name}/s" for name, n in rows.items() if n)
                print(
                    f"{spent:.0f} s: {told}, {windows / spent:.1f} windows/s; {memory[-1]}", file=sys.stderr, flush=True
                )
        seconds = time.monotonic() - begin
        for task in ahead:
            task.cancel()
    live.check()
    settled = [m for m in memory if m[0] >= WARM_UP * seconds]
    return {
        "seconds": seconds, "simulated_hours": number * step / HOUR, "copies": COPIES.value, "windows": windows,
        "alerts": alerts, "slowest_step_seconds": slowest, "windows_per_second": windows / seconds,
        **{f"{name}_per_second": n / seconds for name, n in rows.items() if n},
        "accounts": {n: vars(a) | {"pending": live.pending[n]} for n, a in live.accounts.items() if a.read},
        "unknown": dict(live.unknown),
        "memory_mb": {
            who: {"first": [m[k] for m in settled][0], "last": settled[-1][k], "least": min(m[k] for m in settled),
                  "most": max(m[k] for m in settled)}
            for k, who in ((1, "windows and scores"), (2, "reading"))
        },
        "memory_by_minute": memory,
    }  # fmt: skip


def main(_) -> None:
    workdir = Path(DIRECTORY.value)
    start = make(workdir)
    print(json.dumps(play(workdir, start)))


if __name__ == "__main__":
    app.run(main)
