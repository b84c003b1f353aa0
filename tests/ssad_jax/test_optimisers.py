"""The benchmark of optimiser settings: flags that cannot be used end it before anything is trained."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("flag", "said"), [("--epochs=1,x", "--epochs=1,x cannot be used"), ("--epochs=0", "--epochs=0 cannot be used"),
                       ("--seeds=0", "--seeds=0"), ("--detectors=knn", "'knn' is unknown"),
                       ("--config.compared.logbert.width=0", "compared.logbert.width=0 cannot be used")],
)  # fmt: skip
def test_flags_that_cannot_be_used(flag, said, tmp_path):
    arguments = "--config=configs/smoke.py", f"--config.data.prepared_dir={tmp_path / 'none'}", flag
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.optimisers", *arguments], cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "none").exists()
