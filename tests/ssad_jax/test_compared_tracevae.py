"""TraceVAE: traces from a table of spans, its parts by hand, what may change nothing, and that it finds slow calls."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import polars as pl
import pytest
from flax import nnx
from scipy import stats
from sklearn.metrics import roc_auc_score

from data_prep.errors import InputError
from ssad_jax import batching, methods, train, trained
from ssad_jax.checkpoint import Context
from ssad_jax.compared import traces, tracevae
from ssad_jax.config import default_config, use_method
from tests.synthetic import NS, make_prepared

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
CALLS = [(-1, 0), (0, 1), (0, 1), (1, 2), (2, 2)]  # parent's place and service of each span of a usual trace


def small_config(**settings):
    config = default_config("test")
    use_method(config, "tracevae_adapted")
    config.compared.tracevae.update({"width": 8, "operations": 8, **settings})
    config.train.compilation_cache = False
    return config


def write_spans(directory, rows):
    text = ("unit", "operation", "trace_id", "span_id", "parent_span_id")
    names = ("time_unix_nano", "unit", "operation", "duration_ns", "trace_id", "span_id", "parent_span_id")
    schema = {name: pl.String if name in text else pl.Int64 for name in names}
    (directory / "tables").mkdir(exist_ok=True)
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(directory / "tables" / "spans.parquet")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Four traces begin in each five seconds; in faulty windows calls of service 2 take 4 times as long."""
    base, rng, rows = make_prepared(segments=16), np.random.default_rng(0), []
    windows = base.windows
    start = np.unique(windows.start_unix_nano)
    for number, time in enumerate(np.repeat(start, 4) + np.tile(np.arange(4), len(start)) * NS):
        faulty = ((windows.start_unix_nano == time // NS * NS - number % 4 * NS) & (windows.label == 1)).any()
        for place, (parent, service) in enumerate(CALLS):
            slow = 4 if faulty and service == 2 else 1
            spent = 1e7 / (1 + service) * np.exp(0.1 * rng.normal()) * slow
            up = None if parent < 0 else f"{parent}"
            named = f"service-{service}", "get", int(spent), f"{number}", f"{place}", up
            rows.append((int(time + place * 1000), *named))
    directory = tmp_path_factory.mktemp("prepared")
    write_spans(directory, rows)
    return dataclasses.replace(base, directory=directory)


def batch_of(prepared, method, rows):
    windows = jax.tree.map(jnp.asarray, batching.resident(prepared, needs=method.needs))
    rows = np.asarray(rows, np.int32).reshape(-1, 1)
    return batching.make_batch(windows, jnp.asarray(rows), jnp.arange(len(rows), dtype=jnp.int32))


def create(prepared, **settings):
    return methods.get("tracevae_adapted").create(small_config(**settings), prepared.system, None)


def observed(method, prepared, rows=range(96)):
    return method.absorb(method.init(jax.random.key(0)), _means(method, prepared, rows), 0)


def _means(method, prepared, rows):
    sums, count = method.observe(method.init(jax.random.key(0)), batch_of(prepared, method, rows))
    return jax.tree.map(lambda x: x / count, sums)


def loss_of(method, params, batch):
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(5), i))(batch.index)
    sums, counts, _ = method.loss(params, batch, keys, lambda x: x)
    return {name: float(s / counts[name]) for name, s in sums.items()}


# Traces.


def test_spans_come_breadth_first_with_their_parents_places(tmp_path):
    spans = [("a", None, 0), ("b", "a", 5), ("c", "a", 1), ("d", "c", 9), ("e", "b", 2), ("f", "gone", 7),
             ("g", "h", 8), ("h", "g", 8)]  # fmt: skip
    write_spans(tmp_path, [(t, "u", name, 1, "t", name, up) for name, up, t in spans])
    table = traces.read_spans(dataclasses.replace(make_prepared(), directory=tmp_path))
    row, parent = traces.breadth_first(table)
    assert "".join(table["span_id"].to_list()[i] for i in row) == "afghcbde"  # a lost parent, a circle: roots
    assert parent.tolist() == [-1, -1, -1, -1, 0, 0, 4, 5]


def test_a_trace_belongs_to_the_windows_in_which_it_begins_and_keeps_64_spans(tmp_path):
    base = make_prepared()
    begin = int(base.windows.start_unix_nano[1])
    rows = [(begin + i * NS, "service-1", "get", 1000, "t", f"{i}", None if i == 0 else "0") for i in range(80)]
    write_spans(tmp_path, rows)
    listed = traces.lister(4)(dataclasses.replace(base, directory=tmp_path))
    assert listed.window.tolist() == [0, 1] and listed.unit.tolist() == [0, 0]
    assert listed.arrays["size"].tolist() == [64] and (listed.arrays["service"] == 1).all()
    np.testing.assert_allclose(listed.arrays["log_us"], np.log(2), rtol=1e-6)


def test_operations_that_fit_time_lacks_or_that_are_rarer_than_the_known_ones_are_unknown(tmp_path):
    base = make_prepared()
    fit, test = (int(base.windows.start_unix_nano[base.windows.part == p][0]) for p in (0, 2))
    names = [(fit, "often"), (fit, "often"), (fit, "once"), (test, "often"), (test, "new")]
    write_spans(tmp_path, [(t, "service-0", o, 1, f"{i}", "s", None) for i, (t, o) in enumerate(names)])
    data = dataclasses.replace(base, directory=tmp_path)
    table = traces.read_spans(data)
    assert traces.operations(data, table, 8).tolist() == [0, 0, 1, 0, 8]
    assert traces.operations(data, table, 1).tolist() == [0, 0, 1, 0, 1]


# Parts by hand.


@pytest.mark.parametrize("dispatching", [False, True])
def test_attention_by_hand_on_a_parent_with_two_children(dispatching):
    layer = traces.Attention(3, 4, 1, dispatching=dispatching, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (4, 3))
    calls = traces.call_matrix(jnp.array([-1, 0, 0, -1]))
    there = jnp.array([True, True, True, False])
    s, r = (np.asarray(part)[:, 0] for part in jnp.split(layer.own(x), 2, axis=-1))
    w = np.asarray(traces.weight(jnp.asarray(s[:, None] + r[None])))  # from a sender (row) to a receiver
    edges = np.eye(4) + np.array([[0, 1, 1, 0], [0] * 4, [0] * 4, [0] * 4])
    if not dispatching:
        edges[1:3, 0] = 1
    w = w * edges
    share = w / w.sum(1, keepdims=True) if dispatching else w / w.sum(0)
    expected = jax.nn.leaky_relu(layer.norm(jnp.asarray(share, jnp.float32).T @ layer.map(x))) * there[:, None]
    np.testing.assert_allclose(layer(x, calls, there), expected, rtol=1e-3, atol=1e-4)


def test_densities_divergence_and_categorical_by_hand():
    found = tracevae.log_normal(jnp.array(1.0), jnp.array(3.0), jnp.log(2.0))
    assert float(found) == pytest.approx(stats.norm.logpdf(1, 3, 2), rel=1e-5)
    kl = tracevae.divergence(jnp.array([1.0]), jnp.log(jnp.array([2.0])), jnp.zeros(1), jnp.zeros(1))
    assert float(kl) == pytest.approx(0.5 * (4 + 1 - 1 - np.log(4)), rel=1e-5)
    logits = jnp.log(jnp.array([[0.2, 0.8]]))
    plain, scaled = (float(tracevae.categorical(logits, jnp.array([0]), s)[0]) for s in (False, True))
    assert plain == pytest.approx(np.log(0.2), rel=1e-5) and scaled == pytest.approx(np.log(0.25), rel=1e-5)
    means = jnp.array([[0.6, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(tracevae.ball(means), [0, 16], rtol=1e-5)


def test_latencies_are_standardised_by_operation_on_the_windows_observed(prepared):
    method = create(prepared)
    rows = list(range(10))
    fixed = observed(method, prepared, rows)["fixed"]
    inputs, shared = method.needs.inputs(prepared, np.array(rows))
    unit = inputs["unit"][inputs["unit"] >= 0]  # a trace counts in each window that holds it
    for number in range(3):
        own = shared["log_us"][unit][shared["operation"][unit] == number]
        assert float(fixed["mean"][number]) + tracevae.MIDDLE == pytest.approx(own.mean(), abs=1e-3)
        assert float(fixed["std"][number]) == pytest.approx(own.std(), abs=2e-3)
    assert (fixed["number"][3:8] == 0).all()


# Whole.


def test_padding_windows_change_neither_loss_nor_scores(prepared):
    method = create(prepared)
    params = observed(method, prepared)
    real, padded = (batch_of(prepared, method, rows) for rows in ([3, 40], [3, 40, -1]))
    assert loss_of(method, params, real) == pytest.approx(loss_of(method, params, padded), rel=1e-4)
    one, other = (method.score(params, batch) for batch in (real, padded))
    np.testing.assert_allclose(one.score, other.score[:2], rtol=1e-4, atol=1e-4)
    assert np.isnan(other.score[2]).all() and np.isfinite(one.score).all()


def test_numbers_beyond_a_trace_s_spans_change_nothing(prepared):
    method = create(prepared)
    params, batch = observed(method, prepared), batch_of(prepared, method, [3, 40])
    beyond = jnp.arange(traces.MOST)[None] >= batch.shared["size"][:, None]
    noise = {
        name: jnp.where(beyond, value, batch.shared[name])
        for name, value in (("operation", 1), ("log_us", 30.0), ("service", 1))
    }
    other = batch._replace(shared=batch.shared | noise)
    assert loss_of(method, params, batch) == pytest.approx(loss_of(method, params, other), rel=1e-5)
    for one, two in zip(method.score(params, batch), method.score(params, other), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


def test_windows_without_a_trace_have_no_score(prepared, tmp_path):
    write_spans(tmp_path, [(int(prepared.windows.start_unix_nano[0]), "service-0", "get", 1000, "t", "s", None)])
    few = dataclasses.replace(prepared, directory=tmp_path)
    method = create(few)
    scores = method.score(observed(method, few), batch_of(few, method, [0, 50])).score
    assert np.isfinite(scores[0]).all() and np.isnan(scores[1]).all()


def test_loss_falls_scores_differ_and_slow_calls_are_found_at_their_service(prepared):
    config = small_config()
    config.data.batch_size, config.train.num_epochs = 16, 8  # 48 steps
    method = methods.get("tracevae_adapted").create(config, prepared.system, None)
    before, batch = observed(method, prepared), batch_of(prepared, method, range(192))
    trained = train.fit(config, prepared, [0], method, jax.devices()[:1])
    trained = jax.tree.map(lambda p: jnp.asarray(p[0, 0]), trained)
    losses = [sum(loss_of(method, params, batch).values()) for params in (before, trained)]
    assert losses[1] < 0.7 * losses[0]
    untrained, scores = (jit(method.score)(params, batch) for params in (before, trained))
    own, label = np.asarray(scores.score)[:, 0, 0], prepared.windows.label
    assert len(np.unique(np.asarray(scores.score)[:, 0], axis=0)) > 100 and own.std() > 1e-6  # windows share traces
    assert not np.allclose(own, untrained.score[:, 0, 0], atol=0.1)
    assert roc_auc_score(label, own) > 0.9
    assert (np.asarray(scores.service)[label == 1, 0].argmax(-1) == 2).mean() > 0.9


def test_latencies_move_no_part_of_the_structure(prepared):
    method = create(prepared)
    params, batch = observed(method, prepared), batch_of(prepared, method, [3, 40])
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(5), i))(batch.index)
    gradient = jit(jax.grad(lambda p: method.loss(p, batch, keys, None)[0]["latency"]))(params)["network"]
    moved = {name for name, part in gradient.items() if any(np.any(leaf) for leaf in jax.tree.leaves(part))}
    assert moved == {"latency", "latency_encoder", "latency_posterior", "latency_prior", "latency_decoder"}


def test_the_switches_of_the_score_by_their_effect(prepared):
    settings = [{}, {"scaled": False}, {"per_span": False}]
    all_scores = []
    for some in settings:
        method = create(prepared, **some)
        params = observed(method, prepared)
        all_scores.append(np.asarray(method.score(params, batch_of(prepared, method, [3])).score)[0, 0])
    usual, plain, whole = all_scores
    assert plain[3] > usual[3] and plain[4] == pytest.approx(usual[4], rel=1e-4)  # probabilities below the likeliest
    np.testing.assert_allclose(whole, len(CALLS) * usual, rtol=1e-3)  # every trace has as many spans


def test_another_dataset_is_refused_as_its_operations_have_other_numbers(prepared):
    context = Context(small_config(), prepared.system, {"dataset_hash": "own"}, {})
    trained.method(context, prepared.system), trained.method(context, prepared.system, "own")
    with pytest.raises(InputError, match="this dataset is another one"):
        trained.method(context, prepared.system, "other")


def test_the_optimiser_leaves_what_is_not_learned_alone(prepared):
    method, config = create(prepared), small_config()
    params = observed(method, prepared)
    optimizer = train.make_optimizer(config)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    after = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(after["fixed"]["std"], params["fixed"]["std"])
