"""DeepTraLog and LogTraceAD: their parts by hand, what may change nothing, and that they find what they should."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn.metrics import roc_auc_score

from ssad_jax import batching, methods, train
from ssad_jax.compared import deeptralog, event_graphs, logtracead
from ssad_jax.compared.event_graphs import Graphs, Nodes
from ssad_jax.config import default_config, use_method
from ssad_jax.prepared import CONTEXT_DIM, NODE_KINDS
from ssad_jax.scoring.detectors import score_dataset
from ssad_jax.scoring.terms import scorer
from tests.synthetic import make_prepared

NAMES = ("deeptralog_adapted", "logtracead_adapted")
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def small_config(name, **settings):
    config = default_config("test")
    use_method(config, name)
    own = config.compared[name.removesuffix("_adapted")]
    own.width = 8
    own.update(settings)
    config.train.compilation_cache = False
    return config


@pytest.fixture(scope="module")
def prepared():
    return make_prepared(segments=16)


def create(name, prepared, **settings):
    return compiled(methods.get(name).create(small_config(name, **settings), prepared.system, None))


def compiled(method):
    loss = jit(lambda params, batch, keys: method.loss(params, batch, keys, lambda x: x))
    return method._replace(init=jit(method.init), loss=loss, score=jit(method.score), observe=jit(method.observe))


def batch_of(prepared, rows):
    windows = jax.tree.map(jnp.asarray, batching.resident(prepared))
    rows = np.asarray(rows, np.int32).reshape(-1, 1)
    return batching.make_batch(windows, jnp.asarray(rows), jnp.arange(len(rows), dtype=jnp.int32))


def keys_of(batch):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(5), i))(batch.index)


def centred(method, prepared, seed=0):
    """Fresh parameters with the centre of the first windows."""
    params = method.init(jax.random.key(seed))
    sums, count = method.observe(params, batch_of(prepared, range(16)))
    return method.absorb(params, sums / count, 0)


def whole_loss(method, params, batch):
    sums, counts, _ = method.loss(params, batch, keys_of(batch))
    return {name: float(s / counts[name]) for name, s in sums.items()}


# The graphs that they see.


def test_metric_nodes_are_left_out_with_their_edges_unless_asked_for(prepared):
    without, with_ = (Nodes.of(prepared.system, metrics) for metrics in (False, True))
    metric = NODE_KINDS.index("metric")
    assert not (without.kind == metric).any() and (with_.kind == metric).sum() == 3
    batch = batch_of(prepared, [0])
    edges = [int(nodes.graphs(batch).there.sum()) for nodes in (without, with_)]
    assert edges == [20, 26]  # 6 templates and 2 calls with 2 ends, both ways; 3 metrics more


def test_an_edge_and_its_reverse_are_of_two_relations(prepared):
    nodes = Nodes.of(prepared.system, False)
    graphs = nodes.graphs(batch_of(prepared, [0]))
    names = [prepared.system.node_names[slot] for slot in nodes.slot]
    found = {
        (names[s], names[r]): int(k)
        for s, r, k, there in zip(*(np.asarray(x[0]) for x in graphs[1:5]), strict=True) if there
    }  # fmt: skip
    assert found["service-0", "service-0 -> service-1"] == 0 and found["service-0 -> service-1", "service-1"] == 0
    assert found["service-0 -> service-1", "service-0"] == 3 and found["service-1", "service-0 -> service-1"] == 3
    assert found["service-2", "service-2/template 0"] == 1 and found["service-2/template 0", "service-2"] == 4


def test_levels_go_down_from_callers_through_calls_to_callees_and_their_templates(prepared):
    nodes = Nodes.of(prepared.system, False)
    level = dict(zip((prepared.system.node_names[slot] for slot in nodes.slot), nodes.levels(), strict=True))
    assert [level[f"service-{i}"] for i in range(3)] == [0, 2, 4]
    assert [level[f"service-{i}/template 1"] for i in range(3)] == [1, 3, 5]
    assert [level[f"service-{i} -> service-{i + 1}"] for i in range(2)] == [1, 3]


@pytest.mark.parametrize(
    ("pairs", "depth"),
    [
        ([[0, 1], [1, 2], [0, 2]], [0, 1, 1, 0]),  # the shortest way counts; nobody calls 3
        ([[0, 1], [1, 0], [1, 2]], [1, 0, 1, 0]),  # a circle begins where most calls go out
        ([], [0, 0, 0, 0]),
    ],
)
def test_depths_of_services(pairs, depth):
    assert event_graphs.depths(np.array(pairs, int).reshape(-1, 2), 4).tolist() == depth


# DeepTraLog.


def test_one_step_of_the_gated_graph_network_by_hand():
    """Two nodes of two units and an edge of relation 2: its receiver alone gets a message."""
    model = deeptralog.Network(2, 1, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (1, 2, deeptralog.INPUT))
    one = jnp.ones((1, 1), jnp.int32)
    parts = model(Graphs(x, 0 * one, one, 2 * one, one > 0, jnp.ones(1, bool)))
    h = jnp.tanh(model.project(x[0]))
    message = jnp.stack([jnp.zeros(2), h[0] @ model.message[...][:, 4:6]])
    both = jnp.concatenate([model.gru(h, message)[0], x[0]], axis=-1)
    gated = jax.nn.sigmoid(model.gate(both)) * jnp.tanh(model.value(both))
    np.testing.assert_allclose(parts[0], gated @ model.out.kernel[...] / np.sqrt(2), rtol=1e-5, atol=1e-6)


def test_the_centre_is_the_mean_of_the_first_pass_away_from_zero_and_stays(prepared):
    method = create("deeptralog_adapted", prepared)
    params = method.init(jax.random.key(0))
    mean = jnp.array([0.0, 0.05, -0.05, 0.5, -0.5, 0.1, 2.0, -0.0])
    first = method.absorb(params, mean, 0)
    np.testing.assert_allclose(first["fixed"]["centre"], [0.1, 0.1, -0.1, 0.5, -0.5, 0.1, 2, 0.1])
    later = method.absorb(first, 3 * mean, 7)
    np.testing.assert_array_equal(later["fixed"]["centre"], first["fixed"]["centre"])
    sums, count = method.observe(first, batch_of(prepared, [0, 1]))
    assert not sums.any() and count == 2  # nothing is computed for a centre that stays


def test_losses_of_one_class_and_soft_boundary_by_hand(prepared):
    method, soft = (create("deeptralog_adapted", prepared, soft_boundary=s) for s in (False, True))
    params, batch = centred(method, prepared), batch_of(prepared, [0, 1, 2, 3])
    distance = np.asarray(method.score(params, batch).score[:, 0, 0])
    np.testing.assert_allclose(whole_loss(method, params, batch)["distance"], distance.mean(), rtol=1e-4)
    radius = np.sort(distance)[:2].mean()  # one lies within
    params["radius"] = jnp.sqrt(radius)
    expected = radius + np.maximum(distance - radius, 0).mean() / 0.05
    np.testing.assert_allclose(whole_loss(soft, params, batch)["distance"], expected, rtol=1e-4)


# LogTraceAD.


def test_nodes_are_visited_level_after_level_some_at_once():
    assert logtracead.visits(np.array([2, 0, 2, 1, 2]), 2).tolist() == [[1, 5], [3, 5], [0, 2], [4, 5]]


def test_the_encoder_by_hand_on_a_chain():
    """Nodes 0 -> 1, and 2 alone: what follows nothing goes to the sink."""
    model = logtracead.Network(4, 2, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (1, 3, logtracead.INPUT))
    edges = jnp.zeros((1, 3, 3)).at[0, 0, 1].set(1)
    mean, log_variance = model.encode(x, edges, logtracead.visits(np.array([0, 1, 0])))
    own = model.project(x[0])

    def sent(h):
        return jax.nn.sigmoid(model.gate(h)) * model.map(h)

    first, alone = (model.gru(jnp.zeros(4), own[i])[0] for i in (0, 2))
    second = model.gru(sent(first), own[1])[0]
    last = model.gru((sent(second) + sent(alone)) / np.sqrt(3), model.sink[...])[0]
    np.testing.assert_allclose(
        jnp.concatenate([mean[0], log_variance[0]]), model.posterior(last), rtol=1e-5, atol=1e-6
    )  # fmt: skip


def test_the_divergence_by_hand():
    mean, variance = np.array([[1.0, -2.0]]), np.array([[1.0, 4.0]])
    expected = 0.5 * (1 + 1 - 1 - 0) + 0.5 * (4 + 4 - 1 - np.log(4))
    np.testing.assert_allclose(logtracead.divergence(jnp.array(mean), jnp.log(variance)), [expected], rtol=1e-6)


def test_the_elbo_of_a_decoder_that_knows_nothing_by_hand(prepared):
    """All weights 0: six types alike, every edge at even odds, no signal, a standard normal posterior."""
    method = create("logtracead_adapted", prepared)
    params = jax.tree.map(jnp.zeros_like, method.init(jax.random.key(0)))
    batch, system = batch_of(prepared, [0]), prepared.system
    nodes = Nodes.of(system, False)
    level, x = nodes.levels(), np.asarray(batch.graphs.nodes[0, 0])[nodes.slot]
    pairs = (level[:, None] < level[None]).sum()
    squares = (np.square(x[:, CONTEXT_DIM:]) * nodes.signals).sum()
    expected = len(level) * np.log(6) + pairs * np.log(2) + squares
    np.testing.assert_allclose(method.score(params, batch).score[0, 0], [expected, 0], rtol=1e-4, atol=1e-6)
    found = whole_loss(method, params, batch)
    np.testing.assert_allclose(sum(found.values()), expected, rtol=1e-4)


# Both.


@pytest.mark.parametrize("name", NAMES)
def test_padding_windows_change_neither_loss_nor_scores(prepared, name):
    method = create(name, prepared)
    params, real, padded = centred(method, prepared), batch_of(prepared, [3, 4]), batch_of(prepared, [3, 4, -1])
    one, other = (whole_loss(method, params, batch) for batch in (real, padded))
    assert one == pytest.approx(other, rel=1e-5)
    scores = method.score(params, padded)
    np.testing.assert_allclose(scores.score[:2], method.score(params, real).score, rtol=1e-4, atol=1e-5)
    assert np.isnan(scores.score[2]).all()


@pytest.mark.parametrize("name", NAMES)
def test_padding_and_the_order_of_nodes_and_edges_change_nothing(prepared, name):
    other = reordered(prepared)
    results = []
    for data in (prepared, other):
        method = create(name, data)
        params, batch = centred(create(name, prepared), prepared), batch_of(data, [5, 6, 7])
        scores = method.score(params, batch)
        results.append((scores.score, scores.service, list(whole_loss(method, params, batch).values())))
    for one, two in zip(*results, strict=True):
        np.testing.assert_allclose(one, two, rtol=2e-3, atol=1e-4)


def reordered(prepared):
    """The same graphs with nodes and edges in another order, and with more padding of both, full of numbers."""
    system, windows = prepared.system, prepared.windows
    rng = np.random.default_rng(0)
    size, real = len(system.kind), int(system.node_mask.sum())
    order = np.concatenate([rng.permutation(real), np.arange(real, size), np.full(8, size - 1)])
    place = np.append(np.argsort(order[:real]), np.arange(real, size))
    arrays = ("identity", "kind", "signal_mask", "evidence", "witness", "rising", "mask_unit", "unit_hash", "service",
              "caller", "lag", "node_mask")  # fmt: skip
    system = dataclasses.replace(
        system, **{name: getattr(system, name)[order] for name in arrays},
        node_names=tuple(np.array(system.node_names)[order[:real]]),
    )  # fmt: skip
    nodes = windows.nodes[:, order].copy()
    nodes[:, real:] = 9
    edges = rng.permutation(int(windows.n_edge[0]))
    pad = ((0, 0), (0, 8))

    def moved(ends, fill):
        return np.pad(np.concatenate([ends[:, edges], ends[:, len(edges) :]], axis=1), pad, constant_values=fill)

    windows = dataclasses.replace(
        windows, nodes=nodes, senders=moved(place[windows.senders].astype(np.int32), size + 7),
        receivers=moved(place[windows.receivers].astype(np.int32), size + 7), edge_kind=moved(windows.edge_kind, 1),
    )  # fmt: skip
    return dataclasses.replace(prepared, system=system, windows=windows)


@pytest.mark.parametrize("name", NAMES)
def test_loss_falls_scores_differ_and_a_planted_fault_in_the_logs_is_found(prepared, name):
    """Log counts of one service leave their expectation by 6 normal scales in half of every second test segment."""
    config = small_config(name)
    config.data.batch_size = 8
    method = methods.get(name).create(config, prepared.system, None)

    def trained(epochs):
        config.train.num_epochs = epochs
        found = train.fit(config, prepared, [0], method, jax.devices()[:1])
        return jax.tree.map(lambda p: p[0], found)

    def judged(params):
        return score_dataset(scorer(method), params, prepared, config.score).terms

    one = compiled(method)
    before, batch = centred(one, prepared), batch_of(prepared, range(96))
    soon = jax.tree.map(lambda p: p[0], trained(4))  # 48 steps
    start, end = (sum(whole_loss(one, params, batch).values()) for params in (before, soon))
    assert end < 0.7 * start
    params = trained(12)
    terms, untrained = judged(params), judged(jax.tree.map(lambda p: p[None], before))
    own = terms.own[:, 0]
    assert np.isfinite(own).all() and own.std() > 1e-6
    assert not np.allclose(own, untrained.own[:, 0], atol=0.1)
    scores = one.score(jax.tree.map(lambda p: p[0], params), batch_of(prepared, range(192))).score
    assert len(np.unique(scores[:, 0, 0])) > 100
    assert roc_auc_score(prepared.windows.label[terms.window], own) > 0.9
