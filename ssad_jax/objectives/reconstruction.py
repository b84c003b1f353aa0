"""Masked reconstruction: squared error over the existing channels of masked real nodes."""

import jax
import jax.numpy as jnp

TARGET_CLIP = 20.0  # in units of the channel's normal scale; a tighter clip hides how large a deviation is


def clip_target(signal: jax.Array) -> jax.Array:
    return jnp.clip(signal, -TARGET_CLIP, TARGET_CLIP)


def masked_error(prediction, signal, entries):
    """Local (sum, count) of (x - x_hat)^2 over `entries`; all [..., n, 16]."""
    error = jnp.square(clip_target(signal) - prediction)
    return jnp.where(entries, error, 0).sum(), entries.sum()


def masked_entries(masked, signal_mask, window_mask):
    """Entries that count: masked [B, S, n], signal_mask [n, 16], window_mask [B, S] -> [B, S, n, 16] bool."""
    return masked[..., None] & jnp.asarray(signal_mask)[None, None] & window_mask[..., None, None]
