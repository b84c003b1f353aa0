"""What a compiled program costs: FLOP, bytes, memory, and what it sends between devices."""

import math
import re

import jax

ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "f64": 8}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def flop_and_bytes(compiled) -> tuple[float, float]:
    """FLOP and bytes accessed of one run of a compiled program, as XLA counts them; a loop's body counts once."""
    analysis = compiled.cost_analysis() or {}
    analysis = analysis[0] if isinstance(analysis, (list, tuple)) else analysis
    return float(analysis.get("flops", math.nan)), float(analysis.get("bytes accessed", math.nan))


def program_bytes(compiled) -> int:
    """Bytes of a compiled program's arguments, results and temporary buffers on one device; 0 where unknown."""
    memory = compiled.memory_analysis()
    if memory is None:
        return 0
    return int(
        memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )  # fmt: skip


def peak_bytes(*compiled) -> tuple[int, str]:
    """The device's own peak where it keeps one (of all programs so far), else the largest program; and which it is."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if statistics.get("peak_bytes_in_use"):
        return int(statistics["peak_bytes_in_use"]), "allocator"
    return max(program_bytes(c) for c in compiled), "compiled programs"


def collectives(text: str) -> list[tuple[str, int]]:
    """(kind, bytes of the result on one device) of each collective in the text of a compiled program.

    Asynchronous ones are written as a start and a done; the start's result holds the operand as well and is left out
    in favour of the done's.
    """
    found = []
    for line in text.splitlines():
        match = re.search(r"= (.*?) (" + "|".join(COLLECTIVES) + r")(-start|-done)?\(", line)
        if match and match.group(3) != "-start":
            found.append((match.group(2), _bytes(match.group(1))))
    return found


def _bytes(shapes: str) -> int:
    total = 0
    for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
        if kind in ITEM_BYTES:
            total += ITEM_BYTES[kind] * math.prod(int(d) for d in dims.split(",") if d)
    return total
