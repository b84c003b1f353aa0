"""Properties of every table for arbitrary rows: accounts close, frames have the schema and are sorted, and neither the
order of rows nor how they are divided into files changes the result.

Few examples, always the same; HYPOTHESIS_PROFILE=long draws 2000 new ones.
"""

import io
import json
import os

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from data_prep import tables
from data_prep.errors import InputError
from data_prep.sources import jaeger, prometheus

settings.register_profile(
    "quick", max_examples=25, derandomize=True, deadline=None, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
settings.register_profile("long", settings.get_profile("quick"), max_examples=2000, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

T0 = 1_700_000_000_000_000_000
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NAME = st.one_of(st.sampled_from(["a", "b", "", "OK", "INTERNAL", "invokes"]), TEXT)
TIME = st.one_of(st.integers(T0, T0 + 5), st.sampled_from([0, -1, 1_700_000_000, 2**63 - 1, -(2**63)]))
VALUE = st.one_of(st.sampled_from([0.0, 1.5, -0.0]), st.floats(width=64))
OF_TYPE = {pl.Int64(): TIME, pl.Float64(): VALUE, pl.Boolean(): st.booleans(), pl.String(): NAME}
GOOD = {pl.Int64(): st.integers(T0, T0 + 5), pl.Float64(): st.sampled_from([0.0, 1.5]), pl.Boolean(): st.booleans(),
        pl.String(): st.sampled_from(["a", "b"])}  # fmt: skip
ALLOWED = {**tables.SCHEMAS["spans"].allowed, **tables.SCHEMAS["topology"].allowed}


@st.composite
def rows_of(draw, name):
    """Frames of table `name`: usable rows, repeated ones, and some with any value in one of their cells."""
    columns = tables.SCHEMAS[name].columns
    good = [st.sampled_from(ALLOWED[c]) if c in ALLOWED else GOOD[dtype] for c, dtype in columns.items()]
    rows = [list(row) for row in draw(st.lists(st.tuples(*good), max_size=12))]
    for row in draw(st.lists(st.sampled_from(rows), max_size=4)) if rows else []:
        at = draw(st.integers(0, len(columns) - 1))
        row[at] = draw(st.none() | OF_TYPE[list(columns.values())[at]])
    return pl.DataFrame(rows + rows[:2], schema=columns, orient="row")


def closed(name, parts):
    """The table of some parts, None where no row is usable; its account closes and its frame is as it must be."""
    found = tables.Tables()
    parts = list(parts)
    for frame, account in parts:
        account.check()
        assert frame.height == account.kept and frame.schema == pl.Schema(tables.SCHEMAS[name].columns)
    try:
        found.add(name, parts)
    except InputError:
        assert not any(frame.height for frame, _ in parts)
        return None, sum(account.read for _, account in parts)
    found.check()
    frame, account = found.frames[name], found.accounts[name]
    assert frame.schema == pl.Schema(tables.SCHEMAS[name].columns)
    assert_frame_equal(frame, frame.sort(frame.columns))
    assert frame.unique(tables.SCHEMAS[name].key).height == frame.height
    for column in tables.SCHEMAS[name].times:
        assert frame[column].drop_nulls().is_between(tables.EARLIEST, tables.LATEST).all()
    return frame, account.read


def same(one, two):
    assert (one is None) == (two is None)
    if one is not None:
        assert_frame_equal(one, two)


def written(directory, kind, *frames):
    paths = [directory / f"{i}.{kind}" for i in range(len(frames))]
    for path, frame in zip(paths, frames, strict=True):
        getattr(frame, f"write_{kind}")(path)
    return paths


@pytest.mark.parametrize("kind", ["parquet", "csv"])
@pytest.mark.parametrize("name", tables.SCHEMAS)
def test_any_rows_of_a_table(name, kind, tmp_path):
    @given(rows_of(name), st.randoms(use_true_random=False), st.integers(0, 14))
    def check(frame, draw, cut):
        order = draw.sample(range(frame.height), frame.height)
        shuffled = frame[order] if order else frame
        forms = [(frame,), (shuffled,), (shuffled.head(cut), shuffled.slice(cut))]
        results = [
            closed(name, [tables.read_table(path, name) for path in written(tmp_path, kind, *form)]) for form in forms
        ]
        assert [read for _, read in results] == [frame.height] * 3
        for result, _ in results[1:]:
            same(results[0][0], result)

    check()


@given(frame=rows_of("logs"), data=st.data())
def test_a_csv_file_cut_or_damaged_anywhere_is_accounted_for_or_refused(tmp_path, frame, data):
    text = io.BytesIO()
    frame.write_csv(text)
    content = bytearray(text.getvalue())
    at = data.draw(st.integers(0, len(content)))
    content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    (tmp_path / "logs.csv").write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        closed("logs", tables.read_slice(tmp_path / "logs.csv", "logs", "quarantine", None))
    except InputError as error:
        assert "logs.csv" in str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6,
)  # fmt: skip


def struct(**fields):
    """A mapping with some of these fields, now and then of a wrong type."""
    return st.fixed_dictionaries({}, optional={k: st.one_of(v, v, v, JSON) for k, v in fields.items()})


TAGS = st.lists(struct(key=st.sampled_from(["error", "span.kind", "http.status_code", "ip", "db.type"]), value=JSON))
MICROS = st.one_of(st.integers(T0 // 1000, T0 // 1000 + 5), st.integers(-5, 5), st.integers())
ID = st.sampled_from(["1", "2", "3", ""])
SPANS = st.fixed_dictionaries(
    {"spanID": ID, "operationName": TEXT, "startTime": MICROS, "duration": MICROS},
    optional={"traceID": ID, "processID": st.just("p"), "tags": TAGS,
              "references": st.lists(struct(spanID=ID, traceID=ID, refType=st.just("CHILD_OF")), max_size=2)},
)  # fmt: skip
PROCESSES = st.just({"p": {"serviceName": "a"}}) | st.dictionaries(ID, struct(serviceName=TEXT, tags=TAGS), max_size=2)
TRACES = st.lists(struct(traceID=ID, spans=st.lists(SPANS | JSON, max_size=4), processes=PROCESSES), max_size=3)
LABELS = st.dictionaries(st.sampled_from(["__name__", "pod", "instance", "cpu", "mode", "container", "x"]), TEXT)
SECONDS = st.one_of(st.floats(1.7e9, 1.7e9 + 5), st.floats(allow_nan=False, allow_infinity=False), st.integers())
SERIES = struct(
    metric=LABELS, values=st.lists(st.tuples(SECONDS, st.sampled_from(["1", "2.5", "NaN", "x", ""])), max_size=4)
)


def answers(directory, name, *contents):
    paths = [directory / f"{name}{i}.json" for i in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_text(json.dumps(content))
    return paths


@given(traces=TRACES, shares=st.integers(1, 3))
def test_any_answer_of_jaeger(tmp_path, traces, shares):
    (whole,) = answers(tmp_path, "whole", {"data": traces})
    one, read = closed("spans", [jaeger.read(whole, 0, 1, "quarantine")])
    shared, shared_read = closed("spans", [jaeger.read(whole, share, shares, "quarantine") for share in range(shares)])
    files = answers(tmp_path, "part", *([t] for t in reversed(traces))) or [whole]
    apart, apart_read = closed("spans", [jaeger.read(path, 0, 1, "quarantine") for path in files])
    assert read == shared_read == apart_read
    same(one, shared)
    same(one, apart)


@given(series=st.lists(SERIES | JSON, max_size=4), shares=st.integers(1, 3))
def test_any_answer_of_prometheus(tmp_path, series, shares):
    (whole, backwards) = answers(
        tmp_path, "x", *({"status": "success", "data": {"resultType": "matrix", "result": some}}
                         for some in (series, series[::-1]))
    )  # fmt: skip
    one, read = closed("metrics", [prometheus.read(whole, 0, 1, (".*",), "quarantine")])
    again, again_read = closed("metrics", [prometheus.read(backwards, s, shares, (".*",), "quarantine")
                                           for s in range(shares)])  # fmt: skip
    assert read == again_read
    same(one, again)


@given(content=JSON)
def test_any_json_is_an_answer_or_is_set_aside(tmp_path, content):
    (path,) = answers(tmp_path, "any", content)
    for name, part in (
        ("spans", jaeger.read(path, 0, 1, "quarantine")),
        ("metrics", prometheus.read(path, 0, 1, (".*",), "quarantine")),
    ):
        frame, read = closed(name, [part])
        assert frame is None or frame.height <= read
        assert read
