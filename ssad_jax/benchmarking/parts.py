"""Where the time of a compiled program goes, by the named scopes that its operations were written in.

The profiler times each operation as it runs in the whole program, fused as it is; an operation that was fused from
several scopes counts for the scope of its last one. Loops and calls are left out in favour of what they contain.
"""

import collections
import re
import tempfile
from pathlib import Path

import jax

PARTS = ("input", "projection", "propagation", "gru", "heads", "optimiser")
OTHER = "other"
CONTAINERS = ("while", "call", "conditional")


def shares(text: str, run) -> dict[str, float]:
    """Share of the busy time of each part while `run()` runs the program with the compiled `text`."""
    part_of = operations(text)
    with tempfile.TemporaryDirectory(prefix="ssad_jax-profile-") as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run())
        file = max(Path(folder).rglob("*.xplane.pb"))
        spent = collections.Counter()
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for line in plane.lines:
                for event in line.events:
                    name = _operation(event, part_of)
                    if name is not None:
                        spent[part_of[name]] += event.duration_ns
    whole = sum(spent.values())
    return {part: spent[part] / whole for part in (*PARTS, OTHER)} if whole else {}


def operations(text: str) -> dict[str, str]:
    """Part of each operation in the text of a compiled program: the innermost of PARTS in its name, else OTHER."""
    out = {}
    for line in text.splitlines():
        match = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = ", line)
        if match and not match.group(1).startswith(CONTAINERS):
            named = re.search(r'op_name="([^"]*)"', line)
            found = [word for word in re.findall(r"\w+", named.group(1)) if word in PARTS] if named else []
            out[match.group(1)] = found[-1] if found else OTHER
    return out


def _operation(event, known: dict[str, str]) -> str | None:
    """The operation that an event of the profile timed, if any. GPUs tell it beside the kernel's name."""
    if event.name in known:
        return event.name
    for key, value in event.stats:
        if key == "hlo_op" and value in known:
            return value
    return None
