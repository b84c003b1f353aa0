"""How preparing grows with the recorded time: seconds by stage, and memory.

    python -m benchmarks.preparation --hours=1,4,16

Simulates so many hours of OpenStack (`configs/openstack.py`) and prepares them, each in a fresh process and a
directory that is removed. A table as Markdown goes to stdout. Memory is the peak of the resident set: of the main
process, and of the largest worker. Processor time (of all processes) tells more than wall time where others use the
machine.
"""

import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
from pathlib import Path

from absl import app, flags

HOURS = flags.DEFINE_list("hours", ["1", "4", "16"], "Simulated hours, ascending.")
REPEATS = flags.DEFINE_integer("repeats", 1, "Runs of each; the table has their medians.")
WORKERS = flags.DEFINE_integer("num_workers", 2, "Processes that prepare.")
EXECUTOR = flags.DEFINE_enum("executor", "processes", ["processes", "dask"], "What prepares.")
STAGES = ("simulate", "read", "templates", "fit", "transform", "write")


def measure(hours: float, num_workers: int, executor: str) -> dict:
    """One run, in this process: seconds by stage, processor seconds, peaks in MB, rows and the dataset's hash."""
    from configs import openstack
    from data_prep.prepare import prepare

    with tempfile.TemporaryDirectory(prefix="preparation-") as directory:
        config = openstack.get_config()
        config.simulate.hours = hours
        config.data.update({"prepared_dir": f"{directory}/out", "num_workers": num_workers, "executor": executor})
        prepare(config)
        out = Path(config.data.prepared_dir)
        manifest, seconds = (json.loads((out / f"{name}.json").read_text()) for name in ("manifest", "timings"))
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {stage: seconds[stage] for stage in STAGES} | {
        "total": sum(seconds.values()),
        "cpu": sum(usage.ru_utime + usage.ru_stime for usage in (own, children)),
        "parent": own.ru_maxrss / 1024, "worker": children.ru_maxrss / 1024,  # Linux counts in KiB
        "rows": sum(table["read"] for table in manifest["rows"].values()),
        "windows": manifest["counts"]["windows"], "hash": manifest["dataset_hash"],
    }  # fmt: skip


def _send(connection, *arguments) -> None:
    connection.send(measure(*arguments))


def fresh(*arguments) -> dict:
    """`measure` in a process of its own, whose peaks are nobody else's."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(send, *arguments))
    process.start()
    send.close()
    try:
        found = receive.recv()
    finally:
        process.join()
    print(*(f"{key}={value:.1f}" for key, value in found.items() if key != "hash"), file=sys.stderr, flush=True)
    return found


def table(runs: dict[float, list[dict]]) -> str:
    """Markdown: seconds an hour by stage, and memory, by simulated hours."""
    head = ["hours", "rows read", "windows", *(f"{stage}, s/h" for stage in STAGES), "total, s/h", "CPU, s/h",
            "main process, MB", "largest worker, MB"]  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for hours, found in runs.items():
        middle = {key: statistics.median(run[key] for run in found) for key in found[0] if key != "hash"}
        per_hour = [f"{middle[key] / hours:.2f}" for key in (*STAGES, "total", "cpu")]
        cells = [f"{hours:g}", f"{middle['rows']:,.0f}", f"{middle['windows']:,.0f}", *per_hour,
                 f"{middle['parent']:.0f}", f"{middle['worker']:.0f}"]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(_) -> None:
    print(f"{platform.machine()}, {os.cpu_count()} cores; {WORKERS.value} workers ({EXECUTOR.value}); "
          f"median of {REPEATS.value}\n")  # fmt: skip
    runs = {float(h): [fresh(float(h), WORKERS.value, EXECUTOR.value) for _ in range(REPEATS.value)]
            for h in HOURS.value}  # fmt: skip
    for hours, found in runs.items():
        if len({run["hash"] for run in found}) > 1:
            raise RuntimeError(f"{hours} hours: repeats differ")
    print(table(runs), flush=True)


if __name__ == "__main__":
    app.run(main)
