"""ART (Sun et al., ASE 2024) in compact form: the next state of each service is predicted from those before.

The authors' code: a transformer over an instance's channels (2 heads, 1 layer), GraphSAGE along calls (2 layers, 64 and
32 wide), a GRU over time (32), the mean squared error of the next state; noise 0.3; Adam with 1e-3. The score is the
sum of the residuals of the three instances with the largest; all modalities are read.

Adapted: an instance is a service of the dataset, a state a tick. Services have up to hundreds of signals, so a channel
is the signals of one kind of node (spans, calls answered, calls made, log templates, metrics, events): their sum, each
times a vector computed from its node's identity. A signal of the next state is read off along the same vector, so that
nothing learned belongs to a dataset and no order of nodes matters. Read are the signals that speak of faults, as method
B does; volumes are no states to predict. Noise is taken as Gaussian, added to inputs in training, in units of normal
scale. Thresholds are those of all methods instead of SPOT. A window's score is the mean over its ticks, the last tick
stands beside it.

Fidelity: medium.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ssad_jax.batching import Batch, Needs
from ssad_jax.compared import ticks
from ssad_jax.layers.functional import functional
from ssad_jax.layers.hashing import fold, normal, window_keys, words
from ssad_jax.layers.services import ROLES, Services, SignalVectors
from ssad_jax.layers.temporal import Temporal
from ssad_jax.methods.interface import Method, WindowScores
from ssad_jax.prepared import System

HEADS = 2  # authors' code
WORST = 3  # instances whose residuals are added up (authors' code)
NOISE = 6  # stream of a window's key


class Channels(nnx.Module):
    """One post-norm transformer layer over the channels of a service, then their mean: [..., K, H] -> [..., H]."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.attend = nnx.Linear(width, 3 * width, rngs=rngs)
        self.mix = nnx.Linear(width, width, rngs=rngs)
        self.widen = nnx.Linear(width, 2 * width, rngs=rngs)
        self.narrow = nnx.Linear(2 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array, there: np.ndarray) -> jax.Array:
        """There: [U, K] bool, the channels that each service has; x: [..., U, K, H]."""
        heads = self.attend(x).reshape(*x.shape[:-1], 3, HEADS, -1)
        query, key, value = (heads[..., i, :, :] for i in range(3))
        logit = jnp.einsum("...qhd,...khd->...hqk", query, key) / np.sqrt(np.float32(query.shape[-1]))
        hidden = np.where(there, 0, -1e9).astype(np.float32)[:, None, None]
        share = jax.nn.softmax(logit + hidden.reshape((1,) * (logit.ndim - 4) + hidden.shape), axis=-1)
        x = standardise(x + self.mix(jnp.einsum("...hqk,...khd->...qhd", share, value).reshape(x.shape)))
        x = standardise(x + self.narrow(jax.nn.relu(self.widen(x))))
        weight = (there / np.maximum(there.sum(1, keepdims=True), 1)).astype(np.float32)
        return jnp.einsum("...ukh,uk->...uh", x, weight)


class Network(nnx.Module):
    """All learned parts."""

    def __init__(self, width: int, wide: int, *, rngs: nnx.Rngs):
        self.vectors = SignalVectors(width, rngs=rngs)
        self.channels = Channels(width, rngs=rngs)
        self.first = nnx.Linear(2 * width, wide, kernel_init=nnx.initializers.he_normal(), rngs=rngs)
        self.second = nnx.Linear(2 * wide, width, kernel_init=nnx.initializers.he_normal(), rngs=rngs)
        self.temporal = Temporal(width, width, rngs=rngs)
        self.read = nnx.Linear(width, width, rngs=rngs)


def standardise(x: jax.Array) -> jax.Array:
    """Layer normalisation without gain and bias: a product follows wherever it is used."""
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5)


def neighbours(services: Services) -> np.ndarray:
    """[U, U] f32: of each service, the shares of those that it calls or that call it; a row of zeros where none."""
    matrix = np.zeros((services.num_services,) * 2, np.float32)
    matrix[services.calls[:, 0], services.calls[:, 1]] = matrix[services.calls[:, 1], services.calls[:, 0]] = 1
    return matrix / np.maximum(matrix.sum(1, keepdims=True), 1)


def places(system: System, services: Services, length: int) -> np.ndarray:
    """[1, length, C] uint32: a number for each tick of each signal, whatever the order of nodes."""
    names = np.array(system.node_names)[services.node]
    number = np.empty(len(names), np.uint32)
    number[np.lexsort((services.channel, names))] = np.arange(len(names))
    return (np.arange(length, dtype=np.uint32)[:, None] * np.uint32(len(names)) + number[None])[None]


def worst(residual: jax.Array) -> jax.Array:
    """[...] sum of the three largest of [..., U] residuals; of all where there are fewer."""
    return jax.lax.top_k(residual, min(WORST, residual.shape[-1]))[0].sum(-1)


def create(config, system: System, knowledge=None) -> Method:
    """Build ART for one system; uses `config.compared.art`.

    Raises:
        InputError: no signal of the system speaks of faults.
    """
    del knowledge
    settings = config.compared.art
    services = ticks.services_of(system, evidence=True)
    exists = services.slots < len(services.node)  # [U, P]
    of_role = np.eye(len(ROLES), dtype=np.float32)[services.role] * exists[..., None]  # [U, P, K]
    of_role = of_role[..., of_role.any((0, 1))]  # the system has K of them
    present, mean = of_role.any(1), neighbours(services)
    place = places(system, services, config.data.window_length - 1)
    init, network = functional(Network, settings.width, settings.wide)

    def residuals(params, x: jax.Array, keys=None) -> jax.Array:
        """[n, T - 1, U]: mean squares of the ticks but the first less what was predicted; x [n, T, U, P]."""
        model = network(params)
        vectors, own = model.vectors(services)
        seen = x[:, :-1]
        if keys is not None:
            seen = seen + settings.noise * services.gather(normal(fold(keys, NOISE), place))
        split = of_role[..., None] * vectors[:, :, None]  # [U, P, K, H]
        h = jnp.einsum("ntup,upkh->ntukh", seen, split) + own[None, None, :, None]
        h = model.channels(h, present)
        for layer in (model.first, model.second):
            around = jnp.einsum("uv,ntvh->ntuh", mean, h)
            h = jax.nn.relu(layer(jnp.concatenate([h, around], axis=-1)))
        count, length, size, width = h.shape
        rows = h.swapaxes(1, 2).reshape(count * size, length, width)
        h = model.temporal(rows, jnp.ones(rows.shape[:2], bool)).reshape(count, size, length, width).swapaxes(1, 2)
        predicted = jnp.einsum("ntuh,uph->ntup", model.read(h), vectors)
        return ticks.mean_square(services, x[:, 1:] - predicted)

    def loss(params, batch: Batch, keys, gather):
        """Training loss of this device's examples; arguments and result as `knowledge_ssl` has them."""
        own = window_keys(words(keys), batch.window_mask.shape[1]).reshape(-1, 2)
        each = residuals(params, ticks.of_services(services, batch), own).mean((1, 2))
        mask = batch.window_mask.reshape(-1)
        return {"next state": jnp.where(mask, each, 0).sum()}, {"next state": mask.sum()}, {}

    def score(params, batch: Batch, keys=None) -> WindowScores:
        """Of B runs of L windows: the worst three services, mean over ticks and of the last tick."""
        del keys
        found = ticks.in_pieces(lambda x: residuals(params, x), services, ticks.of_services(services, batch))
        lead, each = batch.window_mask.shape, worst(found)
        own = jnp.stack([each.mean(1), each[:, -1]], axis=-1).reshape(*lead, 2)
        of_service = found.mean(1).reshape(*lead, -1)
        there = batch.window_mask[..., None]
        return WindowScores(jnp.where(there, own, jnp.nan), jnp.where(there, of_service, jnp.nan))

    needs = Needs(tick_signals=(services.node, services.channel), alone=True)
    return Method(init, loss, score, needs=needs, score_names=("mean of ticks", "last tick"))
