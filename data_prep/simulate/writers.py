"""Writes what happened in the archive's raw layout: logs, metrics, traces, Rally reports, start and end.

Clocks as in the archive: logs and metrics local time (UTC+1; the metric files call it CEST), traces naive UTC,
reports UTC epochs. Reports are the only place where a fault is named.
"""

import csv
import datetime
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_prep.simulate.faults import Fault
from data_prep.simulate.host_metrics import host_rows
from data_prep.simulate.state import LogLine, Trace
from data_prep.simulate.workloads import Iteration, Workload

LOG_COLUMNS = (
    "_id,_index,_score,_type,Hostname,user_id,project_domain,Timestamp,@timestamp,log_level,Pid,Payload,tenant_id,"
    "programname,request_id,python_module,Logger,user_domain,domain_id,http_status,http_method,http_version,http_url,"
    "chunk,next_retry_seconds,error,retry_time,message,chunk_id,worker"
).split(",")
METRIC_COLUMNS = ("now", "cpu.user", "mem.used", "load.cpucore", "load.min1", "load.min5", "load.min15")
_ROWS = 10_000  # metric rows that are formatted at a time
_HERE = "<iterations>"
LOCAL = datetime.timedelta(hours=1)
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


class Clock:
    """Seconds since the start of the simulation -> the archive's ways of writing a time."""

    def __init__(self, start: str):
        self.start = datetime.datetime.fromisoformat(start)
        self.epoch = (self.start - datetime.datetime(1970, 1, 1)).total_seconds()

    def utc(self, seconds: float) -> datetime.datetime:
        return self.start + datetime.timedelta(microseconds=round(seconds * 1e6))

    def local(self, seconds: float) -> datetime.datetime:
        return self.utc(seconds) + LOCAL

    def unix(self, seconds: float) -> float:
        return round(self.epoch + seconds, 6)


def log_order(rng: random.Random, seconds: float):
    """Log line -> its place in the log file: roughly in time order, as a search index hands them out."""
    return lambda line: line.time + rng.uniform(0.0, 0.5) if 0.0 <= line.time < seconds else None


def write_logs(path: Path, lines: Iterable[LogLine], clock: Clock, rng: random.Random) -> int:
    """The aggregated log file, its rows in the order of `lines`; `rng` draws their ids."""
    rows = 0
    path.parent.mkdir(parents=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(LOG_COLUMNS)
        for line in lines:
            rows += 1
            local = clock.local(line.time)
            milliseconds = f"{local:%Y-%m-%d %H:%M:%S}.{local.microsecond // 1000:03d}"
            extra = line.extra or {}
            asked = bool(line.request_id)
            domain = "" if not asked else "-" if line.user in ("", "-") else "default"
            cells = {
                "_id": "AW6j" + "".join(rng.choices(ALPHABET, k=16)),
                "_index": f"flog-{local:%Y.%m.%d}",
                "_score": "1.0",
                "_type": "fluentd",
                "Hostname": line.host,
                "user_id": line.user if asked else "",
                "project_domain": domain,
                "Timestamp": milliseconds if line.logger else "",
                "@timestamp": f"{milliseconds.replace(' ', 'T')}000000+01:00",
                "log_level": line.level,
                "Pid": f"{float(line.pid)}" if line.pid and line.level else "",
                "Payload": line.payload,
                "tenant_id": line.tenant if asked else "",
                "programname": line.program,
                "request_id": line.request_id,
                "python_module": line.module,
                "Logger": line.logger,
                "user_domain": domain,
                "domain_id": "-" if asked else "",
            } | extra
            writer.writerow([cells.get(column, "") for column in LOG_COLUMNS])
    return rows


def write_metrics(directory: Path, engine, clock: Clock, seed: int) -> int:
    """One file a host."""
    directory.mkdir(parents=True)
    rows = 0
    for host in engine.hosts.values():
        times, cpu, memory, loads = host_rows(host, engine.seconds, seed)
        with (directory / f"{host.name}_metrics_concurrent.csv").open("w", encoding="utf-8") as file:
            file.write(",".join(METRIC_COLUMNS) + "\n")
            for at in range(0, len(times), _ROWS):
                columns = (values[at : at + _ROWS].tolist() for values in (times, cpu, memory, loads))
                for time, user, used, load in zip(*columns, strict=True):
                    now = f"{clock.local(int(time)):%Y-%m-%d %H:%M:%S} CEST"
                    file.write(f"{now},{user},{used},8,{load[0]},{load[1]},{load[2]}\n")
        rows += len(times)
    return rows


def trace_report(trace: Trace, clock: Clock) -> dict:
    """The tree that OSProfiler prints for one trace."""
    first = min(span.start for span in trace.spans)
    milliseconds = lambda time: int((time - first) * 1000.0)  # noqa: E731
    stats: dict[str, dict] = {}
    nodes: dict[str, dict] = {}
    top: list[dict] = []
    last = 0
    for span in sorted(trace.spans, key=lambda span: span.start):
        started = milliseconds(span.start)
        finished = started if span.stop is None else milliseconds(span.stop)
        last = max(last, finished)
        common = {"service": span.service, "trace_id": span.span_id, "project": span.project,
                  "parent_id": span.parent_id, "base_id": trace.base_id}
        info = {"name": span.name, "service": span.service, "started": started, "finished": finished,
                "project": span.project, "host": span.host}
        info[f"meta.raw_payload.{span.name}-start"] = {
            "info": {"host": span.host} | span.info, "name": f"{span.name}-start",
            "timestamp": f"{clock.utc(span.start):%Y-%m-%dT%H:%M:%S.%f}"} | common
        if span.stop is not None:
            outcome = {"host": span.host}
            if span.failure:
                outcome |= {"etype": span.failure[0], "message": span.failure[1]}
            info["exception"] = span.failure[0] if span.failure else "None"
            info[f"meta.raw_payload.{span.name}-stop"] = {
                "info": outcome, "name": f"{span.name}-stop",
                "timestamp": f"{clock.utc(span.stop):%Y-%m-%dT%H:%M:%S.%f}"} | common
        node = {"info": info, "parent_id": span.parent_id, "trace_id": span.span_id, "children": []}
        nodes[span.span_id] = node
        parent = nodes.get(span.parent_id)
        (parent["children"] if parent else top).append(node)
        count = stats.setdefault(span.name, {"count": 0, "duration": 0})
        count["count"] += 1
        count["duration"] += finished - started
    begun = milliseconds(max(span.start for span in trace.spans))
    return {"info": {"started": 0, "last_trace_started": begun, "finished": last, "name": "total"}, "stats": stats,
            "children": top}


def write_trace(folder: Path, trace: Trace, clock: Clock) -> None:
    """One file, named after the trace."""
    text = json.dumps(trace_report(trace, clock), separators=(",", ":"))
    (folder / f"{trace.base_id}.json").write_text(text, encoding="utf-8")


def write_report(path: Path, workload: Workload, iterations: Sequence[Iteration], faults: list[Fault], clock: Clock,
                 concurrency: int, ids) -> None:
    """A Rally report: iterations in the order of their numbers, and the injections as results of hooks."""
    task, uuid = ids(), ids()
    failed, shortest, longest, first = 0, None, None, None
    for row in iterations:
        found = iteration_row(row, workload, clock, task, uuid)
        failed += bool(found["error"])
        shortest = min(shortest, found["duration"]) if first else found["duration"]
        longest = max(longest, found["duration"]) if first else found["duration"]
        first = first or found["timestamp"]
    body = {
        "uuid": uuid, "description": workload.scenario, "position": 0,
        "runner": {"constant": {"concurrency": concurrency, "times": len(iterations)}},
        "scenario": {workload.scenario: {}},
        "min_duration": shortest, "max_duration": longest, "start_time": first,
        "failed_iteration_count": failed, "total_iteration_count": len(iterations),
        "hooks": [hook for hook in hooks(workload, faults, clock)],
        "data": [_HERE] if len(iterations) else [], "pass_sla": True, "sla": {"failure_rate": {"max": 100}},
    }
    report = {
        "info": {"rally_version": "1.6.0", "generated_at": f"{clock.utc(0.0):%Y-%m-%dT%H:%M:%S}",
                 "format_version": "1.2"},
        "tasks": [{"uuid": task, "title": "", "status": "finished", "tags": [], "env_name": "openstack",
                   "created_at": f"{clock.utc(0.0):%Y-%m-%dT%H:%M:%S}", "pass_sla": True,
                   "subtasks": [{"uuid": ids(), "title": workload.scenario, "status": "finished",
                                 "workloads": [body]}]}],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    before, _, after = json.dumps(report, indent=1).partition(json.dumps(_HERE))
    indent = "\n" + " " * (len(before) - before.rfind("\n") - 1)
    with path.open("w", encoding="utf-8") as file:
        file.write(before)
        for i, row in enumerate(iterations if after else ()):
            text = json.dumps(iteration_row(row, workload, clock, task, uuid), indent=1).replace("\n", indent)
            file.write(f",{indent}{text}" if i else text)
        file.write(after)


def iteration_row(row: Iteration, workload: Workload, clock: Clock, task: str, uuid: str) -> dict:
    """One iteration; `duration` leaves the idle time out, as Rally does."""
    def action(name, started, finished, children, failed):
        entry = {"name": name, "started_at": clock.unix(started), "finished_at": clock.unix(finished),
                 "children": [action(*child) for child in children]}
        return entry | ({"failed": True} if failed else {})

    return {
        "timestamp": clock.unix(row.started),
        "error": [*row.error, f"Traceback (most recent call last):\n{row.error[0]}: {row.error[1]}\n"]
        if row.error else [],
        "duration": max(0.0, row.finished - row.started - workload.idle),
        "idle_duration": workload.idle,
        "output": {"additive": [], "complete": [{
            "chart_plugin": "OSProfiler", "title": "OSProfiler Trace-ID",
            "data": {"taskID": task, "workload_uuid": uuid, "iteration": row.number, "trace_id": row.trace_id,
                     "conn_str": None}}]},
        "atomic_actions": [action(*entry) for entry in row.actions],
    }


def hooks(workload: Workload, faults: list[Fault], clock: Clock):
    """One hook a kind of fault, with its results in time order."""
    mine = [fault for fault in faults if fault.workload == workload.name]
    for kind in dict.fromkeys(fault.kind for fault in sorted(mine, key=lambda fault: fault.kind != "restart")):
        chosen = [fault for fault in mine if fault.kind == kind]
        project = {"boot": "nova", "image": "glance", "network": "neutron"}[workload.name]
        script = f"sh ./restart_{project}_container.sh" if kind == "restart" else f"sh ./inject_{kind}.sh"
        yield {
            "config": {"action": {"sys_call": script}, "description": "Run script",
                       "trigger": {"event": {"unit": "iteration", "at": [fault.iteration for fault in chosen]}}},
            "results": [{
                "status": "success",
                "started_at": clock.unix(fault.start), "finished_at": clock.unix(fault.injected_end),
                "triggered_by": {"event_type": "iteration", "value": fault.iteration},
                "output": {"additive": [], "complete": [{
                    "chart_plugin": "TextArea", "title": "System call", "description": f"Args: {script}",
                    "data": {"fault_type": fault.kind, "service_name": fault.service, "host": fault.host,
                             "severity": ("mild", "medium", "severe")[fault.severity],
                             "started_at": clock.unix(fault.start), "finished_at": clock.unix(fault.end)}}]},
            } for fault in chosen],
            "summary": {"success": len(chosen)},
        }


def write_period(path: Path, clock: Clock, seconds: float) -> None:
    """The start and end of the experiment: on the clock of the traces, then on that of logs and metrics."""
    stamp = "%Y-%m-%d %H:%M:%S"
    path.write_text(
        f"START OF EXPERIMENTS - {clock.utc(0.0):{stamp}}\nEND OF EXPERIMENTS - {clock.utc(seconds):{stamp}}\n"
        f"START: {clock.local(0.0):{stamp}}\nEND: {clock.local(seconds):{stamp}}\n",
        encoding="utf-8")
