"""The temporal encoder s_t = GRU(g_t, s_{t-1}), one layer, as a masked `lax.scan`; and one without history."""

import jax
import jax.numpy as jnp
from flax import nnx

from ssad_jax.backends import choices


class Temporal(nnx.Module):
    """A GRU (gates in the order reset, update, candidate; the form of torch.nn.GRU and nnx.GRUCell)."""

    def __init__(self, in_features: int, hidden: int, *, rngs: nnx.Rngs):
        orthogonal = nnx.initializers.orthogonal()
        self.hidden = hidden
        self.of_input = nnx.Linear(in_features, 3 * hidden, rngs=rngs)
        blocks = [orthogonal(rngs.params(), (hidden, hidden)) for _ in range(3)]
        self.of_state = nnx.Param(jnp.concatenate(blocks, axis=1))
        self.candidate_bias = nnx.Param(jnp.zeros(hidden))

    def step(self, state: jax.Array, projected: jax.Array) -> jax.Array:
        """One step: state [..., H], projected input W_x g + b [..., 3 H] -> state [..., H]."""
        x_reset, x_update, x_candidate = jnp.split(projected, 3, axis=-1)
        h_reset, h_update, h_candidate = jnp.split(state @ self.of_state[...], 3, axis=-1)
        bias = self.candidate_bias[...].reshape((1,) * (state.ndim - 1) + (-1,))
        reset = jax.nn.sigmoid(x_reset + h_reset)
        update = jax.nn.sigmoid(x_update + h_update)
        candidate = jnp.tanh(x_candidate + reset * (h_candidate + bias))
        return (1 - update) * candidate + update * state

    @jax.named_scope("gru")
    def __call__(self, g: jax.Array, mask: jax.Array, start: jax.Array | None = None) -> jax.Array:
        """All states: g [B, S, F], mask [B, S] -> s [B, S, H]; a masked step keeps the state.

        start: s_{-1} [B, H], 0 by default.
        """
        projected = self.of_input(g)  # one product for all steps, before the scan

        def advance(state, inputs):
            x, m = inputs  # [B, 3 H], [B]
            state = jnp.where(m[:, None], self.step(state, x), state)
            return state, state

        if start is None:  # zeros derived from the data, so that the carry varies over devices as the data does
            start = jnp.zeros_like(projected[:, 0, : self.hidden])
        _, states = jax.lax.scan(advance, start, (projected.swapaxes(0, 1), mask.T), unroll=choices().gru_unroll)
        return states.swapaxes(0, 1)


class PerWindow(nnx.Module):
    """The ablation: s_t = tanh(W g_t + b), a state of one window alone. Called as `Temporal` is."""

    def __init__(self, in_features: int, hidden: int, *, rngs: nnx.Rngs):
        self.of_input = nnx.Linear(in_features, hidden, rngs=rngs)

    def step(self, state: jax.Array, projected: jax.Array) -> jax.Array:
        """Projected input W g + b [..., H] -> state [..., H]; the state before is not used."""
        return jnp.tanh(projected)

    def __call__(self, g: jax.Array, mask: jax.Array, start: jax.Array | None = None) -> jax.Array:
        """g [B, S, F] -> s [B, S, H]."""
        return jnp.tanh(self.of_input(g))
