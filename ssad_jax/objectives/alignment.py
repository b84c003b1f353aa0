"""Knowledge alignment L_kn = |u - m*|^2 (METHOD A), and what shows a collapse."""

import jax
import jax.numpy as jnp


def alignment_error(state: jax.Array, prototype: jax.Array) -> jax.Array:
    """|u - m*|^2 along the last axis."""
    return jnp.square(state - prototype).sum(-1)


def alignment(state, prototype, mask):
    """Local (sum, count) of |u - m*|^2 over existing windows; state, prototype [..., H], mask [...]."""
    return jnp.where(mask, alignment_error(state, prototype), 0).sum(), mask.sum()


def usage_entropy(nearest: jax.Array, mask: jax.Array, num_prototypes: int) -> jax.Array:
    """Entropy in nats of how often each prototype is the nearest one: 0 when one takes all, at most log P."""
    used = jnp.zeros(num_prototypes).at[nearest.reshape(-1)].add(mask.reshape(-1).astype(jnp.float32))
    share = used / jnp.maximum(used.sum(), 1)
    return -jax.scipy.special.xlogy(share, share).sum()


def state_variance(state: jax.Array, mask: jax.Array) -> jax.Array:
    """Variance of u over existing windows, mean over dimensions; state [n, H], mask [n]."""
    weight = mask.astype(jnp.float32)[:, None]
    count = jnp.maximum(weight.sum(), 1)
    mean = (state * weight).sum(0, keepdims=True) / count
    return (jnp.square(state - mean) * weight).sum(0).mean() / count
