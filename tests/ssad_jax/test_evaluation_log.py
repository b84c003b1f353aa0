"""Which evaluations leave a line, and what stands in it."""

import json

import pytest

from data_prep.errors import InputError
from ssad_jax import evaluation_log
from ssad_jax.config import default_config

FIGURES = {"auroc": 0.91234567, "auprc": 0.8, "tpr_at_5_percent_fpr": 0.5, "hit_rate_at_1": None, "num_windows": 9}
REAL = {"dataset_hash": "d" * 64, "simulated": None}


def config_with(path, **values):
    config = default_config("x")
    config.evaluation_log = str(path)
    config.update_from_flattened_dict(values)
    return config


def test_a_line_for_each_evaluation_of_real_labelled_windows(tmp_path):
    path = tmp_path / "docs" / "log.jsonl"
    config = config_with(path, seed=3)
    for _ in range(2):
        evaluation_log.append(config, REAL, "evaluate", "fold:1", "knowledge_ssl", FIGURES)
    evaluation_log.append(config, REAL, "evaluate", "fold:1", "knowledge_ssl", FIGURES, once=True)
    evaluation_log.append(config, REAL | {"simulated": {"hours": 1}}, "evaluate", "fold:1", "knowledge_ssl", FIGURES)
    evaluation_log.append(config, REAL, "evaluate", "fold:1", "knowledge_ssl", FIGURES | {"num_windows": 0})
    evaluation_log.append(config_with(""), REAL, "evaluate", "fold:1", "knowledge_ssl", FIGURES)
    evaluation_log.append(config, REAL, "evaluate", "fold:1", "linear", FIGURES, once=True)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["detector"] for line in lines] == ["knowledge_ssl", "knowledge_ssl", "linear"]
    assert {k: v for k, v in lines[0].items() if k not in ("date", "config")} == {
        "command": "evaluate", "dataset": "d" * 12, "protocol": "fold:1", "seed": 3, "detector": "knowledge_ssl",
        "auroc": 0.912346, "auprc": 0.8, "tpr_at_5_percent_fpr": 0.5, "hit_rate_at_1": None,
    }  # fmt: skip
    assert lines[0]["date"].endswith("+00:00") and len(lines[0]["config"]) == 12


def test_the_hash_tells_settings_that_matter_from_places_and_seeds():
    first = evaluation_log.config_hash(config_with(""))
    same = config_with("log", seed=4, name="y", **{"data.prepared_dir": "z", "train.checkpoint_every": 3})
    assert evaluation_log.config_hash(same) == first
    for key, value in (("data.stride", 3), ("train.num_epochs", 7), ("score.alpha", 2.0), ("data.batch_size", 4)):
        assert evaluation_log.config_hash(config_with("", **{key: value})) != first
    without = config_with("", **{"model.hidden_dim": 3, "loss.temperature": 0.3})
    assert evaluation_log.config_hash(without, ("model", "loss.temperature")) == evaluation_log.config_hash(
        config_with(""), ("model", "loss.temperature")
    )


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="--config.evaluation_log"):
        evaluation_log.append(config_with(tmp_path / "file" / "log"), REAL, "evaluate", "p", "d", FIGURES)
