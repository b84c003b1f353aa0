"""Compares a simulation with the real pieces of the archive, figure by figure, against stated tolerances.

    python -m data_prep.simulate.checks --real=DIR [--simulated=DIR]

`DIR` holds the real pieces (`.../openstack`). Without `--simulated`, a run of three hours with container
restarts alone, as in the real runs, is made for the purpose in a temporary directory.
"""

import csv
import gzip
import json
import re
import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from absl import app, flags

from data_prep.errors import InputError
from data_prep.simulate.run import simulate
from data_prep.simulate.workloads import WORKLOADS
from data_prep.simulate.writers import LOG_COLUMNS

# What the figures may differ by: ("share", absolute), ("factor", ratio either way), ("distance", largest value).
STEP_TOLERANCE = ("share", 0.05)
DURATION_TOLERANCE = ("factor", 1.15)
TAIL_TOLERANCE = ("factor", 1.5)
FAILURE_TOLERANCE = ("factor", 2.0)
TEMPLATE_TOLERANCE = ("distance", 0.05)
TRACE_SHARE_TOLERANCE = ("share", 0.1)
AFTER_RESTART = 330.0  # seconds: a boot that hangs is given up after 300 s
REFERENCE = {"hours": 3.0, "seed": 0, "fault_kinds": ("restart",), "faults_per_hour": 9.0,
             "concurrency": {"boot": 3, "image": 3}}  # as in the real reports

BOOT_REPORT = "workloads/boot_delete_config/j_boot_delete_output.json.gz"
IMAGE_REPORT = "workloads/create_delete_image_config/j_image_output.json.gz"
TRACE = "workloads/create_delete_image_config/test.json"
METRICS = "workloads/network_create_delete_config/glances_out.csv.gz"
INSTANCE_LOGS = "logs_instance_only"


def read_text(path: Path) -> str:
    """The text of a plain or gzip file; InputError where there is none."""
    if not path.is_file():
        raise InputError(f"{path} is missing; --real must name the directory of the real OpenStack pieces")
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        return file.read()


def step_shares(text: str) -> dict[int, float]:
    """Shares of the steps of 0, 1 and 2 whole seconds between consecutive rows of a metric file."""
    seconds = [line[:19] for line in text.splitlines()[1:]]
    times = np.array(seconds, dtype="datetime64[s]").astype(np.int64)
    steps = np.diff(times)
    return {step: float(np.mean(steps == step)) for step in (0, 1, 2)}


def iterations(text: str) -> list[dict]:
    return json.loads(text)["tasks"][0]["subtasks"][0]["workloads"][0]["data"]


def good_durations(rows: list[dict]) -> np.ndarray:
    return np.array([row["duration"] for row in rows if not row["error"]])


def restarts(text: str) -> list[tuple[float, float]]:
    """Start and end of the container restarts in a report, unix seconds."""
    hooks = json.loads(text)["tasks"][0]["subtasks"][0]["workloads"][0]["hooks"]
    return [(result["started_at"], result["finished_at"]) for hook in hooks for result in hook["results"]
            if "restart" in hook["config"]["action"]["sys_call"]]


def failures_per_restart(text: str, others: list[tuple[float, float]]) -> float:
    """Failed iterations that each of the report's own restarts caused: they ended before it could not be the
    cause any more, or before one of the `others` (restarts in other reports) came in between."""
    own = restarts(text)
    ends = [row["timestamp"] + row["duration"] for row in iterations(text) if row["error"]]
    count = 0
    for start, stop in own:
        limit = min([stop + AFTER_RESTART, *(other for other, _ in [*own, *others] if other > start)])
        count += sum(start <= end <= limit for end in ends)
    return count / max(len(own), 1)


def mask(payload: str) -> str:
    """A payload without what differs from line to line, cut to 100 characters first as the real ones are."""
    payload = re.sub(r"instances/[0-9a-f-]+(_del)?( c\w*)?", "instances/<id>", payload[:100])
    payload = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "<id>", payload)
    payload = re.sub(r"(?<=on the h)\w*", "", re.sub(r"(?<=for instanc)\w*\.?", "", payload))
    payload = re.sub(r"wally\d+(\.cit\.tu-berlin\.de)?:?.*", "<host>", payload)
    return re.sub(r"\d+(\.\d+)?", "<n>", payload).strip().rstrip(".")


def instance_templates(rows) -> Counter:
    """Counts of masked `[instance: ...]` lines among log rows (dicts of columns)."""
    return Counter(mask(row["Payload"]) for row in rows if row["Payload"].startswith("[instance:"))


def total_variation(left: Counter, right: Counter) -> float:
    """Half the summed absolute difference of two distributions, in [0, 1]."""
    a, b = sum(left.values()), sum(right.values())
    return 0.5 * sum(abs(left[key] / a - right[key] / b) for key in left.keys() | right.keys())


def shape(node: dict) -> tuple:
    """A trace as a tree of (project, method and path without ids), children in order."""
    info = node["info"]
    request = info.get(f"meta.raw_payload.{info['name']}-start", {}).get("info", {}).get("request", {})
    path = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "<id>", request.get("path", ""))
    return (info.get("project"), request.get("method"), path, tuple(shape(child) for child in node["children"]))


def within(real: float, simulated: float, tolerance: tuple[str, float]) -> bool:
    kind, limit = tolerance
    if kind == "share":
        return abs(real - simulated) <= limit
    if kind == "distance":
        return simulated <= limit
    return real > 0 and simulated > 0 and max(real / simulated, simulated / real) <= limit


def compare(real: Path, simulated: Path) -> list[dict]:
    """The table: one dict a figure, with keys figure, real, simulated, tolerance, ok."""
    rows: list[dict] = []

    def add(figure, was, now, tolerance):
        rows.append({"figure": figure, "real": was, "simulated": now, "tolerance": f"{tolerance[0]} {tolerance[1]:g}",
                     "ok": within(was, now, tolerance)})

    was = step_shares(read_text(real / METRICS))
    now = [step_shares(read_text(path)) for path in sorted((simulated / "metrics").glob("*.csv"))]
    for step in was:
        add(f"metric rows: share of {step} s steps", was[step], statistics.fmean(host[step] for host in now),
            STEP_TOLERANCE)
    for name, path in (("boot", BOOT_REPORT), ("image", IMAGE_REPORT)):
        was_rows = iterations(read_text(real / path))
        report = read_text(simulated / "reports" / f"output_{name}.json")
        now_rows = iterations(report)
        others = [times for other in WORKLOADS if other != name
                  for times in restarts(read_text(simulated / "reports" / f"output_{other}.json"))]
        was_time, now_time = good_durations(was_rows), good_durations(now_rows)
        for quantile in (0.05, 0.25, 0.5, 0.75, 0.95):
            tolerance = TAIL_TOLERANCE if quantile == 0.95 else DURATION_TOLERANCE
            add(f"{name} iterations: {quantile:.0%} quantile, s", float(np.quantile(was_time, quantile)),
                float(np.quantile(now_time, quantile)), tolerance)
        add(f"{name} iterations: failed in each restart",
            failures_per_restart(read_text(real / path), []), failures_per_restart(report, others), FAILURE_TOLERANCE)
    real_lines: Counter = Counter()
    for path in sorted((real / INSTANCE_LOGS).glob("*.csv.gz")):
        lines = csv.DictReader(read_text(path).splitlines(keepends=True), fieldnames=LOG_COLUMNS)
        real_lines += instance_templates(lines)
    with (simulated / "logs" / "logs_aggregated_concurrent.csv").open(newline="", encoding="utf-8") as file:
        simulated_lines = instance_templates(csv.DictReader(file))
    add("nova instance lines: total variation of the template mix", 0.0, total_variation(real_lines, simulated_lines),
        TEMPLATE_TOLERANCE)
    was_tree = json.loads(read_text(real / TRACE))
    expected = [shape(child) for child in was_tree["children"]]
    trees = [json.loads(read_text(path)) for path in sorted((simulated / "traces/create_delete_image").glob("*.json"))]
    failed = {row["output"]["complete"][0]["data"]["trace_id"]
              for row in iterations(read_text(simulated / "reports" / "output_image.json")) if row["error"]}
    names = [path.stem for path in sorted((simulated / "traces/create_delete_image").glob("*.json"))]
    same = [[shape(child) for child in tree["children"]] == expected
            for tree, name in zip(trees, names, strict=True) if name not in failed]
    add("image traces of good iterations: share with the real tree", 1.0, float(np.mean(same)), TRACE_SHARE_TOLERANCE)
    return rows


def as_markdown(rows: list[dict]) -> str:
    lines = ["| figure | real | simulated | tolerance | |", "|---|---|---|---|---|"]
    for row in rows:
        lines.append(f"| {row['figure']} | {row['real']:.3f} | {row['simulated']:.3f} | {row['tolerance']} | "
                     f"{'ok' if row['ok'] else 'MISSED'} |")
    return "\n".join(lines)


REAL = flags.DEFINE_string("real", None, "directory of the real OpenStack pieces", required=True)
SIMULATED = flags.DEFINE_string("simulated", None, "directory of a simulation; none: simulate three hours")


def main(argv):
    del argv
    try:
        with tempfile.TemporaryDirectory() as temporary:
            simulated = Path(SIMULATED.value) if SIMULATED.value else Path(temporary) / "reference"
            if not SIMULATED.value:
                simulate(simulated, **REFERENCE)
            rows = compare(Path(REAL.value), simulated)
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(as_markdown(rows))
    sys.exit(0 if all(row["ok"] for row in rows) else 1)


if __name__ == "__main__":
    app.run(main)
