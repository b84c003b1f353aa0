import os
import shutil

import jax
import numpy as np
import pytest

from data_prep.errors import InputError
from ssad_jax import checkpoint, parallel
from ssad_jax.config import default_config
from ssad_jax.prepared import ARRAYS
from tests.synthetic import make_prepared

TREE = {
    "params": {"dense": [{"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, {"w": np.ones(3, np.float32)}]},
    "step": np.int32(5),
}


@pytest.fixture
def context():
    prepared = make_prepared()
    knowledge = {"names": ["restart", "free-0"], "keys": np.arange(4, dtype=np.float32).reshape(2, 2)}
    manifest = {**prepared.manifest, "files": {"a.npy": {"bytes": 1}}}
    return checkpoint.Context(default_config("x"), prepared.system, manifest, knowledge)


def write(directory, context, steps, keep=2):
    with checkpoint.Writer(directory, keep, context) as writer:
        for step in steps:
            writer.save(step, step // 10, {**TREE, "step": np.int32(step)})


def largest(path):
    return max((p for p in (path / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def empty(path):
    shutil.rmtree(path)
    path.mkdir()


# What may have happened to a checkpoint's directory.
DAMAGE = {
    "a truncated file": lambda path: os.truncate(largest(path), largest(path).stat().st_size // 2),
    "a flipped bit": lambda path: flip(largest(path)),
    "a flipped bit of the document": lambda path: flip(path / "document" / "metadata"),
    "a missing file": lambda path: largest(path).unlink(),
    "a missing part": lambda path: shutil.rmtree(path / "context"),
    "no metadata of arrays": lambda path: (path / "state" / "_METADATA").unlink(),
    "an empty directory": empty,
}


def test_state_from_four_devices_comes_back_exactly_with_its_context(tmp_path, context):
    mesh = parallel.make_mesh()
    with checkpoint.Writer(tmp_path, 2, context) as writer:
        writer.save(7, 3, parallel.replicate(TREE, mesh))
    found = checkpoint.restore(tmp_path, lambda _: TREE)
    assert (found.step, found.epoch) == (7, 3)
    jax.tree.map(np.testing.assert_array_equal, found.tree, TREE)
    assert found.tree["step"].dtype == np.int32
    assert found.context.config.to_dict() == context.config.to_dict()
    assert found.context.manifest["dataset_hash"] == "synthetic-0" and "files" not in found.context.manifest
    assert found.context.knowledge["names"] == ["restart", "free-0"]
    np.testing.assert_array_equal(found.context.knowledge["keys"], context.knowledge["keys"])
    for name in ARRAYS["system"]:
        np.testing.assert_array_equal(getattr(found.context.system, name), getattr(context.system, name))
    assert found.context.system.node_names == context.system.node_names


def test_keeps_the_newest_and_restores_a_named_step(tmp_path, context):
    write(tmp_path, context, (10, 20, 30))
    assert checkpoint.steps(tmp_path) == [20, 30]
    assert checkpoint.restore(tmp_path).tree["step"] == 30
    found = checkpoint.restore(tmp_path, lambda _: {"params": TREE["params"]}, step=20)
    assert found.step == 20 and set(found.tree) == {"params"}
    with pytest.raises(InputError, match=r"no checkpoint of step 10; there are \[20, 30\]"):
        checkpoint.restore(tmp_path, step=10)


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_newest_falls_back_with_a_warning(tmp_path, context, capsys, kind):
    directory = tmp_path / "checkpoints"
    write(directory, context, (10, 20))
    DAMAGE[kind](directory / "20")
    found = checkpoint.newest(directory, lambda _: TREE)
    assert found.step == 10
    assert "20 is damaged" in capsys.readouterr().err
    assert checkpoint.steps(directory) == [10] and (tmp_path / "damaged" / "20").is_dir()
    write(directory, context, (20,))  # the step can be saved again
    assert checkpoint.restore(directory).step == 20


def test_a_deleted_newest_falls_back(tmp_path, context):
    write(tmp_path, context, (10, 20))
    shutil.rmtree(tmp_path / "20")
    assert checkpoint.newest(tmp_path, lambda _: TREE).step == 10


def test_without_a_whole_checkpoint_training_begins_anew_and_evaluation_says_so(tmp_path, context, capsys):
    directory = tmp_path / "checkpoints"
    assert checkpoint.newest(directory) is None and capsys.readouterr().err == ""
    write(directory, context, (10, 20))
    for step in ("10", "20"):
        empty(directory / step)
    with pytest.raises(InputError, match="no checkpoint in .* can be read; train again"):
        checkpoint.restore(directory)
    assert checkpoint.newest(directory) is None
    assert capsys.readouterr().err.endswith("can be read; training begins anew\n")
    assert sorted(p.name for p in (tmp_path / "damaged").iterdir()) == ["10", "20"]


def test_changed_bytes_are_noticed(tmp_path, context, monkeypatch):
    write(tmp_path, context, (10,))
    read = checkpoint._read_item

    def altered(path, *arguments):
        found = read(path, *arguments)
        if path.name == "state":
            found["step"] = np.int32(11)
        return found

    monkeypatch.setattr(checkpoint, "_read_item", altered)
    with pytest.raises(InputError, match="no checkpoint in .* can be read"):
        checkpoint.restore(tmp_path)


def test_missing_and_foreign_checkpoints_say_what_to_do(tmp_path, context):
    with pytest.raises(InputError, match="train first"):
        checkpoint.restore(tmp_path / "nowhere")
    write(tmp_path, context, (10,))
    with pytest.raises(InputError, match=r"another model: shape \(\) for step, expected \(4,\)"):
        checkpoint.restore(tmp_path, lambda _: {"step": np.zeros(4)})
    with pytest.raises(InputError, match="another model: nothing for bias"):
        checkpoint.restore(tmp_path, lambda _: {"bias": np.zeros(4)})


def test_arrays_without_elements_survive(tmp_path, context):
    with checkpoint.Writer(tmp_path, 1, context) as writer:
        writer.save(1, 1, {"none": np.zeros((0, 3), np.float32), "one": np.ones(1)})
    assert checkpoint.restore(tmp_path).tree["none"].shape == (0, 3)


def test_config_survives_json():
    config = default_config("x")
    assert checkpoint.config_from_dict(checkpoint.config_to_dict(config)).to_dict() == config.to_dict()
