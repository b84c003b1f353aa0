"""Alert records on synthetic data: what they name, hostile text, and tables that are not there."""

import dataclasses
import json

import numpy as np
import polars as pl
import pytest

from ssad_jax.config import default_config
from ssad_jax.floors.linear import closed_form
from ssad_jax.prepared import CONTEXT_DIM
from ssad_jax.scoring import assess, explain, output
from ssad_jax.scoring.alarms import Alarm
from ssad_jax.scoring.calibration import evidence
from ssad_jax.scoring.detectors import make_detector, overlap_of, suspect_lists
from tests.synthetic import make_prepared

NS = 1_000_000_000
HOSTILE = "</script><img src=x onerror=alert(1)>\n{\"alert\": 99}\u2028\x00 '; DROP TABLE"
RULES = """
system: synthetic
rules:
  - {name: broken-line, kind: software, components: [service-2], signals: {logs: [x]},
     description: "Lines are\\n  missing."}
"""


def with_tables(data, directory):
    """Log lines, calls and spans in every second of the dataset; the body of the faulty service's lines is hostile."""
    (directory / "tables").mkdir(parents=True)
    first = int(data.windows.start_unix_nano.min())
    time = np.arange(first, int(data.windows.end_unix_nano.max()), NS)
    names = data.system.node_names
    logs = [
        (int(t), service, body, template, names.index(node), alert)
        for t in time
        for service, body, template, node, alert in (
            ("service-0", f"usual {t}", 0, "service-0/template 0", False),
            ("service-2", HOSTILE, 1, "service-2/template 0", False),
            ("service-2", f"warning {t}", -1, "service-2/template 1", True),
        )
    ]
    columns = ["time_unix_nano", "service_name", "body", "template", "node", "alert"]
    pl.DataFrame(logs, schema=columns, orient="row").write_parquet(directory / "tables" / "logs.parquet")
    count = len(time)
    spans = pl.DataFrame({
        "time_unix_nano": time, "unit": ["service-2"] * count, "operation": ["GET /"] * count,
        "client": [False] * count, "error": np.arange(count) % 7 == 0, "self_ns": np.arange(count),
        "duration_ns": np.full(count, 2_000_000), "trace_id": [f"trace-{i}" for i in range(count)],
    })  # fmt: skip
    spans.write_parquet(directory / "tables" / "spans.parquet")
    calls = spans.rename({"unit": "callee"}).drop("client", "self_ns").with_columns(
        caller=pl.lit("service-1"), gap_ns=pl.lit(5)
    )
    calls.write_parquet(directory / "tables" / "calls.parquet")
    manifest = data.manifest | {
        "templates": ["usual <num>", "<hostile> template"], "fitted": {"mean_counts": {"logs": [8.0] * 6}},
    }  # fmt: skip
    return dataclasses.replace(data, directory=directory, manifest=manifest)


def records_of(data, config=None):
    config = config or default_config("test")
    scored = closed_form(data, config.score)
    test = assess.test_windows(data.windows, data.faults, scored.terms.window)
    detector = make_detector(
        "calibrated", scored.held_out.calibrated, scored.scores.calibrated, config.score, overlap_of(data, scored),
        suspect_lists(data, scored),
    )  # fmt: skip
    records = explain.alert_records(data, scored, test, detector, ["broken-line"] * len(test.window), config)
    return records, test, detector


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    data = with_tables(make_prepared(segments=32, seed=1), tmp_path_factory.mktemp("data"))
    rules = tmp_path_factory.mktemp("rules") / "rules.yaml"
    rules.write_text(RULES)
    config = default_config("test")
    config.knowledge.path = str(rules)
    config.alerts.cool_down_seconds = 0.0  # the two faults lie close together
    return data, *records_of(data, config)


def node_of(line):
    return {"u": "service-0/template 0", "<": "service-2/template 0", "w": "service-2/template 1"}[line["body"][0]]


def true_ones(records):
    return [r for r in records if r["truth"].startswith("known fault")]


def test_each_fault_is_one_alarm_with_its_culprit(told):
    data, records, test, detector = told
    faulty = true_ones(records)
    assert len(faulty) == data.faults.filter(pl.col("start_time_unix_nano") >= test.start_unix_nano.min()).height == 4
    assert [r["alert"] for r in records] == list(range(1, len(records) + 1))
    for record in faulty:
        assert record["truth"] == "known fault: planted at service-2"
        assert record["suspects"][0]["service"] == "service-2" and record["suspects"][0]["share"] > 0.5
        assert record["score"] > record["threshold"] == detector.threshold
        assert 0 < record["p_value"] <= 0.05 and record["num_windows"] >= 1
        assert record["terms"] == {"reconstruction": 1.0, "temporal": 0.0, "prior": 0.0}
        assert max(record["kinds"], key=record["kinds"].get) == "log"
        assert record["rule"] == {"name": "broken-line", "description": "Lines are missing."}
        row = int(np.argmax(test.start_unix_nano == record["peak_start_unix_nano"]))
        assert detector.score[row] == record["score"] and record["peak_end_unix_nano"] == test.end_unix_nano[row]
        assert record["start_unix_nano"] <= record["peak_start_unix_nano"] < record["end_unix_nano"]


def test_deviations_are_in_lines_in_the_window(told):
    data, records, test, _ = told
    for record in true_ones(records):
        first = record["deviations"][0]
        assert (first["kind"], first["service"], first["channel"]) == ("log", "service-2", "count")
        assert first["name"] == data.system.node_names[first["node"]] and first["unit"] == "lines in the window"
        window = test.window[test.start_unix_nano == record["peak_start_unix_nano"]][0]
        scaled = data.windows.nodes[window, first["node"], [16, 0]]  # signal, context
        lines = (scaled / 2 + np.sqrt(8.375)) ** 2 - 0.375  # stabilised units at a mean of 8
        np.testing.assert_allclose([first["observed"], first["expected"]], np.maximum(lines, 0), atol=0.006)
        assert first["observed"] > first["expected"] + 9
        assert all(d["error"] >= explain.LEAST_ERROR for d in record["deviations"])


def test_a_line_out_of_balance_is_told_in_lines_seen_and_expected(tmp_path):
    data = make_prepared(segments=32, seed=1)
    system, nodes = data.system, data.windows.nodes.copy()
    logs = system.kind == 1
    nodes[..., logs, CONTEXT_DIM + 1] = 0.5 * (nodes[..., logs, CONTEXT_DIM] - nodes[..., logs, 0])
    signal, evidence = system.signal_mask.copy(), system.evidence.copy()
    signal[logs, 1], evidence[logs, 0], evidence[logs, 1] = True, False, True
    system = dataclasses.replace(
        system, channels=system.channels | {"log": ["count", "balance"]}, signal_mask=signal, evidence=evidence,
        witness=evidence,
    )  # fmt: skip
    data = dataclasses.replace(data, system=system, windows=dataclasses.replace(data.windows, nodes=nodes))
    records, test, _ = records_of(with_tables(data, tmp_path))
    first = true_ones(records)[0]["deviations"][0]
    assert (first["kind"], first["service"], first["channel"]) == ("log", "service-2", "count")
    assert first["unit"] == "lines in the window" and first["observed"] > first["expected"] + 9


def test_lines_come_by_time_and_template(told):
    data, records, *_ = told
    for record in true_ones(records):
        lines = record["log_lines"]
        assert len(lines) == 8
        start, end = record["peak_start_unix_nano"], record["peak_end_unix_nano"]
        assert all(start <= line["time_unix_nano"] < end for line in lines)
        nodes = {"service-0/template 0", "service-2/template 0", "service-2/template 1"}
        deviating = nodes & {d["name"] for d in record["deviations"]}
        told_of = [node_of(line) for line in lines]
        assert told_of[0] in deviating and HOSTILE in [line["body"] for line in lines]
        assert sum(line["body"] == HOSTILE for line in lines) == 1  # repeats are told once
        rank = [node in deviating for node in told_of]
        assert rank == sorted(rank, reverse=True)  # lines of deviating templates first
        for line in lines:
            assert line["template"] == {"u": "usual <num>", "<": "<hostile> template", "w": None}[line["body"][0]]


def test_each_deviating_template_gives_a_line_in_turn_the_worst_first(told):
    data, records, test, detector = told
    scored = closed_form(data, default_config("test").score)
    explainer = explain._Explainer(data, scored, test, detector, ["x"] * len(test.window), default_config("test"))
    start, end = records[0]["peak_start_unix_nano"], records[0]["peak_end_unix_nano"]
    nodes = [data.system.node_names.index(f"service-{name}") for name in ("2/template 1", "0/template 0")]
    lines = [line["body"].split()[0] for line in explainer._log_lines(start, end, nodes, [])]
    assert lines == ["warning", "usual"] * 4


def test_spans_of_units_that_fit_time_has_not_seen_are_those_of_unknown(told):
    data, _, test, detector = told
    names = list(data.system.node_names)
    names[names.index("service-0")] = "<unknown>"
    data = dataclasses.replace(data, system=dataclasses.replace(data.system, node_names=tuple(names)))
    scored = closed_form(data, default_config("test").score)
    explainer = explain._Explainer(data, scored, test, detector, ["x"] * len(test.window), default_config("test"))
    units = pl.DataFrame({"unit": ["service-1", "service-2", "new", "<unknown>"]})
    assert units.filter(explainer._of_units(["<unknown>"]))["unit"].to_list() == ["new", "<unknown>"]
    assert units.filter(explainer._of_units(["service-2"]))["unit"].to_list() == ["service-2"]


def test_failed_traces_come_first(told):
    _, records, *_ = told
    for record in true_ones(records):
        assert 0 < len(record["traces"]) <= 5
        assert len({t["trace_id"] for t in record["traces"]}) == len(record["traces"])
        first = record["traces"][0]
        assert int(first["trace_id"].removeprefix("trace-")) % 7 == 0
        assert first["duration_ms"] == 2.0 and first["operation"] == "GET /" and first["service"] == "service-2"


def test_hostile_text_stays_data(told, tmp_path):
    _, records, *_ = told
    assert any(line["body"] == HOSTILE for r in records for line in r["log_lines"])
    output.write_json_lines(tmp_path / "alerts.jsonl", records)
    lines = (tmp_path / "alerts.jsonl").read_bytes().decode("ascii").split("\n")
    assert len(lines) == len(records) + 1 and lines[-1] == ""
    assert [json.loads(line) for line in lines[:-1]] == records


def test_without_tables_rules_or_labels_records_are_whole(told):
    bare = make_prepared(segments=16)
    bare = dataclasses.replace(bare, faults=bare.faults.clear())
    windows = dataclasses.replace(bare.windows, label=np.full_like(bare.windows.label, -1))
    records, *_ = records_of(dataclasses.replace(bare, windows=windows))
    assert records
    for record, full in zip(records, told[1], strict=False):
        assert set(record) == set(full) and record["truth"] is None
        assert record["log_lines"] == [] and record["traces"] == []
        assert record["rule"] == {"name": "broken-line", "description": None}
        assert record["deviations"][0]["unit"] == "normal scales"


def windows_of(start):
    start = np.array(start) * NS
    count = len(start)
    ids, none = np.arange(count), np.full(count, -1)
    return assess.TestWindows(ids, start, start + 20 * NS, np.zeros(count, int), none, none, pl.DataFrame())


def alarm(first):
    return Alarm(np.array([first]), 0, 0, 1, first, first)


def test_truth_by_hand():
    faults = pl.DataFrame({"service_name": ["a", "b"], "fault_type": ["x", "y"]})
    label, fault = np.array([0, 1, 1, 1, 0, -1]), np.array([-1, 0, 0, 1, -1, -1])
    test = dataclasses.replace(windows_of(range(0, 30, 5)), label=label, fault=fault, faults=faults)

    def of(*rows):
        return explain.truth(test, dataclasses.replace(alarm(0), rows=np.array(rows)))

    assert of(0, 1, 2) == "known fault: x at a" and of(2, 3) == "known fault: x at a, then y at b"
    assert of(0, 5) == "no known fault" and of(5) == "near a known fault"
    assert explain.truth(windows_of([0]), alarm(0)) is None


def test_since_when_by_hand():
    test = windows_of([0, 5, 10, 15, 20])
    since = explain.begin_of_deviation(test, np.array([0.0, 0.0, 2.0, 3.0, 9.0]), alarm(4), usual=1.0)
    assert since == 25 * NS  # window 2 is the first that deviates; window 1 had seen up to second 25
    assert explain.begin_of_deviation(test, np.array([0.0, 2.0, 0.5, 3.0, 9.0]), alarm(4), 1.0) == 30 * NS
    assert explain.begin_of_deviation(test, np.full(5, 9.0), alarm(0), 1.0) == 0
    hole = windows_of([0, 5, 100, 105])
    assert explain.begin_of_deviation(hole, np.full(4, 9.0), alarm(3), 1.0) == 100 * NS


def test_term_shares_by_hand():
    data, config = make_prepared(segments=8), default_config("test")
    scored = closed_form(data, config.score)
    one, usual = np.ones(1), -1.0
    secondary = 2.0 * evidence(3.0)
    assert evidence(3.0) > 0 and evidence(usual) == 0
    scores = scored.scores._replace(calibrated=3 * secondary * one, temporal=3.0 * one, prior=usual * one)
    terms = scored.terms._replace(paper_reconstruction=2.0 * one, temporal=np.nan * one, prior=6.0 * one)
    calibration = dataclasses.replace(scored.calibration, weights=np.array([1.0, 2.0, 1.0]))
    scored = dataclasses.replace(scored, scores=scores, terms=terms, calibration=calibration)
    calibrated = explain.term_shares(scored, 0, "calibrated")
    assert calibrated == pytest.approx({"reconstruction": 2 / 3, "temporal": 1 / 3, "prior": 0.0})
    assert explain.term_shares(scored, 0, "paper") == {"reconstruction": 0.25, "temporal": 0.0, "prior": 0.75}
