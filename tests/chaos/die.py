"""Runs a program that kills itself (SIGKILL, the whole process group) at an exact spot: its n-th call on some files.

    python -m tests.chaos.die SPOT NUMBER DELAY MODULE ARGUMENTS...

What a spot is, Python's audit events tell: they come before the call that they are about. DELAY (seconds) puts the kill
that much later.
"""

import itertools
import os
import re
import runpy
import signal
import sys
import threading
import time

# spot -> audit event, what its arguments look like
SPOTS = {
    "scratch": ("open", r"partial-.*/(raw|scratch|observations)/.*', '[wax]"),
    "arrays": ("open", r"partial-.*/(windows|ticks|system|sequences|manifest|timings).*', '[wax]"),
    "rename": ("os.rename", r", '[^']*/prepared'"),
    "rename away": ("os.rename", r"/prepared', "),
    "run files": ("os.rename", r"'[^']*(metrics\.jsonl|config\.json)'"),
    "commit": ("os.rename", r"'[^']*/checkpoints/[^/']*'"),
    "commit part": ("os.mkdir|open", r"/checkpoints/.*(tmp|, '[wax])"),
    "delete": ("os.remove|os.rmdir|shutil.rmtree", r"/checkpoints/"),
    "evaluation": ("os.rename", r"'[^']*(/evaluation/[^/']*|report\.html)'"),
}


def main() -> None:
    spot, number, delay, module, *arguments = sys.argv[1:]
    (events, pattern), passed, own = SPOTS[spot], itertools.count(1), os.getpid()

    def hook(event, values):
        if re.fullmatch(events, event) and os.getpid() == own and re.search(pattern, str(values)):
            if next(passed) == int(number):
                die(float(delay))

    sys.addaudithook(hook)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def die(delay: float) -> None:
    if delay:
        threading.Thread(target=lambda: (time.sleep(delay), os.killpg(0, signal.SIGKILL)), daemon=True).start()
    else:
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
