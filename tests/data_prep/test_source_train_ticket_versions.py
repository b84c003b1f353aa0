"""The second Train Ticket archive, in a small copy of its layout."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace

import polars as pl
import pytest

from data_prep import shard_jobs
from data_prep.errors import InputError
from data_prep.prepare import prepare
from data_prep.sources import read, spring_boot
from data_prep.sources.train_ticket_versions import Change, scenarios
from ssad_jax import prepared
from tests.data_prep.apis import NS, T0, write
from tests.data_prep.test_prepare import contents, make_config
from tests.data_prep.train_ticket_versions import (
    CPU,
    NODE_CPU,
    ORDER,
    PACKETS,
    PODS,
    SECONDS,
    STACK,
    STATION,
    UI,
    head,
    reported,
    thread,
    write_scenario,
)

REQUESTS = SECONDS // 2
SETTINGS = {"source": "train_ticket_versions", "utc_offset_hours": 8.0, "pods": ("default/ts-.*",)}


def config(raw_dir, **changed):
    values = {"raw_dir": str(raw_dir), "faults_path": "", "segments_path": "", "on_bad_rows": "quarantine"}
    return SimpleNamespace(**{**values, **SETTINGS, **changed})


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    directory = tmp_path_factory.mktemp("archive")
    write_scenario(directory)
    return directory


@pytest.fixture(scope="module")
def found(archive):
    return read(config(archive))


def test_spans_are_read_once_from_the_files_of_all_services(found):
    account = found.accounts["spans"]
    assert (account.read, account.kept, account.duplicates) == (12 * REQUESTS + 2, 4 * REQUESTS, 8 * REQUESTS)
    assert account.set_aside == {"empty_answer": 1, "unreadable_file": 1}
    spans = found.frames["spans"]
    assert dict(spans.select("service_name", "service_instance_id").unique().rows()) == PODS
    one = spans.filter(pl.col("trace_id") == f"{1:016x}").sort("span_id")
    assert one["kind"].to_list() == ["SERVER", "CLIENT", "SERVER", "SERVER"]
    assert one["parent_span_id"].to_list() == [None, *one["span_id"].to_list()[:3]]
    failed = spans.filter(status_code="ERROR").select("service_name", "span_name")
    assert failed.rows() == [(ORDER, "addOrder")] * (REQUESTS // 50)


def test_log_lines_get_the_service_of_the_span_or_of_the_port(found):
    logs, account = found.frames["logs"], found.accounts["logs"]
    errors = REQUESTS // 50
    assert (account.read, account.kept, account.set_aside) == (3 * REQUESTS + errors + 1,) * 2 + ({},)
    assert account.repaired == {
        "service_by_span": 2 * REQUESTS, "service_by_port": REQUESTS + errors, "service_unknown": 1
    }  # fmt: skip
    assert dict(logs.group_by("service_name").len().rows()) == {
        ORDER: 2 * REQUESTS + errors, STATION: REQUESTS, "unknown": 1
    }  # fmt: skip
    spans = found.frames["spans"].select("trace_id", "span_id", span_service="service_name", end="end_time_unix_nano")
    joined = logs.join(spans, on=["trace_id", "span_id"])
    assert joined.height == 2 * REQUESTS and (joined["service_name"] == joined["span_service"]).all()
    of_order = joined.filter(service_name=ORDER)  # the clock has milliseconds
    assert (of_order["end"] - of_order["time_unix_nano"]).is_between(0, 1_000_000).all()


@pytest.mark.parametrize("by_line", [True, False])
def test_stack_traces_join_their_head_in_their_true_order(tmp_path, by_line):
    write_scenario(tmp_path, by_line=by_line, seconds=240)
    errors = read(config(tmp_path)).frames["logs"].filter(severity_text="ERROR")
    assert errors["body"].to_list() == ["order.service.OrderServiceImpl: cannot save\n" + "\n".join(STACK)] * 2


def test_metrics_are_those_of_the_chosen_pods_and_of_nodes(found):
    metrics, account = found.frames["metrics"], found.accounts["metrics"]
    slow, fast = SECONDS // 30, SECONDS // 15
    assert account.set_aside == {"container_sum": 7 * slow, "other_pod": slow, "no_value": 3}
    assert account.kept == metrics.height == 9 * slow - 3 + 4 * fast
    assert set(metrics["service_name"]) == {*PODS, "10.0.0.1"}
    counters = metrics.filter("is_counter")["metric_name"].unique().sort().to_list()
    assert counters == [CPU, PACKETS, NODE_CPU + '{mode="idle"}', NODE_CPU + '{mode="user"}']


def test_what_was_not_monitored_is_a_gap_and_nothing_is_taken_for_a_label(found):
    gaps = found.frames["gaps"].rows()
    first = found.frames["logs"]["time_unix_nano"].min()
    last = found.frames["spans"]["end_time_unix_nano"].max()
    assert gaps == [(first, T0 * NS), ((T0 + SECONDS - 15) * NS, last)]
    assert "faults" not in found.frames and "events" not in found.frames
    assert not found.frames["logs"]["body"].str.contains("Gateway").any()
    assert len(found.warnings) == 2
    assert found.warnings[0].endswith("what was changed: ts-order-service mongodb 4.2.2 2022-07-12")
    assert "1 JSON files are no answers" in found.warnings[1] and "notes.json" in found.warnings[1]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ts-order-service_mongodb_4.2.2_2022-07-12", (ORDER, "mongodb", "4.2.2", "2022-07-12")),
        ("ts-auth-mongo_4.4.15_2022-07-13", ("ts-auth", "mongo", "4.4.15", "2022-07-13")),
        (
            "ts-order-service_2.7.1-SpringBootStarterParent_2022-07-11",
            (ORDER, "SpringBootStarterParent", "2.7.1", "2022-07-11"),
        ),
        ("ts-order-service_3.0.4-mongodb-driver_2022-07-13", (ORDER, "mongodb-driver", "3.0.4", "2022-07-13")),
        (
            "ts-order-service_springstarterdataMongoDB_1.5.22.RELEASE_2022-07-11",
            (ORDER, "springstarterdataMongoDB", "1.5.22.RELEASE", "2022-07-11"),
        ),
        (
            "ts-admin-basic-info-service-sprintstarterweb_1.5.22",
            ("ts-admin-basic-info-service", "sprintstarterweb", "1.5.22", None),
        ),
        ("auth mongodb 4.4.15", (None, "auth mongodb", "4.4.15", None)),
        ("scenario", (None, "scenario", None, None)),
    ],
)
def test_the_change_that_a_directory_names(name, change):
    assert Change.of(name) == Change(*change)


def test_irregular_names(tmp_path):
    """Without a date, `Trace_` or bare, one scenario alone, deeper than expected."""
    one = write_scenario(tmp_path / "unpacked", date="", folder="Trace_", seconds=20)
    two = write_scenario(tmp_path / "unpacked", date="_2022-07-27", folder="", seconds=20)
    (tmp_path / "unpacked" / "readme").mkdir()
    assert [s.directory for s in scenarios(tmp_path)] == [one, two]
    both, alone = read(config(tmp_path)), read(config(two))
    assert both.frames["spans"].equals(alone.frames["spans"])  # the same traces in both
    warning = f"the name of scenario {one.name} does not tell the date"
    assert warning in both.warnings and warning not in alone.warnings
    for path in two.glob("*/*.json"):
        path.unlink()
    without = read(config(two))
    assert set(without.frames["logs"]["service_name"]) == {"unknown"}
    assert "gaps" not in without.frames and any("has no monitoring" in warning for warning in without.warnings)
    assert any("utc_offset_hours=8 could not be checked" in warning for warning in without.warnings)


def test_what_is_not_the_layout(tmp_path):
    with pytest.raises(InputError, match="holds no scenario with LOGS_.*point config.data.raw_dir at a scenario"):
        read(config(tmp_path))
    (tmp_path / "Monitoring_x").mkdir()
    with pytest.raises(InputError, match="holds no scenario"):
        read(config(tmp_path))


def test_a_wrong_offset_is_an_error_that_names_the_right_one(archive):
    with pytest.raises(InputError, match=r"LOGS_.*\.txt: with .*utc_offset_hours=1 .*\+7 h .*utc_offset_hours=8"):
        read(config(archive, utc_offset_hours=1.0))


def lines(path, *text, spans=None, on_bad_rows="quarantine"):
    if text:
        write(path, "".join(f"{line}\n" for line in text))
    schema = {"trace_id": pl.String, "span_id": pl.String, "service_name": pl.String, "end_time_unix_nano": pl.Int64}
    spans = pl.DataFrame(spans or [], schema=schema, orient="row")
    parts = list(spring_boot.read(path, spans, 8.0, on_bad_rows))
    return pl.concat([frame for frame, _ in parts]), parts


def test_lines_without_a_head_and_torn_heads_are_set_aside(tmp_path):
    text = ["\tlost", "", head(1, "main", "a"), "more", "2022-07-12 18:53:00.000 INF", head(0, "main", "b")]
    frame, parts = lines(tmp_path / "LOGS_x.txt", *text)
    assert frame["body"].to_list() == ["order.service.OrderServiceImpl: a\nmore", "order.service.OrderServiceImpl: b"]
    assert frame["time_unix_nano"].to_list() == [(T0 + 1) * NS, T0 * NS]
    assert {k: v for _, account in parts for k, v in account.set_aside.items()} == {"no_head": 1, "torn_row": 1}
    with pytest.raises(InputError, match=r"LOGS_x\.txt, row 3: torn row"):
        lines(tmp_path / "LOGS_x.txt", *text[2:], on_bad_rows="error")
    for name, content, problem in (("y.txt", b"", "is empty"), ("z.txt.gz", b"no gzip", "cannot be read")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name} {problem}.*copy it again"):
            lines(tmp_path / name)


@pytest.mark.parametrize("by_line", [True, False])
@pytest.mark.parametrize("block", [400, 1000, 10_000])
def test_blocks_divide_no_record(tmp_path, monkeypatch, block, by_line):
    monkeypatch.setattr(spring_boot, "_BLOCK", block)
    records = [[head(i, "main", str(i)), *STACK[: i % 6]] for i in range(20)]
    frame, _ = lines(tmp_path / "x.txt", *(line for r in records[::-1] for line in (r[::-1] if by_line else r)))
    expected = ["\n".join([f"order.service.OrderServiceImpl: {i}", *r[1:]]) for i, r in enumerate(records)]
    assert frame.sort("time_unix_nano")["body"].to_list() == expected


def test_a_port_of_two_services_says_nothing(tmp_path):
    spans = [("0a", "01", ORDER, (T0 + 1) * NS), ("0b", "02", STATION, (T0 + 2) * NS)]
    text = [reported(1, ORDER, "a", "1", "x"), reported(2, ORDER, "b", "2", "x"), reported(3, ORDER, "c", "3", "x")]
    frame, _ = lines(tmp_path / "x.txt", *text, head(4, thread(ORDER), "whose?"), spans=spans)
    assert frame.sort("time_unix_nano").select("service_name", "trace_id", "span_id").rows() == [
        (ORDER, "0a", "01"), (STATION, "0b", "02"), ("unknown", "c", "3"), ("unknown", None, None)
    ]  # fmt: skip


def test_workers_change_nothing(archive, found):
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        shared = read(config(archive), executor)
    assert found.accounts == shared.accounts and found.warnings == shared.warnings
    assert all(frame.equals(shared.frames[name]) for name, frame in found.frames.items())


@pytest.fixture(scope="module")
def dataset(archive, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "out"
    prepare(make_config(archive, out, **SETTINGS))
    return out


def test_it_becomes_a_dataset(dataset):
    data = prepared.load(dataset)
    names = set(data.system.node_names)
    idle = NODE_CPU + '{mode="idle"}'
    assert {f"{UI} -> {ORDER}", f"{ORDER} -> {STATION}", f"{ORDER}: {CPU}", f"10.0.0.1: {idle}"} <= names
    rates = pl.read_parquet(dataset / "tables/metrics.parquet").filter(metric=idle)
    assert rates["value"].to_list() == pytest.approx([8] * (SECONDS // 15 - 1))  # 4 a second on each of two processors
    assert (data.windows.start_unix_nano >= T0 * NS).all()
    assert data.manifest["rows"]["spans"]["set_aside"] == {"empty_answer": 1, "unreadable_file": 1}
    assert not any(str(dataset.parent) in warning for warning in data.manifest["warnings"])


def test_jobs_give_the_same_bytes(archive, dataset, tmp_path):
    config = make_config(archive, tmp_path / "out", **SETTINGS)
    for shard in ("2/2", "1/2", "merge"):
        shard_jobs.run(config, shard)
    assert contents(tmp_path / "out") == contents(dataset)
