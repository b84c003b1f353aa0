"""Kills runs of `ssad_jax.main` at random moments of every phase and starts them again: is the end the same?

    python -m tests.chaos.kill --kills=56 --seed=0 --workdir=/tmp/chaos [--signal=TERM]

A chain is one run of `configs/smoke.py`, made smaller, whose process group is killed (SIGKILL) in one phase after
another, each time after the same command was started again: at a random moment of the phase, in processor time since
the line that begins it, or at an exact call (`die`) where the phase is too short to be hit. In the end the command runs
undisturbed, and every file must be, byte for byte, that of a run that nobody ever disturbed. Prints a table as
Markdown; exit code 1 where something differs.
"""

import hashlib
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
KILLS = flags.DEFINE_integer("kills", 56, "At least so many; chains are brought to their end.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")
SIGNAL = flags.DEFINE_enum("signal", "KILL", ["KILL", "TERM"], "TERM: at timed moments alone; exit code 75 is due.")
WORKDIR = flags.DEFINE_string("workdir", None, "For the runs; made anew.", required=True)
ARGUMENTS = (
    f"--config={ROOT}/configs/smoke.py", f"--config.knowledge.path={ROOT}/configs/knowledge/openstack.yaml",
    "--config.data.prepared_dir=prepared", "--config.simulate.hours=0.4", "--config.train.num_epochs=8",
    "--config.score.bootstrap=0",
)  # fmt: skip
MAIN = ("ssad_jax.main", *ARGUMENTS, "--workdir=run")
PREPARE = ("data_prep.main", *ARGUMENTS)


@dataclass(frozen=True)
class Phase:
    """`begin`, `end`: words of its first and of the first later line on stderr; `spots`: calls in it (`die.SPOTS`)."""

    name: str
    begin: str = ""
    end: str = ""
    spots: tuple[tuple[str, int], ...] = ()  # and of how many of them the one is drawn
    program: tuple[str, ...] = MAIN
    from_start: bool = False  # nothing is said before it begins


PHASES = (
    Phase("simulating", "", "simulate: "),
    Phase("reading", "simulate: ", "read: "),
    Phase("reading", spots=(("scratch", 40),)),
    Phase("fitting", "read: ", "fit: "),
    Phase("transforming", "fit: ", "transform: "),
    Phase("writing", "transform: ", "prepared prepared"),
    Phase("writing", spots=(("arrays", 30),)),
    Phase("final rename", spots=(("rename", 1),)),
    Phase("final rename of another dataset", spots=(("rename away", 1), ("rename", 1)), program=PREPARE),
    Phase("starting to train", "prepared prepared", "examples (", from_start=True),
    Phase("checkpoint's commit", spots=(("commit", 1), ("commit part", 17))),
    Phase("training", "examples (", "epoch 8/8"),
    Phase("checkpoint's commit", spots=(("delete", 14), ("commit", 2))),
    Phase("evaluating", "evaluate: scoring", "report: "),
    Phase("evaluating", spots=(("evaluation", 5),)),
)
TIMED = [phase for phase in PHASES if phase.end]


class Run:
    """One program in `folder`; its lines on stderr and stdout, each with the processor seconds that it had used."""

    def __init__(self, folder: Path, *program: str):
        folder.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {
            "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(Path(WORKDIR.value).absolute() / "xla"),
        }  # fmt: skip
        self.lines, self._seconds = [], 0.0
        self._process = subprocess.Popen(
            [sys.executable, "-m", *program], cwd=folder, env=environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace",
        )  # fmt: skip

    def read(self, until: str | None = None) -> bool:
        """Reads to the first line that holds `until`, or to the end; whether there was one."""
        for line in self._process.stdout:
            self.lines.append((self.seconds(), line))
            if until and until in line:
                return True
        return False

    def seconds(self) -> float:
        """Processor time used so far: unlike time, it says on a busy machine too how far the program is."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
            self._seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except FileNotFoundError:  # it has ended
            pass
        return self._seconds

    def running(self) -> bool:
        return self._process.poll() is None

    def at(self, words: str) -> float:
        """The processor time at the first line that holds the words."""
        return next((seconds for seconds, line in self.lines if words and words in line), 0.0)

    def interrupt(self, number: int) -> int:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:  # it has just ended
            pass
        return self.end()

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
    """Names of what differs or is in one of them alone."""
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def phase_of(lines: list[str]) -> str:
    """The phase of preparing or training that a run which has said these lines was in."""
    begun = [phase.name for phase in TIMED if phase.begin and any(phase.begin in line for line in lines)]
    return begun[-1] if begun else TIMED[0].name


def interrupt(phase: Phase, chain: int, draw: random.Random, folder: Path, reference: Run) -> tuple[str, str, int]:
    """Starts the phase's program and interrupts it.

    Returns the phase that it was in by then (it may have been faster than the undisturbed run), the moment in words,
    and the exit code.
    """
    if phase.spots:
        spot, most = phase.spots[chain % len(phase.spots)]
        number, delay = draw.randint(1, most), draw.choice((0, draw.uniform(0, 0.01)))
        code = Run(folder, "tests.chaos.die", spot, str(number), str(delay), *phase.program).end()
        return phase.name, f"call {number} of '{spot}', {1000 * delay:.1f} ms later", code
    run = Run(folder, *phase.program)
    lasts = reference.at(phase.end) - reference.at(phase.begin)
    delay = draw.uniform(0, lasts)
    begin = 0.0
    if phase.begin and not phase.from_start:
        run.read(phase.begin)
        begin = run.at(phase.begin)
    while run.running() and run.seconds() < begin + delay:
        time.sleep(0.002)
    code = run.interrupt(getattr(signal, f"SIG{SIGNAL.value}"))
    lines = [line.strip() for _, line in run.lines if line.strip()]
    found = phase.name if phase.from_start else phase_of(lines)
    return found, f"{delay:.2f} of {lasts:.2f} processor s in, last line: {lines[-1][-60:] if lines else 'none'}", code


def main(_) -> None:
    workdir = Path(WORKDIR.value).absolute()
    shutil.rmtree(workdir / "chains", ignore_errors=True)
    undisturbed, contents = workdir / "undisturbed", []
    warm = (workdir / "xla").exists()
    for _ in range(1 if warm else 2):  # the second time with compiled programs, as all later ones; both must agree
        shutil.rmtree(undisturbed, ignore_errors=True)
        reference = Run(undisturbed, *MAIN)
        if reference.end():
            sys.exit("".join(line for _, line in reference.lines[-30:]))
        contents.append(content(undisturbed))
    if differing := differences(contents[0], contents[-1]):
        sys.exit(f"two undisturbed runs differ: {differing}")
    print(f"{len(contents[0])} files and arrays to agree", flush=True)

    phases = [phase for phase in PHASES if SIGNAL.value == "KILL" or not phase.spots]
    draw, table, equal, chain = random.Random(SEED.value), defaultdict(lambda: [0, 0]), [], 0
    while (total := sum(kills for kills, _ in table.values())) < KILLS.value:
        folder, before = workdir / "chains" / str(chain), None
        for phase in phases:
            if phase.program == PREPARE and not (folder / "prepared").exists():
                Run(folder, *PREPARE).end()  # a dataset to replace
            name, moment, code = interrupt(phase, chain, draw, folder, reference)
            hit = code == (-signal.SIGKILL if SIGNAL.value == "KILL" else 75)
            if before and (hit or code == 0):
                table[before][1] += 1  # what was started again has come to its own end
            print(f"chain {chain}: {name}: {moment}; exit code {code}{'' if hit else ' NOT INTERRUPTED'}", flush=True)
            before = name if hit else None
            table[name][0] += hit
            if hit and phase.program != MAIN:  # the same command again, not the one that the chain goes on with
                table[name][1] += Run(folder, *phase.program).end() == 0
                before = None
        code = Run(folder, *MAIN).end()
        if before:
            table[before][1] += code == 0
        differing = differences(contents[0], content(folder) if code == 0 else {})
        equal.append(not differing)
        print(f"chain {chain}: to the end: exit code {code}; {differing[:5] or 'equal'}", flush=True)
        chain += 1
        print("\n| phase | interrupted | the next start went on |\n|---|---|---|")
        for name in dict.fromkeys(phase.name for phase in phases):
            print(f"| {name} | {table[name][0]} | {table[name][1]} |")
        total = [sum(row[i] for row in table.values()) for i in (0, 1)]
        print(f"| **all** | {total[0]} | {total[1]} |\n\nchains: {chain}, equal in the end: {sum(equal)}", flush=True)
    sys.exit(int(not all(equal) or total[0] != total[1]))


if __name__ == "__main__":
    app.run(main)
