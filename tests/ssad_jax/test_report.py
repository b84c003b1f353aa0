"""The report: one page that stands by itself, whatever the telemetry says and whatever is missing."""

import dataclasses
import html.parser
import shutil
import subprocess

import numpy as np
import polars as pl
import pytest

from ssad_jax import evaluate
from ssad_jax.prepared import Prepared
from ssad_jax.report import alarms, axis, comparison, graph, text
from ssad_jax.report.html import render, write_report
from ssad_jax.scoring.assess import TestWindows
from tests.ssad_jax.test_evaluate import run
from tests.synthetic import make_prepared

SCRIPT = "<script>document.title = 'owned'</script>"
IMAGE = "\"><img src=x onerror=\"document.title='owned'\">"
MATH = r"$\frac{1}{0}$ \x {{ 7 * 7 }}"
VOID = {"meta", "img", "input", "br", "link", "hr"}


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text outside of <style>; fails on elements that are not closed in order."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] for _, attrs in self.tags if name in attrs]


def check(page: str) -> Page:
    """The page parsed, when nothing in it could run or be fetched and every link leads to something."""
    parsed = Page(page)
    assert not [tag for tag, _ in parsed.tags if tag in ("script", "link", "iframe", "object", "base", "form")]
    assert not [name for _, attrs in parsed.tags for name in attrs if name.startswith("on")]
    assert all(value.startswith("data:image/") for value in parsed.attributes("src"))
    links = parsed.attributes("href")
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in links)
    assert {value[1:] for value in links if value.startswith("#")} <= set(parsed.attributes("id"))
    assert len(parsed.attributes("id")) == len(set(parsed.attributes("id")))
    assert "@import" not in page and page.count("url(") == page.count("url(#unseen)")
    assert "default-src 'none'" in dict(parsed.tags)["meta"].get("content", "") or "default-src 'none'" in page
    return parsed


@dataclasses.dataclass
class Evaluated:
    """What an evaluation hands to the report."""

    page: str
    arguments: tuple

    def again(self, tables=(), **changed) -> str:
        names = ("results", "prepared", "scored", "test", "chosen", "floors", "records", "pairs")
        values = dict(zip(names, self.arguments, strict=True)) | changed
        return render(**values, tables=tables)


def evaluated(data: Prepared, workdir, names=("rule",)) -> Evaluated:
    kept = []

    def keep(path, *arguments):
        kept.append(arguments)
        write_report(path, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "write_report", keep)
        run(data, workdir, names=names)
    return Evaluated((workdir / "report.html").read_text(), kept[0])


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    return evaluated(make_prepared(segments=16), tmp_path_factory.mktemp("usual"))


def renamed(directory, name: str) -> Prepared:
    """The synthetic data with the last service, its nodes, its faults and its log lines named `name`."""
    data = make_prepared(segments=8)
    old = data.system.service_names[-1]
    system = dataclasses.replace(
        data.system, service_names=(*data.system.service_names[:-1], name),
        node_names=tuple(n.replace(old, name) for n in data.system.node_names),
    )  # fmt: skip
    faults = data.faults.with_columns(service_name=pl.lit(name), fault_type=pl.lit(name))
    faulty = np.flatnonzero(data.windows.label == 1)
    logs = pl.DataFrame({
        "time_unix_nano": data.windows.start_unix_nano[faulty] + 1,
        "service_name": name,
        "unit": name,
        "alert": True,
        "body": [f"\x1b[31m{name} {i}" for i in range(len(faulty))],
        "template": np.zeros(len(faulty), np.int32),
        "node": np.full(len(faulty), data.system.node_names.index(f"{old}/template 0"), np.int32),
    })  # fmt: skip
    (directory / "tables").mkdir(parents=True)
    logs.write_parquet(directory / "tables" / "logs.parquet")
    manifest = data.manifest | {"source": name, "templates": [name]}
    return dataclasses.replace(data, system=system, faults=faults, directory=directory, manifest=manifest)


@pytest.fixture(scope="module", params=[SCRIPT, IMAGE, MATH], ids=["script", "image", "math"])
def hostile(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("hostile")
    data = renamed(directory / "data", request.param)
    return request.param, directory, evaluated(data, directory / "work", names=(request.param,))


def test_page_stands_by_itself(usual):
    page = check(usual.page)
    for heading in ("Score and blame over time", "Who calls whom", "Alarms, strongest first", "Pair distances",
                    "By fault type", "False alarms as promised?", "Configuration"):  # fmt: skip
        assert heading in page.text
    assert len(page.attributes("src")) >= 4  # curves, calibration, terms, pairs
    assert len(usual.page) < 3e6


def test_first_look_names_the_culprit_and_why(usual):
    page = check(usual.page)
    first = page.text[page.text.index("Look here first") : page.text.index("Score and blame over time")]
    assert "service-2" in first and "expected" in first and "since 2020-09-13" in first
    assert "known fault: planted at service-2" in first
    records = usual.arguments[6]
    assert records and all(f"alarm-{r['alert']}" in page.attributes("id") for r in records)


def test_telemetry_is_text(hostile):
    name, _, evaluation = hostile
    page = check(evaluation.page)
    assert page.text.count(name) > 5  # suspects, signals, log lines, labels
    assert any(f"{name} {name} {i}" in page.text for i in range(6))  # a log line and its service
    assert "\x1b" not in evaluation.page


def test_chromium_shows_hostile_pages_without_complaint(hostile):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium is installed; the page was parsed, but not shown")
    _, directory, _ = hostile
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
        f"--user-data-dir={directory / 'profile'}", "--window-size=1280,800",
        (directory / "work" / "report.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "Alarms, strongest first" in done.stdout
    assert "CONSOLE" not in done.stderr, done.stderr
    assert Page(done.stdout).text.lstrip().startswith("Anomaly report")  # the title that no payload changed


def without_labels(data: Prepared) -> Prepared:
    label, fault = np.full_like(data.windows.label, -1), np.full_like(data.windows.fault, -1)
    windows = dataclasses.replace(data.windows, label=label, fault=fault)
    return dataclasses.replace(data, windows=windows, faults=data.faults.clear())


def test_without_labels_the_alarms_are_all_there(tmp_path):
    evaluation = evaluated(without_labels(make_prepared(segments=8)), tmp_path)
    page = check(evaluation.page)
    assert "nothing to measure" in page.text and "labels:" not in page.text
    assert "culprit by the labels" not in page.text and "service-2" in page.text
    assert "none is known to be normal" in page.text


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"simulated": {"hours": 1}, "injected": None}, "simulated data"),
        ({"simulated": None, "injected": {"seed": 0}}, "simulated faults in recorded telemetry"),
    ],
)
def test_what_is_simulated_is_said(usual, facts, words):
    data = usual.arguments[1]
    data = dataclasses.replace(data, manifest=data.manifest | facts)
    page = check(usual.again(prepared=data))
    assert page.text.count(words) == 2  # under the title, and among the facts of the data


def test_without_test_windows(tmp_path):
    data = dataclasses.replace(make_prepared(segments=8), test_runs=np.zeros((0, 0), np.int32))
    page = check(evaluated(data, tmp_path).page)
    assert page.text.count("There are no test windows.") >= 2 and "service-0" in page.text  # the graph


def test_one_service_and_no_calls(tmp_path):
    page = check(evaluated(make_prepared(segments=8, num_services=1), tmp_path).page)
    assert "no calls seen in training time" in page.text and "service-0" in page.text


def test_without_alarms(usual):
    chosen = usual.arguments[4]
    quiet = dataclasses.replace(chosen, alert=np.zeros_like(chosen.alert))
    page = check(usual.again(records=[], chosen=quiet))
    assert "No alarm was raised." in page.text and "#alarm-" not in " ".join(page.attributes("href"))


def test_records_with_nothing_known(usual):
    """A diverged score, no suspect, no rule, no lines: an alarm is shown all the same."""
    record = usual.arguments[6][0]
    bare = record | {
        "score": float("nan"), "p_value": None, "suspects": [], "deviations": [], "log_lines": [], "traces": [],
        "rule": None, "truth": None, "terms": dict.fromkeys(record["terms"], 0.0),
    }  # fmt: skip
    page = check(usual.again(records=[bare]))
    assert "no suspect" in page.text and "No single signal stands out" in page.text


def test_trace_ids_and_times_of_log_lines(usual):
    record = usual.arguments[6][0]
    start = record["peak_start_unix_nano"]
    trace = {"trace_id": "4bf92f3577b34da6", "service": "service-2", "operation": IMAGE, "start_unix_nano": start,
             "duration_ms": 1234.5}  # fmt: skip
    line = {"time_unix_nano": start + 250_000_000, "service": "service-2", "body": "disk\u202e full", "template": None}
    page = check(usual.again(records=[record | {"traces": [trace], "log_lines": [line]}]))
    assert "4bf92f3577b34da6" in page.text and "1,234" in page.text and IMAGE in page.text
    assert f"{text.clock_text(start)}.250 service-2" in page.text and "disk\\u202e full" in page.text


def test_many_alarms_are_limited_and_counted(usual):
    record = usual.arguments[6][0]
    many = [record | {"alert": n, "log_lines": [{"time_unix_nano": record["start_unix_nano"], "service": "s",
            "body": "x" * 600, "template": None}] * 8} for n in range(1, 1001)]  # fmt: skip
    page = usual.again(records=many)
    assert len(page) < 3e6
    parsed = check(page)
    assert "1000 alarms" in parsed.text and "700 weaker alarms are left out" in parsed.text


COMPARISON = f"""# Comparison

## folds

Means over seeds.

### Scores

| detector | AUROC |
|:---|---:|
| **knowledge_ssl** | 0.914 |
| {SCRIPT.replace("<", "&lt;")} | a \\| b \\\\ |

### Paired

Same draws.

| detector | AUROC |
|---|---|
| linear | +0.001 |

Note: done.
"""


def test_comparison_near_the_report(usual, tmp_path):
    workdir, other = tmp_path / "run", tmp_path / "run_compare"
    other.mkdir()
    assert comparison.find(workdir) == []
    (other / "comparison.md").write_text(COMPARISON)
    assert comparison.find(workdir) == []  # not finished
    (other / "comparison.json").write_text("{}")
    scores, paired = tables = comparison.find(workdir)
    assert (scores.title, scores.note, scores.first) == ("folds: Scores", "Means over seeds.", True)
    assert scores.head == ["detector", "AUROC"]
    assert scores.rows == [["knowledge_ssl", "0.914"], [SCRIPT, "a | b \\"]]
    assert (paired.title, paired.note, paired.first) == ("folds: Paired", "Same draws.", False)
    page = check(usual.again(tables=tables))
    assert "From run_compare/comparison.md" in page.text and "0.914" in page.text and SCRIPT in page.text
    assert "Comparison of detectors" not in check(usual.page).text


def test_long_tables_are_cut_and_counted(usual):
    rows = "".join(f"| d{i} | {i} |\n" for i in range(100))
    (table,) = tables = comparison.from_markdown(f"| name | x |\n|---|---|\n{rows}\n| no | table |\n", "a/b")
    assert len(table.rows) == comparison.ROWS and table.left_out == 100 - comparison.ROWS
    assert "40 more rows are in a/b" in check(usual.again(tables=tables)).text


def windows_of(*runs: tuple[int, int]) -> TestWindows:
    """Windows of 40 s every 10 s; each run is (first second, number of windows) and a segment of its own."""
    start = np.concatenate([first + 10 * np.arange(count) for first, count in runs]).astype(np.int64) * 10**9
    segment = np.repeat(np.arange(len(runs)), [count for _, count in runs])
    nothing = np.zeros(len(start), int)
    return TestWindows(np.arange(len(start)), start, start + 40 * 10**9, segment, nothing, nothing - 1, pl.DataFrame())


def test_axis_shows_every_window_once_and_leaves_gaps():
    test = windows_of((0, 5), (1000, 3), (5000, 4))
    (panel,), together = axis.panels(test, 500)
    assert together == 1
    assert [seconds for _, seconds in panel.gaps] == [1000 - 80, 5000 - 1060]
    assert [[int(c[0]) for c in s.cells] for s in panel.stretches] == [[0, 1, 2, 3, 4], [5, 6, 7], [8, 9, 10, 11]]
    ends = [panel.place(s, 0, len(s.cells) - 1) for s in panel.stretches]
    assert [round(x + width, 6) for x, width in ends[:-1]] == [round(x, 6) for x, _ in panel.gaps]
    assert ends[-1][0] + ends[-1][1] == pytest.approx(500)


def test_long_test_time_takes_several_panels_and_shared_cells():
    test = windows_of((0, 700), (8000, 700), (16000, 9000))
    panels, together = axis.panels(test, 1000)
    assert len(panels) == axis.PANELS and together == 4
    cells = [c for p in panels for s in p.stretches for c in s.cells]
    assert np.array_equal(np.concatenate(cells), np.arange(10400)) and max(map(len, cells)) == 4
    lengths = [sum(len(s.cells) for s in p.stretches) for p in panels]
    assert max(lengths) < 1.35 * min(lengths)
    assert all(s.x + len(s.cells) * p.cell <= 1000 + 1e-6 for p in panels for s in p.stretches)


def with_calls(num_services: int, calls: list[tuple[int, int]]):
    """A system of services and dependency nodes alone."""
    system = make_prepared(segments=8).system
    count = num_services + len(calls)
    service = [*range(num_services), *(callee for _, callee in calls)]
    caller = [-1] * num_services + [c for c, _ in calls]
    return dataclasses.replace(
        system, kind=np.array([0] * num_services + [3] * len(calls), np.int8), node_mask=np.ones(count, bool),
        service=np.array(service, np.int32), caller=np.array(caller, np.int32),
        service_names=tuple(f"s{i}" for i in range(num_services)), node_names=tuple(f"n{i}" for i in range(count)),
    )  # fmt: skip


def test_graph_runs_from_callers_to_callees():
    system = with_calls(6, [(0, 1), (0, 2), (1, 3), (2, 3), (3, 4), (4, 3)])
    layout = graph.arrange(system, [])
    level = {s: i for i, layer in enumerate(layout.layers) for s in layer}
    assert [level[s] for s in range(5)] == [0, 1, 1, 2, 3]  # the circle 3, 4 is entered at 3
    assert layout.alone == [5] and layout.left_out == 0
    assert graph.arrange(system, []) == layout


def test_calls_pass_layers_beside_the_services_there():
    layout = graph.arrange(with_calls(4, [(0, 1), (1, 2), (0, 2), (0, 3), (3, 2)]), [])
    assert [(slot.passing, slot.service, slot.layer) for slot in layout.routes[0, 2]] == [
        (False, 0, 0), (True, 2, 1), (False, 2, 2)]  # fmt: skip
    assert [slot.passing for slot in sorted(layout.slots[1])] == [False, False, True]
    assert sorted(layout.layers[1]) == [1, 3]


def test_graph_without_a_first_caller_and_deep_chains():
    ring = graph.arrange(with_calls(3, [(0, 1), (1, 2), (2, 0)]), [])
    assert ring.layers == [[0], [1], [2]]
    chain = graph.arrange(with_calls(12, [(i, i + 1) for i in range(11)]), [])
    assert len(chain.layers) == graph.MOST_LAYERS and sum(map(len, chain.layers)) == 12


def test_graph_of_many_services_keeps_the_suspects():
    system = with_calls(200, [(i, i + 1) for i in range(198)])
    layout = graph.arrange(system, ["s150", "s199"])
    shown = {s for layer in layout.layers for s in layer} | set(layout.alone)
    assert {149, 150, 151, 199} <= shown and len(shown) == graph.MOST_SERVICES and layout.left_out == 152
    suspects = [{"service": "s150", "blame": 30.0, "share": 0.9}]
    call = {"node": 200 + 149, "kind": "dependency", "channel": "calls", "observed": 9.0, "expected": 2.0, "unit": ""}
    drawn = graph.draw(layout, system, {"suspects": suspects, "deviations": [call]}, 30.0)
    assert drawn.count('class="call deviating"') == 1 and "calls: 9, expected 2" in drawn
    assert "s150: suspect 1, blame 30, 90%" in drawn


@pytest.mark.parametrize(("changed", "expected"), [
    ({"kind": "log", "channel": "count", "unit": "lines in the window", "observed": 9.0, "expected": 34.7},
     "Log template a: x: 9 lines in the window, expected 34.7."),
    ({"kind": "dependency", "name": "a -> b", "channel": "net latency, mean", "unit": "ms (geometric mean of 3 calls)",
      "observed": 1597.0, "expected": 2.631}, "Call a → b: mean net latency 1,597 ms, expected 2.63."),
    ({"kind": "metric", "name": "a: mem", "channel": "level", "unit": "units of the metric", "observed": 2.6e9,
      "expected": -15e6}, "Metric a: mem: level 2.6 G, expected −15 M."),
])  # fmt: skip
def test_why_in_one_sentence(changed, expected):
    deviation = {"name": "a: x", "service": "a", "error": 3.0} | changed
    assert alarms.sentence({"suspects": [{"service": "a"}], "deviations": [deviation]}) == expected
    two = [deviation | {"service": "other", "name": "other"}, deviation, deviation]
    told = alarms.sentence({"suspects": [{"service": "a"}], "deviations": two})
    assert told == expected.removesuffix(".") + "; 1 more of its signals deviate."  # the first suspect's comes first


@pytest.mark.parametrize(("value", "expected"), [
    (0, "0"), (None, "–"), (float("nan"), "–"), (0.01234, "0.0123"), (4.567, "4.57"), (1234.5, "1,234"),
    (9.996, "10"), (-15e6, "−15 M"), (2.6e9, "2.6 G"), (1e-7, "1.00e-07"),
])  # fmt: skip
def test_numbers(value, expected):
    assert text.number(value) == expected


def test_texts():
    assert text.two_digits(-0.001) == "0.00" and text.two_digits(-1.5) == "−1.50" and text.two_digits(None) == "–"
    assert text.duration_text(45) == "45 s" and text.duration_text(3600 * 3 + 300) == "3 h 5 min"
    assert text.plain("\x1b[31mred\x1b[0m\x00") == "red\\u0000"
    assert text.plain("x" * 700) == "x" * 599 + "…" and text.clip_middle("abcdefghij", 5) == "ab…ij"
