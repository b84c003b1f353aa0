"""Views of a sequence of windows: the masked anchor, and the perturbed positive.

Every draw is a hash of its key (`layers.hashing`) and of what it is drawn for.
"""

import jax
import jax.numpy as jnp

from ssad_jax.layers.hashing import bernoulli, finalise, fold, random_bits
from ssad_jax.layers.layout import Graphs

JITTER_PROBABILITY = 0.2  # share of sequences whose positive view is shifted


def random_mask(keys, unit_hash, node_mask, ratio: float) -> jax.Array:
    """Nodes to mask [B, S, n]: each unit with probability `ratio`, all nodes of a unit together; keys [B, S, 2]."""
    units = jnp.asarray(unit_hash, jnp.uint32)[None, None]
    return bernoulli(keys, units, ratio) & jnp.asarray(node_mask)[None, None]


def drop_edges(keys, graphs: Graphs, probability: float) -> Graphs:
    """Drop pairs of nodes' edges, both directions together; keys [B, S, 2]."""
    if probability == 0:
        return graphs
    low = jnp.minimum(graphs.senders, graphs.receivers).astype(jnp.uint32)
    high = jnp.maximum(graphs.senders, graphs.receivers).astype(jnp.uint32)
    dropped = bernoulli(keys, finalise(low * jnp.uint32(65537)) + high, probability)
    return graphs._replace(weight=jnp.where(dropped, 0.0, graphs.weight))


def drop_attributes(keys, graphs: Graphs, probability: float) -> Graphs:
    """Set signal entries to 0, their normal value; keys [B, S, 2]."""
    if probability == 0:
        return graphs
    rows, columns = graphs.signal.shape[-2:]
    entry = jnp.arange(rows * columns, dtype=jnp.uint32).reshape(1, 1, rows, columns)
    return graphs._replace(signal=jnp.where(bernoulli(keys, entry, probability), 0.0, graphs.signal))


def jitter(keys, graphs: Graphs, window_mask, shift: int) -> Graphs:
    """Shift some sequences in time: window s becomes the one up to `shift` places before or after it.

    A window stays where it is where the sequence has no such neighbour. keys: [B, 2], one for each sequence.
    """
    if shift == 0:
        return graphs
    length = window_mask.shape[1]
    chosen = bernoulli(keys, jnp.zeros((1,), jnp.uint32), JITTER_PROBABILITY)
    # 1 - shift .. shift, then without 0: -shift .. -1, 1 .. shift
    step = (random_bits(fold(keys, 0), jnp.zeros((1,), jnp.uint32)) % (2 * shift)).astype(jnp.int32) + 1 - shift
    step = jnp.where(chosen, jnp.where(step <= 0, step - 1, step), 0)
    own = jnp.arange(length)[None]
    source = own + step[:, None]
    inside = (source >= 0) & (source < length)
    source = jnp.clip(source, 0, length - 1)
    source = jnp.where(inside & jnp.take_along_axis(window_mask, source, axis=1), source, own)  # [B, S]
    return jax.tree.map(lambda x: jax.vmap(lambda row, i: row[i])(x, source), graphs)
