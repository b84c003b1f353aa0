import dataclasses
import json
import os
import socket
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from data_prep import lock
from data_prep.errors import InputError
from ssad_jax import prepared
from tests.synthetic import make_prepared


@pytest.fixture
def written(tmp_path):
    data = make_prepared()
    with prepared.Writer(tmp_path / "set") as writer:
        (writer.path / "tables").mkdir()
        (writer.path / "tables/extra.txt").write_text("of another method")
        writer.finish(data, {"read": 1.0})
    return data, tmp_path / "set"


def test_round_trip(written):
    data, directory = written
    got = prepared.load(directory)
    assert got.directory == directory and prepared.exists(directory)
    for field in dataclasses.fields(prepared.System):
        np.testing.assert_array_equal(getattr(got.system, field.name), getattr(data.system, field.name))
    for field in dataclasses.fields(prepared.Windows):
        one, two = getattr(got.windows, field.name), getattr(data.windows, field.name)
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)
    assert isinstance(got.windows.nodes, np.memmap)
    for name in prepared.ARRAYS["sequences"]:
        np.testing.assert_array_equal(getattr(got, name), getattr(data, name))
    assert got.faults.equals(data.faults)
    assert got.manifest["stride"] == data.manifest["stride"] and len(got.manifest["dataset_hash"]) == 64
    assert "tables/extra.txt" in got.manifest["files"] and "timings.json" not in got.manifest["files"]
    assert not [path for path in directory.parent.iterdir() if path != directory]


def test_arrays_written_through_under_a_linked_directory_stay(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    data = make_prepared()
    with prepared.Writer(tmp_path / "link" / "set") as writer:
        path = writer.path / "windows" / "nodes.npy"
        path.parent.mkdir()
        np.save(path, data.windows.nodes)
        mapped = np.load(path, mmap_mode="r")
        writer.finish(dataclasses.replace(data, windows=dataclasses.replace(data.windows, nodes=mapped)), {})
    np.testing.assert_array_equal(prepared.load(tmp_path / "link" / "set").windows.nodes, data.windows.nodes)


def test_the_hash_is_of_the_content(written, tmp_path):
    data, directory = written
    hashes = {prepared.load(directory).manifest["dataset_hash"]}
    for name, changed in (
        ("same", data),
        ("other", dataclasses.replace(data, test_runs=data.test_runs[:1])),
    ):
        with prepared.Writer(tmp_path / name) as writer:
            (writer.path / "tables").mkdir()
            (writer.path / "tables/extra.txt").write_text("of another method")
            writer.finish(changed, {"read": 2.0})
        hashes.add(prepared.load(tmp_path / name).manifest["dataset_hash"])
    assert len(hashes) == 2


def test_nothing_there(tmp_path):
    for directory in (tmp_path, tmp_path / "nowhere"):
        assert not prepared.exists(directory)
        with pytest.raises(InputError, match="holds no prepared dataset"):
            prepared.load(directory)


@pytest.mark.parametrize("name", ["windows/nodes.npy", "system/kind.npy", "sequences/test_runs.npy", "faults.parquet"])
def test_truncated_and_missing_files(name, written):
    _, directory = written
    path = directory / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=f"{path.name} is missing or truncated"):
        prepared.load(directory)
    path.unlink()
    with pytest.raises(InputError, match="missing or truncated"):
        prepared.load(directory)


@pytest.mark.parametrize("name", ["windows/label.npy", "faults.parquet"])
def test_a_file_of_the_right_size_with_other_content(name, written):
    _, directory = written
    path = directory / name
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(InputError, match="not as it was written"):
        prepared.load(directory)


@pytest.mark.parametrize("text", ["", '{"schema_version": 1', "[]", "{}", '{"schema_version": 5}'])
def test_damaged_manifest(text, written):
    _, directory = written
    (directory / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="manifest.json is damaged"):
        prepared.load(directory)


def test_another_version(written):
    _, directory = written
    path = directory / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 0}))
    with pytest.raises(InputError, match="schema version 0.*prepare the data again"):
        prepared.load(directory)


def test_a_dataset_of_schema_1_is_refused(written):
    """It has no groups and no rising channels: what to do is said before a file is missed."""
    _, directory = written
    manifest = json.loads((directory / "manifest.json").read_text())
    for name in ("windows/group.npy", "system/rising.npy"):
        (directory / name).unlink()
        del manifest["files"][name]
    (directory / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 1}))
    with pytest.raises(InputError, match="schema version 1, this program reads 5; delete .*set and prepare the data"):
        prepared.load(directory)


def test_an_unfinished_dataset_is_not_seen(tmp_path):
    with pytest.raises(RuntimeError), prepared.Writer(tmp_path / "set") as writer:
        np.save(writer.path / "half.npy", np.zeros(3))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("locks", [True, False])
def test_what_killed_processes_left_is_removed(tmp_path, monkeypatch, locks):
    if not locks:
        monkeypatch.setattr(lock, "_take", lambda path, *_: (os.open(path, os.O_CREAT), False))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = socket.gethostname()
    abandoned = tmp_path / f".set.partial-{here}-{ended.pid}"
    running = f".set.partial-{here}-{os.getppid()}"  # with a lock it cannot be writing: its number was another's before
    others = [
        running, f".set.partial-elsewhere-{ended.pid}", f".set.partial-{ended.pid}",
        f".set2.partial-{here}-{ended.pid}", f"set.partial-{here}-{ended.pid}", f".set.partial-{here}-{ended.pid}x",
    ]  # fmt: skip
    for path in (abandoned, *(tmp_path / name for name in others)):
        path.mkdir()
        (path / "half.npy").write_bytes(b"half")
    with prepared.Writer(tmp_path / "set") as writer:
        assert not abandoned.exists() and writer.path.name == f".set.partial-{here}-{os.getpid()}"
    assert {path.name for path in tmp_path.iterdir()} == set(others) - ({running} if locks else set())


def test_a_new_dataset_takes_the_place_of_the_old_whole(written):
    data, directory = written
    with prepared.Writer(directory) as writer:
        assert prepared.load(directory).faults.height == data.faults.height  # until the new one is finished
        writer.finish(dataclasses.replace(data, faults=data.faults.head(0)), {})
    assert prepared.load(directory).faults.height == 0 and not (directory / "tables").exists()
    assert pl.read_parquet(directory / "faults.parquet").columns == data.faults.columns
