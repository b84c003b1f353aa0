"""Symmetric-normalised propagation D^-1/2 (A + I) D^-1/2 on padded event graphs (METHOD A; Kipf & Welling 2017).

Every edge is stored in both directions. The entries of A are sums of edge weights, so an edge that is stored twice
counts twice; padding edges, and dropped ones, have weight 0. Padding nodes get no self-loop and degree 0.
Edges of weight 0 lead out of the stack of windows, where sums leave them out: padding edges of a window all have the
same ends, and accelerators make additions to one place wait for one another.
Degrees are float32 whatever the features' precision; A's entries are small integers, exact in bfloat16.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssad_jax.backends import choices


class Propagation(NamedTuple):
    """A graph ready to propagate on; leading axes [...] are windows."""

    scale: jax.Array  # [..., N] float32: D^-1/2, 0 at padding
    matrix: jax.Array | None  # [..., N, N]: A[receiver, sender]; None: by segment sums
    senders: jax.Array  # [..., E] int32
    receivers: jax.Array  # [..., E] int32
    weight: jax.Array  # [..., E] float32


def choose(num_nodes: int, num_edges: int, backend: str) -> str:
    """'dense' or 'segment', whichever is expected to be faster on the backend ('cpu', 'gpu', 'tpu')."""
    return "dense" if num_nodes**2 < choices(backend).dense_below * max(num_edges, 1) else "segment"


def prepare(method: str, senders, receivers, weight, node_mask, dtype=jnp.float32) -> Propagation:
    """Degrees, and for 'dense' the adjacency matrix, of a stack of padded graphs.

    Args:
        method: 'dense' or 'segment'.
        senders, receivers: [..., E] int32.
        weight: [..., E] float32, 0 at padding edges.
        node_mask: [N] bool, false at padding nodes; padding nodes must only have edges of weight 0.
        dtype: of the matrix.
    """
    if method not in ("dense", "segment"):
        raise ValueError(f"propagation must be 'dense' or 'segment', not {method!r}")
    lead, num_nodes = senders.shape[:-1], node_mask.shape[-1]
    flat_receivers = received(receivers, weight, num_nodes)
    windows = flat_receivers.size // receivers.shape[-1]
    degree = jax.ops.segment_sum(weight.astype(jnp.float32).reshape(-1), flat_receivers, windows * num_nodes)
    degree = degree.reshape(*lead, num_nodes) + node_mask.astype(jnp.float32).reshape((1,) * len(lead) + (-1,))
    present = node_mask.reshape((1,) * len(lead) + (-1,))
    scale = jnp.where(present, jax.lax.rsqrt(jnp.where(present, degree, 1.0)), 0.0)
    matrix = None
    if method == "dense":
        cell = flat_receivers * num_nodes + senders.reshape(-1)
        matrix = jax.ops.segment_sum(weight.astype(dtype).reshape(-1), cell, windows * num_nodes**2)
        matrix = matrix.reshape(*lead, num_nodes, num_nodes)
    return Propagation(scale, matrix, senders, receivers, weight)


def propagate(graph: Propagation, x: jax.Array) -> jax.Array:
    """D^-1/2 (A + I) D^-1/2 x for x [..., N, F]; sums in float32, result in x's dtype."""
    scale = graph.scale[..., None]
    scaled = (x * scale).astype(x.dtype)
    if graph.matrix is not None:
        mixed = jnp.einsum(
            "...ij,...jf->...if", graph.matrix.astype(x.dtype), scaled, preferred_element_type=jnp.float32
        )
    else:
        # float32 before the gather, so that its gradient adds in float32 as well: bfloat16 would lose what is small
        # beside the sum so far, and GPUs add it at a fraction of the speed.
        rows, num_nodes = scaled.reshape(-1, x.shape[-1]).astype(jnp.float32), x.shape[-2]
        messages = rows[flat(graph.senders, num_nodes)] * graph.weight.reshape(-1)[:, None]
        receivers = received(graph.receivers, graph.weight, num_nodes)
        mixed = jax.ops.segment_sum(messages, receivers, rows.shape[0]).reshape(x.shape)
    return (scale * (mixed + scaled)).astype(x.dtype)


def received(receivers: jax.Array, weight: jax.Array, num_nodes: int) -> jax.Array:
    """Receivers in the stack of all windows; those of edges of weight 0 lie beyond it."""
    place, windows = flat(receivers, num_nodes), receivers.size // receivers.shape[-1]
    return jnp.where(weight.reshape(-1) == 0, windows * num_nodes, place)


def flat(index: jax.Array, num_nodes: int) -> jax.Array:
    """Node numbers [..., E] within each window -> numbers in the stack of all windows, [windows * E]."""
    index = index.reshape(-1, index.shape[-1])
    return (index + num_nodes * jnp.arange(index.shape[0], dtype=jnp.int32)[:, None]).reshape(-1)
