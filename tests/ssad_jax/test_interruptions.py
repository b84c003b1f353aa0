"""Runs that are killed or meet a full disk go on to the end of an undisturbed one; see `tests.chaos.kill` for more."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_prep import command, lock, scaling
from data_prep.errors import Failure, InputError
from data_prep.prepare import prepare
from ssad_jax import checkpoint, parallel, prepared
from ssad_jax import workdir as workdirs
from ssad_jax.run_log import RunLog
from ssad_jax.scoring import output
from tests.data_prep.test_prepare import make_config, telemetry, write

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from data_prep import lock
with lock.held(sys.argv[1], "", ""), lock.held(sys.argv[2], "", ""):
    print(flush=True)
    time.sleep(100)
"""
EPOCHS = "8"  # of three steps; every second one is saved


def environment(**variables):
    return {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT), **variables}


def train_toy(workdir, *prefix, limit="unlimited"):
    """`limit`: kilobytes that no file may grow beyond."""
    program = (sys.executable, "-m", *prefix, "tests.ssad_jax.train_toy", workdir, "1", "pmap", EPOCHS)
    return subprocess.run(
        ["bash", "-c", f'ulimit -f {limit}; exec "$@"', "-", *map(str, program)], cwd=ROOT, env=environment(),
        capture_output=True, text=True, timeout=300, start_new_session=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    done = train_toy(workdir)
    assert done.returncode == 0, done.stderr
    return workdir


def assert_ends_as(undisturbed, workdir):
    done = train_toy(workdir)
    assert done.returncode == 0, done.stderr
    expected, found = np.load(undisturbed / "params.npz"), np.load(workdir / "params.npz")
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
    assert checkpoint.steps(workdir / "checkpoints") == checkpoint.steps(undisturbed / "checkpoints") == [18, 24]
    assert {p.name for p in workdir.iterdir() if "tfevents" not in p.name} == {
        "checkpoints", "config.json", "metrics.jsonl", "params.npz",
    }  # fmt: skip


@pytest.mark.parametrize("spot, number", [("commit", 2), ("delete", 3)])
def test_killed_while_a_checkpoint_gets_its_name_or_an_old_one_goes(undisturbed, tmp_path, spot, number):
    killed = train_toy(tmp_path / "run", "tests.chaos.die", spot, number, 0)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert_ends_as(undisturbed, tmp_path / "run")


def test_training_on_a_full_disk_is_one_sentence_and_goes_on_when_there_is_room(undisturbed, tmp_path):
    full = train_toy(tmp_path / "run", limit=1)  # less than metrics.jsonl or a checkpoint takes
    assert full.returncode == 1 and "Traceback" not in full.stderr
    last = full.stderr.splitlines()[-1]
    assert last == f"{tmp_path}/run cannot be written: File too large; make room, then the same command goes on there"
    assert_ends_as(undisturbed, tmp_path / "run")


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_is_killed_ends_the_other_within_a_minute(tmp_path, killed):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    programs = []
    for number in (0, 1):
        env = environment(
            SSAD_COORDINATOR=f"localhost:{port}", SSAD_NUM_PROCESSES="2", SSAD_PROCESS_ID=str(number),
            JAX_PLATFORMS="cpu",
        )  # fmt: skip
        program = [sys.executable, "-m", "tests.ssad_jax.train_toy", tmp_path / "run", "0", "pmap", "1000000"]
        with open(tmp_path / f"log{number}", "w") as log:
            programs.append(subprocess.Popen(program, cwd=ROOT, env=env, stdout=log, stderr=log))
    records = tmp_path / "run" / "metrics.jsonl"
    while not (records.exists() and records.read_text().count("\n") > 3):
        assert programs[0].poll() is None and programs[1].poll() is None
        time.sleep(0.1)
    programs[killed].kill()
    other = programs[1 - killed]
    try:
        assert other.wait(timeout=60) != 0
    finally:
        other.kill()
    said = (tmp_path / f"log{1 - killed}").read_text()
    # jax's own service may be the first to notice, and ends the process itself.
    assert "another process of this run has ended" in said or "another task died" in said


def test_the_first_process_tells_the_others_how_its_work_ended(monkeypatch):
    class Client:
        said = {}

        def key_value_set(self, key, value):
            self.said[key] = value

        def blocking_key_value_get(self, key, milliseconds):
            return self.said[key]

    def fail():
        raise InputError("no telemetry")

    monkeypatch.setattr(parallel.distributed.global_state, "client", Client())
    monkeypatch.setattr(parallel, "is_main", lambda: True)
    with pytest.raises(InputError, match="no telemetry"):
        parallel.in_main("prepare", fail)
    parallel.in_main("evaluate", lambda: None)
    monkeypatch.setattr(parallel, "is_main", lambda: False)
    with pytest.raises(InputError, match="the first process of this run has ended"):
        parallel.in_main("prepare", fail)
    parallel.in_main("evaluate", fail)  # is left to the first


def test_a_stop_while_preparing_leaves_nothing_half_written(tmp_path, monkeypatch):
    raw = write(tmp_path / "raw", telemetry())
    with monkeypatch.context() as patched, pytest.raises(command.Stopped, match="begins it again"):
        patched.setattr(scaling, "fit", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        with command.stopped_by_signals("the same command begins it again"):
            prepare(make_config(raw, tmp_path / "out"))
    assert [p.name for p in tmp_path.iterdir()] == ["raw"]
    prepare(make_config(raw, tmp_path / "out"))
    assert prepared.exists(tmp_path / "out")


@pytest.mark.parametrize("interruption, expected, words", [
    (lambda path: os.kill(os.getpid(), signal.SIGTERM), command.Stopped, "evaluate again"),
    (lambda path: open("/dev/full", "wb").write(bytes(1 << 20)), Failure, "No space left on device; make room, then"),
])  # fmt: skip
def test_a_file_of_an_evaluation_is_the_old_one_until_the_new_one_is_whole(tmp_path, interruption, expected, words):
    def write(path):
        path.write_text("half")
        interruption(path)

    (tmp_path / "metrics.json").write_text("old")
    with pytest.raises(expected, match=words), command.stopped_by_signals("evaluate again"):
        with workdirs.using(tmp_path, "evaluates again"):
            output.write_atomically(tmp_path / "metrics.json", write)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]
    assert (tmp_path / "metrics.json").read_text() == "old"


@pytest.mark.parametrize("name", ["checkpoints", "evaluation", "metrics.jsonl", "report.html", ".lock"])
def test_a_file_for_a_directory_or_the_reverse_is_named(tmp_path, name):
    place = tmp_path / name
    place.touch() if name in ("checkpoints", "evaluation") else place.mkdir()
    with pytest.raises(InputError, match=f"{name} is (no|a) directory; remove it or name another --workdir"):
        with workdirs.using(tmp_path):
            pass


def test_lines_of_a_run_log_that_are_none_are_dropped(tmp_path):
    good = b'{"step": 7, "epoch": 1, "loss": 1.0}\n'
    (tmp_path / "metrics.jsonl").write_bytes(good + b"\0\0\n5\n[]\n{}\n" + b"[" * 100_000 + b"\n\xff\xfe{\n" + good[:9])
    with RunLog(tmp_path, 2, 1, 7, True):
        pass
    assert (tmp_path / "metrics.jsonl").read_bytes() == good


def test_what_another_run_uses_is_refused(tmp_path):
    program = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / ".lock", tmp_path / ".set.lock"], cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        program.stdout.readline()
        words = f"in use by process {program.pid} on {socket.gethostname()}; wait until it has ended, or name another"
        with pytest.raises(InputError, match=f"{words} --workdir"), workdirs.using(tmp_path):
            pass
        with pytest.raises(InputError, match=f"{words} prepared_dir"), prepared.Writer(tmp_path / "set"):
            pass
    finally:
        program.kill()
        program.wait()
    with workdirs.using(tmp_path), prepared.Writer(tmp_path / "set"):
        pass
    assert list(tmp_path.iterdir()) == [] and not lock._held


def test_a_dataset_that_was_being_replaced_gets_its_name_back(tmp_path):
    """Killed between the two renames: the old one has made way, the new one has no name yet."""
    raw = write(tmp_path / "raw", telemetry())
    prepare(make_config(raw, tmp_path / "out"))
    (tmp_path / "out").rename(tmp_path / ".out.old")
    with prepared.Writer(tmp_path / "out"):
        assert prepared.load(tmp_path / "out").windows.num_windows > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "raw"]
