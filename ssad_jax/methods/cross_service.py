"""Method B: cross-service temporal contrastive learning (docs/cross_service.md).

The ticks of a window -> a series for each service -> GRU, services as a batch -> graph layers along calls -> a
representation of each service and, pooled, of the system. Trained by contrast alone: the same service, and the same
window, in two views attract; other services of a window, and windows that do not overlap, repel. Scored by the distance
of representations from those of normal windows (`scoring.distances`).

`create` returns pure functions of parameters and batches. What a window draws depends on its example's key alone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_prep.errors import InputError
from ssad_jax.backends import choices
from ssad_jax.batching import Batch, Needs
from ssad_jax.layers import propagation
from ssad_jax.layers.functional import functional
from ssad_jax.layers.hashing import bernoulli, fold, window_keys, words
from ssad_jax.layers.services import Services, SignalVectors, embed
from ssad_jax.layers.similarity import normalise
from ssad_jax.layers.temporal import Temporal
from ssad_jax.methods.interface import Method, Representations
from ssad_jax.objectives import contrastive, tick_views
from ssad_jax.objectives.contrastive import info_nce, service_info_nce
from ssad_jax.prepared import CONTEXT_DIM, System

EMBEDDING_DIM = 64  # of z
# Streams of an example's key, and of a view's.
FIRST, SECOND = range(2)
SIGNALS, MODALITIES, SHIFT, CALLS = range(4)


class View(NamedTuple):
    """What the encoder is given of n windows."""

    ticks: jax.Array  # [n, T, C]
    window: jax.Array  # [n, C]: the same signals of the whole window
    keys: jax.Array | None  # [n, 2]; None: nothing is moved in time, every call is there


class Encoded(NamedTuple):
    """Representations of n windows."""

    own: jax.Array  # [n, U, H]: of the service alone
    service: jax.Array  # [n, U, H]: mixed along calls
    system: jax.Array  # [n, 2 H]: mean and maximum over services


class Network(nnx.Module):
    """All learned parts."""

    def __init__(self, config, *, rngs: nnx.Rngs):
        hidden = config.model.hidden_dim
        self.num_layers = config.model.num_graph_layers
        self.vectors = SignalVectors(hidden, rngs=rngs)
        self.temporal = Temporal(hidden, hidden, rngs=rngs)
        if config.cross_service.window_signals:
            self.of_window = nnx.Linear(hidden, hidden, rngs=rngs)
        for i in range(self.num_layers):
            setattr(self, f"layer_{i}", nnx.Linear(hidden, hidden, kernel_init=nnx.initializers.he_normal(), rngs=rngs))
        self.service_embedding = nnx.Linear(hidden, EMBEDDING_DIM, rngs=rngs)
        self.system_embedding = nnx.Linear(2 * hidden, EMBEDDING_DIM, rngs=rngs)


def create(config, system: System, knowledge=None) -> Method:
    """Build method B for one system.

    Args:
        config: see `ssad_jax.config`; uses model, views, loss.temperature, cross_service and data.window_length.
        system: of the dataset to train on or to score; parameters do not depend on it.
        knowledge: not used.

    Raises:
        InputError: there is no signal to encode.
    """
    del knowledge
    settings, perturb, temperature = config.cross_service, config.views, config.loss.temperature
    services = Services.of(system, settings.channels == "evidence")
    if not len(services.node):
        raise InputError("no signal of this system speaks of faults; set --config.cross_service.channels=all")
    present = tuple(np.unique(services.modality).tolist())
    apart = config.data.window_length
    dtype = jnp.dtype(config.model.precision)
    init, network = functional(Network, config)
    # Both directions of each pair; a pair that does not exist keeps the arrays from being empty.
    calls = services.calls if len(services.calls) else np.zeros((1, 2), int)
    exists = np.full(len(calls), float(len(services.calls) > 0), np.float32)
    senders, receivers = np.concatenate([calls, calls[:, ::-1]]).T.astype(np.int32)

    @jax.named_scope("input")
    def whole(batch: Batch) -> View:
        """Every window as it is, n = B * S."""
        ticks = batch.ticks.reshape(-1, *batch.ticks.shape[2:])
        nodes = batch.graphs.nodes.reshape(len(ticks), *batch.graphs.nodes.shape[2:])
        return View(ticks, nodes[:, services.node, CONTEXT_DIM + services.channel], None)

    @jax.named_scope("input")
    def view(batch: Batch, keys, number: int) -> View:
        """One of two views of every window."""
        plain = whole(batch)
        keys = fold(window_keys(words(keys), batch.window_mask.shape[1]).reshape(-1, 2), number)
        keep = tick_views.keep_signals(fold(keys, SIGNALS), services.modality, perturb.attribute_drop)
        keep &= tick_views.keep_modalities(
            fold(keys, MODALITIES), services.modality, present, settings.modality_alone, settings.modality_drop
        )
        return View(jnp.where(keep[:, None], plain.ticks, 0), jnp.where(keep, plain.window, 0), keys)

    @jax.named_scope("propagation")
    def connect(keys, count: int) -> propagation.Propagation:
        method = config.model.propagation
        if method == "auto":
            method = propagation.choose(services.num_services, len(senders), jax.default_backend())
        weight = jnp.broadcast_to(jnp.asarray(exists)[None], (count, len(exists)))
        if keys is not None:
            pair = jnp.arange(len(exists), dtype=jnp.uint32)[None]
            weight = jnp.where(bernoulli(fold(keys, CALLS), pair, perturb.edge_drop), 0.0, weight)
        weight = jnp.concatenate([weight, weight], axis=1)
        ends = (jnp.broadcast_to(jnp.asarray(x)[None], weight.shape) for x in (senders, receivers))
        return propagation.prepare(method, *ends, weight, np.ones(services.num_services, bool), dtype)

    def encode(model: Network, part: View) -> Encoded:
        """Representations of n windows, float32."""
        vectors, of_services = model.vectors(services)
        series = embed(services.gather(part.ticks.astype(dtype)), vectors.astype(dtype))  # [n, T, U, H]
        series = tick_views.align(series, services.lag)
        if part.keys is not None:
            series = tick_views.shift(fold(part.keys, SHIFT), series, services.is_called, settings.align_ticks)
        count, length, width, hidden = series.shape
        series = series + of_services.astype(dtype)[None, None]  # who it is, also where nothing is seen of it
        rows = series.swapaxes(1, 2).reshape(count * width, length, hidden).astype(jnp.float32)
        states = model.temporal(rows, jnp.ones(rows.shape[:2], bool))
        h = states.mean(1).reshape(count, width, hidden)
        if settings.window_signals:
            h = h + jnp.tanh(model.of_window(embed(services.gather(part.window), vectors)))
        own, graph = h, connect(part.keys, count)
        for i in range(model.num_layers):
            layer = getattr(model, f"layer_{i}")
            with jax.named_scope("propagation"):
                # Beside what its neighbours are like, a service keeps what it is itself.
                h = h + jax.nn.relu(propagation.propagate(graph, h @ layer.kernel[...]) + layer.bias[...][None, None])
        return Encoded(own, h, jnp.concatenate([h.mean(1), h.max(1)], axis=-1))

    def embeddings(model: Network, encoded: Encoded) -> tuple[jax.Array, jax.Array]:
        """z of services [n, U, EMBEDDING_DIM] and of the system [n, EMBEDDING_DIM]."""
        return normalise(model.service_embedding(encoded.service)), normalise(model.system_embedding(encoded.system))

    def loss(params, batch: Batch, keys, gather):
        """Training loss of this device's examples; arguments and result as `knowledge_ssl` has them."""
        model = network(params)
        first, second = (embeddings(model, encode(model, view(batch, keys, n))) for n in (FIRST, SECOND))
        with jax.named_scope("heads"):
            mask, tick = batch.window_mask.reshape(-1), batch.start_tick.reshape(-1)
            of_services, num_services = service_info_nce(
                first[0], second[0], tick, mask, gather, apart, temperature
            )  # fmt: skip
            of_system, num_windows, similarities = info_nce(
                first[1], second[1], tick, mask, gather, apart, temperature
            )  # fmt: skip
        sums = {"service": settings.service * of_services, "system": settings.system * of_system}
        return sums, {"service": num_services, "system": num_windows}, jax.lax.stop_gradient(similarities)

    def score(params, batch: Batch, keys=None) -> Representations:
        """Representations of B runs of L windows. Deterministic; `keys` is not used."""
        del keys
        model, lead = network(params), batch.window_mask.shape
        piece = max(1, choices().rows_scored // services.num_services)

        def encode_one(window: View) -> Encoded:
            alone = encode(model, jax.tree.map(lambda x: x[None], window))
            return jax.tree.map(lambda x: x[0], alone)

        found = jax.lax.map(encode_one, whole(batch), batch_size=piece)
        mask = batch.window_mask
        # Of a service alone: what its neighbours show is no sign of where a fault is.
        service = jnp.where(mask[..., None, None], found.own.reshape(*lead, *found.own.shape[1:]), 0)
        system = found.system.reshape(*lead, *found.system.shape[1:])
        return Representations(service, jnp.where(mask[..., None], system, 0))

    def pair_distances(params, batch: Batch, keys):
        """Cosine distances between embeddings of the system in two views; arguments as `knowledge_ssl` has them."""
        model = network(params)
        z, other = (embeddings(model, encode(model, view(batch, keys, n)))[1] for n in (FIRST, SECOND))
        return contrastive.pair_distances(z, other, batch.start_tick.reshape(-1), batch.window_mask.reshape(-1), apart)

    needs = Needs(tick_signals=(services.node, services.channel), alone=True)
    return Method(init, loss, score, pair_distances, needs=needs, by_distance=True)
