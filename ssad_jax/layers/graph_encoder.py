"""Modality-aware projection, GCN layers and READOUT of event graphs."""

import jax
import jax.numpy as jnp
from flax import nnx

from ssad_jax.layers.hashing import dropout, fold
from ssad_jax.layers.layout import Layout
from ssad_jax.layers.propagation import Propagation, propagate
from ssad_jax.prepared import CONTEXT_DIM, IDENTITY_DIM, NODE_KINDS, SIGNAL_DIM

INPUT_CLIP = 6.0  # attributes are in units of their normal scale

fan_in = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
per_kind = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", batch_axis=(0,))


def by_kind(table: jax.Array, layout: Layout) -> jax.Array:
    """Each row's own of a table with a row for each kind: [kinds, F] -> [n, F].

    Repeats instead of a gather: the gradient of a gather adds rows one by one, thousands of them to the same few
    places, for which accelerators have to queue; that of a repeat is a sum.
    """
    return jnp.concatenate([jnp.broadcast_to(table[k][None], (b - a, table.shape[1])) for k, a, b in layout.slices])


class KindLinear(nnx.Module):
    """A kernel and a bias for each node kind."""

    def __init__(self, in_features: int, out_features: int, *, rngs: nnx.Rngs, kernel_init=per_kind, bias=True):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (len(NODE_KINDS), in_features, out_features)))
        self.bias = nnx.Param(jnp.zeros((len(NODE_KINDS), out_features))) if bias else None

    def __call__(self, x: jax.Array, layout: Layout) -> jax.Array:
        """[..., n, in] in the layout's order -> [..., n, out]."""
        kernel = self.kernel[...].astype(x.dtype)
        parts = [x[..., a:b, :] @ kernel[k] for k, a, b in layout.slices]
        y = jnp.concatenate(parts, axis=-2)
        if self.bias is None:
            return y
        bias = by_kind(self.bias[...].astype(x.dtype), layout)  # [n, out]
        return y + bias.reshape((1,) * (y.ndim - 2) + bias.shape)


class GraphEncoder(nnx.Module):
    """X -> H^0 = relu(X W_o + b_o), a W_o and b_o for each kind -> L GCN layers -> H^L; READOUT -> g.

    Without layers a node sees itself alone.
    """

    def __init__(self, hidden: int, num_layers: int, dropout_rate: float, *, rngs: nnx.Rngs):
        self.num_layers, self.dropout_rate = num_layers, dropout_rate
        self.of_identity = KindLinear(IDENTITY_DIM, hidden, rngs=rngs)
        self.of_attributes = KindLinear(CONTEXT_DIM + SIGNAL_DIM, hidden, rngs=rngs, bias=False)
        self.mask_vector = nnx.Param(0.1 * jax.random.normal(rngs.params(), (len(NODE_KINDS), SIGNAL_DIM)))
        for i in range(num_layers):
            setattr(self, f"layer_{i}", nnx.Linear(hidden, hidden, kernel_init=nnx.initializers.he_normal(), rngs=rngs))

    @jax.named_scope("propagation")
    def __call__(self, context, signal, masked, graph: Propagation, layout: Layout, keys=None, dtype=jnp.float32):
        """Encode windows.

        Args:
            context, signal: [B, S, n, 16], clipped here to +-INPUT_CLIP.
            masked: [B, S, n] bool, nodes whose signal is replaced by their kind's mask vector; None: none.
            graph: of the same windows.
            keys: [B, S, 2] for dropout (`layers.hashing`), None at inference.
            dtype: of the activations.

        Returns:
            H^L [B, S, n, H] in `dtype`, g [B, S, H] float32, the mean of H^L over real nodes.
        """
        h = self.project(context, signal, masked, layout, dtype)
        for i in range(self.num_layers):
            h = dropout(h, None if keys is None else fold(keys, i), self.dropout_rate)
            h = self._propagated(i, graph, self._weighted(i, h))
        return h, readout(h, layout.node_mask)

    @jax.named_scope("projection")
    def project(self, context, signal, masked, layout: Layout, dtype=jnp.float32) -> jax.Array:
        """H^0 [B, S, n, H]; arguments as above, masked also True: all nodes."""
        context, signal = (jnp.clip(x, -INPUT_CLIP, INPUT_CLIP) for x in (context, signal))
        if masked is not None:
            vector = by_kind(self.mask_vector[...], layout)[None, None]  # [1, 1, n, 16]
            masked = masked if masked is True else masked[..., None]
            signal = jnp.where(masked, vector, signal)
        # [B, S, n, 32] and [n, 96] -> [B, S, n, H]: the identity is projected once for all windows
        attributes = jnp.concatenate([context, signal], axis=-1).astype(dtype)
        of_identity = self.of_identity(jnp.asarray(layout.identity, dtype), layout)
        return jax.nn.relu(self.of_attributes(attributes, layout) + of_identity[None, None])

    @jax.named_scope("propagation")
    def weighted(self, h: jax.Array) -> jax.Array:
        """H^0 W_0, node by node: what is masked elsewhere does not matter yet. Without layers H^0 itself."""
        return self._weighted(0, h) if self.num_layers else h

    @jax.named_scope("propagation")
    def from_weighted(self, x: jax.Array, graph: Propagation, layout: Layout):
        """`weighted` of all nodes -> H^L and g, as a call without dropout gives them."""
        for i in range(self.num_layers):
            x = self._propagated(i, graph, x if i == 0 else self._weighted(i, x))
        return x, readout(x, layout.node_mask)

    def _weighted(self, i: int, h: jax.Array) -> jax.Array:
        return h @ getattr(self, f"layer_{i}").kernel[...].astype(h.dtype)

    def _propagated(self, i: int, graph: Propagation, x: jax.Array) -> jax.Array:
        bias = getattr(self, f"layer_{i}").bias[...].astype(x.dtype)
        return jax.nn.relu(propagate(graph, x) + bias[None, None, None])


def readout(h: jax.Array, node_mask) -> jax.Array:
    """Mean over real nodes in float32: [B, S, n, H] -> [B, S, H]."""
    weight = jnp.asarray(node_mask, jnp.float32)
    return jnp.einsum("bsnh,n->bsh", h.astype(jnp.float32), weight / jnp.maximum(weight.sum(), 1))
