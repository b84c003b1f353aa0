"""The detector of one's own that docs/compared.md shows: the text is the file, and the commands in it run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ssad_jax.compared import COMPACT
from tests.synthetic import make_prepared, save

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "compared.md").read_text(encoding="utf-8")
CONFIG = """
from ssad_jax.config import default_config
def get_config():
    config = default_config("toy")
    config.data.prepared_dir = "prepared"
    config.data.batch_size = 8
    config.train.num_epochs = 2
    config.score.bootstrap = 20
    return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("own")
    (path / "toy.py").write_text(CONFIG)
    save(make_prepared(), path / "prepared")
    return path


def run(folder, *arguments):
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", *arguments]
    done = subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done


def test_the_page_shows_the_file():
    (shown,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert shown == (ROOT / "docs" / "own_detector.py").read_text(encoding="utf-8")


def test_main_trains_and_evaluates_it(folder):
    run(folder, "ssad_jax.main", "--config=toy.py", "--config.method=docs.own_detector", "--workdir=run")
    results = json.loads((folder / "run" / "evaluation" / "metrics.json").read_text())
    assert results["auroc"] > 0.9  # the fault is planted


def test_a_comparison_takes_it(folder):
    run(
        folder, "ssad_jax.compare", "--config=toy.py", "--detectors=docs.own_detector,knn", "--protocol=chronological",
        "--seeds=1", "--workdir=compared",
    )  # fmt: skip
    found = json.loads((folder / "compared" / "comparison.json").read_text())["protocols"]["chronological"]["detectors"]
    assert {"docs.own_detector", "docs.own_detector: worst signal", "knn"} == set(found)
    assert found["docs.own_detector"]["cost"]["train_seconds"] > 0


def test_optimiser_settings_are_judged_by_the_loss_on_held_out_windows(folder):
    done = run(folder, "benchmarks.optimisers", "--config=toy.py", "--detectors=docs.own_detector", "--seeds=1")
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines()[2:]]
    assert [row[1].strip() for row in rows] == ["own", "shared"]
    assert all(0 < float(row[4]) < float(row[3]) for row in rows)  # it has learned what generalises


def test_the_page_says_of_each_system_what_comparisons_say():
    table = PAGE.split("| detector | system |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| `")]
    shown = {row[0].strip("`"): (row[1], row[4], row[5]) for row in rows}
    assert shown == {name: (form.system, form.fidelity, form.adapted) for name, form in COMPACT.items()}
