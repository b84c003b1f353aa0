"""Runs a program that kills itself (SIGKILL, the whole process group) at an exact spot: its n-th call on some files.

    python -m tests.chaos.die SPOT NUMBER DELAY COUNTS MODULE ARGUMENTS...

What a spot is, Python's audit events tell: they come before the call that they are about. DELAY (seconds) puts the kill
that much later. NUMBER 0: it lives, and COUNTS (a file) tells how often each spot was passed.
"""

import atexit
import json
import os
import re
import runpy
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

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
    spot, number, delay, counts, module, *arguments = sys.argv[1:]
    passed, own = Counter(), os.getpid()

    def hook(event, values):
        for name, (events, pattern) in SPOTS.items():
            if re.fullmatch(events, event) and os.getpid() == own and re.search(pattern, str(values)):
                passed[name] += 1
                if name == spot and passed[name] == int(number):
                    die(float(delay))

    sys.addaudithook(hook)
    if int(number) == 0:
        atexit.register(lambda: Path(counts).write_text(json.dumps(passed)))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def die(delay: float) -> None:
    if delay:
        threading.Thread(target=lambda: (time.sleep(delay), os.killpg(0, signal.SIGKILL)), daemon=True).start()
    else:
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
