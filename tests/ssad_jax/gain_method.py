"""A method of one parameter, for tests of what is made of scores: it needs no training."""

import jax
import jax.numpy as jnp

from ssad_jax.methods.interface import Method, ScoreTerms
from ssad_jax.prepared import CONTEXT_DIM


def gain_method(names=("rule",)) -> Method:
    """Expects each signal to be its context (as a log node's is) times a gain, the only parameter."""

    def score(params, batch, keys=None):
        nodes = batch.graphs.nodes
        residual = nodes[..., CONTEXT_DIM:] - params["gain"] * nodes[..., :CONTEXT_DIM]
        each = jnp.square(residual).mean((-1, -2))
        temporal = jnp.concatenate([jnp.full_like(each[:, :1], jnp.nan), jnp.abs(jnp.diff(each, axis=1))], axis=1)
        return ScoreTerms(residual, temporal, each, jnp.zeros(each.shape, jnp.int32), each, each[..., None])

    def pair_distances(params, batch, keys):
        each = jnp.square(batch.graphs.nodes).mean((-1, -2)).reshape(-1)
        positive = jnp.where(batch.window_mask.reshape(-1), each, jnp.nan)
        return positive, jnp.abs(positive[:, None] - positive[None, :])

    return Method(lambda key: {"gain": jax.random.uniform(key, ())}, None, score, pair_distances, names)
