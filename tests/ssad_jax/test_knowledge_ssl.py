"""Method A as a whole: invariances, what may see what, the score formula, and that training helps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data_prep.errors import InputError
from ssad_jax import knowledge, methods
from ssad_jax.batching import make_batch, resident
from ssad_jax.config import default_config
from ssad_jax.layers.hashing import words
from ssad_jax.methods import knowledge_ssl
from ssad_jax.objectives import views
from tests.synthetic import make_prepared

# Compiling is most of the time here; the tests run each program once or a few times.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
TERMS = {"reconstruction", "contrastive", "knowledge"}


def identity(x):
    return x


def small_config(**model):
    config = default_config("test")
    config.model.hidden_dim = 16
    config.model.num_prototypes = 6
    config.model.update(model)
    return config


def without_randomness(config):
    """Masks by unit stay, all else that is drawn goes."""
    config.model.dropout = 0.0
    config.views.update({"edge_drop": 0.0, "attribute_drop": 0.0, "window_jitter": 0})
    return config


def build(prepared, config):
    system = prepared.system
    known = knowledge.load("", system.service_names, system.service_position, config.model.num_prototypes)
    return knowledge_ssl.create(config, system, known)


def batch_of(prepared, sequences, index=None):
    windows = jax.tree.map(jnp.asarray, resident(prepared))
    index = np.arange(len(sequences)) if index is None else index
    return make_batch(windows, jnp.asarray(sequences, jnp.int32), jnp.asarray(index, jnp.int32))


def keys_of(batch):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(5), i))(batch.index)


def objective(method):
    def total(params, batch, keys):
        sums, counts, diagnostics = method.loss(params, batch, keys, identity)
        return sum(s / jnp.maximum(counts[k], 1) for k, s in sums.items()), (sums, counts, diagnostics)

    return jit(jax.value_and_grad(total, has_aux=True))


def train(method, prepared, steps):
    """Loss and masked log error of each step."""
    params = jit(method.init)(jax.random.key(0))
    tx = optax.adamw(2e-3)
    grad, batch = objective(method), batch_of(prepared, prepared.fit_sequences[:16])
    opt, history = tx.init(params), []

    @jit
    def update(gradient, opt, params):
        updates, opt = tx.update(gradient, opt, params)
        return optax.apply_updates(params, updates), opt

    for step in range(steps):
        keys = jax.vmap(lambda k, step=step: jax.random.fold_in(k, step))(keys_of(batch))
        (value, (_, _, diagnostics)), gradient = grad(params, batch, keys)
        params, opt = update(gradient, opt, params)
        history.append((float(value), float(diagnostics["masked_log_error"][0] / diagnostics["masked_log_error"][1])))
    return history


def assert_trees_close(a, b, rtol=2e-4, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


@pytest.fixture(scope="module")
def prepared():
    return make_prepared()


@pytest.fixture(scope="module")
def setting(prepared):
    """Method with all randomness on, perturbed parameters (no zero anywhere), a batch."""
    method = build(prepared, small_config())
    params = jit(method.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(x + 0.05 * rng.normal(size=x.shape), jnp.float32), params)
    sequences = prepared.fit_sequences[:6].copy()
    sequences[1, 2:] = -1
    return method, params, batch_of(prepared, sequences)


def repad(prepared, nodes, edges):
    """The same dataset with more padding, its contents poisoned."""
    system, windows = prepared.system, prepared.windows

    def grow(x, fill=0):
        return np.concatenate([x, np.full((nodes, *x.shape[1:]), fill, x.dtype)])

    names = ("identity", "kind", "node_mask", "signal_mask", "unit_hash")
    fields = {name: grow(getattr(system, name)) for name in names}
    fields |= {name: grow(getattr(system, name), -1) for name in ("mask_unit", "service", "caller")}
    count, budget = windows.num_windows, len(system.kind)
    poison = np.full((count, nodes, windows.nodes.shape[-1]), 1e4, np.float32)
    real = windows.n_edge.max()
    last = np.full((count, windows.senders.shape[1] - real + edges), budget + nodes - 1, np.int32)
    return dataclasses.replace(
        prepared,
        system=dataclasses.replace(system, **fields),
        windows=dataclasses.replace(
            windows,
            nodes=np.concatenate([windows.nodes, poison], 1),
            senders=np.concatenate([windows.senders[:, :real], last], 1),
            receivers=np.concatenate([windows.receivers[:, :real], last], 1),
            edge_kind=np.zeros((count, real + last.shape[1]), np.int8),
        ),
    )


def permute(prepared, order):
    """The same dataset with node slot i holding what slot order[i] held, and edges in another order."""
    system, windows = prepared.system, prepared.windows
    names = ("identity", "kind", "node_mask", "signal_mask", "mask_unit", "unit_hash", "service", "caller")
    where = np.argsort(order).astype(np.int32)
    edges = np.random.default_rng(2).permutation(int(windows.n_edge[0]))
    edges = np.concatenate([edges, np.arange(len(edges), windows.senders.shape[1])])
    return dataclasses.replace(
        prepared,
        system=dataclasses.replace(system, **{name: getattr(system, name)[order] for name in names}),
        windows=dataclasses.replace(
            windows, nodes=windows.nodes[:, order], senders=where[windows.senders][:, edges],
            receivers=where[windows.receivers][:, edges],
        ),
    )  # fmt: skip


def test_more_padding_of_nodes_edges_windows_and_rows_changes_nothing(prepared, setting):
    method, params, batch = setting
    (value, (sums, counts, _)), gradient = objective(method)(params, batch, keys_of(batch))
    padded = repad(prepared, 9, 13)
    sequences = np.full((8, 6), -1)
    sequences[:6, :4] = np.where(batch.window_mask, prepared.fit_sequences[:6], -1)
    more = batch_of(padded, sequences, [0, 1, 2, 3, 4, 5, -1, -1])
    other = build(padded, small_config())
    (value2, (sums2, counts2, _)), gradient2 = objective(other)(params, more, keys_of(more))
    assert set(sums) == TERMS and all(float(s) > 0 for s in sums.values())
    assert_trees_close((value, sums, counts), (value2, sums2, counts2))
    assert_trees_close(gradient, gradient2)


def test_padding_does_not_change_scores(prepared, setting):
    method, params, _ = setting
    runs = prepared.test_runs[:2]
    terms = jit(method.score)(params, batch_of(prepared, runs))
    padded = repad(prepared, 5, 3)
    longer = np.concatenate([runs, np.full((2, 3), -1, np.int32)], 1)
    more = jit(build(padded, small_config()).score)(params, batch_of(padded, longer))
    length, budget = runs.shape[1], len(prepared.system.kind)
    np.testing.assert_array_equal(more.residual[:, :, budget:], 0)
    np.testing.assert_array_equal(more.residual[:, length:], 0)
    cut = jax.tree.map(lambda x: x[:, :length], more)
    assert_trees_close(terms, cut._replace(residual=cut.residual[:, :, :budget]))
    assert np.isnan(more.temporal[:, length:]).all()


def test_order_of_nodes_and_edges_does_not_matter(prepared):
    config = without_randomness(small_config())
    order = np.random.default_rng(1).permutation(len(prepared.system.kind) - 1)
    order = np.append(order, len(prepared.system.kind) - 1)
    other = permute(prepared, order)
    method, method2 = build(prepared, config), build(other, config)
    params = jit(method.init)(jax.random.key(0))
    batch, batch2 = (batch_of(p, p.fit_sequences[:4]) for p in (prepared, other))
    first = objective(method)(params, batch, keys_of(batch))
    assert_trees_close(first, objective(method2)(params, batch2, keys_of(batch2)))
    terms, terms2 = (jit(m.score)(params, batch_of(p, p.test_runs[:1])) for m, p in
                     ((method, prepared), (method2, other)))  # fmt: skip
    assert_trees_close(terms._replace(residual=terms.residual[:, :, order]), terms2)


def test_an_example_draws_from_its_own_key_only(setting):
    """Summed over slices of the batch, what needs no other example is the same as over the whole batch."""
    method, params, batch = setting
    loss = jit(lambda p, b, k: method.loss(p, b, k, identity))
    keys = keys_of(batch)
    sums, counts, _ = loss(params, batch, keys)
    parts = [loss(params, *jax.tree.map(lambda x, i=i: x[i : i + 2], (batch, keys))) for i in (0, 2, 4)]
    np.testing.assert_allclose(sum(p[0]["reconstruction"] for p in parts), sums["reconstruction"], rtol=1e-5)
    assert sum(int(p[1]["reconstruction"]) for p in parts) == int(counts["reconstruction"])
    other = loss(params, batch, jax.vmap(lambda k: jax.random.fold_in(k, 1))(keys))
    assert abs(float(other[0]["reconstruction"]) - float(sums["reconstruction"])) > 1e-3


def test_dense_and_segment_propagation_give_the_same_loss(prepared, setting):
    _, params, batch = setting
    values = [
        objective(build(prepared, small_config(propagation=name)))(params, batch, keys_of(batch))
        for name in ("dense", "segment")
    ]
    assert_trees_close(*values)


def test_a_masked_nodes_prediction_does_not_see_its_own_signal(prepared, setting):
    """Neither directly, nor through neighbours, nor through the recurrent state."""
    method, params, _ = setting
    run = batch_of(prepared, prepared.test_runs[:1, :3])
    groups = prepared.system.unit_hash % 7

    def predicted(nodes):
        terms = method.score(params, run._replace(graphs=run.graphs._replace(nodes=nodes)))
        signal = jnp.clip(nodes[..., 16:], -20, 20)
        return jnp.where(prepared.system.signal_mask[None, None], signal - terms.residual, 0)[0, 2]

    jacobian = np.asarray(jit(jax.jacrev(predicted))(run.graphs.nodes))
    jacobian = jacobian[..., 0, 2, :, 16:]  # [N, 16, N, 16]: predictions and signals of window 2
    seen = np.abs(jacobian).max((1, 3)) > 1e-9
    real = np.flatnonzero(prepared.system.node_mask)
    same = groups[real][:, None] == groups[real][None]
    assert not seen[np.ix_(real, real)][same].any()
    assert seen[np.ix_(real, real)][~same].any()


def test_every_real_node_is_scored_exactly_once_and_padding_is_zero(prepared, setting):
    method, params, _ = setting
    terms = jit(method.score)(params, batch_of(prepared, prepared.test_runs[:1]))
    scored = np.asarray(terms.residual != 0).all((0, 1))
    np.testing.assert_array_equal(scored, prepared.system.signal_mask)


def test_score_terms_follow_the_formulas(prepared, setting):
    method, params, _ = setting
    run = batch_of(prepared, prepared.test_runs[:1])
    terms = jit(method.score)(params, run)
    u = np.asarray(terms.state)[0]
    known = knowledge.load("", prepared.system.service_names, prepared.system.service_position, 6)
    memory = known.keys @ np.asarray(params["memory"]["of_keys"]) + np.asarray(params["memory"]["delta"])
    unit = u / np.linalg.norm(u, axis=1, keepdims=True)
    nearest = np.argmax(unit @ (memory / np.linalg.norm(memory, axis=1, keepdims=True)).T, axis=1)
    np.testing.assert_array_equal(terms.prototype[0], nearest)
    np.testing.assert_allclose(terms.prior[0], np.square(u - memory[nearest]).sum(1), rtol=1e-4)
    assert np.isnan(terms.temporal[0, 0])
    np.testing.assert_allclose(terms.temporal[0, 1:], 1 - (unit[1:] * unit[:-1]).sum(1), atol=1e-5)
    assert terms.paper_reconstruction.shape == terms.prior.shape and (terms.paper_reconstruction >= 0).all()


def test_paper_term_is_the_mean_squared_error_of_its_random_mask(prepared):
    """With a decoder that predicts zero, it is the mean square of the signals that the mask hides."""
    method = build(prepared, small_config(skip_init="zero"))
    params = jit(method.init)(jax.random.key(0))
    params["decoder"]["out"] = jax.tree.map(jnp.zeros_like, params["decoder"]["out"])
    run = batch_of(prepared, prepared.test_runs[:1])
    terms = jit(method.score)(params, run)
    system = prepared.system
    expected = []
    for window in prepared.test_runs[0]:
        key = jax.random.fold_in(jax.random.key(0), prepared.windows.start_tick[window])
        masked = np.asarray(views.random_mask(words(key[None, None]), system.unit_hash, system.node_mask, 0.15))[0, 0]
        signal = np.clip(prepared.windows.nodes[window, :, 16:], -20, 20)
        entries = masked[:, None] & system.signal_mask
        expected.append(np.square(signal)[entries].mean() if entries.any() else 0)
    assert max(expected) > 0
    np.testing.assert_allclose(terms.paper_reconstruction[0], expected, rtol=1e-4)


@pytest.mark.parametrize("skip_init, scale", [("expectation", 1.0), ("zero", 0.0)])
def test_an_untrained_network_predicts_the_expectation_or_nothing(prepared, skip_init, scale):
    """Also where the expectation is beyond the inputs' clip; it is clipped as the targets are."""
    method = build(prepared, small_config(skip_init=skip_init))
    run = batch_of(prepared, prepared.test_runs[:1, :3])
    nodes = run.graphs.nodes.at[..., 0].multiply(10.0)
    terms = jit(method.score)(
        jit(method.init)(jax.random.key(0)), run._replace(graphs=run.graphs._replace(nodes=nodes))
    )
    context, signal = nodes[..., :16], jnp.clip(nodes[..., 16:], -20, 20)
    assert float(jnp.abs(context).max()) > 20
    expected = jnp.where(prepared.system.signal_mask, signal - scale * jnp.clip(context, -20, 20), 0)
    np.testing.assert_allclose(terms.residual, expected, atol=0.05)


def test_training_corrects_a_wrong_expectation(prepared):
    """Expectations that say the opposite are unlearned, though the skip begins with them."""
    windows = prepared.windows
    flipped = windows.nodes * np.where(np.arange(32) == 0, -1, 1).astype(np.float32)
    wrong = dataclasses.replace(prepared, windows=dataclasses.replace(windows, nodes=flipped))
    history = train(build(wrong, small_config(hidden_dim=32)), wrong, steps=60)
    assert history[0][1] > 2 and np.mean(history[-3:], axis=0)[1] < 0.5


def test_state_is_carried_over_a_run_and_starts_at_zero(prepared, setting):
    method, params, _ = setting
    run = prepared.test_runs[0]
    score = jit(method.score)
    whole = score(params, batch_of(prepared, run[None]))
    head, tail = (score(params, batch_of(prepared, r[None])) for r in (run[:4], run[4:]))
    assert_trees_close(head, jax.tree.map(lambda x: x[:, :4], whole))
    assert np.abs(tail.state[0, 0] - whole.state[0, 4]).max() > 1e-4


@pytest.mark.parametrize("kind", ["zero", "empty", "no windows"])
def test_gradients_are_finite_on_degenerate_batches(prepared, setting, kind):
    method, params, batch = setting
    graphs = batch.graphs
    if kind == "zero":
        params = jax.tree.map(jnp.zeros_like, params)
        batch = batch._replace(graphs=graphs._replace(nodes=jnp.zeros_like(graphs.nodes)))
    elif kind == "empty":
        batch = batch._replace(graphs=graphs._replace(n_edge=graphs.n_edge.at[..., 0].set(0)))
    else:
        batch = batch._replace(window_mask=jnp.zeros_like(batch.window_mask))
    (value, (_, counts, diagnostics)), gradient = objective(method)(params, batch, keys_of(batch))
    assert np.isfinite(value) and all(np.isfinite(x).all() for x in jax.tree.leaves((gradient, diagnostics)))
    if kind == "no windows":
        assert float(value) == 0 and all(int(c) == 0 for c in counts.values())
        assert all((x == 0).all() for x in jax.tree.leaves(gradient))


def test_parameters_score_another_system(prepared, setting):
    _, params, _ = setting
    other = make_prepared(num_services=5, budget=32, edge_budget=80, seed=3)
    terms = jit(build(other, small_config()).score)(params, batch_of(other, other.test_runs[:1]))
    assert terms.residual.shape[2] == 32 and np.isfinite(terms.residual).all()


def test_pair_distances_leave_out_overlapping_and_missing_windows(prepared, setting):
    method, params, batch = setting
    positive, negative = jit(method.pair_distances)(params, batch, keys_of(batch))
    mask, tick = np.asarray(batch.window_mask).ravel(), np.asarray(batch.start_tick).ravel()
    np.testing.assert_array_equal(np.isnan(positive), ~mask)
    far = np.abs(tick[:, None] - tick[None]) >= 20 + 5  # a window, and the shift of one view by a stride
    far &= mask[:, None] & mask[None]
    np.testing.assert_array_equal(np.isnan(negative), ~far)
    assert np.nanmin(positive) > -1e-5 and np.nanmax(negative) <= 2 + 1e-5


def test_lower_precision_is_close(prepared, setting):
    method, params, batch = setting
    half = build(prepared, small_config(precision="bfloat16"))
    (value, _), _ = objective(method)(params, batch, keys_of(batch))
    (low, _), gradient = objective(half)(params, batch, keys_of(batch))
    np.testing.assert_allclose(low, value, rtol=0.03)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(gradient))


def test_training_lowers_the_loss_and_learns_to_use_expectations(prepared):
    """From nothing: with the skip at zero, tens of steps pass the expectations through."""
    history = train(build(prepared, small_config(hidden_dim=32, skip_init="zero")), prepared, steps=30)
    first, last = np.mean(history[:3], axis=0), np.mean(history[-3:], axis=0)
    assert last[0] < 0.6 * first[0]
    assert last[1] < 0.35 < first[1]  # the noise alone is 0.09


def test_methods_are_found_by_name():
    assert methods.get("knowledge_ssl") is knowledge_ssl
    with pytest.raises(InputError, match="knowledge_ssl"):
        methods.get("nothing")
