"""A Flax module as pure functions of a nested dict of arrays."""

from collections.abc import Callable

import jax
from flax import nnx


def functional(module: type[nnx.Module], *sizes) -> tuple[Callable, Callable]:
    """Of `module(*sizes, rngs=...)`: init(key) -> its parameters, network(params) -> the module with them.

    Parameters are a nested dict of float32 arrays; what lies in it under "fixed" is not the module's.
    """
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: module(*sizes, rngs=nnx.Rngs(0))), nnx.Param)

    def init(key) -> dict:
        return nnx.to_pure_dict(nnx.state(module(*sizes, rngs=nnx.Rngs(key)), nnx.Param))

    def network(params: dict) -> nnx.Module:
        state = jax.tree.map(lambda leaf: leaf, abstract)
        nnx.replace_by_pure_dict(state, {name: part for name, part in params.items() if name != "fixed"})
        return nnx.merge(graphdef, state)

    return init, network
