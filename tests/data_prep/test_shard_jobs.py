import os
import subprocess
import sys

import pytest

from data_prep import shard_jobs
from data_prep.errors import InputError
from data_prep.prepare import prepare
from ssad_jax import prepared
from tests.data_prep.small import SECOND, T0, log
from tests.data_prep.test_prepare import ROOT, contents, make_config, telemetry, write


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """With duplicates, and rows that are set aside."""
    rows = telemetry()
    rows["logs"] += rows["logs"][:7]
    rows["logs"].append(log(3, "gateway", "no service") | {"service_name": None})
    rows["spans"].append(rows["spans"][5] | {"end_time_unix_nano": T0 - SECOND})
    return write(tmp_path_factory.mktemp("raw") / "tables", rows)


@pytest.fixture(scope="module")
def unsharded(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    prepare(make_config(raw, out))
    return contents(out)


@pytest.fixture
def small_slices(monkeypatch):
    """So that every job has something to read of each table."""
    monkeypatch.setattr("data_prep.tables._SLICE", 300)


def test_parts_read_in_any_order_and_again_give_the_same_bytes(raw, unsharded, tmp_path, small_slices):
    config = make_config(raw, tmp_path / "out")
    for shard in ("3/3", "1/3", "1/3", "2/3"):
        shard_jobs.run(config, shard)
        assert not (tmp_path / "out").exists()
    parts = sorted(shard_jobs.directory(config).glob("part-*/spans/*"))
    assert {path.parts[-3] for path in parts} == {"part-1", "part-2", "part-3"}
    shard_jobs.run(config, "merge")
    assert contents(tmp_path / "out") == unsharded
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_all_jobs_use_the_partitions_of_the_first(raw, unsharded, tmp_path, small_slices, monkeypatch):
    """Files may come to lie in raw_dir meanwhile (the parts themselves): a trace must still go where its spans are."""
    config = make_config(raw, tmp_path / "out")
    for number, partitions in enumerate((3, 5, 1), 1):
        monkeypatch.setattr(shard_jobs.spilled, "num_partitions", lambda _, partitions=partitions: partitions)
        shard_jobs.run(config, f"{number}/3")
    shard_jobs.run(config, "merge")
    assert contents(tmp_path / "out") == unsharded


def test_more_jobs_than_tasks(raw, unsharded, tmp_path):
    config = make_config(raw, tmp_path / "out", num_workers=2)
    for number in range(1, 5):
        shard_jobs.run(config, f"{number}/4")
    shard_jobs.run(config, "merge")
    assert contents(tmp_path / "out") == unsharded


def test_raw_dir_may_be_spelled_otherwise_by_each_job(raw, unsharded, tmp_path, small_slices, monkeypatch):
    monkeypatch.chdir(raw.parent)
    (tmp_path / "link").symlink_to(raw)
    out = tmp_path / "out"
    shard_jobs.run(make_config(raw.name, out), "1/2")
    shard_jobs.run(make_config(tmp_path / "link", out), "2/2")
    shard_jobs.run(make_config(f"../{raw.parent.name}/{raw.name}", out), "merge")
    assert contents(out) == unsharded


def test_a_missing_part_is_named(raw, tmp_path):
    config = make_config(raw, tmp_path / "out")
    with pytest.raises(InputError, match="holds no parts"):
        shard_jobs.run(config, "merge")
    shard_jobs.run(config, "2/3")
    with pytest.raises(InputError, match=r"lacks shard 1/3, 3/3; run --shard=1/3"):
        shard_jobs.run(config, "merge")
    assert not prepared.exists(tmp_path / "out")


def test_parts_of_another_configuration_or_other_files_are_refused(raw, tmp_path, monkeypatch):
    mine = write(tmp_path / "tables", telemetry())
    shard_jobs.run(make_config(mine, tmp_path / "out"), "1/2")
    for shard, changed, word in (("2/2", {"window_length": 12}, "window_length"), ("2/3", {}, "shards"),
                                 ("merge", {"node_level": "instance"}, "node_level")):  # fmt: skip
        with pytest.raises(InputError, match=f"made otherwise .*{word}.* remove it to start again"):
            shard_jobs.run(make_config(mine, tmp_path / "out", **changed), shard)
    shard_jobs.run(make_config(mine, tmp_path / "out", num_workers=2), "1/2")  # who prepares does not matter
    for file in (mine / "logs.parquet", mine / "events.parquet"):
        before = file.stat().st_mtime_ns
        os.utime(file, ns=(before, before + 1_000_000_000))  # as of other content of the same size
        with pytest.raises(InputError, match="raw_files"):
            shard_jobs.run(make_config(mine, tmp_path / "out"), "2/2")
        os.utime(file, ns=(before, before))
    monkeypatch.setattr(shard_jobs, "program_fingerprint", lambda: "another")
    with pytest.raises(InputError, match="program"):
        shard_jobs.run(make_config(mine, tmp_path / "out"), "2/2")
    monkeypatch.undo()
    (mine / "events.parquet").unlink()
    with pytest.raises(InputError, match="raw_files"):
        shard_jobs.run(make_config(mine, tmp_path / "out"), "2/2")


def test_what_cannot_be_written_is_named(raw, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "out", tmp_path / "taken"):
        config = make_config(raw, place)
        if place.name == "taken":
            shard_jobs.directory(config).write_text("")
        with pytest.raises(InputError, match="cannot be written .*; name another prepared_dir"):
            shard_jobs.run(config, "1/1")
        with pytest.raises(InputError, match="holds no parts"):
            shard_jobs.run(config, "merge")

    def refuse(_, target):
        raise PermissionError(1, "Operation not permitted") if target.name.startswith("part-") else OSError(39, "there")

    shard_jobs.run(make_config(raw, tmp_path / "out"), "1/2")
    monkeypatch.setattr(shard_jobs.os, "rename", refuse)  # the identity is there, part 2 is not
    with pytest.raises(InputError, match="part-2 cannot be written .Operation not permitted"):
        shard_jobs.run(make_config(raw, tmp_path / "out"), "2/2")
    assert sorted(path.name for path in (tmp_path / ".out.shards").iterdir()) == ["identity", "part-1"]


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "a/b", "1/0", "-1/2", ""])
def test_bad_shards(shard, raw, tmp_path):
    with pytest.raises(InputError, match="write i/n"):
        shard_jobs.run(make_config(raw, tmp_path / "out"), shard)


def test_simulated_telemetry_is_not_shared_out(tmp_path):
    with pytest.raises(InputError, match="raw_dir is empty"):
        shard_jobs.run(make_config("", tmp_path / "out"), "1/2")


def test_a_part_that_was_killed_is_read_again(raw, unsharded, tmp_path, monkeypatch):
    """In a container the next try has the number of the process that was killed."""
    program = f"""
import os, signal
from data_prep import shard_jobs, spill
kill, flush = lambda own=os.getpid(): os.kill(own, signal.SIGKILL), spill.Spill.flush
os.getpid = lambda: 7
from tests.data_prep.test_prepare import make_config
spill.Spill.flush = lambda *own: (flush(*own), kill())
shard_jobs.run(make_config({str(raw)!r}, {str(tmp_path / "out")!r}), "1/1")
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=120).returncode == -9
    assert list(tmp_path.glob(".out.shards/.part-1.*/spans/*.rows"))
    monkeypatch.setattr(os, "getpid", lambda: 7)
    config = make_config(raw, tmp_path / "out")
    with pytest.raises(InputError, match="lacks shard 1/1"):
        shard_jobs.run(config, "merge")
    shard_jobs.run(config, "1/1")
    shard_jobs.run(config, "merge")
    assert contents(tmp_path / "out") == unsharded
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_command(raw, unsharded, tmp_path):
    (tmp_path / "own.py").write_text(
        "from tests.data_prep.test_prepare import make_config\n\n\ndef get_config():\n"
        f"    return make_config({str(raw)!r}, {str(tmp_path / 'out')!r})\n"
    )
    program = [sys.executable, "-m", "data_prep.main", f"--config={tmp_path}/own.py"]
    results = [
        subprocess.run([*program, f"--shard={shard}"], cwd=ROOT, capture_output=True, text=True, timeout=120)
        for shard in ("1/1", "merge", "merge")
    ]
    assert [done.returncode for done in results] == [0, 0, 2], results
    assert [done.stdout.strip() for done in results] == [str(tmp_path / ".out.shards"), str(tmp_path / "out"), ""]
    assert contents(tmp_path / "out") == unsharded
