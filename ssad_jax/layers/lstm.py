"""A long short-term memory, one layer, as a `lax.scan` (Hochreiter & Schmidhuber 1997; forget gates begin open)."""

import jax
import jax.numpy as jnp
from flax import nnx

from ssad_jax.backends import choices


class Lstm(nnx.Module):
    """Gates in the order input, forget, candidate, output."""

    def __init__(self, in_features: int, hidden: int, *, rngs: nnx.Rngs):
        orthogonal = nnx.initializers.orthogonal()
        self.hidden = hidden
        self.of_input = nnx.Linear(in_features, 4 * hidden, use_bias=False, rngs=rngs)
        self.of_state = nnx.Param(jnp.concatenate([orthogonal(rngs.params(), (hidden, hidden)) for _ in range(4)], 1))
        self.bias = nnx.Param(jnp.zeros(4 * hidden).at[hidden : 2 * hidden].set(1.0))

    def step(self, state: tuple[jax.Array, jax.Array], projected: jax.Array) -> tuple[jax.Array, jax.Array]:
        """One step: cell and output [R, H], projected input W x + b [R, 4 H] -> cell and output."""
        cell, h = state
        gates = projected + h @ self.of_state[...]
        enter, keep, candidate, leave = jnp.split(gates, 4, axis=-1)
        cell = jax.nn.sigmoid(keep) * cell + jax.nn.sigmoid(enter) * jnp.tanh(candidate)
        return cell, jax.nn.sigmoid(leave) * jnp.tanh(cell)

    @jax.named_scope("lstm")
    def __call__(self, x: jax.Array) -> jax.Array:
        """All outputs, from a state of zeros: x [R, T, F] -> [R, T, H]."""
        projected = self.of_input(x) + self.bias[...].reshape(1, 1, -1)  # one product for all steps
        start = jnp.zeros_like(projected[:, 0, : self.hidden])  # varies over devices as the data does

        def advance(state, now):
            state = self.step(state, now)
            return state, state[1]

        _, outputs = jax.lax.scan(advance, (start, start), projected.swapaxes(0, 1), unroll=choices().gru_unroll)
        return outputs.swapaxes(0, 1)
