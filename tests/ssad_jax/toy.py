"""A small objective with all that makes devices differ: dropout, a second view, uneven masks, gathered negatives."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssad_jax.batching import Needs
from ssad_jax.config import default_config

SIZE = 6


class Toy(NamedTuple):
    init: object
    loss: object
    needs: object = Needs()
    observe: object = None
    absorb: object = None


def small_config(name="toy"):
    config = default_config(name)
    config.model.hidden_dim = 16
    config.model.num_prototypes = 4
    config.data.batch_size = 8
    config.train.num_epochs = 4
    config.train.checkpoint_every = 2
    config.train.compilation_cache = False
    return config


def init(key):
    first, second = jax.random.split(key)
    return {"w": 0.3 * jax.random.normal(first, (32, SIZE)), "v": 0.3 * jax.random.normal(second, (SIZE, SIZE))}


def loss(params, batch, keys, gather):
    """Masked squares, a contrast against the gathered batch, and a diagnostic."""
    x = batch.graphs.nodes.mean(axis=2)  # [B, S, 32]
    mask = batch.window_mask

    def dropped(key, values):
        return jnp.where(jax.random.bernoulli(key, 0.7, values.shape), values / 0.7, 0)

    first, second = (jax.vmap(lambda k, v, n=n: dropped(jax.random.fold_in(k, n), v))(keys, x) for n in (0, 1))
    a, b = (jnp.tanh(view @ params["w"]) @ params["v"] for view in (first, second))  # [B, S, SIZE]
    square = jnp.where(mask, jnp.square(a).sum(-1), 0).sum()
    anchors, others = a[:, 0], gather(b[:, 0])
    logits = jnp.where(gather(mask[:, 0])[None], anchors @ others.T, -1e9)
    contrast = jax.nn.logsumexp(logits, axis=1) - (anchors * b[:, 0]).sum(-1)
    sums = {"square": square, "contrast": jnp.where(mask[:, 0], contrast, 0).sum()}
    return sums, {"square": mask.sum(), "contrast": mask[:, 0].sum()}, {"share": (mask.sum(), np.float32(mask.size))}


METHOD = Toy(init, loss)


def poisoned(example: int) -> Toy:
    """As METHOD, but the loss of the batch that holds `example` is nan."""

    def broken(params, batch, keys, gather):
        sums, counts, diagnostics = loss(params, batch, keys, gather)
        sums["square"] = jnp.where((batch.index == example).any(), jnp.nan, sums["square"])
        return sums, counts, diagnostics

    return Toy(init, broken)
