"""LogTraceAD (Xie X. et al., CNCIT 2023) in compact form: a variational autoencoder of graphs, and SVDD on its means.

The paper's: logs and traces of a time form one graph; a variational autoencoder represents it; a detector judges the
representations. Its full text was not at hand. From its references: the encoder follows the graph's edges in
topological order as D-VAE does (Zhang et al., NeurIPS 2019), the detector is a hypersphere as in Deep SVDD (Ruff et
al., ICML 2018).

Adapted: the graph is our window's event graph without metric nodes, made acyclic by levels (callers above their calls,
these above the callees, log templates below their service); the encoder goes down level by level. The decoder is told
z and who each node is, and says of each node its type (its kind, or absent: without any edge), its signals, and its
edges to nodes of earlier levels, all nodes at once instead of one after another; sums over nodes, as in D-VAE. Network
and hypersphere are learned together; the centre is the mean over training windows, renewed before each epoch as
representations move. Scores: the negative ELBO at the posterior mean; beside it the squared distance of the posterior
mean from the centre. That may be nearer to the authors' pipeline, but misses a fault planted in synthetic windows that
the likelihood finds (AUROC .59 and 1.0).

Fidelity: low.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.scipy.special import ndtri

from ssad_jax.batching import Batch, Needs
from ssad_jax.compared.event_graphs import Nodes
from ssad_jax.layers.functional import functional
from ssad_jax.layers.hashing import fold, uniform, window_keys, words
from ssad_jax.methods.interface import Method, WindowScores
from ssad_jax.prepared import CONTEXT_DIM, IDENTITY_DIM, NODE_KINDS, SIGNAL_DIM, System

INPUT = IDENTITY_DIM + CONTEXT_DIM + SIGNAL_DIM
ABSENT = len(NODE_KINDS)  # type of a node without any edge
NOISE = 8  # stream of a window's key
PIECE = 32  # windows scored at a time
TOGETHER = 32  # nodes of a level that are visited at once
RARE = -4.0  # log odds of an edge between any two nodes before training: graphs are sparse


class Windows(NamedTuple):
    """What the encoder reads of n windows, and what the decoder is to say of them."""

    x: jax.Array  # [n, V, 128]
    edges: jax.Array  # [n, V, V] f32: 1 from row to column, down the levels
    type: jax.Array  # [n, V] int
    mask: jax.Array  # [n] bool


class Network(nnx.Module):
    """All learned parts."""

    def __init__(self, hidden: int, latent: int, *, rngs: nnx.Rngs):
        self.project = nnx.Linear(INPUT, hidden, rngs=rngs)
        self.gate = nnx.Linear(hidden, hidden, rngs=rngs)
        self.map = nnx.Linear(hidden, hidden, use_bias=False, rngs=rngs)
        self.gru = nnx.GRUCell(hidden, hidden, rngs=rngs)
        self.sink = nnx.Param(jnp.zeros(hidden))  # input of the node that follows those that nothing follows
        self.posterior = nnx.Linear(hidden, 2 * latent, rngs=rngs)
        self.of_latent = nnx.Linear(latent, hidden, rngs=rngs)
        self.of_identity = nnx.Linear(IDENTITY_DIM, hidden, rngs=rngs)
        self.body = nnx.Linear(hidden, hidden, rngs=rngs)
        self.type = nnx.Linear(hidden, len(NODE_KINDS) + 1, rngs=rngs)
        self.signals = nnx.Linear(hidden, SIGNAL_DIM, rngs=rngs)
        self.parent = nnx.Linear(hidden, latent, rngs=rngs)
        self.child = nnx.Linear(hidden, latent, rngs=rngs)
        self.odds = nnx.Param(jnp.full((), RARE))

    def encode(self, x: jax.Array, edges: jax.Array, order: np.ndarray) -> tuple[jax.Array, jax.Array]:
        """Mean and log variance of the posterior, each [n, latent].

        Args:
            x: [n, V, 128].
            edges: [n, V, V] f32: 1 from row to column.
            order: [steps, M] nodes that are visited at once, no edge among them; V where there is none.
        """
        x = self.project(x)
        count, size, hidden = x.shape
        x = jnp.concatenate([x, jnp.zeros((count, 1, hidden))], axis=1)
        edges = jnp.concatenate([edges, jnp.zeros((count, size, 1))], axis=2)

        def messages(h):
            return jax.nn.sigmoid(self.gate(h)) * self.map(h)

        def visit(sent, own):
            mixed = jnp.einsum("nuv,nuh->nvh", edges[:, :, own], sent)
            return sent.at[:, own].set(messages(self.gru(mixed, x[:, own])[0]), mode="drop"), None

        sent, _ = jax.lax.scan(visit, jnp.zeros((count, size, hidden)), jnp.asarray(order))
        last = edges.sum(2) == 0
        mixed = jnp.where(last[..., None], sent, 0).sum(1) / jnp.sqrt(float(size))  # there are many: no saturation
        h = self.gru(mixed, jnp.broadcast_to(self.sink[...][None], mixed.shape))[0]
        return tuple(jnp.split(self.posterior(h), 2, axis=-1))

    def decode(self, z: jax.Array, identity: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Logits of types [n, V, 6] and of edges [n, V, V], signals [n, V, 16]."""
        h = jax.nn.relu(self.of_latent(z)[:, None] + self.of_identity(identity)[None])
        h = jax.nn.relu(self.body(h))
        edges = jnp.einsum("nuk,nvk->nuv", self.parent(h), self.child(h)) + self.odds[...]
        return self.type(h), edges, self.signals(h)


def visits(level: np.ndarray, most: int = TOGETHER) -> np.ndarray:
    """[steps, M] rows of nodes [V] level after level, up to `most` of one level a step; V where there is none."""
    steps = [
        own[i : i + most] for own in (np.flatnonzero(level == d) for d in np.unique(level))
        for i in range(0, len(own), most)
    ]  # fmt: skip
    order = np.full((len(steps), max(map(len, steps))), len(level), np.int32)
    for row, own in zip(order, steps, strict=True):
        row[: len(own)] = own
    return order


def divergence(mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """[n] of normal distributions [n, latent] from the standard one."""
    return 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance).sum(-1)


def create(config, system: System, knowledge=None) -> Method:
    """Build LogTraceAD for one system; uses `config.compared.logtracead`."""
    del knowledge
    settings = config.compared.logtracead
    nodes = Nodes.of(system, settings.metrics)
    size, level = len(nodes.slot), nodes.levels()
    order, earlier = visits(level), level[:, None] < level[None]
    of_service = jax.nn.one_hot(nodes.service, len(system.service_names))  # [V, U]; of none: a row of zeros
    fresh, bind = functional(Network, settings.width, settings.latent)

    def init(key):
        return {"network": fresh(key), "fixed": {"centre": jnp.zeros(settings.latent)}}

    def network(params) -> Network:
        return bind(params["network"])

    def windows(batch: Batch) -> Windows:
        graphs = nodes.graphs(batch)
        count = len(graphs.x)
        cell = jnp.where(graphs.there, graphs.senders * size + graphs.receivers, size * size)
        row = jnp.broadcast_to(jnp.arange(count)[:, None], cell.shape)
        edges = jnp.zeros((count, size * size)).at[row, cell].set(1, mode="drop").reshape(count, size, size)
        kind = jnp.broadcast_to(jnp.asarray(nodes.kind)[None], (count, size))
        return Windows(
            graphs.x, edges * earlier[None], jnp.where(edges.sum(2) > 0, kind, ABSENT), graphs.mask
        )  # fmt: skip

    def errors(model: Network, z: jax.Array, of: Windows) -> dict[str, jax.Array]:
        """Negative log likelihoods [n, V] of each node: its type, the edges that lead to it, its signals."""
        logits, odds, signals = model.decode(z, jnp.asarray(nodes.identity))
        found = jnp.take_along_axis(jax.nn.log_softmax(logits), of.type[..., None], axis=-1)[..., 0]
        missed = jnp.where(earlier[None], jax.nn.softplus(odds) - of.edges * odds, 0).sum(1)
        apart = jnp.square(of.x[..., -SIGNAL_DIM:] - signals)
        return {"type": -found, "edges": missed, "signals": jnp.where(nodes.signals[None], apart, 0).sum(-1)}

    def distance(params, mean: jax.Array) -> jax.Array:
        return jnp.square(mean - params["fixed"]["centre"][None]).sum(-1)

    def loss(params, batch: Batch, keys, gather):
        """The negative ELBO, term by term, and the squared distance from the centre."""
        model, of = network(params), windows(batch)
        mean, log_variance = model.encode(of.x, of.edges, order)
        drawn = fold(window_keys(words(keys), batch.window_mask.shape[1]).reshape(-1, 2), NOISE)
        share = uniform(drawn, jnp.arange(settings.latent, dtype=jnp.uint32)[None])
        z = mean + jnp.exp(0.5 * log_variance) * ndtri(share + 2.0**-25)
        terms = {name: each.sum(1) for name, each in errors(model, z, of).items()}
        terms["divergence"] = settings.beta * divergence(mean, log_variance)
        terms["distance"] = settings.distance * distance(params, mean)
        sums = {name: jnp.where(of.mask, each, 0).sum() for name, each in terms.items()}
        return sums, dict.fromkeys(sums, of.mask.sum()), {}

    def score(params, batch: Batch, keys=None) -> WindowScores:
        """Negative ELBO and squared distance of windows; of services the errors of their nodes."""
        model, of, lead = network(params), windows(batch), batch.window_mask.shape

        def judge(window: Windows):
            one = jax.tree.map(lambda x: x[None], window)
            mean, log_variance = model.encode(one.x, one.edges, order)
            of_node = sum(errors(model, mean, one).values())
            elbo = of_node.sum(1) + settings.beta * divergence(mean, log_variance)
            return jnp.concatenate([elbo, distance(params, mean)]), of_node[0] @ of_service

        found, service = jax.lax.map(judge, of, batch_size=PIECE)
        found = jnp.where(of.mask[:, None], found, jnp.nan)
        return WindowScores(found.reshape(*lead, 2), service.reshape(*lead, -1))

    def observe(params, batch: Batch):
        of = windows(batch)
        mean, _ = network(params).encode(of.x, of.edges, order)
        return jnp.where(of.mask[:, None], mean, 0).sum(0), of.mask.sum()

    def absorb(params, mean, step):
        return {**params, "fixed": {"centre": mean}}

    return Method(
        init, loss, score, needs=Needs(alone=True), score_names=("elbo", "distance"), observe=observe, absorb=absorb
    )
