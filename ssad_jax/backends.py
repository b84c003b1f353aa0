"""What is done one way on a CPU and another way on an accelerator: every choice that hangs on the device, in one place.

Each form of a choice gives the same results up to rounding (tests); docs/performance.md says what was measured.
"""

import contextlib
from typing import NamedTuple

import jax


class Choices(NamedTuple):
    """How to compute on one kind of device. A row is a node of a window; rows count windows x nodes."""

    dense_below: float  # propagation: dense where N^2 / E is below this, else by segments
    views_together: bool  # both views of a training batch encoded as one batch
    networks_together: bool  # networks advance together (vmap) instead of one after another
    rows_trained: int  # encoded at once in training: what is passed from one operation to the next stays in caches
    rows_scored: int  # the same in scoring, passes counted
    gru_unroll: int  # steps
    masked_rows: bool  # reconstruction head on the rows of masked nodes alone, else on all nodes


CPU = Choices(
    dense_below=10.0, views_together=False, networks_together=False, rows_trained=4096, rows_scored=1024, gru_unroll=8,
    masked_rows=True,
)  # fmt: skip
ACCELERATOR = Choices(
    dense_below=250.0, views_together=True, networks_together=True, rows_trained=1 << 30, rows_scored=1 << 20,
    gru_unroll=8, masked_rows=False,
)  # fmt: skip
_instead: list[Choices] = []


def choices(backend: str | None = None) -> Choices:
    """The choices for 'cpu', 'gpu' or 'tpu'; by default for the devices that this process uses."""
    if _instead and backend is None:
        return _instead[-1]
    return CPU if (backend or jax.default_backend()) == "cpu" else ACCELERATOR


@contextlib.contextmanager
def instead(**changed):
    """Trace programs with other choices than the device's, for a while: to measure them, and to test."""
    _instead.append(choices()._replace(**changed))
    try:
        yield
    finally:
        _instead.pop()
