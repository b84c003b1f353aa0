import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*(ROOT / "launch").glob("*.sh"), *(ROOT / "launch").glob("*.sbatch"), ROOT / ".ci" / "run"])


def shell(*arguments, **variables):
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env |= {"PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(arguments, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_parse_and_are_strict(script):
    assert shell("bash", "-n", str(script)).returncode == 0
    assert "set -euo pipefail" in script.read_text()


@pytest.mark.parametrize("script, arguments, words", [
    ("local.sh", ["--", "python", "-m", "ssad_jax.main", "--config=c.py"], ["SSAD_PROCESS_ID=1", "--config=c.py"]),
    ("slurm.sbatch", ["--config.seed=1"], ["srun", "ssad_jax.main", "--config.seed=1", "SSAD_DISTRIBUTED=auto"]),
    ("gke.sh", [], ["kubectl apply", "--dry-run=client", "kind: JobSet"]),
    ("tpu_vm.sh", ["--config.seed=1"], ["git archive", "gcloud compute tpus tpu-vm ssh", "config.seed=1"]),
])  # fmt: skip
def test_dry_runs_print_what_would_run(script, arguments, words):
    done = shell("bash", f"launch/{script}", *arguments, DRY_RUN="1")
    assert done.returncode == 0, done.stderr
    for word in words:
        assert word in done.stdout


def test_jobset_is_valid_and_counts_agree():
    jobset = yaml.safe_load((ROOT / "launch" / "gke_jobset.yaml").read_text())
    job = jobset["spec"]["replicatedJobs"][0]
    spec = job["template"]["spec"]
    [container] = spec["template"]["spec"]["containers"]
    env = {e["name"]: e.get("value") for e in container["env"]}
    assert spec["completions"] == spec["parallelism"] == int(env["SSAD_NUM_PROCESSES"])
    name = jobset["metadata"]["name"]
    assert env["SSAD_COORDINATOR"].split(":")[0] == f"{name}-{job['name']}-0-0.{name}"


def test_local_hands_on_the_exit_code_of_the_process_that_failed():
    command = ["bash", "launch/local.sh", "--", "bash", "-c"]
    assert shell(*command, "exit 0").returncode == 0
    assert shell(*command, "exit 75").returncode == 75
    assert shell(*command, '[[ $SSAD_PROCESS_ID == 1 ]] && exit 3; sleep 60').returncode == 3
    assert shell("bash", "launch/local.sh").returncode == 2


@pytest.mark.parametrize("mapping", ["pmap", "shard_map"])
def test_two_processes_give_the_parameters_of_one_with_two_devices(tmp_path, mapping):
    program = [sys.executable, "-m", "tests.ssad_jax.train_toy"]
    two = shell("bash", "launch/local.sh", "--", *program, str(tmp_path / "two"), "0", mapping, PROCESSES="2")
    assert two.returncode == 0, two.stderr
    one = shell(
        *program, str(tmp_path / "one"), "2", mapping,
        JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_force_host_platform_device_count=2",
    )  # fmt: skip
    assert one.returncode == 0, one.stderr
    assert "on 2 cpu device(s)" in one.stderr and two.stderr.count("on 2 cpu device(s)") == 1
    expected, found = np.load(tmp_path / "one" / "params.npz"), np.load(tmp_path / "two" / "params.npz")
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, atol=1e-7)
    saved = [(tmp_path / run / "metrics.jsonl").read_text().count("\n") for run in ("one", "two")]
    assert saved == [3, 3]  # one process writes
    assert sorted(p.name for p in (tmp_path / "two" / "checkpoints").iterdir()) == ["6", "9"]
