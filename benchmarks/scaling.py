"""How training grows with devices, processes and services; a table as Markdown on stdout.

    python -m benchmarks.scaling --what=devices      1, 2, 4, 8 fake devices of this CPU, weak and strong
    python -m benchmarks.scaling --what=processes    1, 2, 4 local processes of one device each
    python -m benchmarks.scaling --what=services     N = 100 ... 100,000 nodes, E = 4 N, by segments

Every row is measured in processes of its own. Fake devices share the cores: what they can show is what mapping over
devices costs (the throughput should stay what it is with one) and what is sent between devices.
"""

import json
import os
import subprocess
import sys
import tempfile

from absl import app, flags

WHAT = flags.DEFINE_enum("what", "devices", ["devices", "processes", "services"], "What grows.")
MAPPING = flags.DEFINE_enum("mapping", "pmap", ["pmap", "shard_map"], "How a step is mapped over devices.")
NODES = flags.DEFINE_integer("nodes", 64, "Nodes of a window, for devices and processes.")
HIDDEN = flags.DEFINE_integer("hidden", 64, "Hidden units.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Epochs timed, after one that compiles and one more.")
MOST = flags.DEFINE_integer("most", 100_000, "Most nodes, for services.")
WORKER = flags.DEFINE_string("worker", None, "Internal: one row's settings as JSON.")

STRONG_BATCH, WEAK_BATCH, SEQUENCE, STEPS = 32, 8, 8, 2
SENT = ("all-reduce", "all-gather", "reduce-scatter")  # bytes of the results on one device


def rows() -> list[dict]:
    """The settings of every row, in order."""
    common = {"mapping": MAPPING.value, "hidden": HIDDEN.value, "rounds": ROUNDS.value, "precision": "float32"}
    if WHAT.value == "services":
        sizes = [n for n in (100, 300, 1000, 3000, 10_000, 30_000, 100_000) if n <= MOST.value]
        return [
            common | {"nodes": n, "batch": 2, "sequence": 1, "devices": 1, "processes": 1, "precision": precision,
                      "propagation": "segment", "steps": 1}
            for precision in ("float32", "bfloat16") for n in sizes
        ]  # fmt: skip
    counts = (1, 2, 4, 8) if WHAT.value == "devices" else (1, 2, 4)
    out = []
    for scaling in ("strong", "weak"):
        for count in counts:
            batch = STRONG_BATCH if scaling == "strong" else WEAK_BATCH * count
            devices, processes = (count, 1) if WHAT.value == "devices" else (1, count)
            out.append(
                common | {"scaling": scaling, "nodes": NODES.value, "batch": batch, "sequence": SEQUENCE,
                          "devices": devices, "processes": processes, "propagation": "auto", "steps": STEPS}
            )  # fmt: skip
    return out


def measure(row: dict) -> dict:
    """Run one row's processes; returns the first one's figures."""
    environment = os.environ | {
        "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={row['devices']}",
    }
    folder = tempfile.TemporaryDirectory()  # for what processes but the first say
    command = [sys.executable, "-m", "benchmarks.scaling", f"--worker={json.dumps(row)}"]
    if row["processes"] > 1:
        environment |= {
            "PROCESSES": str(row["processes"]), "DEVICES_PER_PROCESS": str(row["devices"]), "LOG_DIR": folder.name,
        }  # fmt: skip
        command = ["launch/local.sh", "--", *command]
    with folder:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not found:
        raise RuntimeError(f"{row} failed with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(found[0])


def work(row: dict) -> dict:
    """In a worker: windows a second, memory, and what one step sends between devices."""
    import resource

    import jax
    import numpy as np

    from ssad_jax import parallel
    from ssad_jax.benchmarking import cost, synthetic
    from ssad_jax.benchmarking.programs import Training
    from ssad_jax.benchmarking.timing import rates
    from ssad_jax.config import default_config

    parallel.initialize_processes()
    config = default_config("scaling")
    config.model.update(
        {"hidden_dim": row["hidden"], "propagation": row["propagation"], "precision": row["precision"]}
    )
    config.data.update({"batch_size": row["batch"], "sequence_length": row["sequence"]})
    config.parallel.mapping = row["mapping"]
    data = synthetic.make_prepared(
        row["nodes"], 4 * row["nodes"], row["sequence"], row["steps"] * row["batch"], test_windows=1
    )
    training = Training(config, data)
    compiled, _ = training.compile_step()
    for _ in range(2):
        training.epoch()
    times = [training.epoch() for _ in range(row["rounds"])]
    sent: dict[str, list[int]] = {}
    for kind, size in cost.collectives(compiled.as_text()):
        sent.setdefault(kind, []).append(size)
    parameters = sum(np.size(p) for p in jax.tree.leaves(training.params()))
    return {
        "windows_per_second": rates(training.num_windows, times), "parameters": int(parameters),
        "sent": {kind: {"count": len(sizes), "bytes": sum(sizes)} for kind, sizes in sorted(sent.items())},
        "program_bytes": cost.program_bytes(compiled), "devices": jax.device_count(),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "device_kind": jax.devices()[0].device_kind,
    }  # fmt: skip


def table(results: list[tuple[dict, dict]]) -> str:
    """Markdown of all rows; ratios are to the first row of the same kind."""
    lines, first = [], {}
    if WHAT.value == "services":
        lines += ["| N | E | precision | windows/s (quartiles) | nodes/s | ratio | program memory, MiB | a node, KiB |",
                  "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    else:
        lines += ["| scaling | devices | batch | windows/s (quartiles) | ratio | "
                  + " | ".join(f"{kind}, B" for kind in SENT) + " |", "|---|---|---|---|---" + "|---" * len(SENT) + "|"]
    for row, found in results:
        rate = found["windows_per_second"]
        speed = f"{rate['median']:.4g} ({rate['low']:.4g} to {rate['high']:.4g})"
        if WHAT.value == "services":
            nodes = rate["median"] * row["nodes"]
            ratio = nodes / first.setdefault(row["precision"], nodes)
            memory = found["program_bytes"]
            lines.append(
                f"| {row['nodes']:,} | {4 * row['nodes']:,} | {row['precision']} | {speed} | {nodes:,.0f} "
                f"| {ratio:.2f} | {memory / 2**20:.0f} | {memory / row['nodes'] / 2**10:.1f} |"
            )
        else:
            ratio = rate["median"] / first.setdefault(row["scaling"], rate["median"])
            sent = (found["sent"].get(kind, {"count": 0, "bytes": 0}) for kind in SENT)
            cells = " | ".join(f"{s['bytes']:,} in {s['count']}" for s in sent)
            devices = row["devices"] * row["processes"]
            lines.append(f"| {row['scaling']} | {devices} | {row['batch']} | {speed} | {ratio:.2f} | {cells} |")
    return "\n".join(lines)


def main(_) -> None:
    if WORKER.value:
        print(json.dumps(work(json.loads(WORKER.value))), flush=True)
        return
    results = []
    for row in rows():
        found = measure(row)
        print(f"{row} -> {found}", file=sys.stderr, flush=True)
        results.append((row, found))
    print(table(results))
    parameters, kind = results[0][1]["parameters"], results[0][1]["device_kind"]
    print(f"\n{kind}, {os.cpu_count()} cores; {parameters:,} parameters, {4 * parameters:,} bytes.")


if __name__ == "__main__":
    app.run(main)
