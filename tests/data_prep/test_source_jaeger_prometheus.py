"""Anyone's exports of Jaeger and Prometheus, without a layout."""

from types import SimpleNamespace

import polars as pl
import pytest

from data_prep.errors import InputError
from data_prep.fingerprint import label_fingerprints
from data_prep.prepare import prepare
from data_prep.sources import read
from ssad_jax import prepared
from tests.data_prep.apis import NS, T0, matrix, process, series, span, trace, traces, write
from tests.data_prep.small import T0 as OTHER_T0
from tests.data_prep.small import log
from tests.data_prep.test_prepare import fault, make_config
from tests.data_prep.test_prepare import write as write_tables

PROCESSES = {"p1": process("front"), "p2": process("back", hostname="back-0")}


def config(raw_dir, **changed):
    values = {"source": "jaeger_prometheus", "raw_dir": str(raw_dir), "faults_path": "", "segments_path": ""}
    return SimpleNamespace(**{**values, "on_bad_rows": "quarantine", "pods": (".*",), **changed})


def request(i):
    spans = [
        span(f"t{i}", "1", "p1", i, 90, operation="GET /"),
        span(f"t{i}", "2", "p2", i + 0.01, 50 + i % 7, "1", operation="find"),
    ]
    return trace(spans, PROCESSES)


def export(raw, seconds=300):
    """Traces in chunks with a common trace, one metric in chunks with a common sample, another compressed."""
    for first in range(0, seconds, 100):
        found = [request(i) for i in range(first, min(first + 101, seconds))]
        write(raw / f"jaeger/{first}.json", traces(*found))
        used = [(t, 2 * t) for t in range(first, first + 101, 10)]
        write(raw / f"{first}/cpu.json", matrix(series(used, __name__="cpu_seconds_total", job="back", cpu="0")))
    load = [(t, t % 7) for t in range(0, seconds, 10)]
    write(raw / "load.json.gz", matrix(series(load, __name__="load", job="back")))
    return raw


def test_files_are_known_by_what_they_hold(tmp_path):
    export(tmp_path, 20)
    write(tmp_path / "sorted.json", {"data": {"result": [], "resultType": "matrix"}, "status": "success"})
    write(tmp_path / "failed.json", {"status": "error", "errorType": "timeout", "error": "query timed out"})
    for i in range(6):
        write(tmp_path / f"grafana/{i}.json", {"title": "dashboard"})
    write(tmp_path / "empty.json", "")
    (tmp_path / "cut.json.gz").write_bytes(b"\x1f\x8b")
    write(tmp_path / ".hidden/x.json", traces(request(99)))
    for place in ("manifest.json", "windows/x.json", "system/y.json"):  # a prepared dataset
        write(tmp_path / "prepared" / place, {})
    found = read(config(tmp_path))
    assert found.accounts["spans"].kept == 40 and found.accounts["metrics"].kept == 13
    assert found.accounts["metrics"].set_aside == {"error_answer": 1, "empty_answer": 1}
    [warning] = found.warnings
    assert warning.startswith("8 JSON files are no answers") and warning.endswith(
        "cut.json.gz, empty.json, grafana/0.json, grafana/1.json, grafana/2.json, ..."
    )


@pytest.mark.parametrize("name", ["b.JSON", "b.json.1", "b.jsonl"])
def test_files_that_are_called_nearly_so_are_named(tmp_path, name):
    write(tmp_path / "a.json", traces(request(1)))
    write(tmp_path / name, traces(request(2)))
    [warning] = read(config(tmp_path)).warnings
    assert warning.startswith("1 JSON files are no answers") and warning.endswith(f"left out: {name}")


def test_what_lies_in_two_files_counts_once(tmp_path):
    found = read(config(export(tmp_path)))
    spans, metrics = found.accounts["spans"], found.accounts["metrics"]
    assert (spans.read, spans.kept, spans.duplicates) == (604, 600, 4)
    assert (metrics.read, metrics.kept, metrics.duplicates) == (63, 61, 2)


def test_tables_beside_them_are_read(tmp_path):
    export(tmp_path, 20)
    raw = write_tables(tmp_path / "raw", {"logs": [log(1, "front", "hello")], "faults": [fault(2, 3)]})
    export(raw, 20)
    found = read(config(raw))
    assert found.frames["logs"]["body"].to_list() == ["hello"]
    assert found.frames["faults"]["start_time_unix_nano"].to_list() == [OTHER_T0 + 2 * NS]
    assert label_fingerprints(make_config(raw, "out", source="jaeger_prometheus").data)["faults.parquet"]
    write_tables(tmp_path / "more", {"spans": []})
    (tmp_path / "more/spans.parquet").rename(raw / "spans.parquet")
    with pytest.raises(InputError, match=r"spans\.parquet: spans come from JSON here; remove it or set"):
        read(config(raw))


def test_a_directory_without_any(tmp_path):
    write(tmp_path / "a.json", {"title": "dashboard"})
    with pytest.raises(InputError, match="holds no .*json.gz that Jaeger .* or Prometheus .* answered; point config"):
        read(config(tmp_path))
    write(tmp_path / "b.json", traces())
    with pytest.raises(InputError, match=r"none of 1 rows can be used; the first, .*b\.json row 1: empty answer"):
        read(config(tmp_path))


def test_an_export_becomes_a_dataset(tmp_path):
    prepare(make_config(export(tmp_path / "raw"), tmp_path / "out", source="jaeger_prometheus"))
    data = prepared.load(tmp_path / "out")
    assert {"front", "back", "front -> back", "back: cpu_seconds_total", "back: load"} <= set(data.system.node_names)
    rates = pl.read_parquet(tmp_path / "out/tables/metrics.parquet").filter(metric="cpu_seconds_total")
    assert rates["value"].to_list() == [2.0] * 30
    assert rates["time_unix_nano"].min() == (T0 + 10) * NS
