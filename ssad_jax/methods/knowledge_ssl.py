"""Method A: knowledge-enhanced self-supervised anomaly detection (docs/method.md).

A window's event graph -> projection by kind -> GCN -> READOUT g_t -> GRU s_t -> knowledge memory u_t. Trained by masked
reconstruction, by contrast between the masked view and a perturbed one, and by alignment with prototypes; scored by
reconstruction error, temporal consistency and distance to the nearest prototype.

`create` returns pure functions of parameters and batches. What an example draws depends on its key alone.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ssad_jax import knowledge as knowledge_files
from ssad_jax.backends import choices
from ssad_jax.batching import Batch
from ssad_jax.layers import propagation
from ssad_jax.layers.decoder import Decoder
from ssad_jax.layers.functional import functional
from ssad_jax.layers.graph_encoder import GraphEncoder
from ssad_jax.layers.hashing import fold, window_keys, words
from ssad_jax.layers.knowledge import KnowledgeMemory, NoMemory
from ssad_jax.layers.layout import Graphs, Layout
from ssad_jax.layers.packing import pack, slots
from ssad_jax.layers.similarity import cosine, normalise
from ssad_jax.layers.temporal import PerWindow, Temporal
from ssad_jax.methods.interface import Carry, Method, ScoreTerms
from ssad_jax.objectives import contrastive, views
from ssad_jax.objectives.alignment import alignment, alignment_error, assign, state_variance, usage_entropy
from ssad_jax.objectives.contrastive import info_nce
from ssad_jax.objectives.reconstruction import clip_target, masked_entries, masked_error
from ssad_jax.prepared import NODE_KINDS, System

EMBEDDING_DIM = 128  # of z
# Streams of an example's key.
JITTER, WINDOWS, MASK, EDGES, ATTRIBUTES, ANCHOR_DROPOUT, POSITIVE_DROPOUT = range(7)


class Network(nnx.Module):
    """All learned parts."""

    def __init__(self, model, num_prototypes: int, *, rngs: nnx.Rngs):
        hidden = model.hidden_dim
        self.encoder = GraphEncoder(hidden, model.num_graph_layers, model.dropout, rngs=rngs)
        self.temporal = {"gru": Temporal, "none": PerWindow}[model.temporal](hidden, hidden, rngs=rngs)
        self.decoder = Decoder(hidden, model.skip_init, rngs=rngs)
        if model.memory:
            self.memory = KnowledgeMemory(knowledge_files.KEY_DIM, num_prototypes, hidden, rngs=rngs)
        else:
            self.memory = NoMemory()
        self.embedding = nnx.Linear(hidden, EMBEDDING_DIM, rngs=rngs)


class View(NamedTuple):
    """What the encoder is given of a batch."""

    graphs: Graphs
    masked: jax.Array  # [B, S, n] bool
    keys: jax.Array  # [B, S, 2], for dropout


class Encoded(NamedTuple):
    """A view encoded."""

    nodes: jax.Array  # [B, S, n, H]: H^L
    state: jax.Array  # [B, S, H]: s


def largest_divisor(of: int, most: int) -> int:
    """The largest divisor of `of` up to `most`; 1 where there is none."""
    return next((d for d in range(min(of, most), 0, -1) if of % d == 0), 1)


def is_on(weight) -> bool:
    """Whether a term of the loss is computed. A traced weight, unknown while the program is built, is on."""
    return isinstance(weight, jax.core.Tracer) or weight != 0


def create(config, system: System, knowledge: knowledge_files.Knowledge | None) -> Method:
    """Build method A for one system.

    Args:
        config: see `ssad_jax.config`; uses model, loss, views and data.window_length.
        system: of the dataset to train on or to score; parameters do not depend on it.
        knowledge: None: prototypes without rules.
    """
    if knowledge is None:
        knowledge = knowledge_files.load("", (), (), config.model.num_prototypes)
    layout = Layout.of(system)
    memory_keys = jnp.asarray(knowledge.keys)
    prototype_names = knowledge.names if config.model.memory else ("none",)
    weights, perturb = config.loss, config.views
    # Start ticks so far apart share no tick, also where a view is shifted.
    apart = config.data.window_length + perturb.window_jitter * config.data.stride
    dtype = jnp.dtype(config.model.precision)
    groups = math.ceil(1 / weights.mask_ratio)
    init, network = functional(Network, config.model, len(knowledge.names))

    @jax.named_scope("propagation")
    def connect(graphs: Graphs) -> propagation.Propagation:
        method = config.model.propagation
        if method == "auto":
            edges = graphs.senders.shape[-1]
            method = propagation.choose(len(layout.order), edges, jax.default_backend())
        return propagation.prepare(
            method, graphs.senders, graphs.receivers, graphs.weight, jnp.asarray(layout.node_mask), dtype
        )

    @jax.named_scope("input")
    def masked_view(batch: Batch, keys) -> View:
        """The anchor."""
        per_window = window_keys(fold(words(keys), WINDOWS), batch.window_mask.shape[1])
        masked = views.random_mask(fold(per_window, MASK), layout.unit_hash, layout.node_mask, weights.mask_ratio)
        return View(layout.arrange(batch.graphs), masked, fold(per_window, ANCHOR_DROPOUT))

    @jax.named_scope("input")
    def perturbed_view(batch: Batch, keys) -> View:
        """The positive of the same windows, unmasked."""
        keys = words(keys)
        per_window = window_keys(fold(keys, WINDOWS), batch.window_mask.shape[1])
        graphs = layout.arrange(batch.graphs)
        graphs = views.jitter(fold(keys, JITTER), graphs, batch.window_mask, perturb.window_jitter)
        graphs = views.drop_edges(fold(per_window, EDGES), graphs, perturb.edge_drop)
        graphs = views.drop_attributes(fold(per_window, ATTRIBUTES), graphs, perturb.attribute_drop)
        unmasked = jnp.zeros(graphs.signal.shape[:-1], bool)
        return View(graphs, unmasked, fold(per_window, POSITIVE_DROPOUT))

    def encode(model: Network, view: View, window_mask, training: bool) -> Encoded:
        def encode_graphs(view: View):
            graphs, keys = view.graphs, view.keys if training else None
            return model.encoder(graphs.context, graphs.signal, view.masked, connect(graphs), layout, keys, dtype)

        count, length, num_nodes = view.masked.shape
        piece = largest_divisor(count, choices().rows_trained // (length * num_nodes))
        if piece == count:
            nodes, g = encode_graphs(view)
        else:
            parts = jax.tree.map(lambda x: x.reshape(count // piece, piece, *x.shape[1:]), view)
            parts = jax.lax.map(encode_graphs, parts)
            nodes, g = (x.reshape(count, *x.shape[2:]) for x in parts)
        return Encoded(nodes, model.temporal(g, window_mask))

    def encode_all(model: Network, some: list[View], window_mask, training: bool) -> list[Encoded]:
        """Views of the same windows, as one batch where the device is the faster for it."""
        if not choices().views_together or len(some) == 1:
            return [encode(model, view, window_mask, training) for view in some]
        together = jax.tree.map(lambda *parts: jnp.concatenate(parts), *some)
        both = encode(model, together, jnp.concatenate([window_mask] * len(some)), training)
        return [Encoded(*parts) for parts in zip(*(jnp.split(x, len(some)) for x in both), strict=True)]

    def embed(model: Network, state: jax.Array) -> jax.Array:
        """z [B * S, EMBEDDING_DIM] of states u [B, S, H].

        Of u, not of s: with the contrast on s nothing but alignment trains the gate, which then closes until every
        u is the prototype (spread of u a third, gate .09 against .26, after 300 steps on synthetic data).
        """
        return normalise(model.embedding(state).reshape(-1, EMBEDDING_DIM))

    def loss(params, batch: Batch, keys, gather):
        """Training loss of this device's examples.

        Args:
            keys: [B] typed keys, one for each example: masks, views and dropout are functions of them alone.
            gather: x [n, ...] -> [n * devices, ...] in the same order everywhere.

        Returns:
            sums: by term, local sums times the term's weight; counts: by term, local; the term is sum / count after
            both are added over devices; terms of weight 0 are not there. diagnostics: name -> (sum, count), to be added
            over devices likewise.
        """
        model = network(params)
        wanted = [masked_view(batch, keys)]
        if is_on(weights.contrastive):
            wanted.append(perturbed_view(batch, keys))
        anchor, *positive = encode_all(model, wanted, batch.window_mask, training=True)
        with jax.named_scope("heads"):
            return terms(model, batch, wanted[0], anchor, positive, gather)

    def terms(model: Network, batch: Batch, view: View, anchor: Encoded, positive: list[Encoded], gather):
        """What `loss` returns, from the encoded views; `view` is the anchor's."""
        mask = batch.window_mask
        recalled = model.memory(anchor.state, memory_keys)
        state, exists = recalled.state.reshape(mask.size, -1), mask.reshape(-1)
        sums, counts = {}, {}
        # What shows a collapse.
        entropy = usage_entropy(recalled.nearest.reshape(-1), exists, len(prototype_names), gather)
        variance = state_variance(jax.lax.stop_gradient(state), exists, gather)
        diagnostics = {
            "gate": (jnp.where(mask, recalled.gate.mean(-1), 0).sum(), mask.sum()),
            "prototype_entropy": (entropy * mask.sum(), mask.sum()),
            "state_variance": (variance * mask.sum(), mask.sum()),
        }
        if is_on(weights.reconstruction):
            prediction, signal, entries, is_log = reconstruct(model, view, mask, anchor)
            error, counts["reconstruction"] = masked_error(prediction, signal, entries)
            sums["reconstruction"] = weights.reconstruction * error
            # Squared error of masked log counts (channel 0 of log nodes), in squared units of their normal scale.
            log_count = entries[..., :1] & is_log[..., None]
            diagnostics["masked_log_error"] = masked_error(prediction[..., :1], signal[..., :1], log_count)
        if is_on(weights.contrastive):
            other = model.memory(positive[0].state, memory_keys)
            contrast, counts["contrastive"], similarities = info_nce(
                embed(model, recalled.state), embed(model, other.state), batch.start_tick.reshape(-1),
                exists, gather, apart, weights.temperature,
            )  # fmt: skip
            sums["contrastive"] = weights.contrastive * contrast
            diagnostics |= similarities
        if is_on(weights.knowledge) and config.model.memory:
            memory = model.memory.prototypes(memory_keys)
            assigned = memory[assign(state, memory, exists, gather)]
            distance, counts["knowledge"] = alignment(state, assigned, exists)
            sums["knowledge"] = weights.knowledge * distance
        return sums, counts, jax.lax.stop_gradient(diagnostics)

    def reconstruct(model: Network, view: View, window_mask, anchor: Encoded):
        """Masked nodes' predicted and true signals [..., 16], the entries that count, and which rows are log lines.

        Of P rows that hold the masked nodes, or of all nodes: a sixth of the head's work against finding the rows,
        gathering them, and adding their gradients back one by one, which accelerators are slow at.
        """
        graphs, masked = view.graphs, view.masked & window_mask[..., None]
        of_state, is_log = model.decoder.of_state(anchor.state), layout.kind == NODE_KINDS.index("log")
        capacity = slots(layout, masked[..., 0].size, weights.mask_ratio) if choices().masked_rows else None
        if capacity is None:
            prediction = model.decoder(anchor.nodes, of_state[..., None, :], graphs.context, layout)
            entries = masked[..., None] & jnp.asarray(layout.signal_mask)[None, None]
            return prediction, graphs.signal, entries, jnp.asarray(is_log)[None, None]
        rows = pack(masked, layout, capacity)
        of_state = of_state.reshape(-1, of_state.shape[-1])[rows.window]
        prediction = model.decoder(rows.take(anchor.nodes), of_state, rows.take(graphs.context), layout, rows)
        entries = rows.real[:, None] & jnp.asarray(layout.signal_mask)[rows.node]
        return prediction, rows.take(graphs.signal), entries, jnp.asarray(is_log)[rows.node]

    def begin() -> Carry:
        """What precedes a run's first window: state zero."""
        hidden = config.model.hidden_dim
        return Carry(np.zeros((1, hidden), np.float32), np.full((1, hidden), np.nan, np.float32))

    def score_run(params, run: Batch, carry: Carry) -> tuple[ScoreTerms, Carry]:
        """Score the next L windows of one run, B = 1, after those that left `carry`.

        The state before each window is clean; only the window itself is masked.
        """
        model = network(params)
        mask = run.window_mask
        graphs = layout.arrange(run.graphs)
        graph = connect(graphs)
        target = clip_target(graphs.signal)
        channels = masked_entries(jnp.asarray(layout.node_mask)[None, None], layout.signal_mask, mask)

        # What a node itself brings into the first layer, seen and masked: once, not for every pass.
        seen, hidden = (
            model.encoder.weighted(model.encoder.project(graphs.context, graphs.signal, m, layout, dtype))
            for m in (None, True)
        )
        _, g = model.encoder.from_weighted(seen, graph, layout)
        clean = model.temporal(g, mask, carry.state)  # [1, L, H]
        before = jnp.concatenate([carry.state[:, None], clean[:, :-1]], axis=1)

        def encode_masked(masked):
            """H^L [1, L, n, H] with `masked` [1, L, n] hidden, and what the decoder takes of s, [1, L, n, WIDTH]."""
            nodes, g = model.encoder.from_weighted(jnp.where(masked[..., None], hidden, seen), graph, layout)
            of_state = model.decoder.of_state(model.temporal.step(before, model.temporal.of_input(g)))
            return nodes, jnp.broadcast_to(of_state[..., None, :], (*nodes.shape[:3], of_state.shape[-1]))

        keys = jax.vmap(lambda tick: jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), tick))(
            run.start_tick[0]
        )
        random = views.random_mask(words(keys)[None], layout.unit_hash, layout.node_mask, weights.mask_ratio)
        member = jnp.asarray(layout.unit_hash % groups)[None] == jnp.arange(groups, dtype=jnp.uint32)[:, None]
        member = jnp.broadcast_to(member[:, None, None], (groups, *random.shape))

        def keep(found, some):
            """Of a pass that hides the nodes `some` keep what it says of them."""
            return jax.tree.map(lambda new, old: jnp.where(some[..., None], new, old), encode_masked(some), found), None

        # Each group's rows are decoded once, after all passes.
        if (groups + 1) * random.size <= choices().rows_scored:
            encoded = jax.vmap(encode_masked)(jnp.concatenate([member, random[None]]))
            by_group = (jnp.where(member[..., None], x[:-1], 0).sum(0, dtype=x.dtype) for x in encoded)
            by_group, at_random = tuple(by_group), tuple(x[-1] for x in encoded)
        else:
            at_random = encode_masked(random)
            by_group, _ = jax.lax.scan(keep, jax.tree.map(jnp.zeros_like, at_random), member)
        nodes, from_state = (jnp.concatenate(parts) for parts in zip(by_group, at_random, strict=True))
        errors = target - model.decoder(nodes, from_state, jnp.concatenate([graphs.context] * 2), layout)
        residual = jnp.where(channels, errors[:1], 0)
        entries = masked_entries(random, layout.signal_mask, mask)
        squared = jnp.where(entries, jnp.square(errors[1:]), 0).sum((2, 3))
        paper = squared / jnp.maximum(entries.sum((2, 3)), 1)

        recalled = model.memory(clean, memory_keys)
        u = recalled.state
        earlier = jnp.concatenate([carry.recalled[:, None], u[:, :-1]], axis=1)
        both = mask & jnp.concatenate([jnp.ones_like(mask[:, :1]), mask[:, :-1]], axis=1)
        temporal = jnp.where(both, 1 - cosine(u, earlier), jnp.nan)
        prior = jnp.where(mask, alignment_error(u, recalled.prototype), 0)
        nearest, state = jnp.where(mask, recalled.nearest, 0), jnp.where(mask[..., None], u, 0)
        terms = ScoreTerms(layout.restore(residual), temporal, prior, nearest, paper, state)
        return terms, Carry(clean[:, -1], jnp.where(mask[:, -1, None], u[:, -1], jnp.nan))

    def score(params, batch: Batch, keys=None) -> ScoreTerms:
        """Score B runs of L consecutive windows each, from state zero. Deterministic; `keys` is not used.

        Over ceil(1 / mask_ratio) passes every real node is masked exactly once (by its unit's hash).
        """
        del keys
        count, length = batch.window_mask.shape
        fit = choices().rows_scored // len(layout.order)  # windows at once
        piece = min(max(fit, 1), length)
        pieces = -(-length // piece)

        def cut(x):
            """[B, L, ...] -> [B, pieces, 1, piece, ...]"""
            x = jnp.pad(x, [(0, 0), (0, pieces * piece - length), *[(0, 0)] * (x.ndim - 2)])
            return x.reshape(count, pieces, 1, piece, *x.shape[2:])

        index = jnp.broadcast_to(batch.index[:, None, None], (count, pieces, 1))
        runs = batch._replace(index=index, **{
            name: jax.tree.map(cut, getattr(batch, name)) for name in ("graphs", "window_mask", "start_tick")
        })  # fmt: skip

        def score_piece(carry: Carry, part: Batch):
            def absent():  # shorter runs end with windows that do not exist
                terms, _ = jax.eval_shape(score_run, params, part, carry)
                empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), terms)
                return empty._replace(temporal=jnp.full_like(empty.temporal, jnp.nan)), carry

            terms, carry = jax.lax.cond(part.window_mask.any(), lambda: score_run(params, part, carry), absent)
            return carry, terms

        def score_pieces(run: Batch):
            return jax.lax.scan(score_piece, jax.tree.map(jnp.asarray, begin()), run)[1]

        at_once = min(count, fit // ((groups + 1) * length))  # every run with all its passes
        terms = jax.lax.map(score_pieces, runs, batch_size=at_once if at_once > 1 else None)
        return jax.tree.map(lambda x: x[:, :, 0].reshape(count, pieces * piece, *x.shape[4:])[:, :length], terms)

    def pair_distances(params, batch: Batch, keys):
        """Cosine distances between embeddings of the two views, without dropout (the paper's Figure 2).

        Returns:
            positive [B * S]: of the two views of a window, nan where there is none; negative [B * S, B * S]: of
            windows that do not overlap, nan elsewhere.
        """
        model = network(params)
        both = [masked_view(batch, keys), perturbed_view(batch, keys)]
        anchor, positive = encode_all(model, both, batch.window_mask, training=False)
        z, other = (embed(model, model.memory(view.state, memory_keys).state) for view in (anchor, positive))
        return contrastive.pair_distances(z, other, batch.start_tick.reshape(-1), batch.window_mask.reshape(-1), apart)

    return Method(init, loss, score, pair_distances, prototype_names, begin, score_run)
