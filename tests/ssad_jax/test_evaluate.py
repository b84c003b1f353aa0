"""Evaluation from end to end: the files, their names and types, and data that cannot be measured."""

import dataclasses
import json
import shutil

import numpy as np
import polars as pl
import pytest

from data_prep.errors import InputError
from ssad_jax import checkpoint, evaluate, knowledge, methods, prepared, train
from ssad_jax.config import default_config
from ssad_jax.scoring.output import write_atomically
from ssad_jax.streaming import Scorer
from tests.ssad_jax.gain_method import gain_method
from tests.synthetic import make_prepared, save

FACTS = {"step": 7, "epoch": 1, "trained_on_this_dataset": True, "trained_dataset_hash": "synthetic-0"}
CONTRACT = {
    "window_start_unix_nano": pl.Int64, "window_end_unix_nano": pl.Int64, "score": pl.Float64,
    "score_reconstruction": pl.Float64, "score_temporal": pl.Float64, "score_prior": pl.Float64,
    "is_alert": pl.Boolean, "label": pl.Boolean, "fault_type": pl.String, "suspects": pl.List(pl.String),
    "prototype": pl.String,
}  # fmt: skip
TOP_LEVEL = (
    "auroc", "auprc", "accuracy", "precision", "recall", "f1", "threshold", "threshold_method", "num_windows",
    "num_anomalous", "hit_rate_at_1", "hit_rate_at_3", "hit_rate_at_5", "oracle_best_f1", "event_recall",
    "false_alarms_per_hour", "delay_seconds_median", "interval_95", "by_fault_type", "floors", "terms", "kinds",
    "prevalence", "masked_log_error", "paired", "config", "dataset_hash", "seed",
)  # fmt: skip


def small_config(**score):
    config = default_config("test")
    config.data.batch_size, config.data.sequence_length = 8, 4
    config.model.hidden_dim, config.model.num_prototypes = 16, 4
    config.score.bootstrap = 50
    config.score.update(score)
    return config


def run(data, workdir, config=None, names=("rule",)):
    params = {"gain": np.ones(1, np.float32)}
    return evaluate.evaluate_params(config or small_config(), data, gain_method(names), params, workdir, FACTS)


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("toy")
    data = make_prepared(segments=16)
    return data, workdir, run(data, workdir)


def test_scores_parquet_is_the_contracts(toy_run):
    data, workdir, results = toy_run
    frame = pl.read_parquet(workdir / "evaluation" / "scores.parquet")
    assert dict(list(frame.schema.items())[: len(CONTRACT)]) == CONTRACT
    assert {"score_calibrated", "score_paper", "score_kind_log", "score_kind_dependency"} <= set(frame.columns)
    ids = np.sort(data.test_runs.ravel())
    np.testing.assert_array_equal(frame["window_start_unix_nano"], data.windows.start_unix_nano[ids])
    np.testing.assert_array_equal(frame["label"], data.windows.label[ids] == 1)
    np.testing.assert_array_equal(frame["score"], frame["score_calibrated"])
    np.testing.assert_array_equal(frame["is_alert"], frame["score"] > results["threshold"])
    assert frame["is_alert"].null_count() == 0 and frame["score"].is_finite().all()
    assert frame.filter(pl.col("label"))["suspects"].list.first().to_list() == ["service-2"] * int(frame["label"].sum())
    assert set(frame["prototype"]) == {"rule"}
    assert set(frame.filter(pl.col("label"))["fault_type"]) == {"planted"}
    assert frame.filter(~pl.col("label"))["fault_type"].null_count() == (~frame["label"]).sum()


def test_an_evaluation_of_windows_that_are_not_simulated_leaves_a_line(tmp_path):
    data, config = make_prepared(segments=8), small_config(bootstrap=0)
    config.evaluation_log = str(tmp_path / "log.jsonl")
    results = run(data, tmp_path / "run", config)
    (line,) = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert line["command"] == "evaluate" and line["detector"] == "knowledge_ssl (calibrated)"
    assert line["auroc"] == pytest.approx(results["auroc"], abs=1e-6) and line["seed"] == 0
    simulated = dataclasses.replace(data, manifest=data.manifest | {"simulated": {"hours": 1.0}})
    run(simulated, tmp_path / "run", config)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1


def test_metrics_json_holds_the_contracts_names(toy_run):
    _, workdir, results = toy_run
    saved = json.loads((workdir / "evaluation" / "metrics.json").read_text())
    assert set(TOP_LEVEL) <= set(saved)
    assert saved["auroc"] == results["auroc"] > 0.99
    assert saved["hit_rate_at_1"] == saved["event_recall"] == 1.0
    assert set(saved["variants"]) == {"calibrated", "paper"}
    assert set(saved["terms"]) == {"reconstruction", "temporal", "prior"}
    assert set(saved["kinds"]) == {"service", "log", "metric", "dependency"}
    floors = {"random", "all_positive", "count_rule", "l2_norm", "pca", "knn", "iforest", "untrained"}
    assert set(saved["floors"]) == set(saved["paired"]) == floors
    assert saved["floors"]["all_positive"]["f1"] == pytest.approx(saved["all_positive_f1"])
    assert saved["paired"]["random"]["auroc"]["interval_95"][0] > 0
    assert saved["by_fault_type"]["planted"]["num_faults"] == 2
    assert saved["masked_log_error"] == pytest.approx(0.09, rel=0.3)  # the variance of the noise of log nodes
    assert set(saved["thresholds"]) == {"quantile", "pot", "conformal", "adaptive"}
    assert saved["config"]["score"]["alpha"] == 1.0 and saved["dataset_hash"] == "synthetic-0" and saved["step"] == 7


def test_nothing_temporary_stays_and_a_second_run_gives_the_same(toy_run, tmp_path):
    data, workdir, _ = toy_run
    assert sorted(p.name for p in workdir.rglob("*")) == [
        "alerts.jsonl", "calibration.npz", "evaluation", "metrics.json", "report.html", "scores.parquet"]  # fmt: skip
    run(data, tmp_path)
    for name in ("evaluation/metrics.json", "evaluation/scores.parquet", "report.html"):
        assert (tmp_path / name).read_bytes() == (workdir / name).read_bytes(), name


@pytest.mark.parametrize("faulty", ["none", "all", "unlabelled"])
def test_data_without_two_classes_still_gets_scores(tmp_path, faulty):
    data = make_prepared(segments=8)
    value = {"none": 0, "all": 1, "unlabelled": -1}[faulty]
    label = np.full_like(data.windows.label, value)
    windows = dataclasses.replace(data.windows, label=label, fault=np.full_like(data.windows.fault, -1))
    faults = data.faults.clear()
    results = run(dataclasses.replace(data, windows=windows, faults=faults), tmp_path)
    assert results["auroc"] is None and results["event_recall"] is None and results["hit_rate_at_1"] is None
    assert results["reasons"]["auroc"]
    frame = pl.read_parquet(tmp_path / "evaluation" / "scores.parquet")
    assert frame.height == data.test_runs.size and dict(list(frame.schema.items())[: len(CONTRACT)]) == CONTRACT
    assert (tmp_path / "report.html").is_file()


def test_no_test_window_at_all(tmp_path):
    data = make_prepared(segments=8)
    results = run(dataclasses.replace(data, test_runs=np.zeros((0, 0), np.int32)), tmp_path)
    assert results["num_windows"] == 0 and results["auroc"] is None
    frame = pl.read_parquet(tmp_path / "evaluation" / "scores.parquet")
    assert frame.height == 0 and dict(list(frame.schema.items())[: len(CONTRACT)]) == CONTRACT


def test_labels_change_no_score_and_no_threshold(toy_run, tmp_path):
    data, workdir, results = toy_run
    rng = np.random.default_rng(0)
    label = rng.permutation(data.windows.label)
    windows = dataclasses.replace(data.windows, label=label, fault=np.where(label == 1, 0, -1).astype(np.int32))
    other = run(dataclasses.replace(data, windows=windows), tmp_path)
    first, second = (pl.read_parquet(p / "evaluation" / "scores.parquet") for p in (workdir, tmp_path))
    assert first.drop("label", "fault_type").equals(second.drop("label", "fault_type"))
    assert other["threshold"] == results["threshold"] and other["auroc"] != results["auroc"]


def test_the_paper_variant_can_be_the_score(toy_run, tmp_path):
    data, _, results = toy_run
    paper = run(data, tmp_path, small_config(variant="paper"))
    assert paper["auroc"] == paper["variants"]["paper"]["auroc"] == results["variants"]["paper"]["auroc"]
    frame = pl.read_parquet(tmp_path / "evaluation" / "scores.parquet")
    np.testing.assert_array_equal(frame["score"], frame["score_paper"])
    with pytest.raises(InputError, match="calibrated or paper"):
        run(data, tmp_path, small_config(variant="mean"))


def test_batches_of_runs_do_not_change_scores(toy_run, tmp_path):
    data, workdir, _ = toy_run
    run(data, tmp_path, small_config(batch_runs=3))
    one, two = (pl.read_parquet(p / "evaluation" / "scores.parquet")["score"] for p in (workdir, tmp_path))
    np.testing.assert_allclose(one, two, rtol=1e-5)


def test_from_a_checkpoint_on_disk(tmp_path):
    data = make_prepared(segments=8, sequence_length=12, folds=2)
    with prepared.Writer(tmp_path / "data") as writer:
        writer.finish(data, {})
    config = small_config()
    config.data.prepared_dir, config.data.calibration_folds = str(tmp_path / "data"), 2
    data = prepared.load(tmp_path / "data")
    rules = knowledge.load("", data.system.service_names, data.system.service_position, config.model.num_prototypes)
    method = methods.get(config.method).create(config, data.system, rules)
    context = checkpoint.Context(config, data.system, data.manifest, {"names": list(rules.names), "keys": rules.keys})
    params = train.init_params(method.init, train.streams(0, 2))
    with checkpoint.Writer(tmp_path / "work" / "checkpoints", 1, context) as writer:
        writer.save(3, 1, {"params": params, "step": np.int32(3)})
    results = evaluate.evaluate(tmp_path / "work")
    assert results["step"] == 3 and results["trained_on_this_dataset"] and results["auroc"] > 0.9
    frame = pl.read_parquet(tmp_path / "work" / "evaluation" / "scores.parquet")
    assert set(frame["prototype"]) <= set(rules.names)
    with pytest.raises(InputError, match="no checkpoint of step 9"):
        evaluate.evaluate(tmp_path / "work", step=9)
    with pytest.raises(InputError, match="no prepared dataset"):
        evaluate.evaluate(tmp_path / "work", prepared_dir=tmp_path / "nowhere")
    with pytest.raises(InputError, match="train first"):
        evaluate.evaluate(tmp_path / "empty")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    path.write_text("old")

    def fail(partial):
        partial.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file.json"]


@pytest.fixture(scope="module")
def method_b(tmp_path_factory):
    """A workdir of method B, trained in turns on one dataset, and the directory of another one without groups."""
    path, config = tmp_path_factory.mktemp("method_b"), small_config()
    config.method, config.model.hidden_dim, config.model.num_graph_layers = "cross_service", 8, 1
    config.train.num_epochs, config.train.compilation_cache = 1, False
    config.data.update({"calibration_folds": 3, "prepared_dir": str(path / "own")})
    save(make_prepared(folds=3), path / "own")
    save(make_prepared(seed=5), path / "other")
    train.train(config, prepared.load(path / "own"), path / "run")
    return path


def test_method_b_is_evaluated_with_everything_that_is_written(method_b):
    results = evaluate.evaluate(method_b / "run")
    assert results["method"] == "cross_service" and results["masked_log_error"] is None
    assert results["auroc"] > 0.9 and results["hit_rate_at_1"] == 1
    frame = pl.read_parquet(method_b / "run" / "evaluation" / "scores.parquet")
    assert dict(list(frame.schema.items())[: len(CONTRACT)]) == CONTRACT
    lines = (method_b / "run" / "evaluation" / "alerts.jsonl").read_text().splitlines()
    deviation = json.loads(lines[0])["deviations"][0]
    assert deviation["channel"] == "distance from normal" and deviation["observed"] > deviation["expected"]
    assert "cross_service" in (method_b / "run" / "report.html").read_text()
    with pytest.raises(InputError, match="cannot score window by window"):
        Scorer.load(method_b / "run")


def test_method_b_is_evaluated_on_another_dataset(method_b, tmp_path):
    shutil.copytree(method_b / "run", tmp_path / "run")
    results = evaluate.evaluate(tmp_path / "run", method_b / "other")
    assert not results["trained_on_this_dataset"] and results["auroc"] > 0.9
