import csv
import gzip
import json
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

from data_prep.errors import InputError
from data_prep.sources import openstack, osprofiler, rally, read

HOUR = 3_600_000_000_000
NOON = 1_574_683_200_000_000_000  # 2019-11-25T12:00:00Z
METRIC_HEADER = "now,cpu.user,mem.used,load.cpucore,load.min1,load.min5,load.min15\n"


def config(raw_dir, **changed):
    values = {"source": "openstack", "raw_dir": str(raw_dir), "faults_path": "", "segments_path": ""}
    return SimpleNamespace(**{**values, "on_bad_rows": "quarantine", "utc_offset_hours": 1.0, **changed})


def text_file(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def log_row(at="2019-11-25T13:00:00.500000000+01:00", host="wally117", program="nova-compute", payload="ready"):
    values = {"_id": "x", "Hostname": host, "Timestamp": "2019-11-25 13:00:01.500", "@timestamp": at}
    values |= {"log_level": "INFO", "Pid": "6.0", "Payload": payload, "programname": program}
    return [values.get(column, "") for column in openstack.LOG_COLUMNS]


def write_logs(recording, rows, header=True, name="logs_aggregated_concurrent.csv"):
    path = text_file(recording / "logs" / name, "")
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([openstack.LOG_COLUMNS, *rows] if header else rows)


def node(span_id, children=(), name="wsgi", start="12:00:00.000000", stop="12:00:01.000000", **info):
    """A span of a trace report; start or stop None leaves the message out, as when it got lost."""
    details = info.pop("details", {})
    result = {"name": name, "started": 0, "finished": 0, "host": "wally113", "exception": "None", **info}
    for which, time in (("start", start), ("stop", stop)):
        if time:
            point = {"name": f"{name}-{which}", "timestamp": f"2019-11-25T{time}", "info": details}
            result[f"meta.raw_payload.{name}-{which}"] = point
    return {"info": result, "trace_id": span_id, "parent_id": "base", "children": list(children)}


def write_trace(recording, *nodes, name="boot_delete/base.json"):
    report = {"info": {"name": "total", "started": 0, "finished": 9}, "stats": {}, "children": nodes}
    return text_file(recording / "traces" / name, json.dumps(report))


def iteration(start, duration=1.0, failed=False):
    error = ["TimeoutException", "gave up", "Traceback"] if failed else []
    return {"timestamp": start, "duration": duration, "error": error, "idle_duration": 0.0}


def write_report(recording, iterations, results, command="sh ./restart_glance_container.sh", name="output_image.json"):
    hook = {"config": {"action": {"sys_call": command}}, "results": results}
    workload = {"data": iterations, "hooks": [hook], "description": "an example"}
    report = {"info": {}, "tasks": [{"subtasks": [{"title": "Example", "workloads": [workload]}]}]}
    return text_file(recording / "reports" / name, json.dumps(report))


def test_log_times_have_their_own_offset_or_the_configured_one(tmp_path):
    rows = [
        log_row(payload="own offset"),
        log_row(at="2019-11-25T12:00:00.500000000Z", payload="utc"),
        log_row(at="", payload="local"),
        log_row(at="2019-11-25T14:00:00+02:00", payload="no fraction"),
    ]
    write_logs(tmp_path, rows)
    logs = read(config(tmp_path)).frames["logs"]
    assert dict(logs.select("body", pl.col("time_unix_nano") - NOON).rows()) == {
        "own offset": 500_000_000, "utc": 500_000_000, "local": 1_500_000_000, "no fraction": 0
    }  # fmt: skip
    later = read(config(tmp_path, utc_offset_hours=2.0)).frames["logs"]
    assert dict(later.select("body", "time_unix_nano").rows())["local"] == NOON + 1_500_000_000 - HOUR


@pytest.mark.parametrize("header", [True, False])
def test_log_rows_are_named_by_program_and_host_and_those_without_text_set_aside(tmp_path, header):
    rows = [
        log_row(payload="Traceback:\n  a, \"quoted\" line\nValueError"),
        log_row(host="", program="", payload="whose?"),
        log_row(payload=""),
        log_row(payload=" "),
        log_row(at="soon", payload="at an unknown time"),
        log_row(payload="twice"),
        log_row(payload="twice"),
    ]
    rows[4][openstack.LOG_COLUMNS.index("Timestamp")] = "later"
    write_logs(tmp_path, rows, header)
    found = read(config(tmp_path))
    assert found.frames["logs"].select("service_name", "service_instance_id", "body").rows() == [
        ("nova-compute", "nova-compute@wally117", 'Traceback:\n  a, "quoted" line\nValueError'),
        ("nova-compute", "nova-compute@wally117", "twice"),
        ("unknown", "unknown@unknown", "whose?"),
    ]
    account = found.accounts["logs"]
    assert (account.read, account.kept, account.duplicates) == (7, 3, 1)
    assert account.set_aside == {"empty_payload": 2, "null_time_unix_nano": 1}
    first = 1 + header
    assert account.examples["empty_payload"] == ("logs/logs_aggregated_concurrent.csv", first + 2)
    assert found.frames["topology"].rows() == [("nova-compute@wally117", "wally117", "runs_on")]


@pytest.mark.parametrize("block", [openstack._METRIC_BLOCK, 130], ids=["whole", "blocks"])  # a border in a second
def test_samples_of_one_second_are_averaged(tmp_path, block, monkeypatch):
    monkeypatch.setattr(openstack, "_METRIC_BLOCK", block)
    samples = "2019-11-25 13:00:00 CEST,10,100,8,1,1,1\n2019-11-25 13:00:00 CEST,20,300,8,1,1,2\n"
    last = "2019-11-25 13:00:02 CEST,30,,8,1,1,1\n2019-11-25 12:00:03 UTC,1,1,8,1,1,1\n2019-11-25 13:0"
    text_file(tmp_path / "metrics/wally117_metrics_concurrent.csv", METRIC_HEADER + samples + last)
    found = read(config(tmp_path))
    metrics, account = found.frames["metrics"], found.accounts["metrics"]
    assert metrics.filter(metric_name="cpu.user").select("time_unix_nano", "value").rows() == [
        (NOON, 15.0), (NOON + 2_000_000_000, 30.0), (NOON + 3_000_000_000, 1.0)
    ]  # fmt: skip
    assert metrics.filter(time_unix_nano=NOON, metric_name="mem.used")["value"].to_list() == [200.0]
    assert metrics["service_instance_id"].unique().to_list() == ["wally117"]
    assert (account.read, account.kept, account.duplicates) == (30, 17, 6)
    assert account.set_aside == {"torn_row": 6, "no_value": 1}


def test_spans_carry_program_name_kind_and_error(tmp_path):
    select = {"db": {"statement": "SELECT i.id, i.host \nFROM instances AS i WHERE i.id = %(id)s", "params": {"a": 1}}}
    path = "/v2.1/0123456789abcdef0123456789abcdef/servers/34ae4417-14e7-44fa-b7a7-a154811ee7bc/action"
    call = {"function": {"name": "nova.conductor.rpcapi.ComputeTaskAPI.build_instances", "args": "()", "kwargs": "{}"}}
    work = {"function": {"name": "nova.conductor.manager.ComputeTaskManager.build_instances"}, "etype": "NoValidHost"}
    conductor = node("4", name="rpc", project="nova", service="conductor", details=work)
    api = [
        node("2", name="db", project="nova", service="osapi_compute", details=select),
        node("3", [conductor], name="rpc", project="nova", service="osapi_compute", details=call),
    ]
    request = {"request": {"path": path, "method": "POST", "scheme": "http", "query": ""}}
    top = node("1", api, project="nova", service="osapi_compute", details=request)
    write_trace(tmp_path, top, node("5", project="keystone", service="public"))
    found = read(config(tmp_path))
    assert found.frames["spans"].sort("span_id").select(
        "trace_id", "parent_span_id", "service_instance_id", "span_name", "kind", "status_code", "peer_service_name"
    ).rows() == [
        ("base", None, "nova-api@wally113", "wsgi POST /v2.1/<id>/servers/<id>/action", "SERVER", "UNSET", None),
        ("base", "1", "nova-api@wally113", "db SELECT instances", "CLIENT", "UNSET", "mariadb"),
        ("base", "1", "nova-api@wally113", "rpc ComputeTaskAPI.build_instances", "CLIENT", "UNSET", None),
        ("base", "3", "nova-conductor@wally113", "rpc ComputeTaskManager.build_instances", "SERVER", "ERROR", None),
        ("base", None, "keystone@wally113", "wsgi", "SERVER", "UNSET", None),
    ]  # fmt: skip
    assert found.frames["spans"]["start_time_unix_nano"].unique().to_list() == [NOON]  # traces are on UTC


def test_lost_messages_are_mended_and_counted(tmp_path):
    child = node("2", start="12:00:02.000000", stop="12:00:05.000000")
    top = [
        node("1", [child], stop=None),
        node("3", start="12:00:01.000000", stop=None, started=100, finished=350),
        node("4", stop=None),
        node("5", [node("6", start="12:00:03.000000", stop="12:00:04.000000")], start=None, stop="12:00:06.000000"),
        node("7", start=None, stop=None),
        node("8", start="12:00:03.000000", stop="12:00:02.000000"),
    ]
    write_trace(tmp_path, *top)
    found = read(config(tmp_path))
    times = {
        row[0]: ((row[1] - NOON) // 1_000_000, (row[2] - NOON) // 1_000_000)
        for row in found.frames["spans"].select("span_id", "start_time_unix_nano", "end_time_unix_nano").rows()
    }
    assert times == {
        "1": (0, 5000), "2": (2000, 5000), "3": (1000, 1250), "4": (0, 0), "5": (3000, 6000), "6": (3000, 4000)
    }  # fmt: skip
    account = found.accounts["spans"]
    assert account.repaired == {"missing_stop": 3, "missing_start": 1}
    assert account.set_aside == {"no_time": 1, "negative_duration": 1}
    assert account.read == 8


def test_a_cut_trace_is_one_row_set_aside_and_workers_change_nothing(tmp_path):
    for number in range(3):
        write_trace(tmp_path, node("1"), node("2"), name=f"image/{number}.json")
    whole = write_trace(tmp_path, node("1"), name="image/cut.json")
    whole.write_text(whole.read_text()[:-30])
    found = read(config(tmp_path))
    assert found.accounts["spans"].set_aside == {"unreadable_trace": 1}
    assert found.accounts["spans"].examples == {"unreadable_trace": ("traces/image/cut.json", 1)}
    assert (found.accounts["spans"].read, found.frames["spans"]["trace_id"].n_unique()) == (7, 3)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        shared = read(config(tmp_path), executor)
    assert shared.accounts == found.accounts
    assert shared.frames["spans"].equals(found.frames["spans"])
    with pytest.raises(InputError, match=r"cut\.json, row 1: unreadable trace"):
        read(config(tmp_path, on_bad_rows="error"))


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/v2/images/985aa609-db14-4b4f-abd1-f1e1521237c7/file", "/v2/images/<id>/file"),
        ("/v2.0/networks/985aa609-db14-4b4f-abd1-f1e1521237c7.json", "/v2.0/networks/<id>.json"),
        ("/v2.0/ports.json?device_id=1", "/v2.0/ports.json"),
        ("/v3/auth/tokens", "/v3/auth/tokens"),
        ("/servers/12/34", "/servers/<id>/<id>"),
        ("/", "/"),
    ],
)
def test_path_templates(path, template):
    assert osprofiler.path_template(path) == template


@pytest.mark.parametrize(
    ("statement", "template"),
    [
        ("INSERT INTO `block_device` (a) VALUES (1)", "INSERT block_device"),
        ("UPDATE instances SET a = 1", "UPDATE instances"),
        ("DELETE FROM nova.ports WHERE 1", "DELETE nova.ports"),
        ("SELECT 1", "SELECT"),
        ("", "statement"),
    ],
)
def test_statement_templates(statement, template):
    assert osprofiler.statement_template(statement) == template


def test_a_restart_lasts_until_the_last_failure_it_caused(tmp_path):
    start = NOON / 1e9
    calm = [iteration(start + i) for i in range(100)]
    calm[9] = iteration(start + 9, duration=30.0, failed=True)  # began before the hook and died of it
    calm[20] = iteration(start + 20, failed=True)
    calm[45] = iteration(start + 45, failed=True)  # after more than 20 successes: another cause
    hooks = [
        {"status": "failed", "started_at": start + 10, "finished_at": start + 12, "error": {"msg": "no container"}},
        {"status": "success", "started_at": start + 60, "finished_at": start + 65.5},
    ]
    workload = rally.read_report(write_report(tmp_path, calm, hooks))
    assert rally.faults(workload).rows() == [
        (NOON + 10 * 10**9, NOON + 39 * 10**9, "glance-api", "restart"),
        (NOON + 60 * 10**9, NOON + 65_500_000_000, "glance-api", "restart"),
    ]


def test_a_report_may_state_type_culprit_and_times(tmp_path):
    start = NOON / 1e9
    stated = {"fault_type": "latency", "service_name": "keystone", "started_at": start + 1, "finished_at": start + 7}
    hook = {"status": "success", "started_at": start, "finished_at": start + 9}
    hook["output"] = {"complete": [{"chart_plugin": "TextArea", "data": ["RetCode: 0"]}, {"data": stated}]}
    write_logs(tmp_path, [log_row()])
    write_report(tmp_path, [iteration(start)], [hook])
    assert read(config(tmp_path)).frames["faults"].drop("onset_uncertain_from_unix_nano").rows() == [
        (NOON + 10**9, NOON + 7 * 10**9, "keystone", "latency")
    ]


def test_time_outside_the_experiment_is_a_gap(tmp_path):
    recording = tmp_path / "concurrent data"
    write_logs(recording, [log_row(at=f"2019-11-25T1{hour}:00:00+01:00") for hour in range(1, 8)])
    lines = "START OF EXPERIMENTS - 2019-11-25 11:00:00\nEND OF EXPERIMENTS - 2019-11-25 14:30:00\n"
    local = "START of logs and metrics: 2019-11-25 12:00:00\nEND of logs and metrics: 2019-11-25 15:30:00\n"
    expected = [(NOON - 2 * HOUR, NOON - HOUR), (NOON + 5 * HOUR // 2, NOON + 4 * HOUR)]
    for text in (lines + local, lines, local):
        text_file(recording / "IMPORTANT_experiment_start_end_data.txt", text)
        assert read(config(tmp_path)).frames["gaps"].rows() == expected
    text_file(recording / "IMPORTANT_experiment_start_end_data.txt", "read me\n")
    with pytest.raises(InputError, match="no line 'START OF EXPERIMENTS"):
        read(config(tmp_path))


def test_any_modality_may_be_absent_but_not_all(tmp_path):
    write_logs(tmp_path, [log_row()])
    found = read(config(tmp_path))
    assert found.frames.keys() == {"logs", "topology"}
    assert "no fault is known" in found.warnings[0]
    (tmp_path / "logs/logs_aggregated_concurrent.csv").unlink()
    with pytest.raises(InputError, match="point config.data.raw_dir at 'concurrent data'"):
        read(config(tmp_path))


def test_files_of_another_form_are_named(tmp_path):
    path = text_file(tmp_path / "metrics/wally113_metrics.csv", "now,cpu.user\n2019-11-25 13:00:00 CEST,1\n")
    with pytest.raises(InputError, match=r"wally113_metrics\.csv lacks column 'mem.used'"):
        read(config(tmp_path))
    path.unlink()
    text_file(tmp_path / "logs/logs.csv", "Timestamp,Payload\na,b\n")
    with pytest.raises(InputError, match=r"logs\.csv lacks column 'Hostname'"):
        read(config(tmp_path))
    write_logs(tmp_path, [log_row()], name="logs.csv")
    report = write_report(tmp_path, [iteration(1.0)], [])
    report.write_text(report.read_text()[:-9])
    with pytest.raises(InputError, match=r"output_image\.json is not a whole Rally report"):
        read(config(tmp_path))
    report.write_text("[]")
    with pytest.raises(InputError, match=r"output_image\.json is not a whole Rally report"):
        read(config(tmp_path))


@pytest.fixture(scope="session")
def pieces():
    if not os.environ.get("SSAD_REAL_DATA"):
        pytest.skip("SSAD_REAL_DATA does not name the directory of the real data")
    return Path(os.environ["SSAD_REAL_DATA"], "openstack")


@pytest.fixture(scope="session")
def real(pieces, tmp_path_factory):
    """The real pieces, put where the archive has them."""
    raw = tmp_path_factory.mktemp("openstack")
    workloads, logs = pieces / "workloads", pieces / "logs_instance_only"
    places = {
        "logs/logs_aggregated_1.csv.gz": logs / "logs_aggregated_normal_only_spr.csv.gz",
        "logs/logs_aggregated_2.csv.gz": logs / "logs_aggregated_anomalies_only_spr.csv.gz",
        "metrics/wally113_metrics.csv.gz": workloads / "network_create_delete_config/glances_out.csv.gz",
        "traces/image/8f6ff588-fcb6-4983-883c-282f78922756.json": workloads / "create_delete_image_config/test.json",
        "reports/j_boot.json.gz": workloads / "boot_delete_config/j_boot_delete_output.json.gz",
        "reports/j_image.json.gz": workloads / "create_delete_image_config/j_image_output.json.gz",
    }
    for place, source in places.items():
        target = raw / "sequential_data" / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return read(config(raw))


def test_real_logs(real):
    logs, account = real.frames["logs"], real.accounts["logs"]
    assert (account.read, account.kept, account.set_aside) == (9_197 + 7_484, 16_681, {})
    assert set(logs["service_name"].unique()) == {"nova-compute", "nova-conductor"}
    assert set(real.frames["topology"]["target"]) == {f"wally{number}" for number in (113, 117, 122, 123, 124)}
    first = NOON + 3 * HOUR + (12 * 60 + 29) * 10**9 + 580_000_000  # 16:12:29.580+01:00
    assert logs["time_unix_nano"].min() == first


def test_real_metrics(real):
    metrics, account = real.frames["metrics"], real.accounts["metrics"]
    assert account.read == 6 * 61_040
    assert account.kept == metrics.height == 6 * 53_350
    assert account.duplicates == 6 * 7_690
    steps = metrics.filter(metric_name="cpu.user")["time_unix_nano"].diff().drop_nulls() // 10**9
    assert (steps.min(), (steps == 2).sum()) == (1, 10_930)


def test_real_trace(real):
    spans = real.frames["spans"]
    assert dict(spans["service_name"].value_counts().iter_rows()) == {"glance-api": 7, "keystone": 5}
    assert real.accounts["spans"].repaired == {}
    assert spans["trace_id"].unique().to_list() == ["8f6ff588-fcb6-4983-883c-282f78922756"]
    nested = spans.filter(pl.col("parent_span_id").is_not_null())
    assert nested["span_name"].to_list() == ["wsgi GET /v3/auth/tokens"]
    assert spans["span_name"].to_list()[-1] == "wsgi DELETE /v2/images/<id>"
    assert spans["end_time_unix_nano"].max() - spans["start_time_unix_nano"].min() == 10_058_028_000


def test_real_reports(pieces, real):
    reports = {
        "boot": pieces / "workloads/boot_delete_config/j_boot_delete_output.json.gz",
        "image": pieces / "workloads/create_delete_image_config/j_image_output.json.gz",
        "small": pieces / "workloads/create_delete_image_config/output_jasmin_image.json",
    }
    workloads = {name: rally.read_report(path)[0] for name, path in reports.items()}
    failures = {name: (len(w.data), sum(i.failed for i in w.data)) for name, w in workloads.items()}
    assert failures == {"boot": (750, 5), "image": (1000, 79), "small": (20, 0)}
    assert rally.faults([workloads["small"]]).height == 0
    assert workloads["boot"].data[0].trace_id == "06c7f927-2db3-49d9-87b9-5c623aadc492"
    assert [action.name for action in workloads["boot"].data[0].atomic_actions] == [
        "nova.boot_server", "nova.force_delete_server"
    ]  # fmt: skip
    starts = [1574186026.52, 1574186796.03, 1574187685.40, 1574203903.17, 1574207991.69]
    faults = real.frames["faults"]
    assert [round(time / 1e9, 2) for time in faults["start_time_unix_nano"]] == starts
    assert faults["service_name"].to_list() == ["glance-api"] * 3 + ["nova-compute"] * 2
    # Every failed iteration of the reports lies in the fault that caused it.
    for name, workload in workloads.items():
        for failed in (i for i in workload.data if i.failed):
            inside = (faults["start_time_unix_nano"] <= failed.end * 1e9) & (
                faults["end_time_unix_nano"] + 1000 >= failed.end * 1e9
            )
            assert inside.any(), name


def test_a_cut_real_report_is_named(pieces, tmp_path):
    whole = pieces / "workloads/create_delete_image_config/j_image_output.json.gz"
    cut = tmp_path / "j_image.json.gz"
    cut.write_bytes(whole.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"j_image\.json\.gz is not a whole Rally report"):
        rally.read_report(cut)
    cut.write_bytes(gzip.compress(gzip.decompress(whole.read_bytes())[:5000]))
    with pytest.raises(InputError, match=r"j_image\.json\.gz is not a whole Rally report"):
        rally.read_report(cut)
