"""Training without files, devices or epochs: the loss step by step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssad_jax import train
from ssad_jax.batching import make_batch, resident

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # what is called once or twice


def batch_of(method, prepared, windows, mask=None):
    """Single windows as examples; where `mask` is false there is none."""
    rows = np.arange(len(windows), dtype=np.int32)[:, None]
    if mask is not None:
        rows = np.where(np.asarray(mask)[:, None], rows, -1)
    arrays = jax.tree.map(jnp.asarray, resident(prepared, np.asarray(windows), method.needs))
    return make_batch(arrays, jnp.asarray(rows), jnp.asarray(windows, jnp.int32))


def keys_of(windows, seed=0):
    """A key for each window, whatever the batch."""
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.asarray(windows))


def total(method, params, batch, keys):
    """The objective of a batch on one device."""
    sums, counts, _ = method.loss(params, batch, keys, lambda x: x)
    return sum(s / jnp.maximum(counts[name], 1) for name, s in sums.items())


def trained(method, prepared, config, windows, steps, batch_size=16):
    """(parameters, losses [steps]) after training on windows drawn evenly."""
    params, optimizer = jit(method.init)(jax.random.key(0)), train.make_optimizer(config)
    state, everything = optimizer.init(params), jax.tree.map(jnp.asarray, resident(prepared, windows, method.needs))
    observe = method.observe and jit(method.observe)

    @jax.jit
    def step(params, state, number, rows):
        batch = make_batch(everything, rows[:, None], rows)
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(jax.random.key(0), number), i))(rows)
        loss, gradient = jax.value_and_grad(lambda p: total(method, p, batch, keys))(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    rng, losses = np.random.default_rng(0), []
    for number in range(steps):
        if observe and number % 25 == 0:
            rows = jnp.arange(len(windows), dtype=jnp.int32)
            sums, count = observe(params, make_batch(everything, rows[:, None], rows))
            params = method.absorb(params, jax.tree.map(lambda x, n=count: x / n, sums), number)
        rows = jnp.asarray(rng.integers(0, len(windows), batch_size), jnp.int32)
        params, state, loss = step(params, state, number, rows)
        losses.append(float(loss))
    return params, np.array(losses)
