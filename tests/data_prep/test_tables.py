import gzip
import random
from types import SimpleNamespace

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from data_prep import csv_rows, tables
from data_prep.errors import InputError
from data_prep.sources import labels, read

T0 = 1_700_000_000_000_000_000
SECOND = 1_000_000_000
SOME_TABLES = {
    "spans": {
        "trace_id": ["a", "a", "b"],
        "span_id": ["1", "2", "1"],
        "parent_span_id": [None, "1", None],
        "service_name": ["front", "back", "front"],
        "service_instance_id": ["front-0", "back-0", "front-0"],
        "span_name": ["GET /", "SELECT", "GET /"],
        "start_time_unix_nano": [T0, T0 + 1, T0 - 5],
        "end_time_unix_nano": [T0 + 9, T0 + 8, T0 + 5],
        "status_code": ["OK", "ERROR", "UNSET"],
    },
    "logs": {
        "time_unix_nano": [T0 + 2, T0],
        "service_name": ["back", "front"],
        "service_instance_id": ["back-0", "front-0"],
        "severity_text": ["INFO", None],
        "body": ['said "a, b"\nand left', "started"],
    },
    "metrics": {
        "time_unix_nano": [T0, T0],
        "service_name": ["front", "back"],
        "service_instance_id": ["front-0", "back-0"],
        "metric_name": ["cpu", "cpu"],
        "value": [0.5, 0.25],
        "is_counter": [True, False],
    },
    "faults": {
        "start_time_unix_nano": [T0],
        "end_time_unix_nano": [T0 + SECOND],
        "service_name": ["back"],
        "fault_type": ["restart"],
    },
}


def frame(name, **changed):
    return pl.DataFrame({**SOME_TABLES[name], **changed})


def write(directory, kind, **frames):
    directory.mkdir(exist_ok=True)
    for name, table in frames.items():
        getattr(table, f"write_{kind}")(directory / f"{name}.{kind}")
    return directory


def config(directory, **changed):
    values = {"source": "tables", "raw_dir": str(directory), "faults_path": "", "segments_path": ""}
    return SimpleNamespace(**{**values, "on_bad_rows": "quarantine", **changed})


def test_parquet_and_csv_give_the_same_tables(tmp_path):
    frames = {name: frame(name) for name in SOME_TABLES}
    parquet = tables.read_tables(write(tmp_path / "p", "parquet", **frames))
    text = tables.read_tables(write(tmp_path / "c", "csv", **frames))
    assert parquet.frames.keys() == text.frames.keys() == SOME_TABLES.keys()
    for name, table in parquet.frames.items():
        assert table.equals(text.frames[name])
        assert table.schema == pl.Schema(tables.SCHEMAS[name].columns)
        assert parquet.accounts[name] == text.accounts[name]
    assert parquet.frames["logs"]["body"].to_list() == ["started", 'said "a, b"\nand left']
    assert parquet.frames["spans"]["start_time_unix_nano"].is_sorted()
    assert parquet.frames["spans"]["kind"].to_list() == [None] * 3
    assert parquet.frames["metrics"]["is_counter"].to_list() == [False, True]


def test_spans_repeat_by_identity_and_logs_by_the_whole_row():
    spans = pl.concat([frame("spans"), frame("spans", span_name=["other"] * 3)])
    kept, account = tables.validate(spans, "spans", "spans")
    assert (account.read, account.kept, account.duplicates) == (6, 3, 3)
    assert kept["span_name"].to_list() == ["GET /", "GET /", "SELECT"]  # the first in order, whatever came first
    logs = pl.concat([frame("logs"), frame("logs"), frame("logs", body=["x", "started"])])
    assert tables.validate(logs, "logs", "logs")[1].duplicates == 3


@pytest.mark.parametrize(
    ("name", "column", "values", "reason", "row"),
    [
        ("spans", "trace_id", ["a", None, "b"], "null_trace_id", 2),
        ("spans", "end_time_unix_nano", [T0, T0 + 8, T0 - 6], "negative_duration", 3),
        ("spans", "status_code", ["OK", "Ok", "OK"], "invalid_status_code", 2),
        ("logs", "time_unix_nano", [T0 // SECOND, T0], "time_out_of_range", 1),
        ("logs", "body", ["x", None], "null_body", 2),
        ("faults", "service_name", [None], "null_service_name", 1),
    ],
)
def test_a_bad_row_is_set_aside_for_its_reason_or_stops_the_reader(name, column, values, reason, row):
    bad = pl.concat([frame(name, **{column: values}), frame(name)], how="vertical_relaxed")
    kept, account = tables.validate(bad, name, "some/file")
    assert account.set_aside == {reason: 1}
    assert account.examples == {reason: ("some/file", row)}
    account.check()
    assert kept.height == account.kept
    with pytest.raises(InputError, match=f"some/file, row {row}.*on_bad_rows=quarantine"):
        tables.validate(bad, name, "some/file", on_bad_rows="error")


def test_a_sample_without_a_value_is_counted_and_no_error():
    bad = frame("metrics", value=[float("nan"), 0.25])
    kept, account = tables.validate(bad, "metrics", "m", on_bad_rows="error")
    assert kept["value"].to_list() == [0.25]
    assert account.set_aside == {"no_value": 1}


def test_text_that_is_no_number_is_a_bad_row_of_its_file(tmp_path):
    (tmp_path / "metrics.csv").write_text(
        "time_unix_nano,service_name,service_instance_id,metric_name,value,ignored\n"
        f"{T0},a,a-0,cpu,1.5,x\nyesterday,a,a-0,cpu,2,x\n{T0},a,a-0,cpu,high,x\n{T0},a\n"
    )
    found = read(config(tmp_path))
    account = found.accounts["metrics"]
    assert found.frames["metrics"]["value"].to_list() == [1.5]
    # a value that is no number leaves no value, so it counts as invalid first
    assert account.set_aside == {"invalid_time_unix_nano": 1, "invalid_value": 1, "torn_row": 1}
    assert account.examples == {
        "invalid_time_unix_nano": ("metrics.csv", 3),
        "invalid_value": ("metrics.csv", 4),
        "torn_row": ("metrics.csv", 5),
    }
    with pytest.raises(InputError, match=r"metrics\.csv, row 3"):
        read(config(tmp_path, on_bad_rows="error"))


def test_wrong_columns_are_named_with_the_remedy():
    with pytest.raises(InputError, match="here: column 'value' is String, not Float64; convert it"):
        tables.validate(frame("metrics", value=["1", "2"]), "metrics", "here")
    with pytest.raises(InputError, match="'time_unix_nano' is Float64.*integer nanoseconds"):
        tables.validate(frame("logs", time_unix_nano=[1.0, 2.0]), "logs", "here")
    with pytest.raises(InputError, match="here lacks column 'body' of table logs"):
        tables.validate(frame("logs").drop("body"), "logs", "here")
    with pytest.raises(InputError, match="none of 2 rows can be used.*time out of range"):
        tables.validate(frame("logs", time_unix_nano=[1, 2]), "logs", "here")


def test_unusable_files_and_directories_are_named(tmp_path):
    with pytest.raises(InputError, match="empty holds no telemetry"):
        read(config(write(tmp_path / "empty", "csv")))
    with pytest.raises(InputError, match="faults holds no telemetry"):
        read(config(write(tmp_path / "faults", "csv", faults=frame("faults"))))
    with pytest.raises(InputError, match="nowhere' is not a directory"):
        read(config(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="'zipkin' is not known; use one of .*, nezha, openstack, otlp, tables, "):
        read(config(tmp_path, source="zipkin"))
    both = write(write(tmp_path / "both", "csv", logs=frame("logs")), "parquet", logs=frame("logs"))
    with pytest.raises(InputError, match=r"both logs\.parquet and logs\.csv"):
        read(config(both))
    cut = write(tmp_path / "cut", "parquet", logs=frame("logs"))
    (cut / "logs.parquet").write_bytes((cut / "logs.parquet").read_bytes()[:-20])
    with pytest.raises(InputError, match=r"logs\.parquet is not a whole Parquet file"):
        read(config(cut))
    (both / "logs.parquet").unlink()
    (both / "logs.csv").write_text("")
    with pytest.raises(InputError, match=r"logs\.csv is empty"):
        read(config(both))


def test_equal_tables_are_written_as_equal_bytes(tmp_path):
    logs = pl.concat([frame("logs", time_unix_nano=[T0 + i, T0 + 2 * i]) for i in range(500)], rechunk=False)
    for number, table in enumerate((logs, logs.reverse())):
        write(tmp_path / f"raw{number}", "csv", logs=table)
        tables.write_tables(read(config(tmp_path / f"raw{number}")), tmp_path / f"out{number}")
    first, second = ((tmp_path / f"out{n}" / "logs.parquet").read_bytes() for n in range(2))
    assert first == second
    again = tables.read_tables(tmp_path / "out0")
    assert again.accounts["logs"].duplicates == 0
    assert again.frames["logs"].height == again.accounts["logs"].read > 900


def test_an_account_that_does_not_close_is_noticed():
    with pytest.raises(RuntimeError, match="do not add up"):
        tables.Account(read=3, kept=1, set_aside={"torn_row": 1}).check()
    found = tables.Tables({"logs": frame("logs")}, {"logs": tables.Account(read=3, kept=3)})
    with pytest.raises(RuntimeError, match="2 rows, its account 3"):
        found.check()


def test_gaps_are_what_no_segment_covers_and_labels_come_from_the_config(tmp_path):
    times = [T0 + s * SECOND for s in range(11)]
    logs = pl.DataFrame({"time_unix_nano": times}).with_columns(
        service_name=pl.lit("a"), service_instance_id=pl.lit("a"), severity_text=pl.lit("INFO"), body=pl.lit("x")
    )
    raw = write(tmp_path / "raw", "parquet", logs=logs)
    segments = pl.DataFrame(
        {"start_time_unix_nano": [times[5], times[2], times[3]], "end_time_unix_nano": [times[7], times[4], times[4]]}
    )
    segments.write_csv(tmp_path / "segments.csv")
    frame("faults").write_csv(tmp_path / "faults.csv")
    paths = {"segments_path": str(tmp_path / "segments.csv"), "faults_path": str(tmp_path / "faults.csv")}
    found = read(config(raw, **paths))
    assert found.frames["gaps"].rows() == [(times[0], times[2]), (times[4], times[5]), (times[7], times[10])]
    assert found.frames["faults"]["service_name"].to_list() == ["back"]
    with pytest.raises(InputError, match="config.data.faults_path='missing.csv' is not a file"):
        read(config(raw, faults_path="missing.csv"))
    with pytest.raises(InputError, match="no observed segment overlaps"):
        labels.add_gaps(found, [(0, SECOND)], "segments.csv")


def test_a_torn_row_costs_no_other_row(tmp_path):
    good = [f'{n},"text, with a comma {n}"' for n in range(40)]
    torn = ['7,"broken"tail",""more', "8", '9,"open']
    lines = [*good[:10], torn[0], *good[10:20], torn[1], *good[20:30], torn[2], *good[30:]]
    (tmp_path / "torn.csv").write_text("\n".join(["number,text", *lines]) + "\n")
    rows, numbers = csv_rows.read(tmp_path / "torn.csv")
    assert numbers == [12, 23, 34]
    assert rows["number"].to_list() == [str(n) for n in range(40)]
    assert rows[csv_rows.ROW].to_list() == [n for n in range(2, 45) if n not in numbers]


def test_an_empty_text_is_not_null_whoever_parses_it(tmp_path):
    whole = 'a,b,c\n"",,"x"""\n"two\n""lines""","",\n,"",""\n'
    expected = [("", None, 'x"'), ('two\n"lines"', "", None), (None, "", "")]
    for text, numbers in ((whole, []), (whole + "torn\n", [5]), (whole.replace("\n", "\r\n") + "torn\r\n", [5])):
        (tmp_path / "some.csv").write_text(text, newline="")
        rows, torn = csv_rows.read(tmp_path / "some.csv", multiline=True)
        assert torn == numbers and rows.drop(csv_rows.ROW).rows() == expected


def test_newlines_in_values_and_files_without_header(tmp_path):
    text = '1,"two\nlines, quoted"\n2,\n'
    (tmp_path / "plain.csv").write_text(text)
    (tmp_path / "zipped.csv.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("plain.csv", "zipped.csv.gz"):
        rows, torn = csv_rows.read(tmp_path / name, ["number", "text"], multiline=True)
        assert rows.rows() == [(1, "1", "two\nlines, quoted"), (2, "2", None)]
        assert torn == []
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(text.encode())[:-10])
    with pytest.raises(InputError, match=r"cut\.csv\.gz cannot be read"):
        csv_rows.read(tmp_path / "cut.csv.gz")


@pytest.mark.parametrize("seed", range(6))
def test_blocks_of_a_csv_file_are_the_file(seed, tmp_path):
    """Quoted line ends at the border of blocks, and torn rows whose quotes seem to open the rest of the file."""
    draw, path, lines = random.Random(seed), tmp_path / "some.csv", ["number,text,value"]
    for number in range(3000):
        text = draw.choice(["plain", '""', "", '"a, b"', '"two\nlines"', '"say ""hi"""', "é" * 20])
        lines.append(f"{number},{text},{draw.random()}")
        if seed % 2 and number < 1500 and draw.random() < 0.006:  # so that other blocks have no torn row
            lines[-1] = draw.choice([f"{number},torn", f'{number},"open,3', f"{number},a,b,c", f'{number},st"ray,4'])
    path.write_text("\n".join(lines), encoding="utf-8")
    rows, torn = csv_rows.read(path, multiline=True)
    assert bool(torn) == seed % 2 and rows.height + len(torn) >= 2900
    for size in (40_000, 64_001):
        parts = list(csv_rows.blocks(path, multiline=True, size=size))
        assert len(parts) > 1 and [row for _, some in parts for row in some] == torn
        assert_frame_equal(pl.concat([some for some, _ in parts]), rows)
