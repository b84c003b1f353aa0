"""What systems share that read the signals of each service tick by tick."""

import jax
import jax.numpy as jnp
import numpy as np

from data_prep.errors import InputError
from ssad_jax.backends import choices
from ssad_jax.batching import Batch
from ssad_jax.layers.services import INPUT_CLIP, Services
from ssad_jax.prepared import System


def services_of(system: System, evidence: bool) -> Services:
    """The signals of each service.

    Raises:
        InputError: there is none.
    """
    services = Services.of(system, evidence)
    if not len(services.node):
        raise InputError("this system has no signal of the kinds that the method reads")
    return services


def of_services(services: Services, batch: Batch) -> jax.Array:
    """[n, T, U, P] f32: the signals in each service's slots, n = B * S windows; 0 in empty slots."""
    ticks = batch.ticks.reshape(-1, *batch.ticks.shape[2:]).astype(jnp.float32)
    return jnp.clip(services.gather(ticks), -INPUT_CLIP, INPUT_CLIP)


def mean_square(services: Services, difference: jax.Array) -> jax.Array:
    """[n, T, U] of [n, T, U, P]: over a service's signals; 0 of a service without."""
    there = services.slots < len(services.node)
    share = (there / np.maximum(there.sum(1, keepdims=True), 1)).astype(np.float32)
    return jnp.einsum("ntup,up->ntu", jnp.square(difference), share)


def in_pieces(of_windows, services: Services, windows):
    """`of_windows` of a pytree of n windows, so many at a time as the memory of one device's caches serves best."""
    piece = max(1, choices().rows_scored // services.num_services)
    one = lambda window: jax.tree.map(  # noqa: E731
        lambda x: x[0], of_windows(jax.tree.map(lambda x: x[None], window))
    )
    return jax.lax.map(one, windows, batch_size=piece)
