import polars as pl
import pytest
from polars.testing import assert_frame_equal

from data_prep import observations, spill, spilled, tables
from data_prep import prepare as driver
from data_prep.executors import _Serial as Serial
from data_prep.observations import TIME
from data_prep.prepare import prepare
from data_prep.sources.part import Part
from tests.data_prep.small import SECOND, T0, event, frame, log, metric, span
from tests.data_prep.test_prepare import contents, make_config, telemetry, write

ROWS = {
    "spans": [
        span("a", 1, None, "gateway", "GET /", 0, 65_000, kind="SERVER"),  # over many cells
        span("a", 2, 1, "gateway", "call", 6_900, 64_000, kind="CLIENT"),
        span("a", 3, 2, "order", "POST /", 7_100, 63_000, kind="SERVER"),
        span("b", 1, None, "order", "POST /", 30_000, 30_010),
        span("b", 1, None, "order", "POST /", 55_000, 55_010),  # its duplicate, in another cell
        span("c", 1, None, "order", "db", 20_000, 20_010, kind="CLIENT", peer_service_name="mariadb"),
    ],
    "logs": [*(log(i, "gateway", f"request {i} done") for i in range(0, 70, 3)), log(3, "gateway", "request 3 done")],
    "metrics": [
        *(metric(i, "order", "cpu", i**1.5) for i in range(0, 70, 2)), metric(4, "order", "cpu", 8.0),
        *(metric(i, "order", "calls", i % 40, f"order-{n}", True) for i in range(0, 70, 9) for n in (1, 2)),
        *(metric(i, "host", "cpu", i) for i in range(0, 70, 5)),
    ],
    "events": [event(17, "order", "restart"), event(63, "gateway", "restart")],
}  # fmt: skip


@pytest.fixture(params=[7, 20, 600], ids=lambda seconds: f"{seconds}s-cells")
def cells(request, monkeypatch):
    monkeypatch.setattr(spilled, "_CELL_NS", request.param * SECOND)


def read(path, num, node_level="service", baseline=1.0, rows=ROWS):
    options = spilled.Options(node_level, (".*",), baseline)
    found = spilled.SpilledTables(path / "observed", path / "scratch", Serial(), options, num)
    for name, values in rows.items():
        raw = pl.DataFrame(values, schema=tables.SCHEMAS[name].columns)
        found.read(Part(name, lambda some, name: [tables.check(some, name, name)], [
            (raw[at : at + 5], name) for at in range(0, raw.height, 5)
        ]))  # fmt: skip
    found.check()
    return found


@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.parametrize("node_level, baseline", [("service", 1.0), ("instance", 0.0)])
def test_observations_are_those_of_whole_tables(cells, num, node_level, baseline, tmp_path):
    found = read(tmp_path, num, node_level, baseline)
    frames = {name: frame(name, values) for name, values in ROWS.items()}
    whole = observations.observe(frames, node_level, (".*",), baseline)
    for name in observations.SCHEMAS:
        files = spilled.cells(tmp_path / "observed", name)
        assert_frame_equal(pl.concat([pl.read_parquet(file) for file in files]), whole[name])
        for start, end in ((0, 80), (6, 22), (63, 64), (-50, 0)):
            some = spilled.scan(tmp_path / "observed", name, T0 + start * SECOND, T0 + end * SECOND).collect()
            inside = (pl.col(TIME) >= T0 + start * SECOND) & (pl.col(TIME) < T0 + end * SECOND)
            assert_frame_equal(some, whole[name].filter(inside))
    assert_frame_equal(found.units(), whole["units"])
    assert found.accounts["spans"].duplicates == found.accounts["logs"].duplicates == 1
    in_memory = tables.Tables(frames)
    assert found.extent() == in_memory.extent() and found.extent(["logs"]) == in_memory.extent(["logs"])
    assert sorted(found.instances(["spans", "logs"])) == sorted(in_memory.instances(["spans", "logs"]))


def test_a_trace_over_a_border_is_joined(monkeypatch, tmp_path):
    monkeypatch.setattr(spilled, "_CELL_NS", 7 * SECOND)
    read(tmp_path, 4)
    rows = [pl.read_parquet(file) for file in spilled.cells(tmp_path / "observed", "calls")]
    calls = pl.concat(rows).filter(pl.col("callee") == "order")
    assert (T0 + 7_100_000_000) // (7 * SECOND) > T0 // (7 * SECOND)
    assert calls.select("caller", "gap_ns", "duration_ns").rows() == [("gateway", 1_200_000_000, 55_900_000_000)]
    spans = pl.concat([pl.read_parquet(file) for file in spilled.cells(tmp_path / "observed", "spans")])
    assert spans.filter((pl.col("trace_id") == "a") & (pl.col("operation") == "GET /"))["self_ns"].to_list() == [
        65_000_000_000 - 57_100_000_000
    ]


def test_the_dataset_does_not_hang_on_cells_and_partitions(tmp_path, monkeypatch):
    raw = write(tmp_path / "raw", telemetry())
    prepare(make_config(raw, tmp_path / "out"))
    before = contents(tmp_path / "out")
    monkeypatch.setattr(spilled, "_CELL_NS", 13 * SECOND)
    monkeypatch.setattr(driver.spilled, "num_partitions", lambda _: 5)
    monkeypatch.setattr(spill, "_BUFFER", 1000)
    monkeypatch.setattr(tables, "_SLICE", 250)
    prepare(make_config(raw, tmp_path / "out"))
    assert contents(tmp_path / "out") == before


def test_rows_are_read_back_in_order(tmp_path):
    rows = spill.Spill(tmp_path, {"t": pl.col("n") % 3})
    for at in range(0, 30, 4):
        rows.append("t", pl.DataFrame({"n": range(at, at + 4)}))
        if at % 8:
            rows.flush("t")
    rows.flush("t")
    assert spill.partitions([tmp_path, tmp_path / "none"], "t") == [0, 1, 2]
    assert pl.concat(spill.read([tmp_path], "t", 1))["n"].to_list() == list(range(1, 32, 3))
    assert spill.read([tmp_path], "t", 7) == [] and spill.partitions([tmp_path], "other") == []


def test_partitions_grow_with_the_raw_files(tmp_path, monkeypatch):
    monkeypatch.setattr(spilled, "_PARTITION_BYTES", 1000)
    assert spilled.num_partitions(tmp_path) == 1
    for name, size in (("a.csv", 900), ("b.csv.gz", 200), ("c.parquet", 25)):
        (tmp_path / name).write_bytes(bytes(size))
    assert spilled.num_partitions(tmp_path) == 4  # 900 + 2000 + 200


def test_silence_is_what_no_cell_covers(tmp_path):
    cell, hour = spilled._CELL_NS, 6
    for table, numbers in (("logs", (0, 2)), ("spans", (2, 3)), ("events", (7,))):
        (tmp_path / table).mkdir()
        for number in numbers:
            (tmp_path / table / f"{number}.parquet").touch()
    assert spilled.silence(tmp_path, [(0, 3 * cell)]) == (1 / hour, 3 / hour, (cell, 2 * cell))
    assert spilled.silence(tmp_path, [(cell // 2, 3 * cell // 2), (5 * cell // 2, 9 * cell)]) == (
        5 / hour, 7.5 / hour, (4 * cell, 9 * cell)
    )  # fmt: skip
    assert spilled.silence(tmp_path, [(-2 * cell, -cell // 2)]) == (1.5 / hour, 1.5 / hour, (-2 * cell, -cell // 2))
