import concurrent.futures
import json
import signal
import subprocess
import sys
from importlib import util
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from data_prep import event_graph, map_shards, scaling, settings, tables
from data_prep import prepare as driver
from data_prep.errors import InputError
from data_prep.prepare import prepare
from ssad_jax import prepared
from ssad_jax.config import default_config
from tests.data_prep import test_scaling as of_scaling
from tests.data_prep.small import SECOND, T0, event, log, metric, span

ROOT = Path(__file__).parents[2]
LENGTH = 480  # seconds; eight segments of 60, of which five train
FAULTS = [(130, 150), (400, 420)]


def telemetry(seed=0, until=LENGTH, changed_after=None):
    """Two services under load; what happens after `changed_after` seconds is of another kind."""
    rng = np.random.default_rng(seed)
    rows = {"spans": [], "logs": [], "metrics": [], "events": [event(17, "訂單", "restart")]}
    for i, second in enumerate(np.arange(0.25, until, 0.5)):
        other = changed_after is not None and second > changed_after
        took = rng.uniform(20, 60) * (3 if other else 1)
        begin = second * 1000
        rows["spans"] += [
            span(f"t{i}", 1, None, "gateway", "GET /", begin, begin + took + 20, kind="SERVER"),
            span(f"t{i}", 2, 1, "gateway", "call", begin + 5, begin + took + 15, kind="CLIENT"),
            span(f"t{i}", 3, 2, "訂單", "POST /new" if other else "POST /", begin + 9, begin + 9 + took, kind="SERVER"),
        ]
        rows["logs"].append(log(second, "gateway", f"request {i} done"))
        ends, severity = ("lost at sea", "ERROR") if other else ("saved", None)
        rows["logs"].append(log(second, "訂單", f"order {i} {ends}", severity))
        if i % 20 == 0:
            rows["metrics"].append(metric(second, "gateway", "cpu", rng.normal() + 50 * other))
    rows["faults"] = [fault(start, end) for start, end in FAULTS]
    return rows


def fault(start, end, service="訂單", kind="cpu"):
    return {"start_time_unix_nano": T0 + start * SECOND, "end_time_unix_nano": T0 + end * SECOND,
            "service_name": service, "fault_type": kind, "onset_uncertain_from_unix_nano": None}  # fmt: skip


def write(directory, rows):
    directory.mkdir(parents=True)
    for name, values in rows.items():
        pl.DataFrame(values, schema=tables.SCHEMAS[name].columns).write_parquet(directory / f"{name}.parquet")
    return directory


def make_config(raw, out, **changed):
    config = default_config("test")
    config.data.update({
        "raw_dir": str(raw), "prepared_dir": str(out), "num_workers": 1, "segment_seconds": 60.0, "window_length": 10,
        "sequence_length": 4, "metric_baseline_minutes": 0.0,
    })  # fmt: skip
    config.data.update(changed)
    return config


def prepare_rows(path, rows, **changed):
    prepare(make_config(write(path / "raw", rows), path / "out", **changed))
    return prepared.load(path / "out")


def contents(directory):
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*")) if path.is_file() and path.name != "timings.json"
    }  # fmt: skip


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write(tmp_path_factory.mktemp("raw") / "tables", telemetry())


@pytest.fixture(scope="module")
def one_worker(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "out"
    prepare(make_config(raw, out))
    return prepared.load(out)


def test_the_dataset_hangs_together(one_worker):
    system, windows = one_worker.system, one_worker.windows
    counts = one_worker.manifest["counts"]
    real = counts["nodes"]
    assert system.node_mask.sum() == real == len(system.node_names) < len(system.node_mask) == counts["node_budget"]
    assert windows.nodes.shape == (windows.num_windows, len(system.kind), 32)
    assert {"gateway", "訂單", "gateway -> 訂單", "gateway: cpu", "訂單: restart"} <= set(system.node_names)
    assert np.isfinite(windows.nodes).all() and (windows.nodes[:, real:] == 0).all()
    assert (windows.nodes[:, :real, 16:][:, ~system.signal_mask[:real]] == 0).all()
    used = np.arange(windows.senders.shape[1]) < windows.n_edge[:, None]
    assert (windows.senders[used] < real).all() and (windows.receivers[~used] == len(system.kind) - 1).all()
    assert (np.diff(windows.start_unix_nano) > 0).all() and (windows.end_unix_nano > windows.start_unix_nano).all()
    overlaps = windows.start_unix_nano[None] < windows.end_unix_nano[:, None]
    assert (np.triu(overlaps, 1) == np.triu(np.diff(np.meshgrid(*2 * [windows.start_tick]), axis=0)[0] > -10, 1)).all()
    for rows in (one_worker.fit_sequences, one_worker.calibration_runs, one_worker.test_runs):
        ids = rows[rows >= 0]
        assert len(ids) and len(set(windows.part[ids])) == 1
    assert sorted(one_worker.test_runs[one_worker.test_runs >= 0]) == np.flatnonzero(windows.part == 2).tolist()
    for rows in one_worker.manifest["rows"].values():
        assert rows["read"] == rows["kept"] + rows["duplicates"] + sum(rows["set_aside"].values())
    assert len(pl.read_parquet(one_worker.directory / "tables/logs.parquet")) == 4 * LENGTH


@pytest.mark.parametrize("name", ["one_worker", "taking_turns"])
def test_counts_of_a_window_by_hand(request, name):
    """The scaled count of a window, brought back to lines, is the number of lines in the table."""
    data = request.getfixturevalue(name)
    windows, node = data.windows, data.system.node_names.index("gateway: request <num> done")
    mean = data.manifest["fitted"]["mean_counts"]["logs"][node - list(data.system.kind).index(1)]
    logs = pl.read_parquet(data.directory / "tables/logs.parquet").filter(pl.col("node") == node)
    for w in range(0, windows.num_windows, 7):
        start, end = windows.start_unix_nano[w], windows.end_unix_nano[w]
        lines = logs.filter((pl.col("time_unix_nano") >= start) & (pl.col("time_unix_nano") < end)).height
        root = windows.nodes[w, node, 16] / 2 + np.sqrt(mean + 0.375)
        assert root**2 - 0.375 == pytest.approx(lines, abs=1e-3)


def test_parts_share_no_moment_of_time(one_worker):
    windows = one_worker.windows
    times = {}
    for part in (0, 1, 2):
        rows = windows.part == part
        pairs = zip(windows.start_unix_nano[rows], windows.end_unix_nano[rows], strict=True)
        times[part] = {t for a, b in pairs for t in range(a // SECOND, b // SECOND)}
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not times[a] & times[b]
        assert min(abs(x - y) for x in times[a] for y in times[b]) > 10  # a window length of purge
    touched = [(T0 // SECOND + a, T0 // SECOND + b) for a, b in FAULTS]
    assert not any(a <= t < b for a, b in touched for part in (0, 1) for t in times[part])


def test_two_workers_give_the_same_bytes(raw, one_worker, tmp_path):
    prepare(make_config(raw, tmp_path / "out", num_workers=2))
    one, two = contents(one_worker.directory), contents(tmp_path / "out")
    assert one.keys() == two.keys() and [name for name in one if one[name] != two[name]] == []


def test_three_workers_give_the_same_bytes(raw, one_worker, tmp_path, monkeypatch):
    pool = concurrent.futures.ThreadPoolExecutor(3)  # any executor will do
    monkeypatch.setattr(driver, "_executor", lambda _: pool)
    prepare(make_config(raw, tmp_path / "out", num_workers=3))
    assert contents(one_worker.directory) == contents(tmp_path / "out")


def test_nothing_fitted_hangs_on_the_test_part(one_worker, tmp_path):
    rows = telemetry(changed_after=300)
    rows["faults"][1] = fault(401, 415, "gateway", "delay")
    other = prepare_rows(tmp_path, rows)
    assert (one_worker.windows.label != other.windows.label).any()
    for name in ("fitted", "templates", "operations", "node_names", "service_names", "segments"):
        assert one_worker.manifest[name] == other.manifest[name], name
    for name in prepared.ARRAYS["system"]:
        np.testing.assert_array_equal(getattr(one_worker.system, name), getattr(other.system, name))
    before = one_worker.windows.part != 2
    np.testing.assert_array_equal(one_worker.windows.nodes[before], other.windows.nodes[before])
    assert not (one_worker.windows.nodes[~before] == other.windows.nodes[~before]).all()


@pytest.fixture(scope="module")
def uneven():
    """Telemetry whose load changes every five seconds: there is something that log counts can be expected from."""
    rng, rows = np.random.default_rng(1), telemetry()
    load = np.repeat(rng.uniform(0.1, 1.0, LENGTH // 5), 10)
    kept = np.flatnonzero(rng.uniform(size=len(load)) < load)
    rows["spans"] = [rows["spans"][3 * i + j] for i in kept for j in range(3)]
    rows["logs"] = [rows["logs"][2 * i + j] for i in kept for j in range(2)]
    return rows


@pytest.fixture(scope="module")
def taking_turns(uneven, tmp_path_factory):
    return prepare_rows(tmp_path_factory.mktemp("turns"), uneven, calibration_folds=2, train_stride=1)


def test_a_dataset_whose_groups_take_turns(taking_turns):
    data, manifest = taking_turns, taking_turns.manifest
    windows, segments = data.windows, manifest["segments"]
    assert [s["part"] for s in segments] == ["fit"] * 5 + ["test"] * 3
    assert [s["group"] for s in segments] == [0, 1, 0, 1, 0, -1, -1, -1]
    of_segment = np.array([s["group"] for s in segments])[windows.segment]
    assert (windows.group == np.where(windows.part >= 0, of_segment, -1)).all() and windows.group.dtype == np.int8
    assert not (windows.part == 1).any() and (windows.part == -1).any()
    runs = data.calibration_runs
    assert all(len(set(windows.group[run[run >= 0]])) == 1 for run in runs)
    offset = windows.start_unix_nano - np.array([s["start_unix_nano"] for s in segments])[windows.segment]
    fit_on_stride = (windows.part == 0) & (offset % (5 * SECOND) == 0)
    assert np.sort(runs[runs >= 0]).tolist() == np.flatnonzero(fit_on_stride).tolist()
    assert 0 < manifest["counts"]["calibration_windows"] == fit_on_stride.sum() < manifest["counts"]["fit_windows"]
    first = data.fit_sequences[:, 0]
    assert set(windows.group[first]) == {0, 1} and (windows.part[first] == 0).all()
    assert manifest["data_config"]["calibration_folds"] == 2


def test_expectations_in_a_segment_hang_on_others_alone(uneven, taking_turns, tmp_path):
    """Log lines of a segment are moved within time that equally many windows cover: the mean counts stay the same."""
    system = taking_turns.system
    node = system.node_names.index("訂單: order <num> saved")
    moved = [dict(row) for row in uneven["logs"]]
    for row in moved:
        second = (row["time_unix_nano"] - T0) / SECOND
        if 80 <= second < 90 and row["service_name"] == "訂單":  # of the second segment
            row["time_unix_nano"] += 10 * SECOND
    other = prepare_rows(tmp_path, uneven | {"logs": moved}, calibration_folds=2, train_stride=1)
    assert other.manifest["fitted"]["mean_counts"] == taking_turns.manifest["fitted"]["mean_counts"]
    context, signal = ([np.array(d.windows.nodes[..., part]) for d in (taking_turns, other)]
                       for part in (slice(16), slice(16, None)))  # fmt: skip
    segment = taking_turns.windows.segment
    for some in signal:  # a balance hangs on the expectations
        some[:, system.kind == event_graph.LOG, scaling.CHANNELS["log"].index("balance")] = 0
    assert (signal[0][segment != 1] == signal[1][segment != 1]).all() and (signal[0] != signal[1]).any()
    assert context[0][segment == 1].tobytes() == context[1][segment == 1].tobytes()
    for other_one in (0, 2, 3, 4, 5, 6, 7):  # the last three are test time: expected from all of training time
        rows = segment == other_one
        assert (context[0][rows, node, 0] != context[1][rows, node, 0]).mean() > 0.9


def test_usual_latencies_of_a_segment_are_those_of_others(uneven, taking_turns, tmp_path):
    """Ten seconds of slow calls move the scaled latencies of all other time, but not of their own segment's rest."""
    spans = [dict(row) for row in uneven["spans"]]
    for row in spans:
        if 80 <= (row["start_time_unix_nano"] - T0) / SECOND < 90:
            row["end_time_unix_nano"] += (int(row["span_id"]) % 2 + 1) * 50_000_000
    other = prepare_rows(tmp_path, uneven | {"spans": spans}, calibration_folds=2, train_stride=1)
    node = taking_turns.system.node_names.index("訂單")
    channel = 16 + scaling.CHANNELS["service"].index("self time, mean")
    windows = taking_turns.windows
    begin, end = ((t - T0) / SECOND for t in (windows.start_unix_nano, windows.end_unix_nano))
    untouched = (end <= 80) | (begin >= 91)
    changed = windows.nodes[:, node, channel] != other.windows.nodes[:, node, channel]
    own = windows.segment == 1
    assert (own & untouched).sum() > 10 and not changed[own & untouched].any()
    assert changed[~own].all() and changed[own & ~untouched].any()


def test_segments_take_turns_in_being_left_out_of_expectations():
    group = np.array([0, 1, -1, 0, 1, 0, -1])
    assert map_shards.turns(group, 2).tolist() == [0, 1, -1, 2, 3, 4, -1]
    assert map_shards.turns(group, 0).tolist() == [-1] * 7  # a share is held out: everything else is fitted on
    many = map_shards.turns(np.arange(50) % 5, 5)
    assert many.max() + 1 == map_shards.TURNS and (np.bincount(many) >= 2).all()


def test_statistics_of_a_turn_are_fitted_without_it():
    v = of_scaling.vocabulary.__wrapped__()
    parts = [scaling.moments(of_scaling.make_windows(50, v, seed), v) for seed in range(4)]
    data = default_config("test").data
    found = map_shards.fit_statistics([*parts, None], np.array([0, 1, 0, -1, -1]), v, data)
    everything = scaling.fit(parts[0] + parts[1] + parts[2] + parts[3], v, data.ridge)
    without = {-1: everything, 0: scaling.fit(parts[1] + parts[3], v, data.ridge, everything.mean),
               1: scaling.fit(parts[0] + parts[2] + parts[3], v, data.ridge, everything.mean)}  # fmt: skip
    assert found.keys() == without.keys()
    for t, statistics in found.items():
        for name in scaling.COUNTS:
            np.testing.assert_array_equal(statistics.mean[name], everything.mean[name])
        for a, b in zip(statistics.coefficients, without[t].coefficients, strict=True):
            np.testing.assert_array_equal(a, b)
    assert not np.array_equal(found[0].coefficients[0], found[1].coefficients[0])
    with pytest.raises(InputError, match="one segment holds all windows that can be fitted on"):
        map_shards.fit_statistics([None, parts[0]], np.array([-1, 0]), v, data)


def test_groups_that_take_turns_give_the_same_bytes_for_any_number_of_workers(
    uneven, taking_turns, tmp_path, monkeypatch
):
    monkeypatch.setattr(driver, "_executor", lambda _: concurrent.futures.ThreadPoolExecutor(3))
    again = prepare_rows(tmp_path, uneven, calibration_folds=2, train_stride=1, num_workers=3)
    one, two = contents(taking_turns.directory), contents(again.directory)
    assert one.keys() == two.keys() and [name for name in one if one[name] != two[name]] == []


def test_labels_reach_training_only_as_time_left_out(tmp_path):
    """Other names and kinds of the known faults of training time change nothing but the table of faults."""
    rows = telemetry()
    one = prepare_rows(tmp_path / "one", rows)
    rows["faults"][0] = fault(*FAULTS[0], "gateway", "delay")
    one, two = contents(one.directory), contents(prepare_rows(tmp_path / "two", rows).directory)
    assert [name for name in one if one[name] != two[name]] == ["faults.parquet", "manifest.json"]


@pytest.mark.parametrize(
    "kept", [("spans",), ("logs",), ("metrics",), ("spans", "metrics"), ("logs", "events"), ("spans", "faults")]
)
def test_missing_modalities(kept, tmp_path):
    rows = {name: values for name, values in telemetry().items() if name in kept}
    data = prepare_rows(tmp_path, rows)
    assert np.isfinite(data.windows.nodes).all() and data.system.signal_mask.any()
    assert (data.windows.fault >= 0).any() == ("faults" in kept)


def test_empty_tables_and_one_service(tmp_path):
    rows = {"spans": [], "metrics": [], "logs": telemetry()["logs"][::2], "events": [], "faults": [], "topology": []}
    data = prepare_rows(tmp_path, rows)
    assert data.system.service_names == ("<unknown>", "gateway") and data.faults.height == 0


def test_a_service_and_logs_that_only_appear_in_test_time(tmp_path):
    rows = telemetry()
    rows["logs"] = [row for row in rows["logs"] if row["time_unix_nano"] > T0 + 320 * SECOND]
    rows["spans"] += [span(f"n{i}", 1, None, "new", "x", 400_000 + i, 400_005 + i) for i in range(50)]
    data = prepare_rows(tmp_path, rows)
    assert data.manifest["templates"] == [] and "new" not in data.system.node_names
    other = data.system.node_names.index("<unknown>: <other>")
    assert (data.windows.nodes[data.windows.part == 2][:, other, 16] > 3).any()  # unseen text does not vanish
    assert (data.windows.nodes[data.windows.part == 0][:, other, 16] == 0).all()
    assert data.manifest["counts"]["unknown_units"] == 1


def test_sequences_longer_than_segments_and_odd_strides(tmp_path):
    data = prepare_rows(tmp_path, telemetry(), sequence_length=99, train_stride=3, stride=4, tick_seconds=0.5)
    assert data.fit_sequences.shape[1] == 99 and (data.fit_sequences >= 0).any(0)[-1] == np.False_
    starts = data.windows.start_unix_nano[data.test_runs[0]]
    assert set(np.diff(starts[data.test_runs[0] >= 0])) == {2 * SECOND}


def test_gaps_are_not_windowed(tmp_path):
    rows = telemetry()
    rows["gaps"] = [{"start_time_unix_nano": T0 + a * SECOND, "end_time_unix_nano": T0 + b * SECOND}
                    for a, b in ((30, 45), (333, 367))]  # fmt: skip
    windows = prepare_rows(tmp_path, rows).windows
    for a, b in ((30, 45), (333, 367)):
        assert ((windows.end_unix_nano <= T0 + a * SECOND) | (windows.start_unix_nano >= T0 + b * SECOND)).all()


def test_a_failure_leaves_nothing_and_keeps_what_was_there(raw, one_worker, tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    config = make_config(raw, tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(prepared.Writer, "finish", fail)
        with pytest.raises(KeyboardInterrupt):
            prepare(config)
    assert list(tmp_path.iterdir()) == []
    prepare(config)
    before = contents(tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(driver.scaling, "fit", fail)
        with pytest.raises(KeyboardInterrupt):
            prepare(config)
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and contents(tmp_path / "out") == before
    prepare(make_config(raw, tmp_path / "out", window_length=12))  # a finished dataset may be replaced
    assert prepared.load(tmp_path / "out").manifest["window_length"] == 12


def test_a_killed_run_leaves_nothing_that_looks_finished(raw, tmp_path):
    program = f"""
import os, signal
from data_prep import prepare, scaling
from tests.data_prep.test_prepare import make_config
prepare.scaling.fit = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
prepare.prepare(make_config({str(raw)!r}, {str(tmp_path / "out")!r}))
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=120).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists() and not prepared.exists(tmp_path / "out")
    assert all(path.name.startswith(".") for path in tmp_path.iterdir())
    prepare(make_config(raw, tmp_path / "out"))
    assert prepared.load(tmp_path / "out").windows.num_windows > 0


def test_a_directory_that_is_no_dataset_is_refused(raw, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/draft.txt").write_text("precious")
    with pytest.raises(InputError, match="name another prepared_dir"):
        prepare(make_config(raw, tmp_path / "thesis"))
    with pytest.raises(InputError, match="is a file"):
        prepare(make_config(raw, tmp_path / "thesis/draft.txt"))
    assert (tmp_path / "thesis/draft.txt").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    prepare(make_config(raw, tmp_path / "empty"))
    assert prepared.exists(tmp_path / "empty")


def test_too_little_telemetry_and_none_at_all(tmp_path):
    with pytest.raises(InputError, match="segment"):
        prepare_rows(tmp_path / "short", telemetry(until=30))
    with pytest.raises(InputError, match="nothing to window"):
        prepare_rows(tmp_path / "events", {"events": [event(0, "a", "restart")]})
    with pytest.raises(InputError, match="raw_dir"):
        prepare(make_config(tmp_path / "nowhere", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mask_units", "all"), ("node_level", "pod"), ("metric_units", "some"), ("train_on", "abnormal"),
        ("on_bad_rows", "ignore"), ("tick_seconds", 0.0), ("tick_seconds", -1.0), ("tick_seconds", float("nan")),
        ("tick_seconds", 1e-9), ("window_length", 1), ("stride", 0), ("train_stride", 0), ("sequence_length", 0),
        ("batch_size", 0), ("train_share", 0.0), ("train_share", 1.0), ("train_share", float("nan")),
        ("calibration_folds", 1), ("calibration_folds", -2),
        ("calibration_share", 0.0), ("calibration_share", 1.5), ("segment_seconds", 5.0), ("ridge", 0.0),
        ("recording_gap_hours", -1.0), ("metric_baseline_minutes", -1.0), ("metric_baseline_minutes", 0.001),
        ("max_templates_per_service", 0), ("num_workers", -1), ("prepared_dir", ""), ("protocol", "fold:9"),
        ("metrics", ("cpu", "(unclosed")), ("pods", ("[",)), ("source", "prometheus"),
    ],
)  # fmt: skip
def test_bad_settings_end_with_the_key_and_the_remedy(key, value, raw, tmp_path):
    config = make_config(raw, tmp_path / "out", **{key: value})
    with pytest.raises(InputError, match=f"data.{key}"):
        prepare(config)
    assert not (tmp_path / "out").exists()


def test_a_bare_string_is_no_list_of_metrics(raw, tmp_path):
    config = make_config(raw, tmp_path / "out")
    with config.ignore_type():
        config.data.metrics = "cpu"
    with pytest.raises(InputError, match="tuple of regular expressions"):
        settings.check(config)


def test_the_simulator_only_feeds_its_own_source(tmp_path):
    config = make_config("", tmp_path / "out")
    config.simulate.hours = 1.0
    with pytest.raises(InputError, match="source=openstack"):
        settings.check(config)


@pytest.mark.parametrize("file", sorted(path.name for path in (ROOT / "configs").glob("*.py")))
def test_configs_pass_the_checks(file):
    spec = util.spec_from_file_location("config_under_test", ROOT / "configs" / file)
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    settings.check(config)
    json.dumps(config.to_dict())


def test_raw_files_that_change_while_they_are_read_are_told_of(tmp_path, monkeypatch):
    raw = write(tmp_path / "raw", telemetry())
    read = driver.sources.read

    def slowly(data, *rest):
        (raw / "late.txt").write_text("x")
        return read(data, *rest)

    monkeypatch.setattr(driver.sources, "read", slowly)
    prepare(make_config(raw, tmp_path / "out"))
    manifest = prepared.load(tmp_path / "out").manifest
    assert any("changed while they were read" in warning for warning in manifest["warnings"])


def test_time_that_is_mostly_silent_is_told_of(tmp_path):
    rows = telemetry()
    rows["logs"].insert(0, log(-5000, "gateway", "out of nowhere"))
    [silent, _] = prepare_rows(tmp_path, rows).manifest["warnings"][::-1][:2]
    assert silent.startswith(
        "1.2 of 1.5 hours of observed time have no span, log line or metric, most of all from 2023-11-14 21:00 to "
        "2023-11-14 22:10, and count as silence: remove rows of a wrong time"
    )  # fmt: skip


def test_metrics_that_no_pattern_fits_are_told_of(tmp_path):
    [warning] = prepare_rows(tmp_path, telemetry(), metrics=("cpus",)).manifest["warnings"]
    assert warning.startswith("no metric is used: config.data.metrics fits the name of none")
