"""TraceGra and ART: their parts by hand, what may change nothing, and that they find what they should."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jraph import GraphsTuple
from sklearn.metrics import roc_auc_score

from data_prep.errors import InputError
from ssad_jax import batching, methods, parallel, settings, train
from ssad_jax.compared import art, ticks, tracegra
from ssad_jax.config import default_config, use_method
from ssad_jax.layers.lstm import Lstm
from ssad_jax.layers.services import Services
from ssad_jax.prepared import NODE_KINDS
from tests.synthetic import STRIDE, WINDOW_LENGTH, make_prepared

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
BOTH = ("tracegra_adapted", "art_adapted")
SEGMENTS, WINDOWS = 12, 12  # of the dataset
FIRST_FAULTY = WINDOWS // 2


def config_for(name, **sizes):
    config = default_config("test")
    use_method(config, name)
    config.data.batch_size, config.train.num_epochs, config.train.compilation_cache = 8, 6, False
    config.optimizer.learning_rate = 1e-2
    own = config.compared[name.removesuffix("_adapted")]
    own.update({"width": 16, **sizes})
    return config


def with_rhythm(prepared):
    """Every signal is a sine of eight ticks, of its own phase, and some noise; ticks of faults stay as they were."""
    rng = np.random.default_rng(4)
    signals = np.asarray(prepared.ticks.signals, np.float32)
    phase = rng.uniform(0, 2 * np.pi, signals.shape[1:])
    rhythm = 1.5 * np.sin(np.pi / 4 * np.arange(len(signals))[:, None, None] + phase)
    rhythm = (rhythm + 0.1 * rng.normal(size=signals.shape)) * prepared.system.signal_mask
    return dataclasses.replace(prepared, ticks=dataclasses.replace(prepared.ticks, signals=rhythm.astype(np.float16)))


def with_fault(prepared, kinds):
    """In faulty windows the signals of the last service, of nodes of such kinds, rise."""
    system, windows, signals = prepared.system, prepared.windows, prepared.ticks.signals.copy()
    kind = np.isin(system.kind, [NODE_KINDS.index(k) for k in kinds])
    node, channel = np.nonzero(system.signal_mask & (kind & (system.service == 2))[:, None])
    for first in windows.start_tick[windows.label == 1]:
        signals[first : first + WINDOW_LENGTH, node, channel] = 4.0
    return dataclasses.replace(prepared, ticks=dataclasses.replace(prepared.ticks, signals=signals))


@pytest.fixture(scope="module")
def prepared():
    return with_rhythm(make_prepared(segments=SEGMENTS, windows_per_segment=WINDOWS))


def build(name, prepared, **sizes):
    return methods.get(name).create(config_for(name, **sizes), prepared.system)


def batch_of(prepared, method, rows):
    windows = jax.tree.map(jnp.asarray, batching.resident(prepared, needs=method.needs))
    rows = jnp.asarray(rows, jnp.int32)
    index = jnp.where((rows >= 0).any(1), jnp.arange(len(rows), dtype=jnp.int32), -1)
    return batching.make_batch(windows, rows, index)


def keys_of(batch):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(5), i))(batch.index)


def loss_of(method):
    return jit(lambda params, batch: method.loss(params, batch, keys_of(batch), lambda x: x)[:2])


def assert_close(first, second):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), first, second)


# Parts by hand.


def test_lstm_by_hand():
    lstm = Lstm(2, 3, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(4, 5, 2)).astype(np.float32)
    weights = (np.asarray(w[...]) for w in (lstm.of_input.kernel, lstm.of_state, lstm.bias))
    of_input, of_state, bias = weights
    cell, h = np.zeros((4, 3)), np.zeros((4, 3))
    for t in range(5):
        enter, keep, candidate, leave = np.split(x[:, t] @ of_input + h @ of_state + bias, 4, axis=1)
        enter, keep, leave = (1 / (1 + np.exp(-gate)) for gate in (enter, keep, leave))
        cell = keep * cell + enter * np.tanh(candidate)
        h = leave * np.tanh(cell)
        np.testing.assert_allclose(lstm(jnp.asarray(x))[:, t], h, rtol=1e-4, atol=1e-5)


def test_active_calls_are_those_of_the_window_in_both_directions(prepared):
    """Services 0 -> 1 -> 2 each have a node for the call; the second window lacks the second call."""
    system = prepared.system
    first = [system.node_names.index(f"service-{i}") for i in range(3)]
    calls = [system.node_names.index(f"service-{i} -> service-{i + 1}") for i in range(2)]
    padding = len(system.kind) - 1
    senders = jnp.array([[first[0], calls[0], first[1], calls[1], first[0]]])
    receivers = jnp.array([[calls[0], first[1], calls[1], first[2], first[2]]])
    senders = jnp.concatenate([senders, senders.at[0, 2:4].set(padding)])
    receivers = jnp.concatenate([receivers, receivers.at[0, 2:4].set(padding)])
    kind = jnp.array([[0, 0, 0, 0, 1]] * 2)  # the last edge is no call
    graphs = GraphsTuple(None, kind, receivers, senders, None, None, None)
    found = np.asarray(tracegra.active_calls(system, graphs))
    assert found[0].tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    assert found[1].tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]


def test_propagation_is_normalised_by_degrees_with_self_loops():
    calls = jnp.array([[[0.0, 1, 0], [1, 0, 0], [0, 0, 0]]])
    np.testing.assert_allclose(tracegra.normalised(calls)[0], [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]], rtol=1e-6)


def test_structure_error_by_hand():
    h = jnp.array([[[[1.0, 0], [2, 0], [0, 3]]]])  # one window, one tick, three services
    calls = jnp.array([[[0.0, 1, 0], [1, 0, 0], [0, 0, 0]]])
    expected = (-np.log(1 / (1 + np.exp(-2.0))) + 2 * np.log(2.0)) / 3  # h_0 . h_1 = 2 where there is a call, else 0
    np.testing.assert_allclose(tracegra.structure_error(h, calls), [[expected]], rtol=1e-6)


def test_a_service_s_error_is_the_mean_over_its_signals_alone(prepared):
    services = Services.of(prepared.system, evidence=False)
    there = services.slots < len(services.node)
    found = ticks.mean_square(services, jnp.full((1, 1, *there.shape), 2.0))
    assert not there.all()
    np.testing.assert_allclose(found[0, 0], np.full(3, 4.0), rtol=1e-6)


def test_the_three_worst_services_are_added_up():
    assert art.worst(jnp.array([[1.0, 5, 2, 4]])).tolist() == [11] and art.worst(jnp.array([1.0, 5])) == 6


def test_neighbours_are_averaged(prepared):
    found = art.neighbours(Services.of(prepared.system, evidence=True))
    assert found.tolist() == [[0, 1, 0], [0.5, 0, 0.5], [0, 1, 0]]


def test_channels_that_a_service_lacks_change_nothing():
    layer = art.Channels(4, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, 2, 3, 4)), jnp.float32)
    there = np.array([[True, True, False], [True, True, True]])
    before, after = layer(x, there), layer(x.at[..., 2, :].set(9.0), there)
    np.testing.assert_allclose(after[0, 0, 0], before[0, 0, 0], rtol=1e-6)
    assert np.abs(after[0, 0, 1] - before[0, 0, 1]).max() > 0.01


# What may change nothing.


@pytest.mark.parametrize("name", BOTH)
def test_windows_that_do_not_exist_change_no_loss(prepared, name):
    method = build(name, prepared)
    params, loss = jit(method.init)(jax.random.key(0)), loss_of(method)
    few, more = (loss(params, batch_of(prepared, method, rows)) for rows in ([[0], [9]], [[0], [9], [-1]]))
    assert_close(few, more)


@pytest.mark.parametrize("name", BOTH)
def test_a_window_is_scored_alike_whatever_is_scored_with_it(prepared, name):
    method = build(name, prepared)
    params, score = jit(method.init)(jax.random.key(0)), jit(method.score)
    together = score(params, batch_of(prepared, method, [[0, 1, 2, -1], [5, 6, 7, 8]]))
    alone = score(params, batch_of(prepared, method, [[2], [7]]))
    assert_close((together.score[0, 2], together.service[1, 2]), (alone.score[0, 0], alone.service[1, 0]))
    missing = np.isnan(together.score).any(-1)
    assert missing[0, 3] and missing.sum() == 1


def renumbered(prepared):
    """The same dataset with its nodes in another order and more padding of nodes and edges."""
    system, windows, count = prepared.system, prepared.windows, len(prepared.system.kind)
    real = system.node_mask.sum()
    order = np.random.default_rng(3).permutation(real)
    slots = np.concatenate([order, np.arange(real, count), np.full(3, count - 1)])
    where = np.append(np.argsort(order), np.full(count - real, count + 2)).astype(np.int32)
    arrays = {f.name: getattr(system, f.name) for f in dataclasses.fields(system)}
    moved = {k: v[slots] for k, v in arrays.items() if isinstance(v, np.ndarray) and len(v) == count}
    moved |= {"node_names": tuple(system.node_names[i] for i in order)}
    padding = [(0, 0), (0, 5)]
    return dataclasses.replace(
        prepared, system=dataclasses.replace(system, **moved),
        windows=dataclasses.replace(
            windows, nodes=windows.nodes[:, slots], edge_kind=np.pad(windows.edge_kind, padding),
            senders=np.pad(where[windows.senders], padding, constant_values=count + 2),
            receivers=np.pad(where[windows.receivers], padding, constant_values=count + 2),
        ),
        ticks=dataclasses.replace(prepared.ticks, signals=prepared.ticks.signals[:, slots]),
    )  # fmt: skip


@pytest.mark.parametrize("name", BOTH)
def test_order_and_padding_of_nodes_and_edges_do_not_matter(prepared, name):
    """Not for what is drawn either: parameters are not of a dataset's names."""
    variational = {"variational": True} if name == "tracegra_adapted" else {}
    found = []
    for data in (prepared, renumbered(prepared)):
        method = build(name, data, **variational)
        params, batch = jit(method.init)(jax.random.key(0)), batch_of(data, method, [[0], [9]])
        found.append((loss_of(method)(params, batch), jit(method.score)(params, batch)))
    assert_close(*found)


def test_log_signals_change_nothing_in_tracegra(prepared):
    method, other = build("tracegra_adapted", prepared), with_fault(prepared, ["log"])
    params, row = jit(method.init)(jax.random.key(0)), [[int(np.flatnonzero(prepared.windows.label == 1)[0])]]
    assert (other.ticks.signals != prepared.ticks.signals).any()
    found = [jit(method.score)(params, batch_of(data, method, row)) for data in (prepared, other)]
    np.testing.assert_array_equal(found[0].score, found[1].score)


def test_art_predicts_a_tick_from_those_before_alone(prepared):
    """What a window's last tick is changes the last residual and no other."""
    method = build("art_adapted", prepared)
    params, batch = jit(method.init)(jax.random.key(0)), batch_of(prepared, method, [[0]])
    score = jit(method.score)
    last = [score(params, batch._replace(ticks=batch.ticks.at[:, :, -1].set(v))).score[0, 0] for v in (0, 1)]
    mean, tick = np.abs(np.asarray(last[0] - last[1]))
    assert tick > 0.1
    np.testing.assert_allclose(mean * (WINDOW_LENGTH - 1), tick, rtol=1e-3)


def test_the_variational_tracegra_draws_in_training_alone(prepared):
    method = build("tracegra_adapted", prepared, variational=True)
    params, batch = jit(method.init)(jax.random.key(0)), batch_of(prepared, method, [[0]])
    loss = jit(lambda key: method.loss(params, batch, key[None], lambda x: x)[0])
    first, second = (loss(jax.random.key(seed)) for seed in (0, 1))
    assert float(first["signals"]) != float(second["signals"])
    assert float(first["divergence"]) == float(second["divergence"]) > 0
    np.testing.assert_array_equal(method.score(params, batch).score, method.score(params, batch, 1).score)


def test_the_terms_of_tracegra_have_mean_0_and_deviation_1_over_the_windows_observed(prepared):
    rows = np.arange(30)[:, None]
    for weights in ({"signals": 1.0, "structure": 0.0}, {"signals": 0.0, "structure": 1.0}):
        method = build("tracegra_adapted", prepared, **weights)
        params, batch = jit(method.init)(jax.random.key(0)), batch_of(prepared, method, rows)
        sums, count = jit(method.observe)(params, batch)
        params = method.absorb(params, jax.tree.map(lambda x, n=count: x / n, sums), 0)
        found = np.asarray(jit(method.score)(params, batch).score)[:, 0, 0]
        np.testing.assert_allclose([found.mean(), found.std()], [0, 1], atol=2e-2)


# Learning.


def steps_of(method, config, prepared, count):
    """Records of the first steps, and the parameters after them."""
    mesh, own = parallel.make_mesh(jax.devices()[:1]), train.streams(0, 1)
    optimizer = train.make_optimizer(config)
    state = jax.device_get(jax.jit(lambda: train.init_state(method.init, optimizer, own))())
    run = parallel.MappedEpoch(train.make_epoch(method, optimizer), mesh, config.parallel.mapping)
    feed, records = train.Feed(prepared, config, mesh, own, method.needs), []
    state = parallel.replicate(state, mesh)
    for epoch in range(count):
        for dataset, order, prefetch in feed.visits(epoch):
            state, record = run(state, dataset, order)
            prefetch()
            records.append(parallel.fetch(record))
    return records, jax.tree.map(lambda p: p[0], parallel.fetch(state["params"]))


@pytest.fixture(scope="module")
def train_once(prepared):
    """name -> (name, method, records, parameters)."""

    @functools.cache
    def of(name):
        config = config_for(name)
        method = methods.get(name).create(config, prepared.system)
        return name, method, *steps_of(method, config, prepared, config.train.num_epochs)

    return of


@pytest.fixture(params=BOTH)
def trained(request, train_once):
    return train_once(request.param)


def test_the_loss_falls_by_30_percent_within_50_steps(trained):
    _, _, records, _ = trained
    losses = np.concatenate([sum(v[0] / np.maximum(v[1], 1) for k, v in r.items() if k.startswith("loss/"))[0]
                             for r in records])  # fmt: skip
    assert len(losses) > 40
    assert losses[:50][-5:].mean() < 0.7 * losses[:3].mean()


def scores(method, params, data):
    rows = np.arange(data.windows.num_windows).reshape(SEGMENTS, WINDOWS)
    return jax.device_get(jit(method.score)(params, batch_of(data, method, rows)))


def test_a_planted_fault_is_found_and_its_service_named(prepared, trained):
    name, method, _, params = trained
    kinds = ("metric", "dependency") if name == "tracegra_adapted" else ("log",)
    found = scores(method, params, with_fault(prepared, kinds))
    label = prepared.windows.label.reshape(SEGMENTS, WINDOWS)
    position = np.broadcast_to(np.arange(WINDOWS), label.shape)
    apart = (label == 1) | (position <= FIRST_FAULTY - WINDOW_LENGTH // STRIDE)  # no window that touches the fault
    assert roc_auc_score(label[apart], found.score[..., 0][apart]) > 0.9
    usual = np.median(found.service.reshape(-1, 3), axis=0).reshape(1, 1, 3)
    assert ((found.service / usual).argmax(-1)[label == 1] == 2).mean() > 0.9


def test_scores_differ_between_windows_and_from_those_of_fresh_parameters(prepared, trained):
    _, method, _, params = trained
    found = scores(method, params, prepared)
    assert len(np.unique(found.score[..., 0])) > 100 and found.score[..., 0].std() > 1e-6
    fresh = jax.device_get(jit(method.init)(jax.random.key(9)))
    other = scores(method, {**fresh, **{k: v for k, v in params.items() if k == "fixed"}}, prepared)
    assert np.abs(other.service - found.service).mean() > 0.1 * found.service.mean()


def test_a_call_that_is_missing_raises_the_score_of_tracegra(prepared, train_once):
    _, method, _, params = train_once("tracegra_adapted")
    kind = np.where(prepared.windows.edge_kind == 0, 1, prepared.windows.edge_kind).astype(np.int8)
    silent = dataclasses.replace(prepared, windows=dataclasses.replace(prepared.windows, edge_kind=kind))
    assert (scores(method, params, silent).score[..., 0] > scores(method, params, prepared).score[..., 0]).mean() > 0.95


# What cannot be.


@pytest.mark.parametrize("name", BOTH)
def test_a_system_without_a_signal_is_refused(prepared, name):
    none = np.zeros_like(prepared.system.signal_mask)
    system = dataclasses.replace(prepared.system, signal_mask=none, evidence=none)
    with pytest.raises(InputError, match="no signal of the kinds that the method reads"):
        methods.get(name).create(config_for(name), system)


@pytest.mark.parametrize(
    ("key", "value"),
    [("tracegra.width", 0), ("tracegra.structure", -1.0), ("art.width", 33), ("art.wide", 0), ("art.noise", -0.1)],
)
def test_sizes_that_cannot_be_used_are_refused(key, value):
    config = default_config("test")
    config.compared.update_from_flattened_dict({key: value})
    with pytest.raises(InputError, match=f"compared.{key}"):
        settings.check(config)
