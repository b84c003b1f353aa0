"""TraceVAE (Xie Z. et al., WWW 2023) in compact form: two variational autoencoders of a trace, structure and latency.

The paper's: a trace is a graph of spans. One autoencoder says its number of spans, its calls and its operations from
z; one says its latencies from z2 and the structure, with z2 ~ p(z2 | z). Graph attention layers; a dispatching layer
divides a span's time among its children; the score is the importance-sampled negative log-likelihood, clipped at 1e5.
Likelihoods can be lower of usual traces than of unusual ones (the entropy gap); against that: scaled categorical
probabilities, division by the number of spans, a least standard deviation of latencies: all of them switches. No
gradient of latencies enters the structure (z and the embedding of operations), as in the authors' code.

Adapted: a trace belongs, whole, to the windows in which it begins; at most 64 of its spans are read. Its calls are a
forest: the parent of each span is told, among the spans before it or none, instead of all entries of an adjacency
matrix; operations are told with the calls known. Scaling divides by the probability of the likeliest outcome (our
reading). Latencies are log(1 + us), standardised for each operation on training windows; the least deviation is a share
of the operation's own. The dispatching layer divides a span's state, not its microseconds: one share stays as its self
time. Layer norms instead of batch norms, mean pooling over spans, a standard normal prior without flow, both
autoencoders learned at once (what keeps gradients apart makes them independent; the authors learn structure alone
first), AdamW instead of RMSProp. The same few draws for every trace.
Published sizes: width 500, 4 layers; in `config.compared.tracevae`.

Fidelity: medium.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.scipy.special import ndtri

from ssad_jax.batching import Batch, Needs
from ssad_jax.compared import traces, units
from ssad_jax.compared.traces import MOST, Attention, call_matrix
from ssad_jax.layers.functional import functional
from ssad_jax.layers.hashing import fold, uniform, window_keys, words
from ssad_jax.methods.interface import Method, WindowScores
from ssad_jax.prepared import System

EMBEDDING = 40  # of operations (published)
CLIP = 1e5  # of a trace's score (published)
LOG_STD = (-7.0, 2.0)  # of z and of latencies (published); (-5, 2) of the prior of z2
MIDDLE = 8.0  # subtracted from log(1 + us) before squares are summed
LEAST_STD = 0.05  # of an operation's log latencies: clocks of a millisecond would make it 0
LATENCY_CLIP = 10.0  # standardised latencies as inputs, in standard deviations
NEVER = -1e9
NOISE = 12  # stream of a window's key
PIECE = 32  # traces judged at a time


def log_normal(x: jax.Array, mean: jax.Array, log_std: jax.Array) -> jax.Array:
    """Log density of a normal distribution, elementwise."""
    return -0.5 * jnp.square((x - mean) * jnp.exp(-log_std)) - log_std - 0.5 * np.log(2 * np.pi)


def divergence(mean, log_std, prior_mean, prior_log_std) -> jax.Array:
    """KL of two normal distributions, summed over the last axis."""
    ratio = jnp.exp(2 * (log_std - prior_log_std)) + jnp.square((mean - prior_mean) * jnp.exp(-prior_log_std))
    return 0.5 * (ratio - 1 - 2 * (log_std - prior_log_std)).sum(-1)


def categorical(logits: jax.Array, outcome: jax.Array, scaled: bool) -> jax.Array:
    """[...] log probability of outcomes [...]; scaled: over that of the likeliest one."""
    own = jnp.take_along_axis(logits, outcome[..., None], axis=-1)[..., 0]
    return own - (logits.max(-1) if scaled else jax.nn.logsumexp(logits, axis=-1))


def ball(mean: jax.Array) -> jax.Array:
    """How far a latent mean lies outside of the unit ball, squared."""
    return jnp.square(jax.nn.relu(jnp.sqrt(jnp.square(mean).sum(-1) + 1e-12) - 1))


class Stack(nnx.Module):
    """Graph attention layers, one after another."""

    def __init__(self, features: int, settings, *, dispatching: bool = False, rngs: nnx.Rngs):
        sizes = [features] + [settings.width] * settings.layers
        self.layers = nnx.List(
            Attention(size, settings.width, settings.heads, dispatching=dispatching and i == 0, rngs=rngs)
            for i, size in enumerate(sizes[:-1])
        )

    def __call__(self, x, calls, there):
        for layer in self.layers:
            x = layer(x, calls, there)
        return x


class Network(nnx.Module):
    """Both autoencoders, of one trace."""

    def __init__(self, settings, *, rngs: nnx.Rngs):
        width, latent, known = settings.width, settings.latent, settings.operations + 1
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (known, EMBEDDING)) / np.sqrt(EMBEDDING))
        self.encoder = Stack(EMBEDDING, settings, rngs=rngs)
        self.posterior = nnx.Linear(width, 2 * latent, rngs=rngs)
        self.place = nnx.Param(jax.random.normal(rngs.params(), (MOST, width)))
        self.decode_first = nnx.Linear(latent, width, rngs=rngs)
        self.decode = nnx.Linear(width, width, rngs=rngs)
        self.size = nnx.Linear(width, MOST, rngs=rngs)
        self.asks = nnx.Linear(width, width, rngs=rngs)
        self.answers = nnx.Linear(width, width, rngs=rngs)
        self.root = nnx.Linear(width, 1, rngs=rngs)
        self.decoder = Stack(width, settings, rngs=rngs)
        self.operation = nnx.Linear(width, known, rngs=rngs)
        self.latency_encoder = Stack(EMBEDDING + 1, settings, rngs=rngs)
        self.latency_posterior = nnx.Linear(width, 2 * latent, rngs=rngs)
        self.latency_prior = nnx.Linear(latent, 2 * latent, rngs=rngs)
        self.latency_decoder = Stack(EMBEDDING + latent, settings, dispatching=True, rngs=rngs)
        self.latency = nnx.Linear(width, 2, rngs=rngs)

    def encode(self, trace):
        h = self.encoder(self.embedding[...][trace["operation"]], trace["calls"], trace["there"])
        return split(self.posterior(mean_over(h, trace["there"])))

    def encode_latency(self, trace):
        seen = jnp.clip(trace["latency"], -LATENCY_CLIP, LATENCY_CLIP)[:, None] * trace["there"][:, None]
        x = jnp.concatenate([self.operations_of(trace), seen], axis=-1)
        h = self.latency_encoder(x, trace["calls"], trace["there"])
        return split(self.latency_posterior(mean_over(h, trace["there"])))

    def operations_of(self, trace):
        return jax.lax.stop_gradient(self.embedding[...])[trace["operation"]]

    def structure(self, trace, z, unseen, scaled):
        """Log probabilities of the number of spans, and of each span's parent and operation [V], 0 of padding."""
        read = self.decode(nnx.relu(self.decode_first(z)))
        h = jax.nn.leaky_relu(read[None] + self.place[...])
        size = categorical(self.size(read), trace["size"] - 1, scaled)
        scores = self.asks(h) @ self.answers(h).T / np.sqrt(h.shape[1])
        place = jnp.arange(MOST)
        scores = jnp.where(place[None] < place[:, None], scores, NEVER)  # only spans before
        parents = jnp.concatenate([self.root(h), scores], axis=1)
        parent = categorical(parents, trace["parent"] + 1, scaled)
        logits = self.operation(self.decoder(h, trace["calls"], trace["there"]))
        operation = categorical(jnp.where(unseen[None], NEVER, logits), trace["operation"], scaled)
        return size, jnp.where(trace["there"], parent + operation, 0)

    def latencies(self, trace, z, limit):
        """Log densities [V] of standardised latencies, 0 of padding; `limit`: the least standard deviation."""
        x = jnp.concatenate([self.operations_of(trace), jnp.broadcast_to(z[None], (MOST, len(z)))], axis=-1)
        mean, log_std = jnp.split(self.latency(self.latency_decoder(x, trace["calls"], trace["there"])), 2, axis=-1)
        log_std = jnp.clip(log_std[:, 0], max(LOG_STD[0], limit), LOG_STD[1])
        return jnp.where(trace["there"], log_normal(trace["latency"], mean[:, 0], log_std), 0)


def split(both):
    mean, log_std = jnp.split(both, 2, axis=-1)
    return mean, jnp.clip(log_std, *LOG_STD)


def mean_over(h, there):
    return h.sum(0) / jnp.maximum(there.sum(), 1)  # rows of padding are 0


def create(config, system: System, knowledge=None) -> Method:
    """Build TraceVAE for one system; uses `config.compared.tracevae`."""
    del knowledge
    settings = config.compared.tracevae
    unknown, latent = settings.operations, settings.latent
    limit = np.log(settings.std_limit) if settings.std_limit > 0 else -np.inf
    fixed_draws = np.random.default_rng(0).normal(size=(2, settings.samples, latent)).astype(np.float32)
    fresh, bind = functional(Network, settings)

    def network(params) -> Network:
        return bind(params["network"])

    def init(key):
        table = {name: jnp.zeros(unknown + 1) for name in ("number", "mean")} | {"std": jnp.ones(unknown + 1)}
        return {"network": fresh(key), "fixed": table}

    def read(params, shared):
        """What the network is told of one trace: unseen operations are UNK, latencies standardised."""
        fixed = params["fixed"]
        there = jnp.arange(MOST) < shared["size"]
        operation = jnp.where(there, shared["operation"], unknown)
        operation = jnp.where(fixed["number"][operation] > 0, operation, unknown)
        latency = (shared["log_us"] - MIDDLE - fixed["mean"][operation]) / fixed["std"][operation]
        return {
            "there": there, "size": jnp.maximum(shared["size"], 1), "parent": shared["parent"], "operation": operation,
            "calls": call_matrix(shared["parent"]), "latency": jnp.where(there, latency, 0),
        }  # fmt: skip

    def unseen(params):
        return (params["fixed"]["number"] == 0) & (jnp.arange(unknown + 1) < unknown)

    def over(trace):
        return trace["size"] if settings.per_span else 1

    def loss(params, batch: Batch, keys, gather):
        """Negative ELBO of both, and how far means leave the unit ball, over drawn traces."""
        model = network(params)
        rows, real = units.draw(keys, batch, settings.drawn)
        own = fold(window_keys(words(keys), batch.window_mask.shape[1]), NOISE)
        counter = jnp.arange(settings.drawn * 2 * latent, dtype=jnp.uint32)[None, None]
        noise = ndtri(jnp.clip(uniform(own, counter), 1e-6, 1 - 1e-6)).reshape(-1, 2, latent)

        def of_trace(row, noise):
            trace = read(params, {name: array[row] for name, array in batch.shared.items()})
            mean, log_std = model.encode(trace)
            z = mean + jnp.exp(log_std) * noise[0]
            size, spans = model.structure(trace, z, unseen(params), False)
            zero = jnp.zeros(latent)
            structure = divergence(mean, log_std, zero, zero) - size - spans.sum()
            mean2, log_std2 = model.encode_latency(trace)
            prior, log_prior = split(model.latency_prior(jax.lax.stop_gradient(z)))
            z2 = mean2 + jnp.exp(log_std2) * noise[1]
            latency = divergence(mean2, log_std2, prior, jnp.maximum(log_prior, -5))
            latency = latency - model.latencies(trace, z2, limit).sum()
            return structure / over(trace), latency / over(trace), settings.ball * (ball(mean) + ball(mean2))

        names = ("structure", "latency", "unit ball")
        terms = dict(zip(names, jax.vmap(of_trace)(rows.reshape(-1), noise), strict=True))
        real = real.reshape(-1)
        sums = {name: jnp.where(real, term, 0).sum() for name, term in terms.items()}
        return sums, dict.fromkeys(names, real.sum()), {}

    def score(params, batch: Batch, keys=None) -> WindowScores:
        del keys
        model, hidden = network(params), unseen(params)

        def of_trace(shared):
            """Negative log-likelihoods: of all, structure, latency; and of each service's spans, their mean [U]."""
            trace = read(params, shared)
            mean, log_std = model.encode(trace)
            mean2, log_std2 = model.encode_latency(trace)

            def sampled(noise):
                z, z2 = mean + jnp.exp(log_std) * noise[0], mean2 + jnp.exp(log_std2) * noise[1]
                size, spans = model.structure(trace, z, hidden, settings.scaled)
                prior, log_prior = split(model.latency_prior(z))
                seen = model.latencies(trace, z2, limit)
                zero = jnp.zeros(latent)
                first = size + spans.sum() + (log_normal(z, zero, zero) - log_normal(z, mean, log_std)).sum()
                ratio = log_normal(z2, prior, jnp.maximum(log_prior, -5)) - log_normal(z2, mean2, log_std2)
                return first, seen.sum() + ratio.sum(), -(spans + seen)

            first, second, spans = jax.vmap(sampled, in_axes=1)(jnp.asarray(fixed_draws))
            logs = jnp.stack([first + second, first, second])
            total = -(jax.nn.logsumexp(logs, axis=1) - np.log(settings.samples)) / over(trace)
            total = jnp.clip(jnp.where(jnp.isnan(total), CLIP, total), -CLIP, CLIP)
            of_service = jax.nn.one_hot(shared["service"], len(system.service_names)) * trace["there"][:, None]
            unlikely = jnp.clip(jnp.nan_to_num(spans.mean(0), nan=CLIP), 0, CLIP)
            service = unlikely @ of_service / jnp.maximum(of_service.sum(0), 1)
            return jnp.concatenate([total, service])

        judged = units.judge(of_trace, batch.shared, PIECE, units.num_used(batch))
        own = [units.of_windows(judged[:, i], batch) for i in range(3)]
        scores = jnp.concatenate([own[0], own[1][..., :1], own[2][..., :1]], axis=-1)
        unit = batch.inputs["unit"]
        there = ((unit >= 0) & batch.window_mask[..., None])[..., None]
        service = jnp.where(there, judged[:, 3:][jnp.maximum(unit, 0)], 0).max(2)
        return WindowScores(scores, service)

    def observe(params, batch: Batch):
        """Number, sum and sum of squares of log latencies of each operation; the last row is of all together."""
        del params
        unit = batch.inputs["unit"]
        row = jnp.maximum(unit, 0)
        spans = jnp.arange(MOST).reshape(1, 1, 1, -1) < batch.shared["size"][row][..., None]
        real = spans & ((unit >= 0) & batch.window_mask[..., None])[..., None]
        value = (batch.shared["log_us"][row] - MIDDLE).reshape(-1)
        operation = jnp.where(real, batch.shared["operation"][row], unknown + 1).reshape(-1)

        def summed(x):
            each = jax.ops.segment_sum(jnp.where(real.reshape(-1), x, 0), operation, unknown + 1)
            return each.at[unknown].set(each.sum())

        sums = {"number": summed(jnp.ones_like(value)), "sum": summed(value), "square": summed(value**2)}
        return sums, batch.window_mask.sum()

    def absorb(params, means, step):
        del step
        number = jnp.maximum(means["number"], 1e-12)
        mean = means["sum"] / number
        std = jnp.sqrt(jnp.maximum(means["square"] / number - mean**2, LEAST_STD**2))
        return params | {"fixed": {"number": means["number"], "mean": mean, "std": std}}

    names = (*units.SCORE_NAMES, "top, structure alone", "top, latency alone")
    needs = Needs(alone=True, inputs=units.reader(traces.lister(settings.operations)))
    return Method(init, loss, score, score_names=names, needs=needs, observe=observe, absorb=absorb, one_dataset=True)
