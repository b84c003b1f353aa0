import errno
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from data_prep import disk, shard_jobs
from data_prep.errors import Failure
from tests.data_prep.test_prepare import contents, make_config, telemetry, write

ROOT = Path(__file__).parents[2]
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_recognised_in_the_errors_of_all_libraries():
    assert disk.reason(FULL) == "No space left on device"
    assert disk.reason(pl.exceptions.ComputeError("cannot write: Disk quota exceeded (os error 122)"))
    wrapped = RuntimeError("saving failed")
    wrapped.__cause__ = ValueError("RESOURCE_EXHAUSTED: writing: No space left on device")
    assert disk.reason(wrapped) == "No space left on device"
    assert disk.reason(OSError(errno.ENOENT, os.strerror(errno.ENOENT))) is None


def test_other_errors_pass_through():
    with pytest.raises(Failure, match="out cannot be written: No space left on device; make room, then the same"):
        with disk.needed("out", "prepares again"):
            raise FULL
    with pytest.raises(FileNotFoundError), disk.needed("out", "prepares again"):
        raise FileNotFoundError("a.csv")


def test_what_is_renamed_is_on_the_disk_before(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.readlink(f"/proc/self/fd/{file}")))
    (tmp_path / "a").mkdir()
    for name in ("a/b", "c"):
        (tmp_path / name).write_text("x")
    disk.sync(tmp_path)
    assert sorted(synced) == [str(tmp_path), *(str(tmp_path / name) for name in ("a", "a/b", "c"))]
    synced.clear()
    disk.sync(tmp_path / "c")
    assert synced == [str(tmp_path / "c"), str(tmp_path)]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write(tmp_path_factory.mktemp("raw") / "tables", telemetry())


@pytest.mark.parametrize("kilobytes", [2, 40, 200])
def test_preparing_on_a_full_disk_is_one_sentence_and_leaves_what_was_there(raw, tmp_path, kilobytes):
    """No file may grow beyond so much: rows that are spilled, arrays, tables."""
    (tmp_path / "own.py").write_text(
        "from tests.data_prep.test_prepare import make_config\n\n\ndef get_config():\n"
        f"    return make_config({str(raw)!r}, {str(tmp_path / 'out')!r}, num_workers=1)\n"
    )
    program = [sys.executable, "-m", "data_prep.main", f"--config={tmp_path}/own.py"]

    def run(limit="unlimited"):
        limited = ["bash", "-c", f'ulimit -f {limit}; exec "$@"', "-", *program]
        return subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, timeout=120)

    assert run().returncode == 0
    before = contents(tmp_path / "out")
    full = run(kilobytes)
    assert full.returncode == 1 and "Traceback" not in full.stderr
    last = full.stderr.splitlines()[-1]
    assert last.startswith(f"error: {tmp_path}/out cannot be written: File too large; make room")
    assert contents(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "own.py"]


def test_a_shard_on_a_full_disk_is_one_sentence(raw, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise FULL

    config = make_config(raw, tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(shard_jobs.spilled.spill.Spill, "flush", fail)
        with pytest.raises(Failure, match=r"\.out\.shards cannot be written: No space left on device"):
            shard_jobs.run(config, "1/1")
        patched.setattr(shard_jobs.Path, "write_text", fail)
        with pytest.raises(Failure, match="cannot be written"):
            shard_jobs.run(config, "1/1")
    shard_jobs.run(config, "1/1")
    with monkeypatch.context() as patched:
        remove = shard_jobs.shutil.rmtree
        refuse = lambda path, **how: fail() if path.name == ".out.shards" else remove(path, **how)  # noqa: E731
        patched.setattr(shard_jobs.shutil, "rmtree", refuse)
        shard_jobs.run(config, "merge")  # the dataset is whole, only its parts could not be removed
    assert (tmp_path / "out" / "manifest.json").exists() and (tmp_path / ".out.shards").exists()
