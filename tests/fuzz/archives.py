"""Raw layouts of archives: Nezha, OpenStack, Train Ticket's versions."""

import csv
import io
import json

import polars as pl

from data_prep import tables
from data_prep.sources import nezha, openstack, osprofiler, rally, spring_boot, train_ticket_versions
from tests.data_prep import test_source_nezha as some_nezha
from tests.data_prep import test_source_openstack as some_openstack
from tests.data_prep import train_ticket_versions as some_versions
from tests.fuzz.target import SCRATCH, Target, check_parts, check_rows, placed, sampled


def _nezha(folder: str):
    def run(data: bytes) -> None:
        files = [str(placed(data, "input.csv"))]
        check_parts(nezha._TABLES[folder], [nezha._read_files(folder, files, "quarantine")])

    return run


def _openstack_logs(data: bytes) -> None:
    check_parts("logs", openstack._read_logs(placed(data, "input.csv"), 1.0, "quarantine"))


def _openstack_metrics(data: bytes) -> None:
    check_parts("metrics", openstack._read_metrics(placed(data, "wally_metrics.csv"), 1.0, "quarantine"))


def _osprofiler(data: bytes) -> None:
    placed(data, "base.json")
    check_rows(osprofiler.rows(str(SCRATCH), ["base.json"], "quarantine"), osprofiler._COLUMNS)
    if sampled(data):
        check_parts("spans", [osprofiler.read_traces(str(SCRATCH), ["base.json"], "quarantine")])


def _rally(data: bytes) -> None:
    check_parts("faults", openstack._read_faults(placed(data, "report.json")))


def _rally_report(data: bytes) -> None:
    """Without the checks of the table."""
    for workload in rally.read_report(placed(data, "report.json")):
        for iteration in workload.data:
            _ = iteration.trace_id, iteration.failed, iteration.end


def _experiment(data: bytes) -> None:
    openstack._experiment_window(placed(data, "IMPORTANT.txt"), 1.0)


def _spring_boot(data: bytes) -> None:
    check_parts("logs", spring_boot.read(placed(data, "LOGS_x.txt"), _SPANS, 8.0, "quarantine"))


def _scenario(data: bytes) -> None:
    change = train_ticket_versions.Change.of(data[:255].decode("utf-8", "surrogateescape"))  # as long as names can be
    _ = str(change), change.unknown


def _csv(rows) -> bytes:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue().encode()


_SPANS = pl.DataFrame(
    [(T0 := 1_657_623_180_000_000_000, T0 + 10**9, "1", "2", None, "orders", "orders-0", "GET", "OK", "SERVER", None)],
    schema=tables.SCHEMAS["spans"].columns, orient="row",
)  # fmt: skip
_LINES = "\n".join([
    some_versions.head(0.5, "io-16112-exec-4", "order saved"),
    some_versions.head(1, "io-16112-exec-4", "Span reported: 1:2:0:1 - GET", logger=some_versions.REPORTER),
    some_versions.head(2, "http-nio-80-exec-4", "cannot save", "ERROR"), *some_versions.STACK,
]).encode()  # fmt: skip
_TRACE = {"info": {"name": "total"}, "children": [
    some_openstack.node("1", [some_openstack.node("2", name="db", stop=None), some_openstack.node("3", start=None)],
                        project="nova", service="osapi_compute",
                        details={"request": {"path": "/v2/servers/1?x", "method": "GET"}})]}  # fmt: skip
_STATED = {"data": {"fault_type": "cpu", "service_name": "nova", "started_at": 1.5e9, "finished_at": 1.6e9}}
_REPORT = {"tasks": [{"subtasks": [{"title": "x", "workloads": [{
    "data": [some_openstack.iteration(1_574_683_200.5), some_openstack.iteration(1_574_683_210, failed=True)],
    "hooks": [{"config": {"action": {"sys_call": "sh restart_glance.sh"}}, "results": [
        {"status": "success", "started_at": 1_574_683_205.0, "finished_at": 1_574_683_206.0},
        {"status": "success", "started_at": 1_574_683_300.0, "finished_at": 1_574_683_306.0,
         "output": {"complete": [_STATED]}}]}]}]}]}]}  # fmt: skip
_METRICS = some_openstack.METRIC_HEADER + "2019-11-25 13:00:00 CEST,1,2,3,4,5,6\n2019-11-25T13:00:01,1,2,3,4,5,x\n"

TARGETS = (
    Target("nezha_trace", "Nezha's trace/*.csv", _nezha("trace"),
           (_csv([some_nezha.SPAN_COLUMNS.split(","), *some_nezha.SPANS]),), "csv"),
    Target("nezha_log", "Nezha's log/*.csv", _nezha("log"),
           (_csv([some_nezha.LOG_COLUMNS.split(","), some_nezha.log_row(1, "[first]")]),), "csv"),
    Target("nezha_metric", "Nezha's metric/*.csv", _nezha("metric"),
           (f"Time,TimeStamp,PodName,CpuUsage(m)\nx,1674981742,{some_nezha.TRAVEL},16.5\n".encode(),
            b"Time,TimeStamp,ServiceName,LatencyP50(s)\nx,1674981742,Frontend,0.25\n"), "csv"),
    Target("openstack_logs", "OpenStack's logs/*.csv", _openstack_logs,
           (_csv([openstack.LOG_COLUMNS, some_openstack.log_row()]), _csv([some_openstack.log_row()])), "csv"),
    Target("openstack_metrics", "OpenStack's metrics/*.csv", _openstack_metrics, (_METRICS.encode(),), "csv"),
    Target("osprofiler", "OpenStack's traces/*.json", _osprofiler, (json.dumps(_TRACE).encode(),), "json"),
    Target("rally", "OpenStack's reports/*.json, to faults", _rally, (json.dumps(_REPORT).encode(),), "json"),
    Target("rally_report", "the same, to workloads", _rally_report, (json.dumps(_REPORT).encode(),), "json"),
    Target("openstack_experiment", "start and end of a recording", _experiment,
           (b"START OF EXPERIMENTS - 2019-11-25 12:00:00\nEND: 2019-11-25 14:00:00\n",), "text"),
    Target("spring_boot", "Train Ticket's LOGS_*.txt", _spring_boot, (_LINES,), "text"),
    Target("scenario_name", "a scenario's name", _scenario, (b"ts-order-service_mongodb_4.2.2_2022-07-12",), "text"),
)  # fmt: skip
