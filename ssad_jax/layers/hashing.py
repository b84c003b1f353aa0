"""Random bits as a hash of (key, counter): what an element draws depends on nothing but its own key and number.

`jax.random.bits` numbers elements by their place in the array, and Threefry is the largest single cost of a
training step on a CPU. Here the caller numbers the elements, so that padding, slicing the batch over devices or
reordering edges change nobody's bits. Two rounds of the Murmur3 finaliser are good enough for masks and dropout.
"""

import jax
import jax.numpy as jnp


def finalise(x: jax.Array) -> jax.Array:
    """Murmur3's 32-bit finaliser, a bijection on uint32 whose output bits each depend on all input bits."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def fold(keys: jax.Array, tag: int) -> jax.Array:
    """`fold_in` over an array of typed keys of any shape."""
    flat = jax.vmap(lambda k: jax.random.fold_in(k, tag))(keys.reshape(-1))
    return flat.reshape(keys.shape)


def window_keys(keys: jax.Array, num_windows: int) -> jax.Array:
    """A key for each window of each example: keys [B] -> [B, S]; window s draws the same whatever S is."""
    return jax.vmap(lambda k: jax.vmap(lambda s: jax.random.fold_in(k, s))(jnp.arange(num_windows)))(keys)


def random_bits(keys: jax.Array, counter: jax.Array) -> jax.Array:
    """Uniform uint32 for each key and counter.

    Args:
        keys: typed keys [...].
        counter: uint32, of shape [...] + own axes (leading axes equal to those of keys, or 1).

    Returns:
        uint32, the two shapes broadcast.
    """
    words = jax.random.key_data(keys)  # [..., words]: two of Threefry, four of RBG
    words = words.reshape(words.shape[:-1] + (1,) * (counter.ndim - keys.ndim) + words.shape[-1:])
    return finalise(finalise(counter * jnp.uint32(0x9E3779B1) ^ words[..., 0]) + words[..., -1])


def bernoulli(keys: jax.Array, counter: jax.Array, probability: float) -> jax.Array:
    """True with the given probability for each key and counter (see `random_bits`)."""
    if probability >= 1:
        return jnp.ones(jnp.broadcast_shapes(keys.shape + (1,) * (counter.ndim - keys.ndim), counter.shape), bool)
    return random_bits(keys, counter) < jnp.uint32(round(probability * 2**32))


def dropout(x: jax.Array, keys: jax.Array | None, rate: float) -> jax.Array:
    """Inverted dropout of x [B, S, N, H] with a key for each window [B, S]; no keys: x itself.

    A byte an element: the rate is rounded to 1/256 and the kept elements are scaled by what was rounded to.
    """
    threshold = round(rate * 256)
    if keys is None or threshold == 0:
        return x
    width = x.shape[-1]
    words = -(-width // 4)
    counter = jnp.arange(x.shape[-2] * words, dtype=jnp.uint32).reshape((1,) * keys.ndim + (x.shape[-2], words))
    bits = random_bits(keys, counter)  # [B, S, N, H / 4]
    octets = jnp.concatenate([(bits >> (8 * i)) & jnp.uint32(0xFF) for i in range(4)], axis=-1)[..., :width]
    return jnp.where(octets >= threshold, x * (256 / (256 - threshold)), 0).astype(x.dtype)
