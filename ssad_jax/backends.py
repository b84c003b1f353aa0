"""What is done one way on a CPU and another way on an accelerator: every choice that hangs on the device, in one place.

Each form of a choice gives the same results up to rounding (tests); docs/performance.md says what was measured.
"""

from typing import NamedTuple

import jax


class Choices(NamedTuple):
    """How to compute on one kind of device."""

    dense_below: float  # propagation: dense where N^2 / E is below this, else by segments
    views_together: bool  # both views of a training batch encoded as one batch
    networks_together: bool  # networks advance together (vmap) instead of one after another
    rows_together: int  # scoring: rows of nodes (windows x nodes x passes) computed at once, as many as fit caches


CPU = Choices(dense_below=50.0, views_together=False, networks_together=False, rows_together=1024)
ACCELERATOR = Choices(dense_below=250.0, views_together=True, networks_together=True, rows_together=1 << 22)


def choices(backend: str | None = None) -> Choices:
    """The choices for 'cpu', 'gpu' or 'tpu'; by default for the devices that this process uses."""
    return CPU if (backend or jax.default_backend()) == "cpu" else ACCELERATOR
