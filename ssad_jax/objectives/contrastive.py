"""InfoNCE between two views of each window, with overlapping windows left out of the negatives."""

import jax
import jax.numpy as jnp


def is_negative(start_tick, mask, other_start_tick, other_mask, apart: int) -> jax.Array:
    """Pairs [n, m] of windows that both exist and begin at least `apart` ticks from one another."""
    far = jnp.abs(start_tick[:, None] - other_start_tick[None, :]) >= apart
    return far & mask[:, None] & other_mask[None, :]


def info_nce(anchor, positive, start_tick, mask, gather, apart: int, temperature: float):
    """Symmetric InfoNCE (METHOD A; the temperature divides every similarity).

    The negatives of a window are the other view's embeddings of the windows of the global batch that exist and do
    not overlap it in time. Windows without any negative are left out.

    Args:
        anchor, positive: [n, d], normalised embeddings of this device's windows.
        start_tick: [n] int32, mask: [n] bool.
        gather: x [n, ...] -> [n * devices, ...].
        apart: ticks between the starts of windows that share none, in either view.

    Returns:
        sum over this device's windows, their count, diagnostics {name: (sum, count)}.
    """
    similarity = (anchor * positive).sum(-1)
    negative = is_negative(start_tick, mask, gather(start_tick), gather(mask), apart)

    def one_way(x, other):
        pairs = x @ other.T  # [n, n * devices]
        logits = jnp.where(negative, pairs / temperature, -jnp.inf)
        own = similarity / temperature
        return jax.nn.logsumexp(jnp.concatenate([own[:, None], logits], axis=1), axis=1) - own, pairs

    forward, pairs = one_way(anchor, gather(positive))
    backward, _ = one_way(positive, gather(anchor))
    counted = mask & negative.any(axis=1)
    total = jnp.where(counted, 0.5 * (forward + backward), 0).sum()
    diagnostics = {
        "positive_cosine": (jnp.where(mask, similarity, 0).sum(), mask.sum()),
        "negative_cosine": (jnp.where(negative, pairs, 0).sum(), negative.sum()),
    }
    return total, counted.sum(), diagnostics


def pair_distances(first, second, start_tick, mask, apart: int):
    """Cosine distances of normalised embeddings [n, d] of two views (the paper's Figure 2).

    Returns:
        positive [n]: of the two views of a window, nan where there is none; negative [n, n]: of windows that do not
        overlap, nan elsewhere.
    """
    negative = is_negative(start_tick, mask, start_tick, mask, apart)
    positive = jnp.where(mask, 1 - (first * second).sum(-1), jnp.nan)
    return positive, jnp.where(negative, 1 - first @ second.T, jnp.nan)


def service_info_nce(first, second, start_tick, mask, gather, apart: int, temperature: float):
    """Symmetric InfoNCE of services (METHOD B): the same service in two views of a window attracts.

    Negatives are the other services of that window, and the same service in windows of the global batch that exist and
    do not overlap it in time, all in the other view.

    Args:
        first, second: [n, U, d], normalised embeddings of the services of this device's windows.
        start_tick, mask, gather, apart: as in `info_nce`.

    Returns:
        sum over services and this device's windows, their count.
    """
    count, services = first.shape[:2]
    own = (first * second).sum(-1) / temperature  # [n, U]
    far = is_negative(start_tick, mask, gather(start_tick), gather(mask), apart)[:, None]  # [n, 1, n * devices]
    others = ~jnp.eye(services, dtype=bool)[None]  # [1, U, U]

    def one_way(x, other):
        across = jnp.where(others, jnp.einsum("nud,nvd->nuv", x, other) / temperature, -jnp.inf)
        along = jnp.where(far, jnp.einsum("nud,mud->num", x, gather(other)) / temperature, -jnp.inf)
        return jax.nn.logsumexp(jnp.concatenate([own[..., None], across, along], axis=-1), axis=-1) - own

    counted = mask[:, None] & (far.any(-1) | (services > 1))
    total = jnp.where(counted, 0.5 * (one_way(first, second) + one_way(second, first)), 0).sum()
    return total, jnp.broadcast_to(counted, (count, services)).sum()
