"""Cosine similarity that is finite, with finite gradients, at zero."""

import jax
import jax.numpy as jnp

EPSILON = 1e-3  # smallest norm; a smaller one makes gradients explode


def normalise(x: jax.Array) -> jax.Array:
    """x / max(|x|, EPSILON) along the last axis."""
    return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), EPSILON**2))


def cosine(x: jax.Array, y: jax.Array) -> jax.Array:
    """Cosine similarity along the last axis, 0 where a vector is zero."""
    return (normalise(x) * normalise(y)).sum(-1)
