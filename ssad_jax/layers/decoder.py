"""f_rec: masked nodes' signals from H^L, the state s and what stays visible of the node.

x_hat = W_out[kind] relu(W_h H^L + W_s s + W_i identity + W_c context + b) + context (I + A[kind] B[kind])

The second part is a linear skip from the context: channel c of the context is the closed-form expectation of channel c
of the signal, zero where there is none. B and W_out start at (nearly) zero, so that an untrained network predicts the
expectation, and training only has to improve on it. `skip_init` "zero" leaves out I: then it has to be learned.

The learned part is a product of two matrices, the first random and wide: AdamW moves each entry by at most the learning
rate a step, so a single matrix would need 1 / 5e-4 = 2,000 steps to pass an expectation through, and the product needs
tens.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from ssad_jax.layers.graph_encoder import INPUT_CLIP, KindLinear
from ssad_jax.layers.layout import Layout
from ssad_jax.layers.packing import Rows
from ssad_jax.objectives.reconstruction import clip_target
from ssad_jax.prepared import CONTEXT_DIM, IDENTITY_DIM, NODE_KINDS, SIGNAL_DIM

WIDTH = 128  # hidden units of the decoder
SKIP_WIDTH = 64
FULL = jax.lax.Precision.HIGHEST


def small(key, shape):
    """Nearly zero, so that the skip decides at first; not zero, so that all layers learn from the first step."""
    return 1e-3 * jax.random.normal(key, shape)


class Decoder(nnx.Module):
    """skip_init: 'expectation' or 'zero', what the skip is before training."""

    def __init__(self, hidden: int, skip_init: str, *, rngs: nnx.Rngs):
        self.skip_init = skip_init
        self.of_nodes = nnx.Linear(hidden, WIDTH, rngs=rngs)
        self.of_state = nnx.Linear(hidden, WIDTH, use_bias=False, rngs=rngs)
        self.of_identity = nnx.Linear(IDENTITY_DIM, WIDTH, use_bias=False, rngs=rngs)
        self.of_context = KindLinear(CONTEXT_DIM, WIDTH, bias=False, rngs=rngs)
        self.out = KindLinear(WIDTH, SIGNAL_DIM, kernel_init=small, rngs=rngs)
        self.skip_in = nnx.Param(jax.random.normal(rngs.params(), (len(NODE_KINDS), CONTEXT_DIM, SKIP_WIDTH)))
        self.skip_out = nnx.Param(jnp.zeros((len(NODE_KINDS), SKIP_WIDTH, SIGNAL_DIM)))

    def __call__(self, h, from_state, context, layout: Layout, rows: Rows | None = None) -> jax.Array:
        """Predict signals of all nodes, or of some.

        Args:
            h: [..., n, H], context: [..., n, 16].
            from_state: `of_state(s)`, W_s s of the state that speaks for each node: [..., n, WIDTH], or 1 for n.
            rows: predict these alone; then h [P, H], context [P, 16] and from_state [P, WIDTH] are of them.

        Returns:
            [..., n, 16] float32, or [P, 16].
        """
        expectation, context = clip_target(context), jnp.clip(context, -INPUT_CLIP, INPUT_CLIP)
        offset = jnp.asarray(layout.identity, h.dtype) @ self.of_identity.kernel[...].astype(h.dtype)
        offset = offset + self.of_nodes.bias[...].astype(h.dtype)[None]
        offset, places = (offset, layout) if rows is None else (offset[rows.node], rows)
        hidden = h @ self.of_nodes.kernel[...].astype(h.dtype)
        hidden = hidden + self.of_context(context.astype(h.dtype), places)
        hidden = hidden + from_state.astype(h.dtype) + offset.reshape((1,) * (h.ndim - 2) + offset.shape)
        hidden = jax.nn.relu(hidden)
        # The two matrices of the skip are multiplied first: [kinds, 16, 16]. In full float32 on every device: residuals
        # are small differences from what passes here, and GPUs round products of float32 to TF32 (11 bits) by default.
        skip = jnp.matmul(self.skip_in[...], self.skip_out[...], precision=FULL)
        if self.skip_init == "expectation":
            skip = skip + jnp.eye(CONTEXT_DIM, SIGNAL_DIM)[None]
        parts = [jnp.matmul(expectation[..., a:b, :], skip[k], precision=FULL) for k, a, b in places.slices]
        through = jnp.concatenate(parts, axis=-2)
        return self.out(hidden, places).astype(jnp.float32) + through
