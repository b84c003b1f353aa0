"""The kinds of faults: where each can be put, and what it changes there.

A kind takes the traces of a stretch and its metrics, chooses a service (of those that serve enough calls for the fault
to be seen at all) and marks what changes; `Requests.replay` works out what follows from it. None is returned where the
stretch has no place for the kind.
"""

import collections
import dataclasses

import numpy as np
import polars as pl

from data_prep import templates
from data_prep.injection.requests import Changes, Requests

NS = 1_000_000_000
LEAST_CALLS = 3  # of a service or an operation, for each window length of the stretch: else windows show nothing
CPU, NOT_OF_SERVICE = "(?i)cpu", "(?i)node|host"  # metrics that a throttled service raises
CPU_LAG_SECONDS = 60.0  # until a raised load shows in a metric, at most
ALERT = "^(?i)(WARN|ERR|CRIT|FATAL|SEVERE)"
NEW_ERROR = "java.lang.RuntimeException: simulated failure while handling the request"


@dataclasses.dataclass(frozen=True)
class Place:
    """A stretch before the fault. `alerts`: lines of severity warning or above that services write in normal time."""

    requests: Requests
    metrics: pl.DataFrame | None
    start: int  # ns, of the fault
    end: int
    least: int  # calls that a service or an operation must serve
    has_status: bool
    alerts: pl.DataFrame | None


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault that was chosen: `details` says what was drawn, for the record."""

    service: str
    changes: Changes
    metrics: pl.DataFrame | None
    details: dict


def network_delay(place: Place, rng: np.random.Generator) -> Fault | None:
    """Every call of one service takes 100 ms - 2 s longer on the way, half in and half back: callers see it only."""
    service, calls = _choose_service(place, place.requests.calls(), rng)
    if service is None:
        return None
    delay = np.exp(rng.uniform(np.log(0.1), np.log(2.0)))
    changes = Changes()
    for i in calls:
        half = int(delay * np.exp(0.1 * rng.standard_normal()) / 2 * NS)
        changes.way_in[i] = changes.way_back[i] = half
    return Fault(service, changes, place.metrics, {"delay_seconds": round(delay, 3), "calls": len(calls)})


def cpu(place: Place, rng: np.random.Generator) -> Fault | None:
    """One service is throttled by a factor 3 - 20: its own work, what it does with answers, and accepting calls."""
    requests = place.requests
    service, served = _choose_service(place, _served(requests), rng)
    if service is None:
        return None
    factor, changes = np.exp(rng.uniform(np.log(3), np.log(20))), Changes()
    for i, name in enumerate(requests.service):
        if name != service or requests.start[i] < place.start:
            continue
        jittered = max(1.0, float(factor * np.exp(0.3 * rng.standard_normal())))
        if requests.is_client(i):
            if requests.children[i]:  # without the other side, waiting and work cannot be told apart
                changes.slow_tail[i] = jittered
            continue
        changes.slow[i] = jittered
        parent = requests.parent[i]
        if requests.is_served(i) and parent >= 0 and requests.is_client(parent):
            accepting = max(0, requests.seen(i)[0] - requests.start[parent])
            changes.way_in[i] = int(accepting * (jittered - 1))
    lag, level = rng.uniform(0, CPU_LAG_SECONDS), rng.uniform(3, 10)
    metrics, raised = _raise_cpu(place, service, place.start + int(lag * NS), level)
    details = {"factor": round(factor, 2), "calls": len(served), "raised_readings": raised}
    return Fault(service, changes, metrics, details)


def exception(place: Place, rng: np.random.Generator) -> Fault | None:
    """Half or more of one operation's requests fail midway: the lines after that are missing, an error line is there.

    In every other such fault the calls after the failure are missing too.
    """
    chosen = _choose_operation(place, rng)
    if chosen is None:
        return None
    requests, (service, operation, served) = place.requests, chosen
    share, stops = rng.uniform(0.5, 1.0), bool(rng.integers(2))
    error, changes, failures = _alert_line(place, service, "^(?i)(ERR|CRIT|FATAL|SEVERE)", rng), Changes(), 0
    body, severity = error or (NEW_ERROR, "ERROR")
    for i in served:
        if rng.uniform() >= share:
            continue
        failures += 1
        part = requests.own_part(i)
        lines = sorted((requests.time_of_line[x], x) for j in part for x in requests.lines[j])
        lost = lines[len(lines) // 2 :]
        when = lost[0][0] if lost else (requests.start[i] + requests.end[i]) // 2
        changes.lost_logs.update(line for _, line in lost)
        if requests.logs is not None:
            within = requests.span_of_line[lost[0][1]] if lost else i
            changes.new_logs.append((within, _line(requests, within, when, body, severity)))
        if place.has_status:
            changes.failed.update({i, requests.parent[i]} - {-1} if _has_client(requests, i) else {i})
        if stops:
            changes.removed.update(j for j in part[1:] if requests.start[j] >= when)
            changes.removed.update(
                c for j in part for c in requests.children[j] if requests.is_served(c) and requests.start[c] >= when
            )
    if not failures:
        return None
    details = {"operation": operation, "calls": len(served), "failures": failures, "stops": stops, "line": body[:200]}
    return Fault(service, changes, place.metrics, details)


def wrong_return(place: Place, rng: np.random.Generator) -> Fault | None:
    """One line that an operation usually writes is missing from all its requests, or a warning stands in its place."""
    if place.requests.logs is None:
        return None
    chosen = _choose_operation(place, rng)
    if chosen is None:
        return None
    requests, (service, operation, served) = place.requests, chosen
    lines = [(i, line) for i in served for j in requests.own_part(i) for line in requests.lines[j]]
    bodies = pl.DataFrame({"body": requests.logs["body"].gather([line for _, line in lines])})
    masked = bodies.select(templates.mask(pl.col("body")))["body"]
    numbers = templates.Templates(masked).assign(masked).to_list()
    written = collections.defaultdict(set)
    for (i, _), number in zip(lines, numbers, strict=True):
        written[number].add(i)
    written.pop(templates.UNSEEN, None)
    usual = sorted(n for n, by in written.items() if len(by) >= max(place.least, len(served) / 2))
    if not usual:
        return None
    template = usual[rng.integers(len(usual))]
    instead = _alert_line(place, service, ALERT, rng) if rng.integers(2) else None
    changes, replaced = Changes(), set()
    for (i, line), number in zip(lines, numbers, strict=True):
        if number != template:
            continue
        changes.lost_logs.add(line)
        if instead and i not in replaced:
            replaced.add(i)
            within, when = requests.span_of_line[line], requests.time_of_line[line]
            changes.new_logs.append((within, _line(requests, within, when, *instead)))
    example = bodies["body"][numbers.index(template)]
    details = {"operation": operation, "calls": len(served), "lost_lines": len(changes.lost_logs),
               "line": example[:200], "instead": instead and instead[0][:200]}  # fmt: skip
    return Fault(service, changes, place.metrics, details)


KINDS = {"network_delay": network_delay, "cpu": cpu, "exception": exception, "return": wrong_return}


def _served(requests: Requests) -> list[int]:
    return [i for i in range(len(requests.start)) if requests.is_served(i)]


def _has_client(requests: Requests, i: int) -> bool:
    return requests.parent[i] >= 0 and requests.is_client(requests.parent[i])


def _within(place: Place, rows: list[int]) -> list[int]:
    return [i for i in rows if place.requests.start[i] >= place.start]


def _enough(place: Place, rows: list[int]) -> bool:
    """Whether so many of the calls fall into the stretch (a trace may go on after it) that the fault can be seen."""
    return sum(place.requests.start[i] < place.end for i in rows) >= place.least


def _choose_service(place: Place, rows: list[int], rng) -> tuple[str | None, list[int]]:
    """A service that serves enough of `rows`, and those of them that it serves after the fault's start."""
    by_service = collections.defaultdict(list)
    for i in _within(place, rows):
        by_service[place.requests.service[i]].append(i)
    busy = sorted(name for name, calls in by_service.items() if _enough(place, calls))
    if not busy:
        return None, []
    service = busy[rng.integers(len(busy))]
    return service, by_service[service]


def _choose_operation(place: Place, rng) -> tuple[str, str, list[int]] | None:
    """(service, operation, its served spans): where there are logs, one whose requests write some."""
    requests = place.requests
    logged = None if requests.logs is None else lambda i: any(requests.lines[j] for j in requests.own_part(i))
    by_service = collections.defaultdict(lambda: collections.defaultdict(list))
    for i in _within(place, _served(requests)):
        by_service[requests.service[i]][requests.name[i]].append(i)
    fit = {
        service: sorted(
            name for name, rows in operations.items() if _enough(place, [i for i in rows if not logged or logged(i)])
        )
        for service, operations in sorted(by_service.items())
    }
    services = [service for service, operations in fit.items() if operations]
    if not services:
        return None
    service = services[rng.integers(len(services))]
    operation = fit[service][rng.integers(len(fit[service]))]
    return service, operation, by_service[service][operation]


def _alert_line(place: Place, service: str, severity: str, rng) -> tuple[str, str] | None:
    """(body, severity) of one line of such severity that the service writes in normal time, if it does."""
    if place.alerts is None:
        return None
    lines = place.alerts.filter((pl.col("service_name") == service) & pl.col("severity_text").str.contains(severity))
    lines = lines.select("body", "severity_text").unique().sort("body", "severity_text")
    return lines.row(rng.integers(lines.height)) if lines.height else None


def _line(requests: Requests, i: int, when: int, body: str, severity: str) -> dict:
    row = dict.fromkeys(requests.logs.columns) | requests.spans.select(
        "service_name", "service_instance_id", "trace_id", "span_id"
    ).row(i, named=True)
    return row | {"time_unix_nano": when, "body": body, "severity_text": severity}


def _raise_cpu(place: Place, service: str, begin: int, level: float) -> tuple[pl.DataFrame | None, int]:
    """Metrics with the service's CPU readings raised from `begin` to the fault's end, and how many were.

    A gauge goes to `level` times its 95% quantile (one in percent to 100 at most); a counter gains `level` times as
    much, and keeps the gain.
    """
    metrics = place.metrics
    if metrics is None:
        return None, 0
    name, time = pl.col("metric_name"), pl.col("time_unix_nano")
    own = (pl.col("service_name") == service) & name.str.contains(CPU) & ~name.str.contains(NOT_OF_SERVICE)
    now, counter = time.is_between(begin, place.end), pl.col("is_counter").fill_null(False)
    series = ["service_instance_id", "metric_name", "attributes"]
    high = level * pl.col("value").quantile(0.95).over(series)
    high = pl.when(name.str.contains("%")).then(high.clip(upper_bound=100)).otherwise(high)
    gain = pl.when(now).then(pl.col("value").diff().clip(0)).otherwise(0).fill_null(0).cum_sum()
    raised = (
        pl.when(~own).then("value")
        .when(counter).then(pl.col("value") + (level - 1) * gain.over(series, order_by="time_unix_nano"))
        .when(now).then(pl.max_horizontal("value", high))
        .otherwise("value")
    )  # fmt: skip
    return metrics.with_columns(value=raised), metrics.filter(own & now).height
