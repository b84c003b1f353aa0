"""Windows' event graphs as compared systems see them: some kinds of nodes, typed edges with a direction."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssad_jax.batching import Batch
from ssad_jax.prepared import EDGE_KINDS, NODE_KINDS, System

COOCCURRENCE = EDGE_KINDS.index("cooccurrence")
RELATIONS = 2 * len(EDGE_KINDS)  # a kind along its direction, and against it; co-occurrence has none
SERVICE, DEPENDENCY = NODE_KINDS.index("service"), NODE_KINDS.index("dependency")
CLIP = 6.0  # inputs are in units of their normal scale


class Graphs(NamedTuple):
    """n windows of V nodes and E edges."""

    x: jax.Array  # [n, V, 128]: identity, context and signals
    senders: jax.Array  # [n, E] int32
    receivers: jax.Array  # [n, E] int32
    relation: jax.Array  # [n, E] int32: kind, + 3 against its direction
    there: jax.Array  # [n, E] bool
    mask: jax.Array  # [n] bool: the window exists


@dataclasses.dataclass(frozen=True)
class Nodes:
    """Static: the V nodes that a system looks at, in the order of slots."""

    slot: np.ndarray  # [V] int
    row: np.ndarray  # [N] int32: row of a slot; -1 where it is left out
    identity: np.ndarray  # [V, 96] float32
    kind: np.ndarray  # [V] int
    service: np.ndarray  # [V] int32
    caller: np.ndarray  # [V] int32
    signals: np.ndarray  # [V, 16] bool: which signals there are

    @classmethod
    def of(cls, system: System, metrics: bool) -> "Nodes":
        """All real nodes, or all but those of metrics."""
        kept = system.node_mask & (metrics | (system.kind != NODE_KINDS.index("metric")))
        slot, row = np.flatnonzero(kept), np.full(len(kept), -1, np.int32)
        row[slot] = np.arange(len(slot))
        facts = (system.identity, system.kind.astype(int), system.service, system.caller, system.signal_mask)
        return cls(slot, row, *(fact[slot] for fact in facts))

    def graphs(self, batch: Batch) -> Graphs:
        """The windows of a batch, B * S of them."""
        graphs, count = batch.graphs, batch.window_mask.size
        nodes = jnp.clip(graphs.nodes.reshape(count, *graphs.nodes.shape[2:])[:, self.slot], -CLIP, CLIP)
        identity = jnp.broadcast_to(jnp.asarray(self.identity)[None], (count, *self.identity.shape))
        row, ends = jnp.asarray(self.row), (graphs.senders, graphs.receivers)
        senders, receivers = (row[end.reshape(count, -1)] for end in ends)
        place = jnp.broadcast_to(jnp.arange(senders.shape[1])[None], senders.shape)
        there = (place < graphs.n_edge.reshape(count, -1)[:, :1]) & (senders >= 0) & (receivers >= 0)
        senders, receivers = jnp.maximum(senders, 0), jnp.maximum(receivers, 0)
        kind = graphs.edges.reshape(count, -1).astype(jnp.int32)
        against = ~self._along(senders, receivers) & (kind != COOCCURRENCE)
        relation = kind + len(EDGE_KINDS) * against
        x = jnp.concatenate([identity, nodes], axis=-1)
        return Graphs(x, senders, receivers, relation, there, batch.window_mask.reshape(-1))

    def _along(self, senders: jax.Array, receivers: jax.Array) -> jax.Array:
        """Whether an edge leads from a caller to its call, from a call to its callee, or from a service to its own."""
        kind, service, caller = (jnp.asarray(fact) for fact in (self.kind, self.service, self.caller))
        called = (kind[senders] == DEPENDENCY) & (service[receivers] == service[senders])
        calls = (kind[receivers] == DEPENDENCY) & (service[senders] == caller[receivers])
        owns = (kind[senders] == SERVICE) & (kind[receivers] != DEPENDENCY) & (kind[receivers] != SERVICE)
        return jnp.where(kind[senders] == DEPENDENCY, called, calls | owns)

    def levels(self) -> np.ndarray:
        """[V] int: services by their distance from those that none calls, their calls and other nodes below them.

        An edge is one of the acyclic graph where it leads to a higher level.
        """
        calls = (self.kind == DEPENDENCY) & (np.minimum(self.caller, self.service) >= 0)
        pairs = np.unique(np.stack([self.caller, self.service], axis=1)[calls], axis=0)
        depth = depths(pairs[pairs[:, 0] != pairs[:, 1]], 1 + max(self.caller.max(), self.service.max()))
        depth = np.append(depth, 0)  # of what belongs to no service
        own = 2 * depth[self.service] + (self.kind != SERVICE)
        return np.where(self.kind == DEPENDENCY, 2 * depth[self.caller] + 1, own)


def depths(pairs: np.ndarray, count: int) -> np.ndarray:
    """[U] int: least number of calls (pairs of caller and callee, [C, 2]) that lead to each of U services.

    Counted from services that none calls; in circles that none of these reaches, from the one that calls most others
    for each that calls it.
    """
    called, calling = (np.bincount(pairs[:, end], minlength=count) for end in (1, 0))
    depth = np.full(count, -1)
    depth[called == 0] = 0
    for start in np.argsort(called - calling, kind="stable"):
        if (depth >= 0).all():
            break
        while len(ahead := pairs[(depth[pairs[:, 0]] >= 0) & (depth[pairs[:, 1]] < 0)]):
            nearest = ahead[depth[ahead[:, 0]] == depth[ahead[:, 0]].min()]
            depth[nearest[:, 1]] = depth[nearest[:, 0]] + 1
        depth[start] = max(depth[start], 0)
    return depth
