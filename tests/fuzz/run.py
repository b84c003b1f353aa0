"""Coverage-guided fuzzing of one reader: `python -m tests.fuzz.run --target=jaeger --runs=100000 [--seconds=60]`.

Needs `pip install -e ".[fuzz]"`. An uncaught exception other than InputError, more than SECONDS of processor time for
one input, a hang and more than MEGABYTES of memory are findings: the input is written into the working directory as
`fuzz-<target>-*`, and the command ends with an exit code other than 0. `--keep_going` tells each kind of finding once
and goes on, but for hangs and memory.
"""

import importlib
import random
import shutil
import sys
import time
import traceback
from pathlib import Path

import atheris
from absl import app, flags

from data_prep.errors import InputError
from tests.fuzz import mutate
from tests.fuzz.target import SCRATCH, Target

FAMILIES = ("apis", "archives", "exports", "table_files", "written")  # modules with TARGETS; the last one imports jax
SECONDS = 1.0  # of processor time: the wall clock of a busy machine is no measure
HANG = 30  # seconds of wall clock after which an input is given up
MEGABYTES = 1024
LONGEST = 1 << 14  # bytes of an input

FLAGS = flags.FLAGS
flags.DEFINE_string("target", None, "Which reader; 'list' tells the names.", required=True)
flags.DEFINE_integer("runs", 10_000, "How many inputs.", lower_bound=1)
flags.DEFINE_integer("seconds", 0, "Stop after so many seconds; 0: never.", lower_bound=0)
flags.DEFINE_integer("seed", 1, "Of the fuzzer's random numbers.", lower_bound=1)
flags.DEFINE_bool("keep_going", False, "Tell each kind of finding once instead of stopping at the first.")


class Slow(Exception):
    """One input took too long."""


def find(name: str) -> Target:
    """The target of this name; ends the program where there is none."""
    known = {}
    for family in FAMILIES:
        with atheris.instrument_imports(include=["data_prep", "ssad_jax"]):
            known |= {target.name: target for target in importlib.import_module(f"tests.fuzz.{family}").TARGETS}
        if name in known:
            return known[name]
    sys.exit("\n".join(f"{target.name}: {target.what}" for target in known.values()))


def main(_):
    target, seen = find(FLAGS.target), set()

    def once(data: bytes) -> None:
        begin = time.process_time()
        try:
            target.run(data)
        except InputError:
            pass
        if time.process_time() - begin > SECONDS:
            raise Slow(f"{time.process_time() - begin:.1f} s")

    def reported(data: bytes) -> None:
        try:
            once(data)
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            kind = type(error).__name__, where.filename, where.lineno
            if not FLAGS.keep_going:
                raise
            if kind not in seen:
                seen.add(kind)
                traceback.print_exc()
                print(f"FINDING {len(seen)} of {target.name}: {error!r:.300}\n  {data[:1000]!r}", file=sys.stderr)

    def custom(data: bytes, max_size: int, seed: int) -> bytes:
        """Half of the inputs are good ones with something changed: what coverage selects tends to be short and bad."""
        draw = random.Random(seed)
        if draw.random() < 0.5:
            data = draw.choice(target.seeds)
        if draw.random() < 0.75:
            return mutate.mutated(data, target.form, seed)[:max_size]
        return atheris.Mutate(data, max_size)

    for left in SCRATCH.parent.glob(f"{SCRATCH.name.rpartition('-')[0]}-*"):  # libFuzzer ends the process itself
        if not Path("/proc", left.name.rpartition("-")[2]).exists():
            shutil.rmtree(left, ignore_errors=True)
    corpus = SCRATCH / "corpus"
    corpus.mkdir(parents=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed{number}").write_bytes(seed)
    arguments = [
        sys.argv[0], f"-runs={FLAGS.runs}", f"-max_total_time={FLAGS.seconds}", f"-seed={FLAGS.seed}",
        f"-max_len={LONGEST}", f"-timeout={HANG}", f"-rss_limit_mb={MEGABYTES}", "-print_final_stats=1",
        f"-artifact_prefix=fuzz-{target.name}-", str(corpus),
    ]  # fmt: skip
    atheris.Setup(arguments, reported, custom_mutator=custom)
    atheris.Fuzz()  # does not return


if __name__ == "__main__":
    app.run(main)
