import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep import lock
from data_prep.errors import InputError

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from data_prep import lock
with lock.held(sys.argv[1], "set", ""):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    program = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert program.stdout.readline() == "held\n"
    yield program
    program.kill()
    program.wait()


def test_a_directory_in_use_names_process_and_machine(holder, tmp_path):
    with pytest.raises(InputError) as error, lock.held(tmp_path / "lock", "runs/a", "name another --workdir"):
        pass
    expected = f"runs/a is in use by process {holder.pid} on {socket.gethostname()}; wait until it has ended, or name"
    assert str(error.value).startswith(expected)


def test_the_lock_of_a_killed_process_is_free(holder, tmp_path):
    holder.kill()
    holder.wait()
    assert (tmp_path / "lock").exists()
    with lock.held(tmp_path / "lock", "set", ""):
        assert str(os.getpid()) in (tmp_path / "lock").read_text()
    assert not (tmp_path / "lock").exists()


def test_a_process_may_ask_again_for_what_it_holds(tmp_path):
    with lock.held(tmp_path / "lock", "set", ""):
        with lock.held(tmp_path / "lock", "set", ""):
            pass
        assert (tmp_path / "lock").exists()  # the inner one gives nothing back


def test_a_file_that_its_holder_has_just_removed_is_no_lock(tmp_path, monkeypatch):
    """Between opening and locking the file, its last holder removes it: another process would lock a new one."""
    path, flock = tmp_path / "lock", lock.fcntl.flock

    def removed_meanwhile(*arguments):
        monkeypatch.setattr(lock.fcntl, "flock", flock)
        path.unlink()
        flock(*arguments)

    monkeypatch.setattr(lock.fcntl, "flock", removed_meanwhile)
    with lock.held(path, "set", ""):
        assert path.exists()


def test_a_link_in_the_place_of_a_lock_is_refused_and_what_it_leads_to_stays(tmp_path):
    (tmp_path / "diary").write_text("dear diary")
    for target in ("diary", "nowhere"):
        (tmp_path / ".lock").symlink_to(tmp_path / target)
        with pytest.raises(InputError, match=r"\.lock is a link; remove it"):
            with lock.held(tmp_path / ".lock", "run", "wait"):
                pass
        (tmp_path / ".lock").unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["diary"]
    assert (tmp_path / "diary").read_text() == "dear diary"


def test_a_file_system_without_locks_warns(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(lock.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with lock.held(tmp_path / "lock", "set", "") as locked:
        assert not locked and "set cannot be locked (No locks available)" in caplog.text
