"""The masked nodes of a batch as one short list of rows: the reconstruction head need not look at the others.

How many nodes are masked differs from batch to batch, and a compiled program's shapes do not, so that there are slots
for more than will ever be needed: the mean and SIGMAS standard deviations. Were there more masked nodes than slots, the
last ones would be left out of the mean that the loss is.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssad_jax.layers.layout import MULTIPLE, Layout

SIGMAS = 7.0
WORTHWHILE = 0.6  # of all rows; with more slots than that, taking every row is as cheap


class Rows(NamedTuple):
    """P rows of a stack of windows of n nodes, sorted by kind like a layout."""

    flat: jax.Array  # [P] int32: window * n + node
    window: jax.Array  # [P] int32
    node: jax.Array  # [P] int32
    real: jax.Array  # [P] bool, false at slots that are not needed
    slices: tuple[tuple[int, int, int], ...]  # (kind, first row, end row)
    kind: np.ndarray  # [P] int32

    def take(self, x: jax.Array) -> jax.Array:
        """[..., n, F], the leading axes the windows -> [P, F]."""
        return x.reshape(-1, x.shape[-1])[self.flat]


def slots(layout: Layout, num_windows: int, ratio: float) -> tuple[int, ...] | None:
    """Slots for the masked nodes of each of the layout's slices; None where packing is not worthwhile.

    Args:
        ratio: each unit of nodes is masked with this probability, in each window by itself.
    """
    out = []
    for _, first, end in layout.slices:
        own = layout.unit_hash[first:end][layout.node_mask[first:end]]
        sizes = np.unique(own, return_counts=True)[1].astype(float)
        mean = num_windows * ratio * sizes.sum()
        deviation = math.sqrt(num_windows * ratio * (1 - ratio) * np.square(sizes).sum())
        needed = math.ceil((mean + SIGMAS * deviation + sizes.max(initial=0)) / MULTIPLE) * MULTIPLE
        out.append(min(needed, num_windows * (end - first)))
    return tuple(out) if sum(out) < WORTHWHILE * num_windows * len(layout.order) else None


def pack(masked: jax.Array, layout: Layout, capacity: tuple[int, ...]) -> Rows:
    """The rows of masked nodes; masked [..., n] bool, capacity from `slots`."""
    num_nodes, parts, cuts = masked.shape[-1], [], [0]
    for (_, first, end), size in zip(layout.slices, capacity, strict=True):
        own = masked[..., first:end].reshape(-1)
        place = jnp.nonzero(own, size=size, fill_value=len(own))[0].astype(jnp.int32)
        real, place = place < len(own), jnp.minimum(place, len(own) - 1)
        parts.append((place // (end - first), first + place % (end - first), real))
        cuts.append(cuts[-1] + size)
    window, node, real = (jnp.concatenate(columns) for columns in zip(*parts, strict=True))
    kinds = [kind for kind, _, _ in layout.slices]
    slices = tuple(zip(kinds, cuts, cuts[1:], strict=False))
    return Rows(window * num_nodes + node, window, node, real, slices, np.repeat(kinds, capacity).astype(np.int32))
