"""Knowledge memory: prototypes, attention, gate and the nearest prototype (METHOD A)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from ssad_jax.layers.similarity import normalise


class Recall(NamedTuple):
    """What the memory makes of the states s [..., H]."""

    state: jax.Array  # u [..., H]
    attention: jax.Array  # [..., P]
    gate: jax.Array  # [..., H]
    nearest: jax.Array  # [...] int32, prototype of highest cosine similarity to u
    prototype: jax.Array  # [..., H], m*


class KnowledgeMemory(nnx.Module):
    """M = K W_m + Delta; q = Attn(s, M); gamma = sigmoid(W_g [s; q] + b_g); u = gamma s + (1 - gamma) q.

    Queries and keys are learned projections, the values are the prototypes themselves: q stays in their hull.
    """

    def __init__(self, key_features: int, num_prototypes: int, hidden: int, *, rngs: nnx.Rngs):
        # K's rows have norm about 1; prototypes of the size of GRU states keep attention and gate from saturating.
        self.of_keys = nnx.Param(0.3 * jax.random.normal(rngs.params(), (key_features, hidden)))
        self.delta = nnx.Param(jnp.zeros((num_prototypes, hidden)))
        self.query = nnx.Linear(hidden, hidden, use_bias=False, rngs=rngs)
        self.key = nnx.Linear(hidden, hidden, use_bias=False, rngs=rngs)
        self.gate = nnx.Linear(2 * hidden, hidden, rngs=rngs)

    def prototypes(self, keys: jax.Array) -> jax.Array:
        """M [P, H] from the fixed K [P, d_k]."""
        return keys @ self.of_keys[...] + self.delta[...]

    def __call__(self, s: jax.Array, keys: jax.Array) -> Recall:
        """s [..., H], K [P, d_k]."""
        memory = self.prototypes(keys)
        logits = self.query(s) @ self.key(memory).T * s.shape[-1] ** -0.5
        attention = jax.nn.softmax(logits, axis=-1)
        q = attention @ memory
        gate = jax.nn.sigmoid(self.gate(jnp.concatenate([s, q], axis=-1)))
        u = gate * s + (1 - gate) * q
        nearest = nearest_prototype(u, memory)
        return Recall(u, attention, gate, nearest, memory[nearest])


class NoMemory(nnx.Module):
    """The ablation: u = s, and the only prototype is the state itself, so that its distance is 0."""

    def __call__(self, s: jax.Array, keys: jax.Array) -> Recall:
        """s [..., H]; the keys are not used."""
        one = jnp.ones_like(s[..., :1])
        return Recall(s, one, one, jnp.zeros(s.shape[:-1], jnp.int32), s)


def nearest_prototype(u: jax.Array, memory: jax.Array) -> jax.Array:
    """Index [...] of the row of memory [P, H] with the highest cosine similarity to u [..., H]."""
    return jnp.argmax(normalise(u) @ normalise(memory).T, axis=-1)
