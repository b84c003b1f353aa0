"""Prepare on SLURM with Dask: starts workers as jobs (dask-jobqueue), prepares on them, and ends them.

    pip install dask-jobqueue
    python launch/prepare_dask_slurm.py --config=configs/openstack.py:archive --config.data.raw_dir=DIR
    DRY_RUN=1 python launch/prepare_dask_slurm.py ...     prints the workers' job and the command

raw_dir and prepared_dir lie on a file system that all nodes share. Other schedulers of dask-jobqueue (PBS, LSF) take
the same few lines.
"""

import os
import subprocess
import sys

JOBS = int(os.environ.get("JOBS", "4"))
WORKERS_PER_JOB = int(os.environ.get("WORKERS_PER_JOB", "8"))  # one core each
MEMORY_PER_JOB = os.environ.get("MEMORY_PER_JOB", "16GB")
WALLTIME = os.environ.get("WALLTIME", "02:00:00")
QUEUE = os.environ.get("QUEUE")  # none: the default partition

SETTINGS = {
    "cores": WORKERS_PER_JOB, "processes": WORKERS_PER_JOB, "memory": MEMORY_PER_JOB, "walltime": WALLTIME,
    "queue": QUEUE, "python": sys.executable, "job_script_prologue": ["export POLARS_MAX_THREADS=1"],
}  # fmt: skip


def command(scheduler: str) -> list[str]:
    return [sys.executable, "-m", "data_prep.main", *sys.argv[1:], "--config.data.executor=dask",
            f"--config.data.dask_scheduler={scheduler}"]  # fmt: skip


def main() -> int:
    if os.environ.get("DRY_RUN") == "1":
        print(f"SLURMCluster({', '.join(f'{key}={value!r}' for key, value in SETTINGS.items())}).scale(jobs={JOBS})")
        print(*command("tcp://SCHEDULER"))
        return 0
    from dask_jobqueue import SLURMCluster

    with SLURMCluster(**SETTINGS) as cluster:
        cluster.scale(jobs=JOBS)
        cluster.wait_for_workers(1)
        return subprocess.run(command(cluster.scheduler_address)).returncode


if __name__ == "__main__":
    sys.exit(main())
