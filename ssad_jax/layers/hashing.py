"""Random bits as a hash of (key, counter): what an element draws depends on nothing but its own key and number.

`jax.random.bits` numbers elements by their place in the array, and Threefry is the largest single cost of a
training step on a CPU. Here the caller numbers the elements, so that padding, slicing the batch over devices or
reordering edges change nobody's bits. Two rounds of the Murmur3 finaliser are good enough for masks and dropout.
"""

import jax
import jax.numpy as jnp

GOLDEN = 0x9E3779B1  # 2^32 over the golden ratio: spreads neighbouring numbers


def finalise(x: jax.Array) -> jax.Array:
    """Murmur3's 32-bit finaliser, a bijection on uint32 whose output bits each depend on all input bits."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def words(keys: jax.Array) -> jax.Array:
    """Typed keys [...] of any implementation -> the two uint32 words [..., 2] that this file calls a key."""
    data = jax.random.key_data(keys)
    return jnp.stack([data[..., 0], data[..., -1]], axis=-1)


def fold(keys: jax.Array, tag) -> jax.Array:
    """Other keys [..., 2], one for each of `keys`; tag: an integer, or uint32 of shape [...]."""
    first = finalise(keys[..., 0] ^ (jnp.uint32(tag) + jnp.uint32(1)) * jnp.uint32(GOLDEN))
    return jnp.stack([first, finalise(keys[..., 1] + first)], axis=-1)


def window_keys(keys: jax.Array, num_windows: int) -> jax.Array:
    """A key for each window of each example: [B, 2] -> [B, S, 2]; window s draws the same whatever S is."""
    number = jnp.arange(num_windows, dtype=jnp.uint32)[None]
    return fold(jnp.broadcast_to(keys[:, None], (keys.shape[0], num_windows, 2)), number)


def random_bits(keys: jax.Array, counter: jax.Array) -> jax.Array:
    """Uniform uint32 for each key and counter.

    Args:
        keys: [..., 2].
        counter: uint32, of shape [...] + own axes (leading axes equal to those of keys, or 1).

    Returns:
        uint32, the two shapes broadcast.
    """
    keys = keys.reshape(keys.shape[:-1] + (1,) * (counter.ndim - keys.ndim + 1) + (2,))
    return finalise(finalise(counter * jnp.uint32(GOLDEN) ^ keys[..., 0]) + keys[..., 1])


def bernoulli(keys: jax.Array, counter: jax.Array, probability: float) -> jax.Array:
    """True with the given probability for each key and counter (see `random_bits`)."""
    if probability >= 1:
        return jnp.ones_like(random_bits(keys, counter), bool)
    return random_bits(keys, counter) < jnp.uint32(round(probability * 2**32))


def dropout(x: jax.Array, keys: jax.Array | None, rate: float) -> jax.Array:
    """Inverted dropout of x [B, S, N, H] with a key for each window [B, S, 2]; no keys: x itself.

    A byte an element: the rate is rounded to 1/256 and the kept elements are scaled by what was rounded to.
    """
    threshold = round(rate * 256)
    if keys is None or threshold == 0:
        return x
    rows, width = x.shape[-2:]
    quarter = -(-width // 4)
    counter = jnp.arange(rows * quarter, dtype=jnp.uint32).reshape((1,) * (keys.ndim - 1) + (rows, quarter))
    bits = random_bits(keys, counter)  # [B, S, N, H / 4]
    octets = jnp.concatenate([(bits >> (8 * i)) & jnp.uint32(0xFF) for i in range(4)], axis=-1)[..., :width]
    return jnp.where(octets >= threshold, x * (256 / (256 - threshold)), 0).astype(x.dtype)


def uniform(keys: jax.Array, counter: jax.Array) -> jax.Array:
    """Uniform float32 in [0, 1) for each key and counter (see `random_bits`)."""
    return (random_bits(keys, counter) >> 8).astype(jnp.float32) * jnp.float32(2.0**-24)


def normal(keys: jax.Array, counter: jax.Array) -> jax.Array:
    """Standard normal float32 for each key and counter (see `random_bits`)."""
    share = jnp.clip(uniform(keys, counter), 2.0**-24, 1 - 2.0**-24)
    return jnp.float32(2.0**0.5) * jax.lax.erf_inv(2 * share - 1)
