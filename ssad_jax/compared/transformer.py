"""A small transformer encoder (Vaswani et al. 2017) for the compared systems that read log lines."""

import jax
import jax.numpy as jnp
from flax import nnx

FAR = -1e9  # logit of a position that does not exist


class Block(nnx.Module):
    """Self-attention, then two layers with GELU between, each part with a residual connection and a layer norm."""

    def __init__(self, width: int, heads: int, expansion: int, pre_norm: bool, *, rngs: nnx.Rngs):
        self.heads, self.pre_norm = heads, pre_norm
        self.query_key_value = nnx.Linear(width, 3 * width, rngs=rngs)
        self.mix = nnx.Linear(width, width, rngs=rngs)
        self.expand = nnx.Linear(width, expansion * width, rngs=rngs)
        self.contract = nnx.Linear(expansion * width, width, rngs=rngs)
        self.attention_norm, self.transform_norm = (nnx.LayerNorm(width, rngs=rngs) for _ in range(2))

    def __call__(self, x: jax.Array, there: jax.Array) -> jax.Array:
        if self.pre_norm:
            x = x + self.attend(self.attention_norm(x), there)
            return x + self.transform(self.transform_norm(x))
        x = self.attention_norm(x + self.attend(x, there))
        return self.transform_norm(x + self.transform(x))

    def attend(self, x: jax.Array, there: jax.Array) -> jax.Array:
        apart = self.query_key_value(x).reshape(*x.shape[:-1], 3, self.heads, -1)
        query, key, value = (apart[..., i, :, :] for i in range(3))  # [n, T, heads, width / heads]
        logits = jnp.einsum("nqhd,nkhd->nhqk", query, key) * query.shape[-1] ** -0.5
        weight = jax.nn.softmax(jnp.where(there[:, None, None], logits, FAR))
        return self.mix(jnp.einsum("nhqk,nkhd->nqhd", weight, value).reshape(x.shape))

    def transform(self, x: jax.Array) -> jax.Array:
        return self.contract(jax.nn.gelu(self.expand(x)))


class Encoder(nnx.Module):
    """Blocks one after another: x [n, T, width], there [n, T] bool -> [n, T, width].

    Positions that do not exist change nothing for those that do.

    Args:
        width: a multiple of `heads`.
        expansion: the inner width of a block's two layers is so many times `width`.
        pre_norm: the norm comes before each part, instead of after the sum.
    """

    def __init__(self, width: int, layers: int, heads: int, expansion: int, pre_norm: bool, *, rngs: nnx.Rngs):
        self.layers = layers
        for i in range(layers):
            setattr(self, f"block_{i}", Block(width, heads, expansion, pre_norm, rngs=rngs))

    def __call__(self, x: jax.Array, there: jax.Array) -> jax.Array:
        for i in range(self.layers):
            x = getattr(self, f"block_{i}")(x, there)
        return x
