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
    ("prepare_dask_k8s.sh", [], ["kubectl apply", "--dry-run=client", "kind: DaskJob"]),
    ("prepare_array.sbatch", ["--config.data.raw_dir=my raw"], [
        "--array=1-8", "--dependency=afterok:", "data_prep.main", "--shard=1/8", "--shard=merge", r"raw_dir=my\ raw",
    ]),
    ("tpu_vm.sh", ["--config.seed=1"], ["git archive", "gcloud compute tpus tpu-vm ssh", "config.seed=1"]),
])  # fmt: skip
def test_dry_runs_print_what_would_run(script, arguments, words):
    done = shell("bash", f"launch/{script}", *arguments, DRY_RUN="1")
    assert done.returncode == 0, done.stderr
    for word in words:
        assert word in done.stdout


def test_a_job_of_the_array_reads_its_part():
    def dry_run(**variables):
        done = shell("bash", "launch/prepare_array.sbatch", DRY_RUN="1", CONFIG="c.py", **variables)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for found in (dry_run(SLURM_ARRAY_TASK_ID="3", SHARDS="5"), dry_run(SHARD="3/5")):
        assert "--config=c.py --shard=3/5" in found and "sbatch" not in found
    assert "--shard=merge" in dry_run(SHARD="merge")


def test_dask_on_slurm_prints_its_workers_and_the_command():
    done = shell(sys.executable, "launch/prepare_dask_slurm.py", "--config=c.py", DRY_RUN="1", JOBS="3")
    assert done.returncode == 0, done.stderr
    for word in ("SLURMCluster(", "scale(jobs=3)", "data_prep.main --config=c.py", "executor=dask", "dask_scheduler=tcp://"):
        assert word in done.stdout


def test_dask_job_names_its_own_scheduler():
    job = yaml.safe_load((ROOT / "launch" / "prepare_dask_k8s.yaml").read_text())
    name, cluster = job["metadata"]["name"], job["spec"]["cluster"]["spec"]
    [container] = job["spec"]["job"]["spec"]["containers"]
    [port] = cluster["scheduler"]["service"]["ports"]
    assert f"--config.data.dask_scheduler=tcp://{name}-scheduler:{port['port']}" in container["command"]
    assert cluster["scheduler"]["service"]["selector"]["dask.org/cluster-name"] == name
    pods = [job["spec"]["job"]["spec"], cluster["worker"]["spec"]]
    assert pods[0]["volumes"] == pods[1]["volumes"]  # workers read and write where the command does
    assert pods[0]["containers"][0]["volumeMounts"] == pods[1]["containers"][0]["volumeMounts"]


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
