"""A small archive in the layout of Zenodo 6979726, as others describe it, with its traps. Deterministic.

Two services are called through a third every two seconds. What is there to trip over: each trace lies in the files of
all its services; ids are padded with zeros in traces but not in logs; logs are newest first, in local time (UTC+8), and
reach back before the recording; stack traces are turned round line by line; the structured copy repeats the log; names
hold `:`; a scenario has no date; metrics are those of the cluster, with POD and nameless containers, a counter that is
reset, NaN; a JSON file is torn and one is neither.
"""

import datetime
from pathlib import Path

import numpy as np

from tests.data_prep.apis import T0, matrix, process, series, span, trace, traces, write

SECONDS = 480
UI, ORDER, STATION = "ts-ui-dashboard", "ts-order-service", "ts-station-service"
PORTS = {ORDER: 12031, STATION: 12345}
PODS = {UI: f"{UI}-6c8d7f9b4-2xk4z", ORDER: f"{ORDER}-7d9f8b6c5-x2x4z", STATION: f"{STATION}-5f6b7c8d9-q7w2k"}
STACK = [
    "java.lang.IllegalStateException: no response",
    "\tat order.service.OrderServiceImpl.create(OrderServiceImpl.java:57)",
    "Caused by: java.net.SocketTimeoutException: Read timed out",
    "\tat java.net.SocketInputStream.socketRead0(Native Method)",
    "\t... 12 common frames omitted",
]
REPORTER, LOGGER = "i.j.internal.reporters.LoggingReporter", "order.service.OrderServiceImpl"


def head(second, thread, message, level="INFO", logger=LOGGER, zone=8):
    """A line of Spring Boot; `second` after T0."""
    local = datetime.datetime.fromtimestamp(T0 + second + 3600 * zone, datetime.UTC)
    clock = f"{local:%Y-%m-%d %H:%M:%S}.{local.microsecond // 1000:03d}"
    return f"{clock} {level:>5} 1 --- [{thread[-15:]:>15}] {logger:<40} : {message}"


def thread(service, number=4):
    return f"http-nio-{PORTS[service]}-exec-{number}"


def reported(second, service, trace_id, span_id, operation):
    message = f"Span reported: {trace_id.lstrip('0')}:{span_id.lstrip('0')}:0:1 - {operation}"
    return head(second, thread(service), message, logger=REPORTER)


def request(i, took):
    """The trace of request number `i`, and what its services log."""
    number, start = f"{i + 1:016x}", 2 * i + 0.5
    root, call, order, station = (f"00{k}{i:013x}" for k in range(4))
    spans = [
        span(number, root, "p1", start, took + 30, operation="GET /", span_kind="server", http_status_code=200),
        span(number, call, "p1", start + 0.005, took + 20, root, "POST", span_kind="client"),
        span(number, order, "p2", start + 0.01, took, call, "addOrder", span_kind="server", error=i % 50 == 49),
        span(number, station, "p3", start + 0.012, took / 2, order, "find", ref="FOLLOWS_FROM", span_kind="server"),
    ]
    of = dict(zip(("p1", "p2", "p3"), (UI, ORDER, STATION), strict=True))
    processes = {key: process(service, hostname=PODS[service], ip="10.0.0.7") for key, service in of.items()}
    end = start + 0.01 + took / 1000
    records = [
        [head(end - 0.001, thread(ORDER), f"order {i} saved")],
        [reported(end, ORDER, number, order, "addOrder")],
        [reported(end + 0.001, STATION, number, station, "find")],
    ]
    if i % 50 == 49:
        records.append([head(end + 0.002, thread(ORDER), "cannot save", "ERROR"), *STACK])
    return trace(spans, processes), records


def metrics(seconds):
    """Answers by metric: of containers every 30 s, of nodes every 15 s."""
    slow, fast = range(0, seconds, 30), range(0, seconds, 15)
    own = {s: {"namespace": "default", "pod": pod, "instance": "10.0.0.1:10250"} for s, pod in PODS.items()}
    cpu, memory, packets = [], [], []
    for k, (service, labels) in enumerate(own.items()):
        used = np.cumsum([1.0 + (t // 30 + k) % 5 for t in slow])
        used = np.where(np.arange(len(used)) > len(used) // 2, used - used[len(used) // 2], used)  # reset
        cpu += [
            series(zip(slow, used, strict=True), __name__=CPU, container=service, **labels),
            series(zip(slow, used, strict=True), __name__=CPU, **labels),
            series([(t, 0.01) for t in slow], __name__=CPU, container="POD", **labels),
        ]
        levels = [(t, "NaN" if t == 60 else 1e8 + 1e6 * ((t + k) % 7)) for t in slow]
        memory.append(series(levels, __name__=MEMORY, container=service, **labels))
        sent = [(t, 10 * t) for t in slow]
        packets.append(series(sent, __name__=PACKETS, container="POD", interface="eth0", **labels))
    other = {"namespace": "kube-system", "pod": "coredns-64897985d-8xkzw", "container": "coredns"}
    cpu.append(series([(t, t) for t in slow], __name__=CPU, **other))
    cpu.append(series([(t, 9 * t) for t in slow], __name__=CPU, id="/kubepods", instance="10.0.0.1:10250"))
    node = {"__name__": NODE_CPU, "instance": "10.0.0.1:9100", "job": "node-exporter"}
    modes = [
        series([(t, t * (4 if mode == "idle" else 1)) for t in fast], **node, cpu=cpu_number, mode=mode)
        for cpu_number in ("0", "1") for mode in ("idle", "user")
    ]  # fmt: skip
    return {CPU: matrix(*cpu), MEMORY: matrix(*memory), PACKETS: matrix(*packets), NODE_CPU: matrix(*modes)}


CPU, MEMORY = "container_cpu_usage_seconds_total", "container_memory_working_set_bytes"
PACKETS, NODE_CPU = "container_network_transmit_packets_total", "node_cpu_seconds_total"


def write_scenario(directory: Path, date="_2022-07-12", folder="Traces_", seconds=SECONDS, by_line=True) -> Path:
    """Writes a scenario; `date` and `folder`: what its directories' names have of them. Returns its directory."""
    name = "ts-order-service_mongodb:4.2.2"
    scenario, rng = directory / f"{name}{date}", np.random.default_rng(0)
    found = [request(i, rng.uniform(20, 60)) for i in range(seconds // 2)]
    for service in (UI, ORDER, STATION):
        write(scenario / f"{folder}{name}{date}" / f"{name}_{service}.json", traces(*(t for t, _ in found)))
    write(scenario / f"{folder}{name}{date}" / f"{name}_ts-auth-service.json", traces())
    write(scenario / f"{folder}{name}{date}" / f"{name}_ts-food-service.json", '{"data": [{"traceID": "1", "spans": [{')
    records = [[head(-86_400 * 20, "main", "Started OrderApplication in 9.1 seconds")]]
    records += [record for _, own in found for record in own]
    turned = [lines[::-1] if by_line else lines for lines in reversed(records)]
    text = "".join(f"{line}\n" for lines in turned for line in lines)
    write(scenario / f"LOGS_{name}.txt", text)
    write(scenario / f"LOGS_{name}.txt_structured.csv", "LineId,Date,Time,Level\n1,2022-07-12,19:00:00.000,INFO\n")
    write(scenario / f"LOGS_{name}.txt_templates.csv", "EventId,EventTemplate,Occurrences\nE1,Started,1\n")
    write(scenario / f"potentialAnomalies_{name}.txt", "Zeitüberschreitung\n" + head(90, "main", "Gateway Timeout"))
    write(scenario / "MicroRCA" / f"{ORDER}_microRCA.csv", "timestamp,ctn_cpu\n2022-07-12 10:53:00,0.5\n")
    for metric, answer in metrics(seconds).items():
        write(scenario / f"Monitoring_{name}.json{date}" / f"{name}.json_{metric}.json", answer)
    write(scenario / "notes.json", {"author": "nobody"})
    return scenario
