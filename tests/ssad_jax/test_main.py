import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ssad_jax.config import default_config
from ssad_jax.datasets import differing_settings

ROOT = Path(__file__).parents[2]
CONFIG = """
from ssad_jax.config import default_config
def get_config():
    config = default_config("toy")
    config.data.prepared_dir = "prepared"
    config.data.batch_size = 8
    config.model.hidden_dim = 16
    config.model.num_prototypes = 4
    config.train.num_epochs = 2
    config.score.bootstrap = 20
    return config
"""
WRITE_PREPARED = """
import json
from ssad_jax.prepared import Writer
from tests.synthetic import make_prepared
with Writer("prepared") as writer:
    writer.finish(make_prepared(), {})
"""


def run(folder, *arguments):
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("main")
    (path / "toy.py").write_text(CONFIG)
    made = run(path, "-c", WRITE_PREPARED)
    assert made.returncode == 0, made.stderr
    return path


def test_train_evaluate_and_refuse_another_config(folder):
    done = run(folder, "-m", "ssad_jax.main", "--config=toy.py", "--workdir=run")
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "run" / "evaluation" / "metrics.json").read_text())
    assert 0 <= results["auroc"] <= 1 and results["step"] == 6
    assert "report.html" in done.stdout and "epoch 2/2" in done.stderr

    other = run(folder, "-m", "ssad_jax.main", "--config=toy.py", "--workdir=run", "--config.model.hidden_dim=8")
    assert other.returncode == 2 and other.stdout == ""
    last = other.stderr.splitlines()[-1]
    assert last.startswith("error: run holds a run of another config: model.hidden_dim (16 there, 8 now)")
    other = run(
        folder, "-m", "ssad_jax.main", "--config=toy.py", "--workdir=run", "--mode=evaluate", "--config.seed=7",
    )  # fmt: skip
    assert other.returncode == 2 and "another config: seed" in other.stderr


@pytest.mark.parametrize("arguments, words", [
    (["--config=nowhere.py"], "nowhere.py cannot be read"),
    (["--config=toy.py", "--config.model.hiden_dim=3"], "did you mean 'hidden_dim'?"),
    (["--config=toy.py", "--mode=tran"], "train|evaluate|train_and_evaluate"),
    (["--config=toy.py", "--mode=evaluate", "--workdir=none"], "holds no checkpoint"),
    (["--config=toy.py", "--config.knowledge.path=rules.yaml"], "knowledge.path='rules.yaml' is not a file"),
    (["--config=toy.py", "--config.method=magic", "--workdir=m"], "method='magic' is unknown"),
    (["--config=toy.py", "--config.data.prepared_dir=torn"], "is missing or truncated"),
])  # fmt: skip
def test_bad_input_ends_with_2_and_one_sentence(folder, arguments, words):
    if not (folder / "torn").exists():
        shutil.copytree(folder / "prepared", folder / "torn")
        (folder / "torn" / "windows" / "nodes.npy").write_bytes(b"")
    done = run(folder, "-m", "ssad_jax.main", *arguments)
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and words in last and "Traceback" not in done.stderr


def test_help_ends_with_0_and_imports_no_jax(folder):
    done = run(folder, "-X", "importtime", "-m", "ssad_jax.main", "--help")
    assert done.returncode == 0
    for flag in ("--config", "--workdir", "--mode"):
        assert flag in done.stdout
    assert not [line for line in done.stderr.splitlines() if line.split("|")[-1].strip() == "jax"]


def test_settings_that_prepared_data_was_not_made_with_are_named():
    config = default_config("x")
    same = {k: list(v) if isinstance(v, tuple) else v for k, v in config.data.items()}
    assert differing_settings(config, {"data_config": same}) == []
    assert differing_settings(config, {"data_config": {**same, "raw_dir": "/elsewhere", "batch_size": 4}}) == []
    found = differing_settings(config, {"data_config": {**same, "stride": 7, "metrics": ["cpu"]}})
    assert found == ["data.metrics=['cpu'] there, ['.*'] now", "data.stride=7 there, 5 now"]
    simulated = {"data_config": same, "simulated": {**config.simulate.to_dict(), "hours": 2.0}}
    assert differing_settings(config, simulated) == ["simulate.hours=2.0 there, 0.0 now"]
    config.data.raw_dir = "archive"
    assert "not from raw_dir=archive" in differing_settings(config, simulated)[0]
