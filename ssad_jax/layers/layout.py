"""The order in which a method keeps nodes: real nodes sorted by kind, then as little padding as possible.

Which slots of a prepared dataset are real, and of which kind, is the same in every window. Sorting them once makes
a projection per kind a matrix product on a static slice, and leaving out unused slots saves their whole cost. Only
narrow arrays are reordered on the way in and out.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jraph
import numpy as np

from ssad_jax.prepared import CONTEXT_DIM, System

MULTIPLE = 8  # rows of an accelerator's matrix tile


class Graphs(NamedTuple):
    """Windows in a layout's order; leading axes [B, S]."""

    context: jax.Array  # [B, S, n, 16]
    signal: jax.Array  # [B, S, n, 16]
    senders: jax.Array  # [B, S, E] int32
    receivers: jax.Array  # [B, S, E] int32
    weight: jax.Array  # [B, S, E] float32: 1 at edges, 0 at padding


@dataclasses.dataclass(frozen=True)
class Layout:
    """Static; arrays are numpy and in the layout's order unless said otherwise."""

    order: np.ndarray  # [n] slot of the dataset that row i holds
    rank: np.ndarray  # [N] row that holds a slot; 0 for slots left out
    kept: np.ndarray  # [N] bool: real slots
    slices: tuple[tuple[int, int, int], ...]  # (kind, first row, end row), in row order, covering all rows
    kind: np.ndarray  # [n] int32
    node_mask: np.ndarray  # [n] bool
    signal_mask: np.ndarray  # [n, 16] bool
    unit_hash: np.ndarray  # [n] uint32
    identity: np.ndarray  # [n, 96] float32

    @classmethod
    def of(cls, system: System) -> "Layout":
        real = np.flatnonzero(system.node_mask)
        real = real[np.argsort(system.kind[real], kind="stable")]
        spare = np.flatnonzero(~system.node_mask)[: -len(real) % MULTIPLE]
        order = np.concatenate([real, spare]).astype(np.int32)
        rank = np.zeros(len(system.node_mask), np.int32)
        rank[order] = np.arange(len(order))
        # Padding rows go with the last kind: they are masked wherever it matters.
        kind = np.concatenate([system.kind[real], np.full(len(spare), system.kind[real[-1]])]).astype(np.int32)
        cuts = [0, *(np.flatnonzero(np.diff(kind)) + 1).tolist(), len(kind)]
        slices = tuple((int(kind[a]), a, b) for a, b in zip(cuts, cuts[1:], strict=False))
        return cls(
            order, rank, np.asarray(system.node_mask), slices, kind, system.node_mask[order],
            system.signal_mask[order], system.unit_hash[order], system.identity[order],
        )  # fmt: skip

    def arrange(self, graphs: jraph.GraphsTuple) -> Graphs:
        """A stacked GraphsTuple (`batching.graphs_tuple`) in this order."""
        nodes = graphs.nodes[..., self.order, :]
        rank = jnp.asarray(self.rank)
        edges = jnp.arange(graphs.senders.shape[-1]).reshape((1,) * (graphs.n_edge.ndim - 1) + (-1,))
        weight = (edges < graphs.n_edge[..., :1]).astype(jnp.float32)
        return Graphs(
            nodes[..., :CONTEXT_DIM], nodes[..., CONTEXT_DIM:], rank[graphs.senders], rank[graphs.receivers], weight
        )

    def restore(self, rows: jax.Array) -> jax.Array:
        """Rows [..., n, F] back to the dataset's slots [..., N, F]; zero at padding."""
        kept = self.kept.reshape((1,) * (rows.ndim - 2) + (-1, 1))
        return jnp.where(kept, rows[..., self.rank, :], 0)
