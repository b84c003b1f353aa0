"""Commands are run as programs: what counts is the exit code and the one line on stderr."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep import command

ROOT = Path(__file__).parents[2]
PROGRAM = '''
"""A command for tests."""
import sys
from absl import flags
from data_prep import command
from data_prep.errors import InputError
CONFIG = command.define_config_flag()
ACT = flags.DEFINE_enum("act", "print", ["print", "input_error", "stop", "fail"], "what to do")

def main():
    act = ACT.value
    if act == "input_error":
        raise InputError("/data/x.csv, row 3: no time;\\nadd one")
    if act == "stop":
        raise command.Stopped("saved at step 7")
    if act == "fail":
        raise RuntimeError("loss is nan")
    assert "jax" not in sys.modules
    print(CONFIG.value.name, CONFIG.value.optimizer.learning_rate)

if __name__ == "__main__":
    command.run(main)
'''
CONFIG = """
from ssad_jax.config import default_config
def get_config(variant=""):
    if variant not in ("", "small"):
        raise ValueError(f"no variant {variant!r}; there is: small")
    return default_config("toy" + variant)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("command")
    (path / "program.py").write_text(PROGRAM)
    (path / "toy.py").write_text(CONFIG)
    (path / "broken.py").write_text("def get_config():\n    return missing.thing\n")
    (path / "torn.py").write_text("def get_config(:\n")
    return path


def run(folder, *arguments):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "program.py", *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("arguments, words", [
    ([], ["--config is missing"]),
    (["--config=nowhere.py"], ["nowhere.py", "No such file"]),
    (["--config=."], ["directory"]),
    (["--config=toy.py:large"], ["toy.py:large", "there is: small"]),
    (["--config=broken.py"], ["broken.py, line 2", "missing"]),
    (["--config=torn.py"], ["torn.py, line 1"]),
    (["--config=toy.py", "--config.optimizer.learning_rat=1"], ["learning_rat", "did you mean 'learning_rate'"]),
    (["--config=toy.py", "--config.optimzer.learning_rate=1"], ["--config.optimzer", "did you mean 'optimizer'"]),
    (["--config=toy.py", "--config.train.num_epochs=1.5"], ["num_epochs", "1.5"]),
    (["--config=toy.py", "--config.data=3"], ["--config.data", "3"]),
    (["--config.seed=1", "--config=toy.py"], ["before"]),
    (["--config=toy.py", "--actt=print"], ["actt", "Did you mean"]),
    (["--config=toy.py", "--act=sing"], ["sing", "print"]),
    (["--config=toy.py", "stray"], ["stray"]),
    (["--config=toy.py", "--act=input_error"], ["/data/x.csv, row 3: no time; add one"]),
])  # fmt: skip
def test_bad_input_ends_with_2_and_one_sentence(folder, arguments, words):
    done = run(folder, *arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and done.stdout == ""
    for word in words:
        assert word in done.stderr


def test_good_flags_reach_main(folder):
    done = run(folder, "--config=toy.py:small", "--config.optimizer.learning_rate=0.25")
    assert (done.returncode, done.stdout) == (0, "toysmall 0.25\n"), done.stderr


def test_help_ends_with_0(folder):
    done = run(folder, "--help")
    assert done.returncode == 0
    for words in ("--act", "--config", "A command for tests"):
        assert words in done.stdout


def test_stop_and_failure_have_their_own_codes(folder):
    stopped = run(folder, "--config=toy.py", "--act=stop")
    assert stopped.returncode == 75 and "saved at step 7" in stopped.stderr
    failed = run(folder, "--config=toy.py", "--act=fail")
    assert failed.returncode == 1 and "Traceback" in failed.stderr and "loss is nan" in failed.stderr


def test_a_signal_ends_the_command_at_once_and_says_that_it_goes_on():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(command.Stopped, match="parts are kept"):
        with command.stopped_by_signals("parts are kept"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
            raise AssertionError("not stopped")
    assert signal.getsignal(signal.SIGTERM) is before
