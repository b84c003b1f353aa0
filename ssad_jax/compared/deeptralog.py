"""DeepTraLog (Zhang et al., ICSE 2022) in compact form: a gated graph network and deep SVDD on traces and logs.

The paper's: a graph of span and log events with typed directed edges; GGNN (Li et al. 2016), messages by type of edge
and a GRU, shared over the steps; readout with gated attention; deep support vector data description (Ruff et al. 2018):
representations of normal graphs are drawn to a centre, the score is the squared distance from it.

Adapted: one graph a window, our event graph, instead of one a trace; its nodes (services, calls, log templates) stand
for all their events, with counts, latencies and errors instead of GloVe vectors of each event's words. Metric nodes
are left out, as the paper has none (`metrics`). The centre is the mean of the first pass. Against collapse onto the
centre (a known failure of this objective): no bias and no bounded function after the readout, hardly any weight decay.
Published sizes: 300 hidden units, learning rate 1e-4.

Fidelity: medium.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from ssad_jax.batching import Batch, Needs
from ssad_jax.compared.event_graphs import RELATIONS, Graphs, Nodes
from ssad_jax.layers.functional import functional
from ssad_jax.methods.interface import Method, WindowScores
from ssad_jax.prepared import CONTEXT_DIM, IDENTITY_DIM, SIGNAL_DIM, System

INPUT = IDENTITY_DIM + CONTEXT_DIM + SIGNAL_DIM
PIECE = 32  # windows scored at a time
NUDGE = 0.1  # least size of an entry of the centre: a trivial network reaches 0 (Ruff et al. 2018)


class Network(nnx.Module):
    """Graphs [n] -> parts of representations [n, V, H], whose sum over nodes is the representation."""

    def __init__(self, hidden: int, steps: int, *, rngs: nnx.Rngs):
        self.steps = steps
        self.project = nnx.Linear(INPUT, hidden, rngs=rngs)
        scale = hidden**-0.5
        self.message = nnx.Param(scale * jax.random.normal(rngs.params(), (hidden, RELATIONS * hidden)))
        self.gru = nnx.GRUCell(hidden, hidden, rngs=rngs)
        self.gate = nnx.Linear(hidden + INPUT, hidden, rngs=rngs)
        self.value = nnx.Linear(hidden + INPUT, hidden, rngs=rngs)
        self.out = nnx.Linear(hidden, hidden, use_bias=False, rngs=rngs)

    def __call__(self, graphs: Graphs) -> jax.Array:
        h = jnp.tanh(self.project(graphs.x))
        count, nodes, hidden = h.shape
        window = jnp.broadcast_to(jnp.arange(count)[:, None], graphs.senders.shape)
        sender = ((window * nodes + graphs.senders) * RELATIONS + graphs.relation).reshape(-1)
        receiver = jnp.where(graphs.there, window * nodes + graphs.receivers, count * nodes).reshape(-1)

        def step(h, _):
            messages = (h @ self.message[...]).reshape(-1, hidden)[sender]  # of each node by relation
            mixed = jax.ops.segment_sum(messages, receiver, count * nodes).reshape(h.shape)
            return self.gru(h, mixed)[0], None

        h, _ = jax.lax.scan(step, h, None, self.steps)
        both = jnp.concatenate([h, graphs.x], axis=-1)
        read = jax.nn.sigmoid(self.gate(both)) * jnp.tanh(self.value(both))
        return self.out(read / jnp.sqrt(float(nodes)))  # entries of the sum of order 1 in systems of any size


def create(config, system: System, knowledge=None) -> Method:
    """Build DeepTraLog for one system; uses `config.compared.deeptralog`."""
    del knowledge
    settings = config.compared.deeptralog
    nodes = Nodes.of(system, settings.metrics)
    of_service = jax.nn.one_hot(nodes.service, len(system.service_names))  # [V, U]; of none: a row of zeros
    fresh, network = functional(Network, settings.width, settings.steps)

    def init(key):
        return {"network": fresh(key), "radius": jnp.ones(()), "fixed": {"centre": jnp.zeros(settings.width)}}

    def parts(params, graphs: Graphs) -> jax.Array:
        return network(params["network"])(graphs)

    def loss(params, batch: Batch, keys, gather):
        """One-class: the mean squared distance; soft boundary: R^2 and what exceeds it, over nu."""
        graphs = nodes.graphs(batch)
        distance = jnp.square(parts(params, graphs).sum(1) - params["fixed"]["centre"][None]).sum(-1)
        if settings.soft_boundary:
            radius = jnp.square(params["radius"])
            distance = radius + jax.nn.relu(distance - radius) / settings.nu
        return {"distance": jnp.where(graphs.mask, distance, 0).sum()}, {"distance": graphs.mask.sum()}, {}

    def score(params, batch: Batch, keys=None) -> WindowScores:
        """d^2 of windows, and the share of it that each service's nodes have."""
        graphs, lead = nodes.graphs(batch), batch.window_mask.shape
        centre = params["fixed"]["centre"]

        def judge(graph: Graphs):
            part = parts(params, jax.tree.map(lambda x: x[None], graph))[0]
            away = part.sum(0) - centre
            of_node = (part - centre[None] / len(part)) @ away  # [V], together d^2
            return jnp.square(away).sum(), jax.nn.relu(of_node @ of_service)

        distance, service = jax.lax.map(judge, graphs, batch_size=PIECE)
        distance = jnp.where(graphs.mask, distance, jnp.nan)
        return WindowScores(distance.reshape(*lead, 1), service.reshape(*lead, -1))

    def observe(params, batch: Batch):
        """Sum of representations and number of windows; 0 once there is a centre."""
        graphs = nodes.graphs(batch)

        def summed():
            return jnp.where(graphs.mask[:, None], parts(params, graphs).sum(1), 0).sum(0)

        there = (params["fixed"]["centre"] != 0).any()
        return jax.lax.cond(there, lambda: jnp.zeros(settings.width), summed), graphs.mask.sum()

    def absorb(params, mean, step):
        away = jnp.where(mean < 0, jnp.minimum(mean, -NUDGE), jnp.maximum(mean, NUDGE))
        return {**params, "fixed": {"centre": jnp.where(step == 0, away, params["fixed"]["centre"])}}

    return Method(init, loss, score, needs=Needs(alone=True), score_names=("distance",), observe=observe, absorb=absorb)
