"""Knowledge alignment L_kn = |u - m*|^2 (METHOD A), and what shows a collapse."""

import jax
import jax.numpy as jnp

from ssad_jax.layers.similarity import normalise

# With the whole gradient the states shrink onto their prototype within a few hundred steps (a third of the spread
# was left); the share is that of the commitment term of van den Oord et al. 2017.
STATE_SHARE = 0.25


def alignment_error(state: jax.Array, prototype: jax.Array) -> jax.Array:
    """|u - m*|^2 along the last axis."""
    return jnp.square(state - prototype).sum(-1)


def assign(state, memory, mask, gather) -> jax.Array:
    """The prototype [n] that training pulls each window to: highest cosine similarity above the batch's mean.

    States of one system point in nearly the same direction, so the plain argmax gives every window the same
    prototype from the first step on and no other one ever learns. Subtracting each prototype's mean similarity over
    the global batch asks instead which windows are closer to it than windows usually are. Scoring uses the plain one.

    Args:
        state: [n, H], memory: [P, H], mask: [n] existing windows, gather: x [n, ...] -> [n * devices, ...].
    """
    similarity = normalise(state) @ normalise(memory).T
    weight = mask.astype(jnp.float32)[:, None]
    total, count = (_everywhere(x, gather) for x in ((similarity * weight).sum(0), weight.sum(0)))
    return jnp.argmax(similarity - total / jnp.maximum(count, 1), axis=-1)


def alignment(state, prototype, mask):
    """Local (sum, count) of |u - m*|^2 over existing windows; state, prototype [..., H], mask [...].

    The value is the paper's; of the gradient with respect to the state only STATE_SHARE passes.
    """
    state = STATE_SHARE * state + (1 - STATE_SHARE) * jax.lax.stop_gradient(state)
    return jnp.where(mask, alignment_error(state, prototype), 0).sum(), mask.sum()


def usage_entropy(nearest: jax.Array, mask: jax.Array, num_prototypes: int, gather) -> jax.Array:
    """Entropy in nats of how often each prototype is the nearest one: 0 when one takes all, at most log P.

    nearest, mask: [n], of this device's windows; the entropy is of all.
    """
    chosen = (nearest.reshape(-1, 1) == jnp.arange(num_prototypes)[None]) & mask.reshape(-1, 1)
    used = _everywhere(chosen.sum(0, dtype=jnp.float32), gather)
    share = used / jnp.maximum(used.sum(), 1)
    return -jax.scipy.special.xlogy(share, share).sum()


def state_variance(state: jax.Array, mask: jax.Array, gather) -> jax.Array:
    """Variance of u over all existing windows, mean over dimensions; state [n, H], mask [n] of this device's."""
    weight = mask.astype(jnp.float32)[:, None]
    count = jnp.maximum(_everywhere(weight.sum(0), gather), 1)
    mean = _everywhere((state * weight).sum(0), gather) / count
    return (_everywhere((jnp.square(state - mean) * weight).sum(0), gather) / count).mean()


def _everywhere(total: jax.Array, gather) -> jax.Array:
    """Sums [k] of this device -> [1, k], of all devices: so few numbers are sent, however many windows there are."""
    return gather(total[None]).sum(0, keepdims=True)
