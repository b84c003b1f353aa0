"""Method B: its losses, views and distances by hand, what may change nothing, and that it finds what it should."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn.metrics import roc_auc_score

from data_prep.errors import InputError
from ssad_jax import batching, methods, train
from ssad_jax.config import default_config
from ssad_jax.layers.hashing import words
from ssad_jax.layers.services import MODALITIES, Services, SignalVectors, embed
from ssad_jax.methods import cross_service
from ssad_jax.objectives import tick_views
from ssad_jax.objectives.contrastive import service_info_nce
from ssad_jax.scoring import distances
from ssad_jax.scoring.detectors import method_detectors, score_dataset
from ssad_jax.scoring.distances import FLOOR, Normal, read_distances
from ssad_jax.scoring.terms import DISTANCE, Terms, columns, scorer, service_columns
from tests.synthetic import make_prepared

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
NUM_KEYS = 4000


def keys(count):
    return words(jax.random.split(jax.random.key(0), count))


def identity(x):
    return x


def small_config(**settings):
    config = default_config("test")
    config.method = "cross_service"
    config.model.hidden_dim, config.model.num_graph_layers = 8, 1
    config.data.batch_size, config.train.num_epochs, config.train.compilation_cache = 8, 2, False
    config.cross_service.update(settings)
    return config


def plain(config):
    """Nothing is drawn: both views are the window itself."""
    config.views.update({"edge_drop": 0.0, "attribute_drop": 0.0})
    config.cross_service.update({"modality_alone": 0.0, "modality_drop": 0.0, "align_ticks": 0})
    return config


@pytest.fixture(scope="module")
def prepared():
    return make_prepared(folds=3)


def batch_of(prepared, method, rows=None):
    rows = batching.examples_for(prepared, method.needs).fit_sequences[:8] if rows is None else np.array(rows)
    windows = jax.tree.map(jnp.asarray, batching.resident(prepared, needs=method.needs))
    return batching.make_batch(windows, jnp.asarray(rows, jnp.int32), jnp.arange(len(rows), dtype=jnp.int32))


def example_keys(batch):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(5), i))(batch.index)


# The service-level loss.


def test_service_info_nce_by_hand():
    """Two windows that do not overlap, two services, embeddings at angles (degrees)."""
    first, second = np.radians([[0, 90], [30, 60]]), np.radians([[10, 80], [40, 100]])
    unit = [jnp.stack([jnp.cos(a), jnp.sin(a)], -1) for a in (first, second)]
    tick, mask, tau = jnp.array([0, 100]), jnp.array([True, True]), 0.5
    total, count = service_info_nce(*unit, tick, mask, identity, 20, tau)
    expected = 0.0
    for a, b in ((first, second), (second, first)):
        for w in range(2):
            for u in range(2):
                own = np.exp(np.cos(a[w, u] - b[w, u]) / tau)
                other_service = np.exp(np.cos(a[w, u] - b[w, 1 - u]) / tau)
                other_window = np.exp(np.cos(a[w, u] - b[1 - w, u]) / tau)
                expected += -0.5 * np.log(own / (own + other_service + other_window))
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert count == 4


def test_service_info_nce_leaves_out_windows_that_overlap_and_windows_that_do_not_exist():
    angle = jnp.radians(jnp.array([[0.0, 90], [30, 60], [5, 50]]))
    z = jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
    alone, one = service_info_nce(z[:1], z[:1], jnp.array([0]), jnp.array([True]), identity, 20, 0.2)
    both, two = service_info_nce(z[:2], z[:2], jnp.array([0, 10]), jnp.array([True, True]), identity, 20, 0.2)
    own, _ = service_info_nce(z[1:2], z[1:2], jnp.array([0]), jnp.array([True]), identity, 20, 0.2)
    np.testing.assert_allclose(both, alone + own, rtol=1e-6)  # they overlap: each has its services alone to repel
    assert (one, two) == (2, 4)
    padded, three = service_info_nce(z, z, jnp.array([0, 10, 500]), jnp.array([True, True, False]), identity, 20, 0.2)
    np.testing.assert_allclose(padded, both, rtol=1e-6)
    assert three == 4


def test_a_single_service_without_another_window_has_nothing_to_learn_from():
    z = jnp.ones((1, 1, 4)) / 2
    total, count = service_info_nce(z, z, jnp.array([0]), jnp.array([True]), identity, 20, 0.2)
    assert total == 0 and count == 0


# Views.


def test_one_modality_is_all_there_is_or_one_is_missing():
    modality = np.array([0, 0, 1, 2])
    keep = np.asarray(tick_views.keep_modalities(keys(NUM_KEYS), modality, (0, 1, 2), 0.3, 0.5))
    assert (keep[:, 0] == keep[:, 1]).all()
    left = keep[:, 1:].sum(1)
    assert set(left) == {1, 2, 3}
    np.testing.assert_allclose([(left == n).mean() for n in (1, 2, 3)], [0.3, 0.35, 0.35], atol=0.03)
    np.testing.assert_allclose(keep[left == 1][:, 1:].mean(0), 1 / 3, atol=0.05)  # each alike


def test_a_modality_that_has_no_other_beside_it_stays():
    assert tick_views.keep_modalities(keys(50), np.array([1, 1]), (1,), 0.9, 0.9).all()


def test_services_that_are_called_move_by_a_tick():
    series = jnp.arange(1.0, 5)[None, :, None, None] * jnp.ones((NUM_KEYS, 1, 2, 1))  # 1 2 3 4 of two services
    moved = np.asarray(tick_views.shift(keys(NUM_KEYS), series, np.array([False, True]), 1))[..., 0]
    assert (moved[:, :, 0] == [1, 2, 3, 4]).all()
    found, count = np.unique(moved[:, :, 1], axis=0, return_counts=True)
    assert found.tolist() == [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 0]]
    np.testing.assert_allclose(count / NUM_KEYS, 1 / 3, atol=0.03)


def test_a_fitted_lag_is_taken_away():
    series = jnp.arange(1.0, 5)[None, :, None, None] * jnp.ones((1, 1, 2, 3))
    aligned = np.asarray(tick_views.align(series, np.array([0, 2])))
    assert (aligned[0, :, 0] == [[1] * 3, [2] * 3, [3] * 3, [4] * 3]).all()
    assert aligned[0, :, 1, 0].tolist() == [3, 4, 0, 0]


def test_the_share_of_signals_that_is_left_out():
    keep = tick_views.keep_signals(keys(NUM_KEYS), np.zeros(3), 0.25)
    np.testing.assert_allclose(np.asarray(keep).mean(0), 0.75, atol=0.03)


# Services and their signals.


def test_a_call_speaks_of_both_its_ends(prepared):
    services = Services.of(prepared.system, evidence=True)
    system, names = prepared.system, prepared.system.service_names
    signals = [row[row < len(services.node)] for row in services.slots]
    held = [sorted(system.node_names[services.node[c]] for c in row) for row in signals]
    calls = {name: [n for n in held[i] if "->" in n] for i, name in enumerate(names)}
    first, second = [f"service-{i} -> service-{i + 1}" for i in range(2)]
    assert calls == {"service-0": [first] * 2, "service-1": [first] * 2 + [second] * 2, "service-2": [second] * 2}
    assert all(name.split("/")[0] == names[i] for i in range(3) for name in held[i] if "->" not in name)
    assert services.calls.tolist() == [[0, 1], [1, 2]] and services.is_called.tolist() == [False, True, True]
    assert {MODALITIES[m] for m in services.modality} == {"traces", "logs", "metrics"}


def test_what_a_signal_adds_is_its_value_times_its_vector(prepared):
    services = Services.of(prepared.system, evidence=True)
    module = SignalVectors(6, rngs=nnx.Rngs(0))
    vectors = np.asarray(module(services)[0])
    values = np.zeros(len(services.node), np.float32)
    u, p = 1, 2
    signal = services.slots[u, p]
    values[signal] = 2.5
    out = np.asarray(embed(services.gather(jnp.asarray(values)), vectors))
    node, channel, role = services.node[signal], services.channel[signal], services.role[u, p]
    own = prepared.system.identity[node] @ module.of_identity[...][role] + module.of_channel[...][role, channel]
    np.testing.assert_allclose(out[u], 2.5 * own, rtol=1e-5, atol=1e-6)
    values[signal] = 100  # further than any signal counts
    clipped = np.asarray(embed(services.gather(jnp.asarray(values)), vectors))
    np.testing.assert_allclose(clipped[u], 6 * own, rtol=1e-5, atol=1e-6)


# The method.


def test_equal_views_and_far_windows_give_the_losses_of_their_embeddings(prepared):
    config = plain(small_config())
    method = cross_service.create(config, prepared.system)
    batch = batch_of(prepared, method)
    params = method.init(jax.random.key(0))
    sums, counts, _ = jit(lambda p, b, k: method.loss(p, b, k, identity))(params, batch, example_keys(batch))
    assert counts == {"service": 8 * 3, "system": 8}
    assert all(s > 0 for s in sums.values())
    config.cross_service.service = 0.5
    weighed = cross_service.create(config, prepared.system)
    other, _, _ = jit(lambda p, b, k: weighed.loss(p, b, k, identity))(params, batch, example_keys(batch))
    np.testing.assert_allclose(other["service"], 0.5 * sums["service"], rtol=1e-5)
    np.testing.assert_allclose(other["system"], sums["system"], rtol=1e-5)


def test_windows_that_do_not_exist_change_nothing(prepared):
    method = cross_service.create(small_config(), prepared.system)
    params = method.init(jax.random.key(0))
    rows = batching.examples_for(prepared, method.needs).fit_sequences[:8:2]
    loss = jit(lambda p, b, k: method.loss(p, b, k, identity)[:2])
    batch = batch_of(prepared, method, rows)
    more = batch_of(prepared, method, np.concatenate([rows, [[-1]]]))
    for expected, got in zip(
        jax.tree.leaves(loss(params, batch, example_keys(batch))),
        jax.tree.leaves(loss(params, more, example_keys(more))), strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_a_window_is_represented_alike_whatever_is_scored_with_it(prepared):
    method = cross_service.create(small_config(), prepared.system)
    params = method.init(jax.random.key(0))
    score = jit(method.score)
    together = score(params, batch_of(prepared, method, [[0, 1, 2, -1], [5, 6, 7, 8]]))
    alone = score(params, batch_of(prepared, method, [[2], [7]]))
    np.testing.assert_allclose(together.service[0, 2], alone.service[0, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(together.system[1, 2], alone.system[1, 0], rtol=1e-5, atol=1e-6)
    assert not np.asarray(together.service[0, 3]).any()
    assert together.service.shape == (2, 4, 3, 8) and together.system.shape == (2, 4, 16)


def test_the_order_of_nodes_and_services_does_not_matter(prepared):
    """A system whose slots and services are numbered otherwise is represented alike."""
    system = prepared.system
    rng = np.random.default_rng(3)
    real = system.node_mask.sum()
    slots = np.concatenate([rng.permutation(real), np.arange(real, len(system.node_mask))])
    names = rng.permutation(len(system.service_names))  # new number i is the old names[i]
    number = np.argsort(names)

    def renumbered(service):
        return np.where(service >= 0, number[service], -1)[slots].astype(np.int32)

    arrays = {f.name: getattr(system, f.name) for f in dataclasses.fields(system)}
    moved = {k: v[slots] for k, v in arrays.items() if isinstance(v, np.ndarray) and len(v) == len(slots)}
    moved |= {"service": renumbered(system.service), "caller": renumbered(system.caller)}
    moved |= {"service_names": tuple(system.service_names[i] for i in names)}
    other = dataclasses.replace(
        prepared, system=dataclasses.replace(system, **moved),
        windows=dataclasses.replace(prepared.windows, nodes=prepared.windows.nodes[:, slots]),
        ticks=dataclasses.replace(prepared.ticks, signals=prepared.ticks.signals[:, slots]),
    )  # fmt: skip
    found = []
    for data in (prepared, other):
        method = cross_service.create(small_config(), data.system)
        found.append(method.score(method.init(jax.random.key(0)), batch_of(data, method)))
    np.testing.assert_allclose(found[1].service, found[0].service[:, :, names], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1].system, found[0].system, rtol=1e-4, atol=1e-5)


def test_training_teaches_to_tell_windows_and_services_apart(prepared):
    config = small_config()
    config.train.num_epochs, config.optimizer.learning_rate = 8, 3e-3
    method = cross_service.create(config, prepared.system)
    trained = jax.tree.map(lambda p: p[0, 0], train.fit(config, prepared, [0], method))
    fresh = jax.tree.map(lambda p: p[0], train.init_params(method.init, train.streams(0, 1)))
    batch = batch_of(prepared, method)
    loss = jit(lambda p: method.loss(p, batch, example_keys(batch), identity)[:2])
    before, after = ({k: s / c for (k, s), c in zip(r[0].items(), r[1].values(), strict=True)}
                     for r in (loss(fresh), loss(trained)))  # fmt: skip
    assert all(after[name] < 0.9 * before[name] for name in ("service", "system"))


def test_a_dataset_without_ticks_is_refused(prepared):
    method = cross_service.create(small_config(), prepared.system)
    with pytest.raises(InputError, match="no per-tick signals; prepare the data again"):
        batching.resident(dataclasses.replace(prepared, ticks=None), needs=method.needs)


def test_a_system_without_a_signal_of_faults_is_refused_with_a_remedy(prepared):
    system = dataclasses.replace(prepared.system, evidence=np.zeros_like(prepared.system.evidence))
    with pytest.raises(InputError, match="cross_service.channels=all"):
        cross_service.create(small_config(), system)
    assert cross_service.create(small_config(channels="all"), system).needs.tick_signals is not None


def test_a_service_of_which_nothing_is_seen_differs_from_another_such_one(prepared):
    """Else the contrast between services would ask for what cannot be."""
    evidence = prepared.system.evidence & (prepared.system.service == 2)[:, None]
    system = dataclasses.replace(prepared.system, evidence=evidence)
    method = cross_service.create(small_config(), dataclasses.replace(system, caller=np.full_like(system.caller, -1)))
    found = method.score(method.init(jax.random.key(0)), batch_of(prepared, method)).service
    assert np.abs(found[:, :, 0] - found[:, :, 1]).max() > 0.05


# Ticks and examples.


def test_ticks_of_windows(prepared):
    node, channel = np.array([1, 4]), np.array([0, 0])
    rows = np.array([7, 3, 3])
    found = prepared.ticks.of(rows, 20, node, channel)
    assert found.shape == (3, 20, 2) and found.dtype == np.float16
    for i, row in enumerate(rows):
        start = prepared.windows.start_tick[row]
        np.testing.assert_array_equal(found[i], prepared.ticks.signals[start : start + 20, node, channel])
    assert prepared.ticks.of(np.zeros(0, int), 20, node, channel).shape == (0, 20, 2)


def test_a_method_that_looks_at_windows_alone_gets_each_once(prepared):
    needs = batching.Needs(alone=True)
    examples = batching.examples_for(prepared, needs).fit_sequences
    assert examples.shape[1] == 1
    assert sorted(examples[:, 0]) == sorted(np.unique(prepared.fit_sequences))
    assert batching.examples_for(prepared, batching.Needs()) is prepared


# Distances.


def test_distances_by_hand():
    rows = np.array([[0.0, 0], [2, 0], [4, 6]], np.float32)[:, None]  # three normal windows of one service
    normal = Normal.of(rows, np.array([0, 0, 1]))
    variance = np.var(rows[:, 0], axis=0)
    spread = np.sqrt(variance + FLOOR**2 * variance.mean())
    far = np.sqrt(np.mean((np.array([2.0, 6]) / spread) ** 2))  # of (2, 0) to (4, 6)
    near = np.sqrt(np.mean((np.array([2.0, 0]) / spread) ** 2))  # of (2, 0) to (0, 0)
    of = functools.partial(normal.distance, rows[1:2])
    np.testing.assert_allclose(of(None, 1), [[0]], atol=1e-3)
    np.testing.assert_allclose(of(None, 2), [[near / 2]], rtol=1e-3)
    np.testing.assert_allclose(of(np.array([0]), 1), [[far]], rtol=1e-4)
    np.testing.assert_allclose(of(np.array([0]), 5), [[far]], rtol=1e-4)  # its own run never counts
    assert normal.distance(rows[:1], np.array([1]), 1)[0, 0] == 0


def test_without_another_run_nothing_deviates():
    normal = Normal.of(np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32), np.zeros(5, int))
    assert not normal.distance(np.full((1, 2, 3), 9, np.float32), np.zeros(1, int), 2).any()


def test_a_representation_that_is_no_number_stays_visible():
    normal = Normal.of(np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32), np.zeros(5, int))
    found = normal.distance(np.array([[[1, 2, np.nan], [1, 2, 3]]], np.float32), None, 2)
    assert np.isnan(found[0, 0]) and np.isfinite(found[0, 1])


def test_calibration_windows_are_compared_with_fit_windows_where_there_are_any():
    rng, first = np.random.default_rng(0), itertools.count(0, 1000)

    def terms(count):
        none = np.zeros(count, np.float32)
        return Terms(
            next(first) + np.arange(count), np.zeros(count, int), np.zeros((count, 0), np.float32), none, none, none,
            np.zeros(count, int), rng.normal(size=(count, 6)).astype(np.float32),
            service=rng.normal(size=(count, 2, 3)).astype(np.float32),
        )  # fmt: skip

    fit, held_out, test = terms(30), terms(8), terms(5)
    run = np.repeat([0, 1], 4)
    by_fit, found = read_distances(fit, held_out, run, test, 3)
    normal = Normal.of(fit.service, np.full(30, -1))
    np.testing.assert_allclose(by_fit.residual, normal.distance(held_out.service, None, 3))
    np.testing.assert_allclose(found.residual, normal.distance(test.service, None, 3))
    np.testing.assert_allclose(found.read[:, 1], found.prior)
    np.testing.assert_allclose(found.paper_reconstruction, found.residual.mean(1))
    others = Normal.of(held_out.service, run)
    for some in (fit.take(slice(0)), held_out):  # none, or calibration windows themselves
        in_turns, _ = read_distances(some, held_out, run, test, 3)
        np.testing.assert_allclose(in_turns.residual, others.distance(held_out.service, run, 3))
    nothing, found = read_distances(fit, held_out, run, test.take(slice(0)), 3)
    assert len(nothing.window) == 8 and found.residual.shape == (0, 2) and found.read.shape == (0, 2)
    with pytest.raises(InputError, match="no calibration windows"):
        read_distances(fit, held_out.take(slice(0)), run[:0], test, 3)


def test_many_normal_windows_are_thinned_evenly(monkeypatch):
    monkeypatch.setattr(distances, "MOST", 3)
    none = np.zeros(9, np.float32)
    rows = np.arange(9, dtype=np.float32)[:, None, None]
    every = Terms(np.arange(9), none, none[:, None], none, none, none, none, rows[:, 0], service=rows)
    one = every.take(slice(5, 6))._replace(window=np.array([99]))
    found, _ = read_distances(every, one, np.zeros(1), one, 1)
    spread = np.std([0, 4, 8]) * np.sqrt(1 + FLOOR**2)
    np.testing.assert_allclose(found.residual, [[1 / spread]], rtol=1e-5)  # of 5 to 4


def test_each_service_has_one_column(prepared):
    place = service_columns(prepared.system)
    assert [prepared.system.node_names[n] for n in place.node] == ["service-0", "service-1", "service-2"]
    assert (place.channel == DISTANCE).all() and place.rising.all() and place.evidence.all()


# Everything together.


@pytest.mark.parametrize("folds", [0, 3])
def test_a_fault_is_found_and_its_service_named(folds):
    data, config = make_prepared(folds=folds), small_config()
    config.data.calibration_folds = folds
    method = methods.get("cross_service").create(config, data.system, None)
    params = jax.tree.map(lambda p: p[0], train.fit(config, data, [0], method))
    scored = score_dataset(scorer(method), params, data, config.score)
    label = data.windows.label[scored.terms.window] == 1
    for name, least in (("calibrated", 0.95), ("paper", 0.9), ("prior", 0.7)):
        assert roc_auc_score(label, getattr(scored.scores, name)) > least, name
    detector = method_detectors(data, scored, config.score)["variants"]["calibrated"]
    first = [names[0] for names, faulty in zip(detector.suspects, label, strict=True) if faulty]
    assert np.mean([name == "service-2" for name in first]) > 0.8  # neighbours share some of what it shows
    assert len(scored.place.node) == 3 != len(columns(data.system).node)
