import logging
from pathlib import Path

import numpy as np
import pytest

from data_prep.errors import InputError
from ssad_jax import knowledge

FILES = sorted((Path(__file__).parents[2] / "configs" / "knowledge").glob("*.yaml"))
RULE = """
  - name: {name}
    kind: {kind}
    components: [a, "b-*"]
    signals: {{logs: [went away]}}
    description: {description}
"""


def write(tmp_path, *rules):
    path = tmp_path / "rules.yaml"
    path.write_text("system: test\nrules:\n" + "".join(rules))
    return path


def rule(name="down", kind="dependency", description="It is away."):
    return RULE.format(name=name, kind=kind, description=description)


POSITIONS = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
SERVICES = ("a", "b-1", "b-2@host", "c")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_shipped_files_are_valid_and_fit_32_prototypes(path):
    rules = knowledge.read_rules(path)
    assert 20 <= len(rules) <= 32
    assert {"normal", "software", "resource", "dependency"} <= {r["kind"] for r in rules}
    loaded = knowledge.load(path, (), np.zeros((0, 8)), 32)
    similarity = loaded.keys[: len(rules), :96] @ loaded.keys[: len(rules), :96].T
    assert (similarity - np.eye(len(rules))).max() < 0.9  # no two rules say the same


def test_both_systems_have_rules():
    assert [p.stem for p in FILES] == ["openstack", "train_ticket"]


def test_rules_come_first_then_services_then_free_prototypes(tmp_path):
    loaded = knowledge.load(write(tmp_path, rule("one"), rule("two")), SERVICES, POSITIONS, 8)
    assert loaded.names[:2] == ("one", "two")
    assert sorted(loaded.names[2:6]) == sorted(f"topology: {s}" for s in SERVICES)
    assert loaded.names[6:] == ("free-0", "free-1")
    assert loaded.keys.shape == (8, knowledge.KEY_DIM) and loaded.keys.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(loaded.keys[:, :96], axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(loaded.keys[0, 104:], np.array([1, 0, 0]) / np.sqrt(3), rtol=1e-6)
    position = POSITIONS[:3].mean(0)  # a, b-1 and the instance of b-2
    np.testing.assert_allclose(loaded.keys[0, 96:104], position / max(1, np.linalg.norm(position)), rtol=1e-5)


def test_editing_a_rule_changes_its_row_only(tmp_path):
    before = knowledge.load(write(tmp_path, rule("one"), rule("two")), SERVICES, POSITIONS, 6).keys
    edited = write(tmp_path, rule("one"), rule("two", description="Something else entirely."))
    after = knowledge.load(edited, SERVICES, POSITIONS, 6).keys
    np.testing.assert_array_equal(np.delete(before, 1, 0), np.delete(after, 1, 0))
    assert np.abs(before[1] - after[1]).max() > 0.05


def test_unknown_components_are_warned_about_and_have_no_position(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        loaded = knowledge.load(write(tmp_path, rule("one")), ("x",), POSITIONS[:1], 2)
    assert "'b-*'" in caplog.text and "one" in caplog.text
    np.testing.assert_array_equal(loaded.keys[0, 96:104], 0)


@pytest.mark.parametrize(
    "text, words",
    [
        ("rules: [", "not valid YAML"),
        ("rules: {}", "no list called 'rules'"),
        ("- 1", "no list called 'rules'"),
        ("rules:" + rule(kind="cosmic"), r"rule 1 \(down\).*'cosmic'"),
        ("rules:" + rule() + rule(), "used twice"),
        ("rules:" + rule().replace("description:", "describes:"), "'description' is missing"),
        ("rules:" + rule() + "    extra: 1\n", "unknown key 'extra'"),
        ("rules:" + rule().replace("logs", "smells"), "'smells'"),
        ("rules:" + rule().replace("went away", "1"), "list of texts"),
        ("rules:\n  - just text\n", "not a mapping"),
    ],
)
def test_bad_files_are_named_with_the_rule(tmp_path, text, words):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as error:
        knowledge.load(path, SERVICES, POSITIONS, 8)
    assert "bad.yaml" in str(error.value)


def test_a_missing_file_and_too_many_rules_are_errors(tmp_path):
    with pytest.raises(InputError, match="config.knowledge.path"):
        knowledge.load(tmp_path / "none.yaml", SERVICES, POSITIONS, 8)
    with pytest.raises(InputError, match="num_prototypes is 1"):
        knowledge.load(write(tmp_path, rule("one"), rule("two")), SERVICES, POSITIONS, 1)
