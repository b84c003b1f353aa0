"""Views of a window's signals tick by tick (method B): signals and whole modalities left out, services moved in time.

Every draw is a hash of its key (`layers.hashing`) and of what it is drawn for; keys are [n, 2], one for each window.
"""

import jax
import jax.numpy as jnp

from ssad_jax.layers.hashing import bernoulli, fold, random_bits

ALONE, LEFT_OUT, WHICH = range(3)


def keep_signals(keys, modality, drop: float) -> jax.Array:
    """[n, C] bool: each signal is left out of a window with probability `drop`; modality: [C]."""
    number = jnp.arange(len(modality), dtype=jnp.uint32)[None]
    return ~bernoulli(keys, number, drop)


def keep_modalities(keys, modality, present: tuple[int, ...], alone: float, left_out: float) -> jax.Array:
    """[n, C] bool: what is left of a window.

    With probability `alone` one modality of those `present` is all there is, else with probability `left_out` one of
    them is missing. Where there is one modality only, it stays.

    Args: modality: [C] of each signal.
    """
    modality, zero = jnp.asarray(modality)[None], jnp.zeros((1, 1), jnp.uint32)
    if len(present) < 2:
        return jnp.ones((len(keys), modality.shape[1]), bool)
    drawn = random_bits(fold(keys, WHICH), zero) % jnp.uint32(len(present))  # [n, 1]
    own = modality == jnp.asarray(present)[drawn]
    is_alone = bernoulli(fold(keys, ALONE), zero, alone)
    is_left_out = bernoulli(fold(keys, LEFT_OUT), zero, left_out)
    return jnp.where(is_alone, own, jnp.where(is_left_out, ~own, True))


def align(series: jax.Array, lag) -> jax.Array:
    """Each service's series as if it began when it was called: [n, T, U, F] read `lag` [U] ticks later; 0 beyond."""
    if not lag.any():
        return series
    tick = jnp.arange(series.shape[1])[:, None] + jnp.asarray(lag)[None]  # [T, U]
    inside = tick < series.shape[1]
    read = jnp.take_along_axis(series, jnp.minimum(tick, series.shape[1] - 1)[None, :, :, None], axis=1)
    return jnp.where(inside[None, :, :, None], read, 0)


def shift(keys, series: jax.Array, is_called, most: int) -> jax.Array:
    """The series of services that are called, [n, T, U, F], moved by up to `most` ticks, each by its own; 0 beyond."""
    if most == 0:
        return series
    number = jnp.arange(series.shape[2], dtype=jnp.uint32)[None]
    step = (random_bits(keys, number) % jnp.uint32(2 * most + 1)).astype(jnp.int32) - most  # [n, U]
    step = jnp.where(jnp.asarray(is_called)[None], step, 0)
    out = jnp.where((step == 0)[:, None, :, None], series, 0)
    for by in (s for s in range(-most, most + 1) if s):
        empty = jnp.zeros_like(series[:, : abs(by)])
        moved = jnp.concatenate([empty, series[:, :-by]] if by > 0 else [series[:, -by:], empty], axis=1)
        out = jnp.where((step == by)[:, None, :, None], moved, out)
    return out
