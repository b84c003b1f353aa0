"""The comparison from end to end on prepared splits made of numbers, with a method that needs no training."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from data_prep.errors import InputError
from ssad_jax import compare
from ssad_jax.compared import COMPACT
from ssad_jax.comparison import cells, compute, families, figures, splits, tables
from ssad_jax.config import default_config, flatten
from ssad_jax.methods import COMPARED
from ssad_jax.scoring.assess import Detector
from ssad_jax.scoring.detectors import make_detector
from tests.ssad_jax.gain_method import gain_method
from tests.synthetic import as_split, make_prepared, save

ROOT = Path(__file__).parents[2]
CONFIG = """
from ssad_jax.config import default_config, flatten
def get_config():
    config = default_config("toy")
    config.data.update({"prepared_dir": "data/toy", "batch_size": 8, "sequence_length": 4})
    config.model.update({"hidden_dim": 8, "num_prototypes": 4})
    config.train.num_epochs = 1
    config.score.bootstrap = 20
    return config
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six prepared splits as the command would have made them: ten segments of twelve windows, two with a fault."""
    path = tmp_path_factory.mktemp("compare")
    (path / "toy.py").write_text(CONFIG)
    base = make_prepared(segments=10)
    for name in ("chronological", *splits.PROTOCOLS["folds"]):
        suffix = "" if name == "chronological" else f"_{name.replace(':', '')}"
        save(as_split(base, name), path / "data" / f"toy{suffix}")
    return path


def make_config(folder, **values):
    config = default_config("toy")
    config.data.prepared_dir = str(folder / "data" / "toy")
    config.score.bootstrap = 20
    config.update_from_flattened_dict(values)
    return config


@pytest.fixture
def toy(monkeypatch):
    """Trainings are a look at the seed; records which were asked for."""
    asked = []

    def fit(config, split, seeds, method):
        for seed in seeds:
            asked.append((split.name, config.loss.contrastive, seed))
            yield seed, {"gain": np.array([1.0 - 0.01 * seed], np.float32)}

    monkeypatch.setattr(compute, "make_method", lambda config, split: gain_method())
    monkeypatch.setattr(compute, "fit", fit)
    return asked


def run(folder, workdir, detectors="knowledge_ssl,no_contrast,random,knn,linear", protocol="both", seeds=2, **values):
    return compare.compare(make_config(folder, **values), detectors, protocol, seeds, workdir)


def test_both_methods_and_what_they_say_together(folder, tmp_path, toy):
    names = "knowledge_ssl,cross_service,combined,untrained,cross_service_untrained"
    found = run(folder, tmp_path, names, "chronological", 2)["protocols"]["chronological"]["detectors"]
    assert {found[name]["kind"] for name in ("knowledge_ssl", "cross_service")} == {"trained"}
    assert found["combined"]["kind"] == "combined" and "cross_service: prior" in found
    # Here both are the same method: twice a score ranks windows, and suspects, as once.
    for figure in ("auroc", "f1", "recall", "hit_rate_at_1"):
        assert found["combined"]["mean"][figure] == pytest.approx(found["knowledge_ssl"]["mean"][figure])
    assert not (tmp_path / "cells" / "chronological" / "combined").exists()
    assert len(toy) == 4
    alone = run(folder, tmp_path / "alone", "combined", "chronological", 1)  # computes its parts
    assert alone["cells_computed"] == 2 and len(toy) == 6


def test_two_detectors_add_up_to_one_with_a_threshold_of_its_own():
    split = splits.make_split("chronological", default_config("toy"), make_prepared())
    rng = np.random.default_rng(0)
    low, high = rng.random((2, len(split.held_out))), rng.random((2, len(split.test)))
    lists = [["a", "b", "c"], ["c", "b"]]
    parts = [
        Detector("x", test, 0.5, "", test > 0.5, [names] * len(test), held_out=held_out)
        for held_out, test, names in zip(low, high, lists, strict=True)
    ]
    found = compute.combined(split, parts)
    np.testing.assert_allclose(found.score, high.sum(0))
    alone = make_detector("y", low.sum(0), high.sum(0), split.config.score, compute._overlap(split))
    assert found.threshold == alone.threshold > 1
    np.testing.assert_array_equal(found.alert, found.score > found.threshold)
    assert found.suspects == [["a", "b", "c"]] * len(split.test)


def test_a_method_has_its_own_settings_in_a_comparison(folder):
    config = make_config(folder)
    config.methods.cross_service = ConfigDict({"data": {"batch_size": 4}, "model": {"hidden_dim": 5}})
    config.methods.knowledge_ssl = ConfigDict({"model": {"hidden_dim": 6}})
    known = families.families()
    other, own = (known[name].config(config) for name in ("cross_service", "knowledge_ssl"))
    assert (other.method, other.data.batch_size, other.model.hidden_dim) == ("cross_service", 4, 5)
    assert (own.method, own.data.batch_size, own.model.hidden_dim) == ("knowledge_ssl", 32, 256)  # as the config is


def untimed(text: str) -> str:
    """Without seconds and windows a second: they differ from run to run."""
    text = re.sub(r"### Cost.*?(?=\n## |\n### |\Z)", "", text, flags=re.S)
    return re.sub(r'"(train_seconds|windows_per_second)": [^,]+', r'"\1": 0', text)


def test_a_changed_file_of_ones_own_finds_no_old_cell(folder, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    file, own = tmp_path / "mine" / "detector.py", families.Family("mine.detector", "trained", method="mine.detector")
    monkeypatch.syspath_prepend(tmp_path)
    split = splits.find_split(make_config(folder), "chronological")
    found = []
    for text in ("A = 1", "A = 2", "A = 1"):
        file.write_text(f"{text}\ndef create(config, system, knowledge): pass\n")
        found.append(cells.cell_hash(split, own, 0))
    assert found[0] == found[2] != found[1]


def test_cells_are_kept_and_only_what_is_missing_or_changed_is_computed(folder, tmp_path, toy, capsys):
    first = run(folder, tmp_path)
    assert first["cells_computed"] == 6 * (2 + 2 + 2 + 1 + 1) and len(toy) == 6 * 4
    text, table = (tmp_path / "comparison.json").read_text(), (tmp_path / "comparison.md").read_text()
    toy.clear()

    (gone,) = (tmp_path / "cells" / "fold3" / "knowledge_ssl").glob("seed1-*")
    gone.unlink()
    (torn,) = (tmp_path / "cells" / "chronological" / "knn").glob("seed0-*")
    torn.write_bytes(torn.read_bytes()[:100])
    again = run(folder, tmp_path)
    assert again["cells_computed"] == 2 and toy == [("fold:3", 0.5, 1)]
    assert untimed((tmp_path / "comparison.md").read_text()) == untimed(table)
    found = json.loads(untimed((tmp_path / "comparison.json").read_text()))
    assert found == json.loads(untimed(text)) | {"cells_computed": 2}
    assert not list(tmp_path.rglob(".*partial*"))
    toy.clear()

    run(folder, tmp_path, **{"optimizer.learning_rate": 1.0})  # no matter for the linear recipe and the floors
    assert len(toy) == 6 * 4
    assert run(folder, tmp_path, **{"score.variant": "paper"})["cells_computed"] == 0
    assert run(folder, tmp_path, **{"score.quantile": 0.9}, detectors="knn", protocol="chronological")["cells_computed"]
    assert "fold:3 knowledge_ssl seed 1" in capsys.readouterr().err


def test_figures_of_the_tables(folder, tmp_path, toy, capsys):
    results = run(folder, tmp_path, "knowledge_ssl,no_contrast,untrained,random,linear", seeds=5)
    folds = results["protocols"]["folds"]
    assert set(folds["splits"]) == set(splits.PROTOCOLS["folds"])
    assert folds["num_windows"] == 120 and folds["num_faults"] == 2 and folds["num_anomalous"] == 12
    detectors = folds["detectors"]
    extra = {f"knowledge_ssl: {n}" for n in ("paper", "reconstruction", "temporal", "prior", "kind log", "kind metric")}
    assert {"knowledge_ssl", "no_contrast", "untrained", "random", "linear"} | extra <= set(detectors)
    seeds = {name: facts["seeds"] for name, facts in detectors.items() if ":" not in name}
    assert seeds == {
        "knowledge_ssl": [0, 1, 2, 3, 4], "no_contrast": [0, 1, 2], "untrained": [0, 1, 2],
        "random": [0, 1, 2, 3, 4], "linear": [0],
    }  # fmt: skip
    own = detectors["knowledge_ssl"]
    rows = [row["auroc"] for row in own["per_seed"]]
    assert own["mean"]["auroc"] == pytest.approx(np.mean(rows)) and own["max"]["auroc"] == max(rows)
    assert own["mean"]["hit_rate_at_1"] == 1.0 and own["by_fault_type"]["planted"]["hit_rate_at_1"] == 1.0
    assert own["interval_95"]["auroc"][0] <= own["mean"]["auroc"] <= own["interval_95"]["auroc"][1]
    pair = folds["paired"]["minus knowledge_ssl"]["random"]["auroc"]
    assert pair["difference"] == pytest.approx(detectors["random"]["mean"]["auroc"] - own["mean"]["auroc"])
    assert pair["interval_95"][1] < 0
    against = folds["paired"]["minus linear"]["knowledge_ssl"]
    assert {"auroc", "vus_pr", "hit_rate_at_1", "delay_seconds_median", "false_alarms_per_hour"} <= set(against)
    assert folds["point_adjustment"]["random"] > detectors["random"]["mean"]["oracle_best_f1"]

    shown, page = capsys.readouterr().out, (tmp_path / "comparison.md").read_text()
    for text in (shown, page):
        assert "120 labelled test windows of 5 split(s), 2 faults, prevalence 0.100" in text
        assert "F1 of calling everything faulty 0.182" in text
    assert "| linear | any |" in page and "oracle best F1" in page and "Do not quote it" in page


def test_what_a_detector_costs_stands_in_its_table(folder, tmp_path, toy):
    names = "knowledge_ssl,cross_service,combined,knn,all_positive,linear"
    results = run(folder, tmp_path, names, "chronological", 2)
    found = results["protocols"]["chronological"]["detectors"]
    for name in ("knowledge_ssl", "knn", "all_positive", "linear"):
        cost = found[name]["cost"]
        assert cost["train_seconds"] >= 0 and cost["windows_per_second"] > 0 and cost["unjudged_windows"] == 0, name
        assert cost["device"]
    assert found["knn"]["cost"]["train_seconds"] > 0  # fitting is training
    assert found["combined"]["cost"]["train_seconds"] is None
    page = (tmp_path / "comparison.md").read_text().partition("### Cost")[2]
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]
    assert rows[:7] == ["detector", "knowledge_ssl", "cross_service", "combined", "linear", "knn", "all_positive"]


def test_costs_are_medians_over_seeds_and_splits():
    def cell(train, unjudged, device="a"):
        facts = {"train_seconds": train, "windows_per_second": 10 * train, "unjudged_windows": unjudged}
        return facts | {"device": device}

    found = figures.cost([[cell(1.0, 2), cell(2.0, 3)], [cell(9.0, 4), cell(3.0, 5, "b")]])
    assert found == {"train_seconds": 2.5, "windows_per_second": 25, "unjudged_windows": 7, "device": "a, b"}
    nothing = dict.fromkeys(("train_seconds", "windows_per_second", "unjudged_windows", "device"))
    assert figures.cost([[{}]]) == figures.cost([]) == nothing


def test_what_the_paper_reports_stands_beside_what_was_measured_and_is_called_so():
    mean = {"accuracy": 0.5, "precision": None, "recall": 0.25, "auroc": 0.75}
    names = ("knowledge_ssl", "logbert_adapted", "art_adapted", "knn")
    head, *rows = tables._reported_rows({"detectors": {name: {"mean": mean} for name in names}})
    assert head[-1] == "reported (other data, protocol unstated)"
    measured = "50.00 / - / 25.00 / 75.00"
    assert rows == [
        ["knowledge_ssl", "the paper's own", "-", measured, "95.48 / 95.12 / 94.83 / 98.44"],
        ["logbert_adapted", "LogBERT (Guo et al., IJCNN 2021)", "high", measured, "94.02 / 93.66 / 93.28 / 97.53"],
        ["art_adapted", "ART (Sun et al., ASE 2024)", "medium", measured, "-"],
    ]


def test_every_compared_system_is_called_adapted_and_says_how_faithful_it_is():
    assert set(COMPARED) <= set(COMPACT)
    for name, form in COMPACT.items():
        assert name.endswith("_adapted") and form.fidelity in ("high", "medium", "low") and form.adapted


def test_names_from_telemetry_stay_in_their_cells():
    hostile = "a | b\n| <script> `c` \\"
    head, rule, row = tables.table([["detector", hostile], ["knn", "0.5"]])
    assert head == "| detector | a \\| b \\| &lt;script> 'c' \\\\ |" and rule == "|---|---|" and row == "| knn | 0.5 |"


def test_pooled_folds_are_the_splits_one_after_the_other(folder):
    config = make_config(folder)
    parts = [splits.find_split(config, name) for name in splits.PROTOCOLS["folds"]]
    test = splits.pool(parts)
    np.testing.assert_array_equal(np.sort(test.start_unix_nano), parts[0].prepared.windows.start_unix_nano)
    score = np.concatenate([100.0 * k + np.arange(len(p.test)) for k, p in enumerate(parts)])
    pieces = np.split(score, np.cumsum([len(p.test) for p in parts])[:-1])
    made = [splits.Detector("d", s, float(k), "m", s > 3, [[str(k)]] * len(s)) for k, s in enumerate(pieces)]
    whole = splits.pool_detector("d", made)
    np.testing.assert_array_equal(whole.score, score)
    assert np.isnan(whole.threshold) and whole.suspects[-1] == ["4"]
    # Windows of two splits never share a segment; labels follow their windows.
    assert len(np.unique(test.segment)) == 10
    windows = parts[2].prepared.windows
    rows = np.flatnonzero(np.isin(test.start_unix_nano, windows.start_unix_nano[parts[2].test]))
    np.testing.assert_array_equal(test.label[rows], windows.label[parts[2].test])
    with pytest.raises(InputError, match="twice"):
        splits.pool([parts[0], parts[0]])


def test_every_detector_is_measured_on_the_same_windows(folder, tmp_path, toy):
    run(folder, tmp_path, protocol="chronological", seeds=1)
    part = splits.find_split(make_config(folder), "chronological")
    for path in (tmp_path / "cells" / "chronological").glob("*/*.npz"):
        with np.load(path) as arrays:
            np.testing.assert_array_equal(
                arrays["window_start_unix_nano"], part.prepared.windows.start_unix_nano[part.test]
            )


def test_a_cell_comes_back_as_it_was_saved(folder, tmp_path):
    part = splits.find_split(make_config(folder), "chronological")
    names = [["service-1", "service-0"], []] * (len(part.test) // 2)
    score = np.arange(len(part.test)) / 3
    detector = splits.Detector("d", score, 1.5, "by hand", score > 1.5, names)
    cells.save(tmp_path / "a" / "cell.npz", part, cells.Cell({"x": detector}, {"program": "p"}))
    back = cells.load(tmp_path / "a" / "cell.npz", part)
    found = back.detectors["x"]
    assert back.facts == {"program": "p"} and found.suspects == names and found.threshold == 1.5
    np.testing.assert_array_equal(found.score, score)
    np.testing.assert_array_equal(found.alert, score > 1.5)
    other = splits.find_split(make_config(folder), "fold:1")
    assert cells.load(tmp_path / "a" / "cell.npz", other) is None  # other windows
    assert cells.load(tmp_path / "none.npz", part) is None


def test_raw_scores_are_put_on_the_held_out_scale():
    low, high = compute.on_held_out_scale(np.arange(101.0), np.array([50.0, 95.0, 140.0]))
    np.testing.assert_allclose(high, [0, 1, 2])
    assert np.median(low) == 0
    flat, same = compute.on_held_out_scale(np.ones(5), np.array([1.0, 3.0]))
    np.testing.assert_array_equal(same, [0, 2])


def test_evaluations_of_real_windows_are_logged_once(folder, tmp_path, toy):
    log = tmp_path / "log.jsonl"
    for _ in range(2):
        run(folder, tmp_path / "run", "knowledge_ssl,knn", evaluation_log=str(log))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    seen = {(line["protocol"], line["detector"], line["seed"]) for line in lines}
    assert len(lines) == len(seen) == 2 * (2 * 9 + 1)
    assert ("folds", "knowledge_ssl", 1) in seen and ("chronological", "knn", 0) in seen
    assert len({line["dataset"] for line in lines}) == 2 and len({line["config"] for line in lines}) == 1


def test_injected_faults_are_no_look_at_real_windows(folder, tmp_path, toy, monkeypatch):
    def injected(config, name):
        part = find_split(config, name)
        manifest = part.prepared.manifest | {"injected": {"seed": 0}}
        return dataclasses.replace(part, prepared=dataclasses.replace(part.prepared, manifest=manifest))

    find_split = splits.find_split
    monkeypatch.setattr(splits, "find_split", injected)
    log = tmp_path / "log.jsonl"
    run(folder, tmp_path / "run", "knn", protocol="chronological", evaluation_log=str(log))
    assert not log.exists()


def test_what_cannot_be_compared_is_named(folder, tmp_path, monkeypatch):
    config = make_config(folder)
    with pytest.raises(InputError, match="did you mean 'pyod_lof'"):
        families.select("knn,pyod_loff", config)
    with pytest.raises(InputError, match="empty"):
        families.select(" , ", config)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyod" else find(name))
    with pytest.raises(InputError, match=r"pip install -e \"\.\[baselines\]\""):
        families.select("pyod_lof", config)
    alone = config.copy_and_resolve_references()
    alone.loss.contrastive = alone.loss.knowledge = 0.0
    with pytest.raises(InputError, match="all terms of the loss are switched off"):
        families.select("no_reconstruction", alone)
    kept, why = families.select("all", alone)
    assert "no_reconstruction" not in {f.name for f in kept} and any("switched off" in note for note in why)
    chosen, notes = families.select("all", config)
    assert not [f for f in chosen if f.kind == "pyod"]
    assert [n for n in notes if "PyOD is not installed" in n and n.startswith("pyod_iforest, ")]
    # Without rules there is nothing to shuffle, and what the config leaves out already is no ablation.
    config.loss.contrastive = 0.0
    names = {f.name for f in families.select("all", config)[0]}
    assert "no_gcn" in names and not names & {"shuffled_rules", "no_contrast"}


def test_each_ablation_changes_its_own_settings_and_nothing_else():
    config = default_config("x")
    before = config.to_dict()
    for family in families.families().values():
        own = family.config(config)
        if family.method not in (None, config.method):
            changed = {"method": family.method} | flatten(before["methods"][family.method])
            assert flatten(own.to_dict()) == flatten(before) | changed
        else:
            assert family.kind == "trained" and family.overrides or own.to_dict() == before
        for key, value in family.overrides:
            section, name = key.split(".")
            assert own[section][name] == value != before[section][name]
    assert config.to_dict() == before


def command(folder, *arguments):
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)}
    line = [sys.executable, *arguments]
    return subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, timeout=600)


def test_the_command_trains_compares_and_says_where_the_tables_are(folder):
    done = command(
        folder, "-m", "ssad_jax.compare", "--config=toy.py", "--protocol=chronological", "--seeds=1",
        "--detectors=knowledge_ssl,untrained,linear",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "knowledge_ssl: temporal" in done.stdout and "runs/toy_compare/comparison.md" in done.stdout
    results = json.loads((folder / "runs" / "toy_compare" / "comparison.json").read_text())
    assert results["config"]["train"]["num_epochs"] == 1 and results["cells_computed"] == 3


def test_help_ends_with_0_and_imports_no_jax(folder):
    done = command(folder, "-X", "importtime", "-m", "ssad_jax.compare", "--help")
    assert done.returncode == 0
    for flag in ("--config", "--workdir", "--detectors", "--protocol", "--seeds"):
        assert flag in done.stdout
    assert not [line for line in done.stderr.splitlines() if line.split("|")[-1].strip() == "jax"]
