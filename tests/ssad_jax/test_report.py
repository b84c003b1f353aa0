"""The report: one page that stands by itself, whatever the telemetry says and whatever is missing."""

import dataclasses
import html.parser

import numpy as np
import polars as pl
import pytest

from ssad_jax import evaluate
from ssad_jax.prepared import Prepared
from ssad_jax.report.html import render, write_report
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
    assert len(records) >= 2 and all(f"alarm-{r['alert']}" in page.attributes("id") for r in records)


def test_telemetry_is_text(hostile):
    name, _, evaluation = hostile
    page = check(evaluation.page)
    assert page.text.count(name) > 5  # suspects, signals, log lines, labels
    assert f"{name} 0" in page.text and "\x1b" not in evaluation.page
    assert "49" not in page.text.split("{{ 7 * 7 }}")[1][:2] if name == MATH else True
