"""The simulator: same seed, same bytes; the archive's layout; faults that act, propagate and leak nowhere."""

import csv
import filecmp
import json
import random
import statistics
from collections import Counter
from pathlib import Path

import pytest

from data_prep.errors import InputError
from data_prep.simulate import KINDS, simulate
from data_prep.simulate.cluster import HOSTS, PROGRAMS
from data_prep.simulate.faults import QUIET, TARGETS, Fault, schedule
from data_prep.simulate.flows import Server, release
from data_prep.simulate.run import START as START_OF_RUN
from data_prep.simulate.run import run
from data_prep.simulate.spool import Iterations, LogLines
from data_prep.simulate.state import Host, LogLine
from data_prep.simulate.workloads import WORKLOADS, Iteration
from data_prep.simulate.writers import LOG_COLUMNS, METRIC_COLUMNS, Clock, trace_report

HOURS, SEED, PER_HOUR = 0.7, 3, 9.0


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("simulated") / "raw"
    simulate(directory, HOURS, SEED, faults_per_hour=PER_HOUR)
    return directory


def workload(directory: Path, name: str) -> dict:
    report = json.loads((directory / "reports" / f"output_{name}.json").read_text())
    return report["tasks"][0]["subtasks"][0]["workloads"][0]


def injections(directory: Path) -> list[dict]:
    """The stated faults of all reports, in time order."""
    results = [result for name in ("boot", "image", "network") for hook in workload(directory, name)["hooks"]
               for result in hook["results"]]
    stated = [result["output"]["complete"][0]["data"] | {"hook": result} for result in results]
    return sorted(stated, key=lambda fault: fault["started_at"])


def walk(node: dict):
    for child in node["children"]:
        yield child
        yield from walk(child)


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        simulate(tmp_path / name, 0.15, seed, faults_per_hour=8.0)
    names = files(tmp_path / "a")
    assert names == files(tmp_path / "b")
    assert filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", names, shallow=False) == (names, [], [])
    logs = "logs/logs_aggregated_concurrent.csv"
    assert (tmp_path / "a" / logs).read_bytes() != (tmp_path / "c" / logs).read_bytes()


def test_layout_is_the_archives(simulated):
    assert sorted(path.name for path in simulated.iterdir()) == [
        "IMPORTANT_experiment_start_end_data.txt", "logs", "metrics", "reports", "traces"]
    assert sorted(path.name for path in (simulated / "metrics").iterdir()) == [
        f"{host}_metrics_concurrent.csv" for host in HOSTS]
    assert sorted(path.name for path in (simulated / "traces").iterdir()) == [
        "boot_delete", "create_delete_image", "network_create_delete"]
    with (simulated / "logs/logs_aggregated_concurrent.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == list(LOG_COLUMNS) and len(rows[0]) == 30
    assert {len(row) for row in rows} == {30}
    for path in (simulated / "metrics").iterdir():
        header, *lines = path.read_text().splitlines()
        assert header == ",".join(METRIC_COLUMNS)
        assert all(line.count(",") == 6 and " CEST," in line for line in lines)
    text = (simulated / "IMPORTANT_experiment_start_end_data.txt").read_text()
    assert "START OF EXPERIMENTS - 2019-11-25 15:12:13" in text and "START: 2019-11-25 16:12:13" in text
    assert not [path for path in simulated.parent.iterdir() if path.name.endswith(".partial")]


def test_clocks_of_logs_metrics_traces_and_reports(simulated):
    """Logs and metrics lie an hour after the naive UTC of traces and the epochs of reports."""
    with (simulated / "logs/logs_aggregated_concurrent.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    first = min(row["@timestamp"] for row in rows)
    assert first.startswith("2019-11-25T16:12:") and first.endswith("+01:00")
    metrics = (simulated / "metrics/wally113_metrics_concurrent.csv").read_text().splitlines()
    assert metrics[1].startswith("2019-11-25 16:12:13 CEST,")
    iteration = workload(simulated, "image")["data"][0]
    trace = json.loads((simulated / "traces/create_delete_image"
                        / f"{iteration['output']['complete'][0]['data']['trace_id']}.json").read_text())
    start = trace["children"][0]["info"]["meta.raw_payload.wsgi-start"]["timestamp"]
    assert start.startswith("2019-11-25T15:12:")
    assert 0 < iteration["timestamp"] - 1574694733 < 30


def test_traces_are_osprofilers_trees(simulated):
    seen, missing, total = Counter(), 0, 0
    for path in (simulated / "traces").rglob("*.json"):
        trace = json.loads(path.read_text())
        assert trace["info"]["name"] == "total" and trace["info"]["started"] == 0
        assert {child["parent_id"] for child in trace["children"]} == {path.stem}
        for node in walk(trace):
            info = node["info"]
            start = info[f"meta.raw_payload.{info['name']}-start"]
            assert start["base_id"] == path.stem and start["trace_id"] == node["trace_id"]
            seen[info["project"], info["service"]] += 1
            total += 1
            if f"meta.raw_payload.{info['name']}-stop" not in info:
                missing += 1
                assert info["finished"] == info["started"]
    traced = {(program.project, program.profiler_service) for program in PROGRAMS.values()}
    assert set(seen) <= traced and len(seen) == 10
    assert 0 < missing < 0.02 * total


def test_metric_rows_are_irregular_with_duplicates(simulated):
    for path in (simulated / "metrics").iterdir():
        seconds = [line[:19] for line in path.read_text().splitlines()[1:]]
        assert seconds == sorted(seconds)
        assert 0 < len(seconds) - len(set(seconds)) < 0.5 * len(seconds)
        assert len(set(seconds)) < HOURS * 3600


def test_faults_are_exact_apart_and_after_the_first_fifth(simulated):
    faults = injections(simulated)
    assert len(faults) == round(PER_HOUR * HOURS * 0.8)
    start, end = 1574694733, 1574694733 + HOURS * 3600
    assert faults[0]["started_at"] >= start + 0.2 * HOURS * 3600
    for fault in faults:
        kind, hook = fault["fault_type"], fault["hook"]
        assert fault["service_name"] in TARGETS[kind]
        assert hook["started_at"] == fault["started_at"]
        assert hook["finished_at"] <= fault["finished_at"] <= hook["finished_at"] + 60.0
        if kind == "restart":
            assert 4.0 <= hook["finished_at"] - hook["started_at"] <= 41.0
        else:
            assert 60.0 <= hook["finished_at"] - hook["started_at"] <= 240.1
    for before, after in zip(faults, faults[1:], strict=False):
        assert after["started_at"] - before["finished_at"] >= QUIET - 1e-3
    assert faults[-1]["finished_at"] <= end


def test_nothing_but_the_reports_tells_of_faults(simulated):
    words = [*KINDS, "inject", "fault_type", "severity", "severe", "chaos"]
    words = [word for word in words if word not in ("error", "memory", "cpu")]  # words of any log
    for path in simulated.rglob("*"):
        if path.is_file() and path.parent.name != "reports":
            text = path.read_text().lower()
            assert not [word for word in words if word in text], path
            assert "[fault" not in text and "simulat" not in text


def test_schedule_takes_every_kind_in_turn_and_refuses_what_does_not_fit():
    plan = schedule(8 * 3600, 0, KINDS, 10.0)
    counts = Counter(fault.kind for fault in plan)
    assert set(counts) == set(KINDS) and max(counts.values()) - min(counts.values()) <= 1
    assert schedule(3600, 0, KINDS, 0.0) == [] and schedule(3600, 0, (), 10.0) == []
    with pytest.raises(InputError, match="do not fit"):
        schedule(3600, 0, KINDS, 60.0)
    with pytest.raises(InputError, match="unknown kind 'flood'"):
        schedule(3600, 0, ("flood",), 5.0)


def test_an_occupied_directory_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="not an empty directory"):
        simulate(tmp_path, 0.1)
    assert files(tmp_path) == ["mine.txt"]


# Propagation: one planned fault in an otherwise equal run.

START, LENGTH = 300.0, 240.0


def cluster(kind: str, service: str, severity: int = 2, host: str = "wally113", seconds: int = 660, load: float = 1.5):
    plan = [Fault(kind, service, severity, host, START, LENGTH if kind != "restart" else 20.0, "boot")]
    return run(seconds, 1, plan, load=load)


def spans(engine, service: str, path: str = ""):
    """Finished POST requests of a service, all or those to one path."""
    for trace in engine.traces.values():
        for span in trace.spans:
            request = span.info.get("request", {})
            if (span.service == service and span.stop and request.get("method") == "POST"
                    and path in ("", request["path"])):
                yield span


def medians(engine, service, path=""):
    """Median duration before and during the fault."""
    before = [span.stop - span.start for span in spans(engine, service, path) if span.start < START]
    during = [span.stop - span.start for span in spans(engine, service, path) if START <= span.start < START + LENGTH]
    return statistics.median(before), statistics.median(during)


def test_slow_keystone_slows_its_callers():
    engine, _, _ = cluster("latency", "keystone")
    for service, path in (("osapi_compute", "/v2.1/servers"), ("neutron-server", "/v2.0/networks")):
        before, during = medians(engine, service, path)
        assert during > before + 0.5


def test_slow_database_slows_who_asks_it():
    engine, _, _ = cluster("latency", "mariadb")
    for service, path in (("public", "/v3/auth/tokens"), ("neutron-server", "/v2.0/networks")):
        before, during = medians(engine, service, path)
        assert during > before + 0.1


def test_failing_glance_fails_image_iterations_and_marks_its_spans():
    engine, rally, injector = cluster("error", "glance-api")
    failed = [row for row in rally.finished["image"] if row.error]
    assert len(failed) >= 5
    fault = injector.done[0]
    assert all(fault.start <= row.finished <= fault.end for row in failed)
    assert any(span.failure for span in spans(engine, "api"))
    assert sum(line.level == "ERROR" and line.program == "glance-api" for line in engine.logs) >= 5
    # nova-api asks glance about the picture, so that boots fail too, with a line of its own.
    assert any(row.error for row in rally.finished["boot"])
    assert any(line.level == "ERROR" and line.program == "nova-api" for line in engine.logs)


def test_restarted_glance_refuses_breaks_requests_in_flight_and_starts_again():
    engine, rally, injector = cluster("restart", "glance-api")
    fault = injector.done[0]
    assert 20.0 == pytest.approx(fault.injected_end - fault.start)
    failed = [row.error[1] for row in rally.finished["image"] if row.error]
    assert any("Connection refused" in text for text in failed)
    assert any("Connection aborted" in text for text in failed)
    assert any("Starting" in line.payload and line.program == "glance-api" for line in engine.logs)
    silent = [line for line in engine.logs if line.program == "glance-api"
              and fault.start + 1.0 < line.time < fault.start + 18.0]
    assert not silent


def test_lost_messages_time_out_at_the_caller_and_arrive_later():
    engine, _, injector = cluster("message_loss", "neutron-server")
    fault = injector.done[0]
    lines = [line for line in engine.logs if "MessagingTimeout" in line.payload]
    assert lines and all(line.program != "neutron-server" for line in lines)
    assert all(fault.start < line.time for line in lines)
    assert not engine.instance("neutron-server").undelivered


def test_busy_host_raises_its_cpu_and_slows_its_programs():
    engine, _, _ = cluster("cpu", "wally113")
    host = engine.hosts["wally113"]
    inside, outside = slice(320, 520), slice(60, 260)
    assert statistics.fmean(host.busy[inside]) > statistics.fmean(host.busy[outside]) + 6.0
    before, during = medians(engine, "public")
    assert during > 1.4 * before
    assert not any(engine.hosts[name].hog for name in HOSTS)


def test_leak_takes_memory_and_gives_it_back():
    engine, _, injector = cluster("memory", "nova-compute", host="wally122")
    changes = engine.hosts["wally122"].memory_changes
    fault = injector.done[0]

    def used(now):
        return sum(change for at, change in changes if at <= now)
    leaked = used(fault.injected_end - 0.5) - used(fault.start - 0.5)
    assert leaked > 3500.0
    assert used(fault.injected_end + 1.0) < used(fault.injected_end - 0.5) - 3500.0


def test_restarted_compute_gives_up_builds_in_flight_and_finishes_deletions():
    engine, rally, injector = cluster("restart", "nova-compute", load=4.0)
    fault = injector.done[0]
    failed = [row for row in rally.finished["boot"] if row.error]
    assert {row.error[0] for row in failed} == {"GetResourceErrorStatus"}
    assert all(fault.start < row.finished <= fault.end for row in failed)
    assert not engine.orphans and not engine.undeleted
    assert any("Starting compute node" in line.payload for line in engine.logs)


def test_a_claim_is_dropped_once():
    host, server = Host("wally117", 60), Server("id", claimed=True)
    host.claimed = 1
    release(server, host)
    release(server, host)  # its build fails after it was deleted
    assert host.claimed == 0 and not server.claimed


# What is written as it happens.


def test_what_is_written_is_what_happened(tmp_path):
    seconds = 540
    simulate(tmp_path / "raw", seconds / 3600, 3, faults_per_hour=8.0)
    engine, rally, _ = run(seconds, 3, schedule(seconds, 3, KINDS, 8.0))
    clock, written = Clock(START_OF_RUN), {path.stem: path for path in (tmp_path / "raw/traces").rglob("*.json")}
    for name, kind in WORKLOADS.items():
        rows = workload(tmp_path / "raw", name)["data"]
        finished = sorted(rally.finished[name], key=lambda row: row.number)
        assert [row["output"]["complete"][0]["data"]["trace_id"] for row in rows] == [row.trace_id for row in finished]
        for row in finished:
            trace = engine.traces[row.trace_id]
            if trace.spans:
                path = written.pop(row.trace_id)
                assert path.parent.name == kind.directory
                assert json.loads(path.read_text()) == json.loads(json.dumps(trace_report(trace, clock)))
    assert written == {}
    with (tmp_path / "raw/logs/logs_aggregated_concurrent.csv").open(newline="") as file:
        payloads = [row["Payload"] for row in csv.DictReader(file)]
    assert sorted(payloads) == sorted(line.payload for line in engine.logs if 0 <= line.time < seconds)


def test_log_lines_come_back_in_the_order_of_their_keys(tmp_path):
    draw = random.Random(0)
    lines = [LogLine(draw.uniform(-9, 3000), "host", "program", "", "", str(i), "") for i in range(5000)]
    spooled = LogLines(tmp_path / "lines", lambda line: line.time // 50 if line.time >= 0 else None)
    for line in lines:
        spooled.append(line)
    expected = sorted((line for line in lines if line.time >= 0), key=lambda line: line.time // 50)
    assert list(spooled) == expected and len(spooled) == len(expected)


def test_iterations_come_back_by_number_and_the_last_ones_backwards(tmp_path):
    found = []
    iterations = Iterations(tmp_path / "rows", found.append)
    assert list(iterations) == [] and len(iterations) == 0
    for number in (2, 1, 3, 6, 5):  # 4 did not finish
        iterations.append(Iteration(number, str(number), 0.0, 100.0 * len(found)))
    assert [row.number for row in iterations] == [1, 2, 3, 5, 6]
    assert [row.number for row in reversed(iterations)] == [5, 6, 3, 1, 2] == [row.number for row in reversed(found)]
    iterations.append(Iteration(7, "7", 0.0, 9000.0))
    assert [row.number for row in reversed(iterations)] == [7]
