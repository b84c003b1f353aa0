"""Where the time of a compiled program goes: by operation, and by the named scopes that operations were written in.

The profiler times each operation as it runs in the whole program, fused as it is; an operation that was fused from
several scopes counts for the scope of its last one. Loops and calls are left out in favour of what they contain.
"""

import collections
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax

PARTS = ("input", "projection", "propagation", "gru", "heads", "optimiser")
OTHER = "other"
CONTAINERS = ("while", "call", "conditional")


class Operation(NamedTuple):
    """What an operation of a compiled program was written as."""

    part: str  # the innermost of PARTS in its source, else OTHER
    source: str  # scopes and primitive, of the last of the operations that were fused; "" where unknown


class Timed(NamedTuple):
    """An operation and its share of the busy time."""

    name: str
    part: str
    source: str
    share: float


def profile(text: str, run) -> list[Timed]:
    """The operations that were timed while `run()` ran the program with the compiled `text`, heaviest first."""
    with tempfile.TemporaryDirectory(prefix="ssad_jax-profile-") as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run())
        file = max(Path(folder).rglob("*.xplane.pb"))
        known = operations(text)
        spent = times(jax.profiler.ProfileData.from_file(str(file)).planes, known)
    whole, unknown = sum(spent.values()), Operation(OTHER, "")
    return [Timed(name, *known.get(name, unknown), time / whole) for name, time in spent.most_common()]


def shares(timed: list[Timed]) -> dict[str, float]:
    """Share of the busy time of each part."""
    return {part: sum(t.share for t in timed if t.part == part) for part in (*PARTS, OTHER)} if timed else {}


def operations(text: str) -> dict[str, Operation]:
    """The operations in the text of a compiled program."""
    out = {}
    for line in text.splitlines():
        match = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = ", line)
        if match and not match.group(1).startswith(CONTAINERS):
            named = re.search(r'op_name="([^"]*)"', line)
            source = named.group(1) if named else ""
            found = [word for word in re.findall(r"\w+", source) if word in PARTS]
            out[match.group(1)] = Operation(found[-1] if found else OTHER, source)
    return out


def times(planes, known: dict[str, Operation]) -> collections.Counter:
    """Nanoseconds by operation in the planes of a profile.

    A GPU's plane holds each kernel in the line of its stream and once more, put together by operation, in a line "XLA
    Ops"; a TPU's has the latter alone; the host's planes repeat the names where it launches kernels. So each plane is
    read by its streams, or else by "XLA Ops", and the host only where there is no device, which is a CPU's case.
    """
    planes = list(planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    kernels = {re.sub(r"\W", "_", name): name for name in known}
    spent = collections.Counter()
    for plane in devices:
        streams = [line for line in plane.lines if line.name.startswith("Stream")]
        for line in streams or [line for line in plane.lines if line.name == "XLA Ops"]:
            for event in line.events:  # copies and libraries' kernels without an operation go by their own names
                spent[_operation(event, known) or kernels.get(event.name, event.name)] += event.duration_ns
    if not spent:
        for line in (line for plane in planes if plane not in devices for line in plane.lines):
            for event in line.events:
                if name := _operation(event, known):
                    spent[name] += event.duration_ns
    return spent


def _operation(event, known: dict[str, Operation]) -> str | None:
    """The operation that an event timed, if it says so: by its name, or beside the kernel's name on GPUs.

    Kernels launched together as a graph name the graph instead; they go by their own name, which is the operation's.
    """
    if event.name in known:
        return event.name
    return next((value for key, value in event.stats if key == "hlo_op" and value in known), None)
