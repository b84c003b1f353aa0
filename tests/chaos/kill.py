"""Kills runs of `ssad_jax.main` at random moments of every phase and starts them again: is the end the same?

    python -m tests.chaos.kill --kills=54 --seed=0 --workdir=/tmp/chaos

Each case runs `configs/smoke.py`, made smaller, as a program of its own and kills its process group with SIGKILL: so
long after the line on stderr that begins the phase, or at an exact call (`die`) where the phase is too short to be hit.
Then the same command runs to its end, and every file must be, byte for byte, that of a run that nobody disturbed.
Prints a table as Markdown; exit code 1 where something differs.
"""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from absl import app, flags

ROOT = Path(__file__).parents[2]
KILLS = flags.DEFINE_integer("kills", 54, "How many runs to kill.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")
WORKDIR = flags.DEFINE_string("workdir", None, "For the runs; made anew.", required=True)
ARGUMENTS = (
    f"--config={ROOT}/configs/smoke.py", f"--config.knowledge.path={ROOT}/configs/knowledge/openstack.yaml",
    "--config.data.prepared_dir=prepared", "--config.simulate.hours=0.4", "--config.train.num_epochs=4",
    "--config.score.bootstrap=0",
)  # fmt: skip
MAIN = ("ssad_jax.main", *ARGUMENTS, "--workdir=run")
PREPARE = ("data_prep.main", *ARGUMENTS)


@dataclass(frozen=True)
class Phase:
    """`begin`, `end`: words of its first and of the first later line on stderr; `spots`: calls in it (`die.SPOTS`)."""

    name: str
    begin: str
    end: str
    spots: tuple[str, ...] = ()
    start: str = "nothing"  # what is there before: nothing, prepared, trained
    program: tuple[str, ...] = MAIN


PHASES = (
    Phase("simulating", "", "simulate: "),
    Phase("reading", "simulate: ", "read: ", ("scratch",)),
    Phase("fitting", "read: ", "fit: "),
    Phase("transforming", "fit: ", "transform: "),
    Phase("writing", "transform: ", "prepared prepared", ("arrays",)),
    Phase("final rename", "", "", ("rename",)),
    Phase("final rename, replacing", "", "", ("rename away", "rename"), "prepared", PREPARE),
    Phase("starting to train", "", "examples (", ("run files",), "prepared"),
    Phase("training", "examples (", "epoch 4/4", (), "prepared"),
    Phase("checkpoint's commit", "", "", ("commit", "commit part", "delete", "commit"), "prepared"),
    Phase("evaluating", "evaluate: scoring", "report: ", ("evaluation",), "trained"),
)


class Run:
    """One program in `folder`; its lines on stderr and stdout with the seconds since its start."""

    def __init__(self, folder: Path, *program: str):
        folder.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {
            "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(Path(WORKDIR.value).absolute() / "xla"),
        }  # fmt: skip
        self.lines, self._begin = [], time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", *program], cwd=folder, env=environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def read(self, until: str | None = None) -> bool:
        """Reads to the first line that holds `until`, or to the end; whether there was one."""
        for line in self._process.stdout:
            self.lines.append((time.monotonic() - self._begin, line))
            if until and until in line:
                return True
        return False

    def at(self, words: str) -> float:
        """When the first line that holds the words came."""
        return next((seconds for seconds, line in self.lines if words and words in line), 0.0)

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self.read()

    def end(self) -> int:
        self.read()
        return self._process.wait()


def content(folder: Path) -> dict[str, str]:
    """Name -> hash of all that a finished run must have in common with another one.

    Left out: times (`timings.json`, `windows_per_second`, TensorBoard's events) and how Orbax lays out a checkpoint
    (random names): of it count the step, the arrays of the whole training state, and the document beside them.
    """
    from ssad_jax import checkpoint

    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name.startswith("run/checkpoints/") or re.match(r"prepared/timings\.json|run/events\.out|out\.", name):
            continue
        data = path.read_bytes()
        if name == "run/metrics.jsonl":
            data = re.sub(rb'"windows_per_second": [^,}]*', b"", data)
        found[name] = hashlib.sha256(data).hexdigest()
    for step in checkpoint.steps(folder / "run/checkpoints"):
        whole = checkpoint.restore(folder / "run/checkpoints", step=step)
        for name, array in sorted(whole.tree.items()):
            found[f"checkpoint {step}: {name}"] = hashlib.sha256(array.tobytes()).hexdigest()
    return found


def differences(expected: dict, found: dict) -> list[str]:
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def prepare_case(folder: Path, reference: Path, start: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if start != "nothing":
        shutil.copytree(reference / "prepared", folder / "prepared")
    if start == "trained":
        left_out = shutil.ignore_patterns("evaluation", "report.html")
        shutil.copytree(reference / "run", folder / "run", ignore=left_out)


def kill_one(phase: Phase, turn: int, draw: random.Random, folder: Path, reference: "Run", counts: dict) -> str:
    """Starts the phase's program and kills it; returns the moment in words."""
    timed = phase.end and (not phase.spots or turn % 2 == 0)
    if timed:
        run = Run(folder, *phase.program)
        lasts = reference.at(phase.end) - reference.at(phase.begin)
        delay = draw.uniform(0, lasts)
        if phase.begin:
            run.read(phase.begin)
        time.sleep(delay)
        run.kill()
        last = run.lines[-1][1].strip()[:60] if run.lines else "nothing said yet"
        return f"{delay:.2f} s of {lasts:.2f} s in; last line: {last}"
    spot = phase.spots[turn % len(phase.spots)]
    number = draw.randint(1, max(1, counts.get(spot, 1)))
    delay = draw.choice((0, draw.uniform(0, 0.01)))
    run = Run(folder, "tests.chaos.die", spot, str(number), str(delay), "-", *phase.program)
    code = run.end()
    words = f"{spot} {number} of {counts.get(spot)}, {1000 * delay:.1f} ms later"
    return words if code == -signal.SIGKILL else f"{words}: NOT REACHED (exit code {code})"


def main(_) -> None:
    workdir = Path(WORKDIR.value).absolute()
    shutil.rmtree(workdir / "cases", ignore_errors=True)
    undisturbed = workdir / "undisturbed"
    contents = []
    for _ in range(2):  # the second time with compiled programs, as all later ones; both must agree
        shutil.rmtree(undisturbed, ignore_errors=True)
        reference = Run(undisturbed, "tests.chaos.die", "-", "0", "0", str(workdir / "counts"), *MAIN)
        if reference.end():
            sys.exit("".join(line for _, line in reference.lines[-30:]))
        contents.append(content(undisturbed))
    expected, counts = contents[1], json.loads((workdir / "counts").read_text())
    counts["rename away"] = 1  # only where a dataset is replaced
    if differing := differences(*contents):
        sys.exit(f"two undisturbed runs differ: {differing}")
    print(f"{len(expected)} files and arrays to agree; spots {counts}", flush=True)

    draw, table = random.Random(SEED.value), defaultdict(lambda: [0, 0, 0])
    for number in range(KILLS.value):
        turn, place = divmod(number, len(PHASES))
        phase, folder = PHASES[place], workdir / "cases" / str(number)
        prepare_case(folder, undisturbed, phase.start)
        moment = kill_one(phase, turn, draw, folder, reference, counts)
        again = Run(folder, *MAIN)
        code = again.end()
        differing = differences(expected, content(folder) if code == 0 else {})
        hit = "NOT REACHED" not in moment
        table[phase.name] = [a + b for a, b in zip(table[phase.name], (hit, code == 0, not differing), strict=True)]
        print(f"{number + 1}: {phase.name}: {moment}; exit {code}; {differing[:5] or 'equal'}", flush=True)
        if code == 0 and not differing:
            shutil.rmtree(folder)
        else:
            (folder / "out.log").write_text("".join(line for _, line in again.lines))
    print("\n| phase | kills | reruns that finished | all files equal |\n|---|---|---|---|")
    total = [sum(row[i] for row in table.values()) for i in range(3)]
    for name, row in [*table.items(), ("**all**", total)]:
        print(f"| {name} | {row[0]} | {row[1]} | {row[2]} |")
    sys.exit(int(total != [KILLS.value] * 3))


if __name__ == "__main__":
    app.run(main)
