"""Sweeps: one program for several values, the choice of the form, and the command from end to end."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from data_prep.errors import InputError
from ssad_jax import batching, methods, sweep, train
from ssad_jax.comparison import splits
from ssad_jax.config import default_config
from ssad_jax.sensitivity import compute, parameter, plot, speed, tables
from ssad_jax.sensitivity.networks import Networks
from ssad_jax.studies import cross_service as studies
from tests.ssad_jax import toy
from tests.synthetic import as_split, make_prepared, save

ROOT = Path(__file__).parents[2]
CONFIG = """
from ssad_jax.config import default_config
def get_config():
    config = default_config("toy")
    config.data.update({"prepared_dir": "data/toy", "batch_size": 8, "sequence_length": 4})
    config.model.update({"hidden_dim": 8, "num_prototypes": 4})
    config.train.num_epochs = 1
    config.score.bootstrap = 20
    return config
"""


def run_sweep(config, key, values, *rest):
    return sweep.sweep(config, parameter.parse(config, key, values), *rest)


@pytest.fixture(scope="module")
def data():
    return make_prepared()


def create_for(data):
    return lambda config: methods.get("knowledge_ssl").create(config, data.system, train.find_knowledge(config, data))


def of_one_program(config, data, create, key, values, form=True):
    """Networks of two values and their seeds, each beside the one of a separate training."""
    varied = parameter.Parameter(key, values)
    trainings = list(zip(values, (0, 3), strict=True))
    networks = Networks(config, data, varied, create, jax.devices()[:1])
    for params, (value, seed) in zip(networks.fit(trainings, form), trainings, strict=True):
        own = varied.applied(config, value)
        yield params, train.fit(own, data, [seed], create(own), jax.devices()[:1])


def distance(first, second):
    return max(float(np.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (first, second)), strict=True))


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    "key, values",
    [
        ("optimizer.learning_rate", (1e-4, 3e-3)), ("optimizer.weight_decay", (0.0, 0.5)),
        ("optimizer.clip_norm", (0.01, 1.0)),
    ],
)  # fmt: skip
def test_networks_of_one_program_are_those_of_separate_trainings(data, key, values, together):
    config = toy.small_config()
    pairs = list(of_one_program(config, data, lambda own: toy.METHOD, key, values, together))
    for params, alone in pairs:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[0], rtol=1e-4, atol=1e-6), params, alone)
    assert distance(pairs[0][1], pairs[1][1]) > 1e-2


def test_a_weight_of_a_shared_program_may_be_zero(data):
    config = toy.small_config()
    config.train.num_epochs, config.model.hidden_dim = 1, 8
    params, alone = next(of_one_program(config, data, create_for(data), "loss.contrastive", (0.0, 0.5)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[0], rtol=2e-3, atol=2e-5), params, alone)


@pytest.mark.parametrize("key", [key for key in parameter.TRACED if key.startswith("loss.")])
def test_the_loss_of_a_traced_number_has_the_terms_of_a_plain_one(data, key):
    config, create = toy.small_config(), create_for(data)
    batch = jax.eval_shape(batching.make_batch, batching.resident(data), data.fit_sequences[:8], np.arange(8))
    params = jax.eval_shape(create(config).init, jax.random.key(0))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 8))

    def terms(value):
        own = parameter.Parameter(key, ()).applied(config, value)
        return jax.eval_shape(lambda *x: create(own).loss(*x, lambda part: part), params, batch, keys)

    plain, traced = terms(0.3), []
    jax.eval_shape(lambda value: traced.append(terms(value)), np.float32(0.3))
    assert {k: v.shape for k, v in traced[0][0].items()} == {k: v.shape for k, v in plain[0].items()}
    assert set(plain[0]) == {"reconstruction", "contrastive", "knowledge"}


def test_calibration_groups_are_networks_of_a_training():
    turns = make_prepared(segments=7, folds=3)
    config = toy.small_config()
    config.data.calibration_folds = 3
    varied = parameter.Parameter("optimizer.learning_rate", (1e-3, 1e-2))
    networks = Networks(config, turns, varied, lambda own: toy.METHOD, jax.devices()[:1])
    together = networks.fit([(1e-3, 0), (1e-2, 5)], True)
    for params, (rate, seed) in zip(together, [(1e-3, 0), (1e-2, 5)], strict=True):
        alone = train.fit(varied.applied(config, rate), turns, [seed], toy.METHOD, jax.devices()[:1])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[0], rtol=1e-3, atol=1e-5), params, alone)
    assert networks.stopwatch([(1e-3, 0), (1e-2, 5)], True, 2)() > 0


class Clock:
    """Networks that take the given seconds."""

    def __init__(self, steps, together, alone):
        self.steps = lambda: steps
        self.stopwatch = lambda trainings, form, steps: lambda: self.answer(together if form else alone)

    def answer(self, seconds):
        if isinstance(seconds, Exception):
            raise seconds
        return seconds


def test_trainings_are_run_together_where_that_measures_clearly_faster():
    many = [(0.1, 0), (0.2, 0)]
    assert speed.choose("auto", Clock(1000, 0.1, 0.2), many).together
    assert not speed.choose("auto", Clock(1000, 0.19, 0.2), many).together
    slower = speed.choose("auto", Clock(1000, 0.2, 0.1), many)
    assert not slower.together and (slower.seconds_together, slower.seconds_alone) == (0.2, 0.1)
    assert "200 ms together (2), 100 ms alone" in slower.describe()
    full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    assert "memory" in speed.choose("auto", Clock(1000, full, 0.1), many).why
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        speed.choose("auto", Clock(1000, jax.errors.JaxRuntimeError("INTERNAL"), 0.1), many)
    never = AssertionError("measured")
    assert speed.choose("yes", Clock(1000, never, never), many).together
    assert not speed.choose("no", Clock(1000, never, never), many).together
    assert not speed.choose("auto", Clock(1000, never, never), many[:1]).together
    assert "too short" in speed.choose("auto", Clock(100, never, never), many).why
    assert speed.choose("auto", Clock(100, 0.1, 0.2), 8 * many).together


@pytest.mark.parametrize(
    "key, values, message",
    [
        ("optimizer.learnin_rate", "1e-4", "did you mean 'optimizer.learning_rate'"),
        ("learning_rate", "1e-4", "did you mean 'optimizer.learning_rate'"),
        ("model", "1", "no key 'model'"),
        ("optimizer.learning_rate", "1e-4,fast", "'fast' is no number"),
        ("optimizer.learning_rate", "nan", "'nan' is no number"),
        ("optimizer.learning_rate", "0.1,0", "learning_rate=0.0 cannot be used"),
        ("model.hidden_dim", "8,1.5", "'1.5' is no whole number"),
        ("model.memory", "yes", "not true or false"),
        ("model.temporal", "gru,lstm", "'lstm'"),
        ("data.window_length", "10,1", "data.window_length=1 is too small"),
        ("data.metrics", "cpu", "a list"),
        ("optimizer.learning_rate", " , ", "--values is empty"),
        ("seed", "1,2", "leaves the scores as they are"),
        ("alerts.traces", "1,2", "leaves the scores as they are"),
    ],
)
def test_what_cannot_be_swept_is_named_with_a_remedy(key, values, message):
    with pytest.raises(InputError, match=message):
        parameter.parse(default_config("x"), key, values)


def test_values_have_the_type_of_their_key_and_say_what_they_need():
    config = default_config("x")
    found = {
        key: parameter.parse(config, key, values)
        for key, values in {
            "optimizer.learning_rate": "1e-3,1e-3,0.01", "model.hidden_dim": "8,16", "model.memory": "True,false",
            "model.temporal": "gru,none", "data.window_length": "10,20", "data.batch_size": "8", "score.alpha": "0,1",
            "simulate.seed": "1",
        }.items()
    }  # fmt: skip
    assert found["optimizer.learning_rate"].values == (1e-3, 0.01) and found["model.memory"].values == (True, False)
    assert found["model.hidden_dim"].values == (8, 16) and found["model.temporal"].values == ("gru", "none")
    assert {key: one.needs for key, one in found.items()} == {
        "optimizer.learning_rate": "traced", "model.hidden_dim": "static", "model.memory": "static",
        "model.temporal": "static", "data.window_length": "data", "data.batch_size": "static", "score.alpha": "score",
        "simulate.seed": "data",
    }  # fmt: skip
    length = found["data.window_length"]
    assert length.applied(config, 10).data.prepared_dir == "prepared/x_window_length_10"
    assert length.applied(config, 20).data.prepared_dir == "prepared/x"  # the config's own value
    assert config.data.window_length == 20
    with pytest.raises(InputError, match="together"):
        speed.check("yes", length.needs)


def test_trainings_that_do_not_fit_together_are_run_one_after_another(folder, tmp_path, monkeypatch):
    fit = Networks.fit

    def small(self, trainings, together):
        if together:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return fit(self, trainings, together)

    monkeypatch.setattr(Networks, "fit", small)
    found = run_sweep(make_config(folder), "optimizer.learning_rate", "1e-3,1e-2", 1, tmp_path, "yes")
    assert not found["form"]["together"] and "memory" in found["form"]["text"] and found["cells_computed"] == 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sweep")
    (path / "toy.py").write_text(CONFIG)
    save(make_prepared(segments=8), path / "data" / "toy")
    base = make_prepared(segments=10)
    for k in range(2):
        save(as_split(base, f"fold:{k}"), path / "data" / f"toy_fold{k}")
    return path


def make_config(folder, **values):
    config = default_config("toy")
    config.data.update({"prepared_dir": str(folder / "data" / "toy"), "batch_size": 8})
    config.model.update({"hidden_dim": 8, "num_prototypes": 4})
    config.train.num_epochs = 1  # programs are kept: values and tests share them
    config.score.bootstrap = 20
    config.update_from_flattened_dict(values)
    return config


def test_a_sweep_writes_its_files_and_goes_on_from_finished_cells(folder, tmp_path, monkeypatch, capsys):
    config, key = make_config(folder, evaluation_log=str(tmp_path / "log.jsonl")), "optimizer.learning_rate"
    first = run_sweep(config, key, "1e-3,1e-2", 2, tmp_path / "run", "yes")
    assert first["cells_computed"] == 2 * 2 + 2 + 1  # two untrained ones, one in closed form
    assert first["form"]["together"] and first["seeds"] == [0, 1]
    assert json.loads((tmp_path / "run" / "sweep.json").read_text())["parameter"] == key
    page = (tmp_path / "run" / "sweep.md").read_text()
    for text in ("| 0.001 | 2 |", "| 0.01 | 2 |", "| untrained | 2 |", "Do not pick", "prevalence 0.", "seed 1"):
        assert text in page
    assert (tmp_path / "run" / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    entry = first["values"][0]
    own = entry["detectors"]["knowledge_ssl"]
    assert own["min"]["auroc"] <= own["mean"]["auroc"] <= own["max"]["auroc"]
    assert entry["paired"]["minus untrained"]["auroc"]["interval_95"]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 4
    assert "table: " in capsys.readouterr().out

    fit = Networks.fit
    asked = []
    monkeypatch.setattr(
        Networks, "fit", lambda self, trainings, together: asked.append(trainings) or fit(self, trainings, together)
    )
    (gone,) = (tmp_path / "run" / "cells" / "chronological" / f"{key}=0.01").glob("seed1-*")
    gone.unlink()
    again = run_sweep(config, key, "1e-3,1e-2", 2, tmp_path / "run")
    assert asked == [[(0.01, 1)]] and again["cells_computed"] == 1
    same = run_sweep(config, key, "1e-3,1e-2", 2, tmp_path / "run")
    assert same["cells_computed"] == 0 and len(asked) == 1 and same["form"] == again["form"]
    more = run_sweep(config, key, "1e-3,1e-2,1e-1", 2, tmp_path / "run")
    assert [one for some in asked[1:] for one in some] == [(0.1, 0), (0.1, 1)] and more["cells_computed"] == 2


@pytest.fixture
def two_folds(monkeypatch):
    monkeypatch.setitem(splits.PROTOCOLS, "folds", ("fold:0", "fold:1"))


def test_a_study_of_method_b_pools_folds_and_says_what_the_paper_reports(folder, tmp_path, two_folds, monkeypatch):
    study = dataclasses.replace(studies.STUDIES["temperature"], values=(0.1, 0.5), figures=("accuracy", "f1"))
    monkeypatch.setitem(studies.STUDIES, "temperature", study)
    found = studies.run(make_config(folder), "temperature", tmp_path / "run", tmp_path / "out", 2, hidden=4, epochs=1)
    assert found["method"] == "cross_service" and found["protocol"] == "folds"
    assert found["references"] == ["cross_service_untrained", "closed_form"]
    entry = found["values"][0]
    assert set(entry["splits"]) == {"fold:0", "fold:1"} and entry["normal_windows"] == 10 * 12
    assert {"cross_service", "cross_service: reconstruction", "cross_service: prior"} <= set(entry["detectors"])
    assert entry["num_windows"] == 4 * 12  # segments 0, 5 and 1, 6
    text = (tmp_path / "out" / "temperature_toy.md").read_text()
    for words in ("**Reported**", "a middle temperature is best", "| ACC, service level |", "| F1, system level |"):
        assert words in text
    assert (tmp_path / "out" / "temperature_toy.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((tmp_path / "out" / "temperature_toy.json").read_text())["shown"] == ["accuracy", "f1"]


@pytest.mark.parametrize(
    "accuracy, spread, said",
    [
        ((0.8, 0.9), 0.02, ["0.100 / 0.020", "0.5", "0.5", "same"]),
        ((0.9, 0.8), 0.02, ["0.100 / 0.020", "0.1", "0.5", "differs"]),
        ((0.8, 0.81), 0.02, ["0.010 / 0.020", "-", "0.5", "no visible trend"]),
        ((0.8, None), 0.02, ["-", "-", "0.5", "not measured"]),
    ],
)
def test_a_study_says_whether_a_trend_is_as_reported(accuracy, spread, said):
    study = studies.Study("loss.temperature", (0.1, 0.5), ("accuracy",), "", {"accuracy": (0.5,)})
    values = [
        {"detectors": {"cross_service": {part: {"accuracy": mean and mean + sign * spread / 2}
                                         for part, sign in (("mean", 0), ("min", -1), ("max", 1))}}}
        for mean in accuracy
    ]  # fmt: skip
    row = studies.against({"method": "cross_service", "values": values}, study)[1]
    assert row[0] == "ACC" and row[-4:] == said


def test_what_stands_beside_a_value_is_set_with_it():
    config = default_config("x")
    varied = parameter.Parameter("data.batch_size", (16, 64), (("train.num_epochs", (4, 16)),))
    own = varied.applied(config, 64)
    assert (own.data.batch_size, own.train.num_epochs, varied.needs) == (64, 16, "static")
    assert varied.changes(16) == (("data.batch_size", 16), ("train.num_epochs", 4))


def test_each_score_variant_is_measured_by_itself(folder, tmp_path):
    found = run_sweep(make_config(folder), "score.variant", "calibrated,paper", 1, tmp_path)
    one, other = (entry["detectors"]["knowledge_ssl"]["per_seed"][0]["threshold"] for entry in found["values"])
    assert one != other


@pytest.mark.parametrize(
    ("method", "key"), [("knowledge_ssl", "cross_service.align_ticks"), ("cross_service", "model.dropout"),
                        ("cross_service", "loss.reconstruction")],
)  # fmt: skip
def test_what_a_method_does_not_read_is_not_swept(method, key):
    config = default_config("x")
    config.method = method
    with pytest.raises(InputError, match="leaves the scores as they are"):
        parameter.parse(config, key, "0,1")


def test_figures_to_draw_are_looked_up():
    assert tables.parse_figures("recall, f1,recall") == ("recall", "f1")
    for text, message in (("recal", "did you mean 'recall'"), (" ,", "--figures is empty")):
        with pytest.raises(InputError, match=message):
            tables.parse_figures(text)


def test_values_of_scores_are_read_off_one_training(folder, tmp_path, monkeypatch):
    asked, fit = [], compute.fit.fit

    def counted(config, split, seeds, method):
        asked.extend(seeds)
        yield from fit(config, split, seeds, method)

    monkeypatch.setattr(compute.fit, "fit", counted)
    found = run_sweep(make_config(folder), "score.alpha", "0.5,1,4", 2, tmp_path)
    assert asked == [0, 1] and found["form"] is None
    thresholds = [entry["detectors"]["knowledge_ssl"]["per_seed"][0]["threshold"] for entry in found["values"]]
    assert len(set(thresholds)) == 3
    assert "| untrained, 4 | 2 |" in (tmp_path / "sweep.md").read_text()


def test_values_of_a_word_are_trained_one_after_another(folder, tmp_path):
    found = run_sweep(make_config(folder), "model.temporal", "gru,none", 1, tmp_path)
    assert [entry["value"] for entry in found["values"]] == ["gru", "none"]
    assert found["cells_computed"] == 2 + 2 + 1  # the closed form asks no network


def test_a_training_that_diverges_is_a_result(folder, tmp_path, monkeypatch):
    fit = Networks.fit

    def broken(self, trainings, together):
        results = fit(self, trainings, together)
        return [jax.tree.map(lambda p: p * np.nan, r) if t == (0.01, 1) else r
                for r, t in zip(results, trainings, strict=True)]  # fmt: skip

    monkeypatch.setattr(Networks, "fit", broken)
    found = run_sweep(make_config(folder), "optimizer.learning_rate", "1e-3,1e-2", 2, tmp_path)
    assert [entry["diverged"] for entry in found["values"]] == [[], [1]]
    assert found["values"][1]["detectors"]["knowledge_ssl"]["seeds"] == [0]
    page = (tmp_path / "sweep.md").read_text()
    assert "| 0.01 | 1 (1 diverged) |" in page and "| diverged |" in page


def test_the_axis_is_logarithmic_over_a_decade_and_counts_words():
    np.testing.assert_array_equal(plot.positions([1e-4, 1e-3])[0], [1e-4, 1e-3])
    assert plot.positions([1e-4, 1e-3])[1] == "log" and plot.positions([1, 5])[1] == "linear"
    assert plot.positions([0.0, 1.0])[1] == "linear"
    x, scale = plot.positions(["gru", "none"])
    assert x.tolist() == [0, 1] and scale == "words" and plot.positions([True, False])[0].tolist() == [0, 1]
    assert [tables.show(v) for v in (1e-4, 0.25, 8, True, "gru")] == ["0.0001", "0.25", "8", "True", "gru"]


def command(folder, *arguments):
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)}
    line = [sys.executable, *arguments]
    return subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, timeout=600)


def test_the_command_names_its_workdir_after_the_parameter(folder):
    done = command(
        folder, "-m", "ssad_jax.sweep", "--config=toy.py", "--parameter=loss.contrastive", "--values=0,0.5",
        "--seeds=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = folder / "runs" / "toy_sweep_loss_contrastive"
    assert {p.name for p in made.iterdir()} == {"cells", "sweep.json", "sweep.md", "sweep.png"}
    assert "there is no other" not in done.stderr and "too short" in done.stderr and "sweep.md" in done.stdout


def test_bad_flags_end_with_2_and_help_with_0_without_jax(folder):
    base = ("-m", "ssad_jax.sweep", "--config=toy.py")
    for arguments, words in (
        ((), "--parameter is missing"),
        (("--parameter=seed", "--values=1"), "leaves the scores"),
        (("--parameter=loss.contrastive", "--values=x"), "no number"),
        (("--parameter=loss.contrastive", "--values=0.5", "--seeds=0"), "--seeds=0"),
    ):
        done = command(folder, *base, *arguments)
        assert done.returncode == 2 and words in done.stderr, done.stderr
    done = command(folder, "-X", "importtime", "-m", "ssad_jax.sweep", "--help")
    assert done.returncode == 0
    for flag in ("--config", "--parameter", "--values", "--seeds", "--workdir", "--together"):
        assert flag in done.stdout
    assert not [line for line in done.stderr.splitlines() if line.split("|")[-1].strip() == "jax"]
