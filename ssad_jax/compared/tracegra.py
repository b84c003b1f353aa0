"""TraceGra (Chen et al., Computer Communications 2023) in compact form: a graph of services, tick by tick, is rebuilt.

The paper's: traces and the performance metrics of containers in one graph; a graph network for topology and an LSTM for
time in an unsupervised encoder-decoder; the score is made of the two parts of the loss with two weights.

Adapted: a node is a service, its vector at a tick the signals of its spans (numbers, latencies, errors) and metrics;
log signals are left out. Services have different numbers of signals, so each signal enters with a vector computed from
its node's identity, and is read off the decoder's state along the same vector: nothing learned belongs to a dataset,
and no order of nodes matters. Two GCN layers along the window's calls, an LSTM of each service, an LSTM that decodes X,
and sigmoid(h_i . h_j) for which services call one another. A call is active where it took place in the window: single
ticks hold too few. Weights, sizes and decoders are not published in what could be read, nor whether the encoder is
variational: it is deterministic by default. The score's two terms are standardised on training windows (over which the
network runs before each epoch), since their scales differ; the mean over ticks is the score, the last tick stands
beside it. narrower here than the full size of 64: `config.compared.tracegra`.

Fidelity: low to medium.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ssad_jax.batching import Batch, Needs
from ssad_jax.compared import ticks
from ssad_jax.layers.functional import functional
from ssad_jax.layers.hashing import fold, normal, window_keys, words
from ssad_jax.layers.lstm import Lstm
from ssad_jax.layers.services import SignalVectors, embed
from ssad_jax.methods.interface import Method, WindowScores
from ssad_jax.prepared import EDGE_KINDS, NODE_KINDS, System

KINDS = ("service", "dependency", "metric")  # nodes that are read
TERMS = ("signals", "structure")
INVOCATION = EDGE_KINDS.index("invocation")
NOISE = 5  # stream of a window's key
EPSILON = 1e-6  # smallest standard deviation of a term


class Network(nnx.Module):
    """All learned parts."""

    def __init__(self, width: int, variational: bool, *, rngs: nnx.Rngs):
        self.vectors = SignalVectors(width, rngs=rngs)
        self.first = nnx.Linear(width, width, kernel_init=nnx.initializers.he_normal(), rngs=rngs)
        self.second = nnx.Linear(width, width, kernel_init=nnx.initializers.he_normal(), rngs=rngs)
        self.encoder = Lstm(width, width, rngs=rngs)
        if variational:
            self.log_variance = nnx.Linear(width, width, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.decoder = Lstm(width, width, rngs=rngs)
        self.read = nnx.Linear(width, width, rngs=rngs)


def active_calls(system: System, graphs) -> jax.Array:
    """[n, U, U] f32, symmetric: 1 where one of two services called the other in the window; diagonal 0."""
    size = len(system.service_names)
    service = jnp.asarray(np.where(system.service >= 0, system.service, size))
    senders, receivers, kind = (x.reshape(-1, x.shape[-1]) for x in (graphs.senders, graphs.receivers, graphs.edges))
    sender = jnp.where(kind == INVOCATION, service[senders], size)  # padding edges lead to a node without service
    window = jnp.arange(len(senders))[:, None]
    calls = jnp.zeros((len(senders), size + 1, size + 1)).at[window, sender, service[receivers]].set(1.0)
    calls = calls[:, :size, :size] * (1 - jnp.eye(size))[None]
    return jnp.maximum(calls, calls.swapaxes(1, 2))


def normalised(calls: jax.Array) -> jax.Array:
    """D^-1/2 (A + I) D^-1/2 of A [n, U, U]."""
    matrix = calls + jnp.eye(calls.shape[-1])[None]
    scale = jax.lax.rsqrt(matrix.sum(-1))
    return matrix * scale[:, :, None] * scale[:, None]


def structure_error(h: jax.Array, calls: jax.Array) -> jax.Array:
    """[n, T] mean binary cross-entropy over pairs of services of sigmoid(h_i . h_j).

    Args: h: [n, T, U, H]; calls: [n, U, U].
    """
    size = calls.shape[-1]
    logit = jnp.einsum("ntuh,ntvh->ntuv", h, h)
    each = jax.nn.softplus(logit) - logit * calls[:, None]
    apart = np.float32(1) - np.eye(size, dtype=np.float32)
    return jnp.einsum("ntuv,uv->nt", each, apart) / max(size * (size - 1), 1)


def create(config, system: System, knowledge=None) -> Method:
    """Build TraceGra for one system; uses `config.compared.tracegra`.

    Raises:
        InputError: the system has no spans and no metrics.
    """
    del knowledge
    settings = config.compared.tracegra
    weights = dict(zip(TERMS, (settings.signals, settings.structure), strict=True))
    is_read = np.isin(system.kind, [NODE_KINDS.index(kind) for kind in KINDS])
    services = ticks.services_of(
        dataclasses.replace(system, signal_mask=system.signal_mask & is_read[:, None]), evidence=False
    )
    init_learned, network = functional(Network, settings.width, settings.variational)

    def init(key):
        one = {name: jnp.ones(()) for name in TERMS}
        return init_learned(key) | {"fixed": {"mean": jax.tree.map(jnp.zeros_like, one), "sd": one}}

    def inputs(batch: Batch) -> tuple[jax.Array, jax.Array]:
        return ticks.of_services(services, batch), active_calls(system, batch.graphs)

    def errors(params, x, calls, keys=None) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
        """Of n windows: each service's error [n, T, U], the terms [n, T], divergence from the prior [n] (0: none)."""
        model = network(params)
        vectors, own = model.vectors(services)
        count, length, size, _ = x.shape
        graph = normalised(calls)
        h = embed(x, vectors) + own[None, None]
        for layer in (model.first, model.second):
            h = jax.nn.relu(jnp.einsum("nuv,ntvh->ntuh", graph, layer(h)))

        def over_time(lstm: Lstm, rows: jax.Array) -> jax.Array:
            flat = rows.swapaxes(1, 2).reshape(count * size, length, -1)
            return lstm(flat).reshape(count, size, length, -1).swapaxes(1, 2)

        h, divergence = over_time(model.encoder, h), jnp.zeros(count)
        if settings.variational:
            log_variance = jnp.clip(model.log_variance(h), -10, 10)
            each = 0.5 * (jnp.square(h) + jnp.exp(log_variance) - 1 - log_variance)
            divergence = each.mean((1, 2, 3))
            if keys is not None:  # scores are of the mean
                place = jnp.arange(h[0].size, dtype=jnp.uint32).reshape(1, *h.shape[1:])
                h = h + jnp.exp(log_variance / 2) * normal(fold(keys, NOISE), place)
        rebuilt = jnp.einsum("ntuh,uph->ntup", model.read(over_time(model.decoder, h)), vectors)
        service = ticks.mean_square(services, x - rebuilt)
        return service, {"signals": service.mean(-1), "structure": structure_error(h, calls)}, divergence

    def loss(params, batch: Batch, keys, gather):
        """Training loss of this device's examples; arguments and result as `knowledge_ssl` has them."""
        own = window_keys(words(keys), batch.window_mask.shape[1]).reshape(-1, 2)
        _, terms, divergence = errors(params, *inputs(batch), own)
        each = {name: weights[name] * terms[name].mean(1) for name in TERMS}
        if settings.variational:
            each["divergence"] = settings.divergence * divergence
        mask = batch.window_mask.reshape(-1)
        sums = {name: jnp.where(mask, values, 0).sum() for name, values in each.items()}
        return sums, dict.fromkeys(sums, mask.sum()), {}

    def observe(params, batch: Batch):
        """Sums of the terms and of their squares over windows."""
        _, terms, _ = errors(params, *inputs(batch))
        mask = batch.window_mask.reshape(-1)
        mean = {name: terms[name].mean(1) for name in TERMS}
        return jax.tree.map(lambda x: jnp.where(mask, x, 0).sum(), (mean, jax.tree.map(jnp.square, mean))), mask.sum()

    def absorb(params, means, step):
        del step
        mean, square = means
        sd = jax.tree.map(lambda m, s: jnp.maximum(jnp.sqrt(jnp.maximum(s - m * m, 0)), EPSILON), mean, square)
        return params | {"fixed": {"mean": mean, "sd": sd}}

    def score(params, batch: Batch, keys=None) -> WindowScores:
        """Of B runs of L windows: both terms standardised and weighted, mean over ticks and of the last tick."""
        del keys
        service, terms, _ = ticks.in_pieces(lambda window: errors(params, *window), services, inputs(batch))
        fixed, lead = params["fixed"], batch.window_mask.shape
        each = sum(weights[name] * (terms[name] - fixed["mean"][name]) / fixed["sd"][name] for name in TERMS)
        own = jnp.stack([each.mean(1), each[:, -1]], axis=-1).reshape(*lead, 2)
        of_service = service.mean(1).reshape(*lead, -1)
        there = batch.window_mask[..., None]
        return WindowScores(jnp.where(there, own, jnp.nan), jnp.where(there, of_service, jnp.nan))

    needs = Needs(tick_signals=(services.node, services.channel), alone=True)
    return Method(
        init, loss, score, needs=needs, score_names=("mean of ticks", "last tick"), observe=observe, absorb=absorb
    )
