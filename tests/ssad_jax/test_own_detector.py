"""The detector of one's own that docs/compared.md shows: the text is the file, the commands in it run; its mistakes."""

import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from data_prep.errors import InputError
from ssad_jax import methods, settings, train
from ssad_jax.compared import COMPACT
from ssad_jax.config import default_config
from tests.synthetic import make_prepared, save

ROOT = Path(__file__).parents[2]
FILE = (ROOT / "docs" / "own_detector.py").read_text(encoding="utf-8")
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
    assert shown == FILE


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


BOTH = "jnp.stack([each.mean(-1), each.max(-1)], axis=-1)"
MISTAKES = [  # what stands in the file, what in its place, what is said
    ("def create(", "def make(", "has no function create"),
    ("knowledge=None)", "*, own)", "has no function create"),
    ("return Method(", "Method(", "create gives NoneType instead of Method"),
    ("needs=Needs(alone=True)", "needs=None", "needs=None is no Needs"),
    ("bound=True", "observe=loss", "observe and absorb need one another"),
    ('"worst signal"', '"mean"', "is no tuple of different names"),
    ('score_names=("mean", "worst signal"), ', "", "WindowScores instead of ScoreTerms, as there are no score_names"),
    ('return {"code": 0.1 *', "return jnp.zeros(2); {0: 0.1 *", "init gives an array .* instead of a dict of arrays"),
    (", {}", "", "loss gives no .sums, counts, diagnostics."),
    ("each.sum()}", "each}", r"loss gives an array \(2, 1\) as 'reconstruction' instead of one number"),
    ('{"reconstruction": batch', '{"other": batch', "no dicts of the same names"),
    (BOTH, "each.mean(-1)", r"score is an array \(2, 3\) instead of \(2, 3, 2\) for 2 runs of 3 windows"),
    (BOTH, BOTH.replace("stack([", "stack([each.min(-1), "), r"\(2, 3, 3\) instead of \(2, 3, 2\)"),
    ("each @ of_service)", "each)", "service is an array .* instead of"),
    (f"WindowScores({BOTH}, each @ of_service)", "each.mean(-1)", "score gives an array .* instead of WindowScores"),
]


@pytest.fixture(scope="module")
def data():
    return make_prepared()


def made(text, data, monkeypatch):
    """The method of a file of such a text."""
    module, config = types.ModuleType("own.detector"), default_config("toy")
    exec(compile(text, "detector.py", "exec"), vars(module))
    monkeypatch.setitem(sys.modules, "own.detector", module)
    config.method = "own.detector"
    return train.make_method(config, data, None)


def test_the_file_has_no_mistake(data, monkeypatch):
    assert made(FILE, data, monkeypatch).score_names == ("mean", "worst signal")


@pytest.mark.parametrize(("right", "wrong", "said"), MISTAKES)
def test_a_mistake_in_the_file_is_told_before_training(right, wrong, said, data, monkeypatch):
    assert FILE.count(right) == 1
    with pytest.raises(InputError, match=said):
        made(FILE.replace(right, wrong), data, monkeypatch)


def test_what_absorb_gives_must_be_the_parameters_of_init(data, monkeypatch):
    text = FILE.replace("bound=True", "observe=lambda params, _: (0.0, 1), absorb=lambda params, mean, _: {'m': mean}")
    with pytest.raises(InputError, match="absorb gives other parameters than init"):
        made(text, data, monkeypatch)


@pytest.mark.parametrize("name", [".own", "own.", "own..detector", "own", ""])
def test_names_that_are_no_module_s(name):
    config = default_config("toy")
    config.method = name
    with pytest.raises(InputError, match="package.module of your own"):
        settings.check(config)
    with pytest.raises(InputError, match="package.module of your own"):
        methods.get(name)


def test_a_file_that_is_no_python_is_told_with_the_line(tmp_path, monkeypatch):
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "detector.py").write_text("def create(\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"is no Python: .*\(detector.py, line 1\)"):
        methods.get("unfinished.detector")
