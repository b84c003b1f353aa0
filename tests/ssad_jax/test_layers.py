"""Hand-computed cases and invariances of the building blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssad_jax.layers import hashing, propagation
from ssad_jax.layers.graph_encoder import KindLinear, by_kind, readout
from ssad_jax.layers.knowledge import KnowledgeMemory, nearest_prototype
from ssad_jax.layers.layout import Layout
from ssad_jax.layers.similarity import cosine, normalise
from ssad_jax.layers.temporal import Temporal
from tests.synthetic import make_prepared

BOTH = pytest.mark.parametrize("method", ["dense", "segment"])


def random_graphs(windows, num_nodes, num_edges, padding_nodes=0, padding_edges=0, seed=0):
    """Edges in both directions, then padding edges at the last node."""
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, num_nodes, (2, windows, num_edges))
    pad = np.full((windows, padding_edges), num_nodes + padding_nodes - 1)
    senders, receivers = np.concatenate([a, b, pad], 1), np.concatenate([b, a, pad], 1)
    weight = np.concatenate([np.ones((windows, 2 * num_edges)), np.zeros_like(pad)], 1).astype(np.float32)
    mask = np.arange(num_nodes + padding_nodes) < num_nodes
    return tuple(jnp.asarray(x) for x in (senders.astype(np.int32), receivers.astype(np.int32), weight, mask))


@BOTH
def test_gcn_of_a_path_of_three_nodes_by_hand(method):
    # 0 - 1 - 2: degrees with self-loops 2, 3, 2
    senders, receivers = jnp.array([[0, 1, 1, 2, 3]]), jnp.array([[1, 0, 2, 1, 3]])
    weight = jnp.array([[1.0, 1, 1, 1, 0]])
    graph = propagation.prepare(method, senders, receivers, weight, jnp.array([True, True, True, False]))
    x = jnp.array([[[1.0], [10.0], [100.0], [7.0]]])
    r = 1 / np.sqrt(6)
    expected = [1 / 2 + 10 * r, r + 10 / 3 + 100 * r, 10 * r + 100 / 2, 0]
    np.testing.assert_allclose(propagation.propagate(graph, x)[0, :, 0], expected, rtol=1e-6)


@BOTH
def test_an_edge_stored_twice_counts_twice(method):
    senders, receivers = jnp.array([[0, 1, 0, 1]]), jnp.array([[1, 0, 1, 0]])
    graph = propagation.prepare(method, senders, receivers, jnp.ones((1, 4)), jnp.array([True, True]))
    np.testing.assert_allclose(propagation.propagate(graph, jnp.array([[[3.0], [6.0]]]))[0, :, 0], [5, 4], rtol=1e-6)


def test_dense_and_segment_agree_in_value_and_gradient():
    senders, receivers, weight, mask = random_graphs(4, 20, 30, padding_nodes=3, padding_edges=5)
    x = jax.random.normal(jax.random.key(1), (4, 23, 6))

    def run(method, x):
        graph = propagation.prepare(method, senders, receivers, weight, mask)
        return propagation.propagate(graph, x)

    np.testing.assert_allclose(run("dense", x), run("segment", x), rtol=1e-5, atol=1e-6)
    gradients = [jax.grad(lambda x, m=m: jnp.sin(run(m, x)).sum())(x) for m in ("dense", "segment")]
    np.testing.assert_allclose(*gradients, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(gradients[0][:, 20:], 0)


def test_segments_add_gradients_in_full_float32():
    # A node that sends to 600 others: in bfloat16 the sum would stay at 256.
    senders, receivers = jnp.zeros((1, 600), jnp.int32), jnp.arange(1, 601, dtype=jnp.int32)[None]
    graph = propagation.prepare("segment", senders, receivers, jnp.ones((1, 600)), jnp.ones(601, bool))
    graph = graph._replace(scale=jnp.ones_like(graph.scale))
    x = jnp.ones((1, 601, 1), jnp.bfloat16)
    gradient = jax.grad(lambda x: propagation.propagate(graph, x).astype(jnp.float32).sum())(x)
    np.testing.assert_allclose(gradient[0, 0].astype(jnp.float32), 601, rtol=0.01)


@BOTH
def test_padding_nodes_and_edges_change_nothing_and_get_nothing(method):
    x = jax.random.normal(jax.random.key(0), (2, 10, 3))
    small = propagation.prepare(method, *random_graphs(2, 10, 12))
    large = propagation.prepare(method, *random_graphs(2, 10, 12, padding_nodes=4, padding_edges=9))
    padded = jnp.concatenate([x, jnp.full((2, 4, 3), 1e6)], axis=1)
    y = propagation.propagate(large, padded)
    np.testing.assert_allclose(y[:, :10], propagation.propagate(small, x), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(y[:, 10:], 0)


@BOTH
def test_order_of_edges_does_not_matter(method):
    senders, receivers, weight, mask = random_graphs(1, 10, 12, 2, 4)
    order = np.random.default_rng(1).permutation(senders.shape[1])
    x = jax.random.normal(jax.random.key(0), (1, 12, 3))
    a = propagation.prepare(method, senders, receivers, weight, mask)
    b = propagation.prepare(method, senders[:, order], receivers[:, order], weight[:, order], mask)
    np.testing.assert_allclose(propagation.propagate(a, x), propagation.propagate(b, x), rtol=1e-5, atol=1e-6)


def test_low_precision_keeps_degrees_and_stays_close():
    arrays = random_graphs(2, 30, 200)
    x = jax.random.normal(jax.random.key(0), (2, 30, 8))
    full = propagation.prepare("dense", *arrays)
    half = propagation.prepare("dense", *arrays, dtype=jnp.bfloat16)
    assert half.scale.dtype == jnp.float32
    y = propagation.propagate(half, x.astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), propagation.propagate(full, x), atol=0.02)


def test_choice_of_propagation_follows_size_and_backend():
    assert propagation.choose(36, 144, "cpu") == "dense"  # 9
    assert propagation.choose(64, 256, "cpu") == "segment"  # 16
    assert propagation.choose(384, 2048, "cpu") == "segment"  # 72
    assert propagation.choose(384, 2048, "gpu") == "dense"
    assert propagation.choose(1024, 4096, "gpu") == "segment"  # 256


def test_readout_is_the_mean_over_real_nodes():
    h = jnp.array([[[[1.0, 2], [3, 6], [1e9, 1e9]]]])
    np.testing.assert_allclose(readout(h, np.array([True, True, False])), [[[2, 4]]])


def test_layout_sorts_by_kind_and_restores():
    system = make_prepared().system
    layout = Layout.of(system)
    assert len(layout.order) % 8 == 0 and (np.diff(layout.kind) >= 0).all()
    x = np.random.default_rng(0).normal(size=(2, len(system.kind), 4)).astype(np.float32)
    back = layout.restore(jnp.asarray(x[:, layout.order]))
    np.testing.assert_array_equal(back, np.where(system.node_mask[:, None], x, 0))


def test_kind_linear_applies_the_kernel_of_each_nodes_kind():
    system = make_prepared().system
    layout = Layout.of(system)
    linear = KindLinear(3, 2, rngs=nnx.Rngs(0))
    linear.bias[...] = jnp.arange(10.0).reshape(5, 2)
    x = np.random.default_rng(0).normal(size=(1, 4, len(layout.order), 3)).astype(np.float32)
    y = linear(jnp.asarray(x), layout)
    for i, kind in enumerate(layout.kind):
        expected = x[..., i, :] @ np.asarray(linear.kernel[kind]) + np.asarray(linear.bias[kind])
        np.testing.assert_allclose(y[..., i, :], expected, rtol=1e-4, atol=1e-5)


def test_vectors_of_kinds_are_repeated_as_a_gather_gives_them():
    layout = Layout.of(make_prepared().system)
    table = jax.random.normal(jax.random.key(0), (5, 3))
    forms = [lambda table: by_kind(table, layout), lambda table: table[layout.kind]]
    np.testing.assert_array_equal(*(form(table) for form in forms))
    gradients = [jax.grad(lambda t, form=form: jnp.sin(form(t)).sum())(table) for form in forms]
    np.testing.assert_allclose(*gradients, rtol=1e-5, atol=1e-6)


def test_gru_step_by_hand():
    gru = Temporal(1, 1, rngs=nnx.Rngs(0))
    gru.of_input.kernel[...] = jnp.array([[1.0, -1.0, 0.5]])
    gru.of_input.bias[...] = jnp.array([0.1, 0.2, 0.3])
    gru.of_state[...] = jnp.array([[0.5, 0.4, -2.0]])
    gru.candidate_bias[...] = jnp.array([0.25])
    g, h = 2.0, 0.5
    reset = 1 / (1 + np.exp(-(g + 0.1 + 0.5 * h)))
    update = 1 / (1 + np.exp(-(-g + 0.2 + 0.4 * h)))
    candidate = np.tanh(0.5 * g + 0.3 + reset * (-2.0 * h + 0.25))
    expected = (1 - update) * candidate + update * h
    y = gru.step(jnp.array([h]), gru.of_input(jnp.array([g])))
    np.testing.assert_allclose(y, [expected], rtol=1e-6)


def test_gru_equals_flax_and_masked_steps_keep_the_state():
    gru, cell = Temporal(3, 4, rngs=nnx.Rngs(0)), nnx.GRUCell(3, 4, rngs=nnx.Rngs(1))
    cell.dense_i.kernel[...], cell.dense_i.bias[...] = gru.of_input.kernel[...], gru.of_input.bias[...] + 0.1
    gru.of_input.bias[...] = gru.of_input.bias[...] + 0.1
    cell.dense_h.kernel[...] = gru.of_state[...]
    g = jax.random.normal(jax.random.key(0), (2, 5, 3))
    mask = jnp.array([[True] * 5, [True, True, False, False, True]])
    states = gru(g, mask)
    carry = jnp.zeros((2, 4))
    for t in range(5):
        carry = jnp.where(mask[:, t, None], cell(carry, g[:, t])[0], carry)
        np.testing.assert_allclose(states[:, t], carry, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(states[1, 3], states[1, 1])


def test_attention_and_gate_by_hand():
    memory = KnowledgeMemory(2, 2, 2, rngs=nnx.Rngs(0))
    memory.of_keys[...] = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    memory.delta[...] = jnp.array([[0.0, 1.0], [0.0, 0.0]])
    memory.query.kernel[...] = memory.key.kernel[...] = jnp.eye(2)
    memory.gate.kernel[...] = jnp.array([[1.0, 0], [0, 0], [0, 0], [0, 1.0]])
    memory.gate.bias[...] = jnp.array([0.5, -0.5])
    s = np.array([0.6, 0.2])
    m = np.array([[1.0, 1.0], [0.0, 2.0]])  # K = I
    weights = np.exp(m @ s / np.sqrt(2))
    q = (weights / weights.sum()) @ m
    gate = 1 / (1 + np.exp(-np.array([s[0] + 0.5, q[1] - 0.5])))
    u = gate * s + (1 - gate) * q
    recalled = memory(jnp.asarray(s, jnp.float32), jnp.eye(2))
    np.testing.assert_allclose(recalled.attention, weights / weights.sum(), rtol=1e-5)
    np.testing.assert_allclose(recalled.gate, gate, rtol=1e-5)
    np.testing.assert_allclose(recalled.state, u, rtol=1e-5)
    best = np.argmax(m @ u / np.linalg.norm(m, axis=1))
    assert int(recalled.nearest) == best
    np.testing.assert_allclose(recalled.prototype, m[best])


def test_nearest_prototype_goes_by_angle_not_by_distance():
    memory = jnp.array([[100.0, 0.0], [0.1, 1.0]])
    np.testing.assert_array_equal(nearest_prototype(jnp.array([[2.0, 0.1], [0.0, 2.0]]), memory), [0, 1])


def test_cosine_is_finite_at_zero_with_its_gradient():
    np.testing.assert_allclose(cosine(jnp.array([3.0, 4.0]), jnp.array([4.0, 3.0])), 0.96, rtol=1e-6)
    zero = jnp.zeros(2)
    assert cosine(zero, zero) == 0
    assert np.isfinite(jax.grad(lambda x: cosine(x, jnp.ones(2)))(zero)).all()
    np.testing.assert_array_equal(normalise(zero), 0)


def test_bits_are_uniform_and_belong_to_key_and_number():
    keys = hashing.words(jax.random.split(jax.random.key(0), 3))
    counter = jnp.arange(20000, dtype=jnp.uint32)[None]
    bits = np.asarray(hashing.random_bits(keys, counter))
    np.testing.assert_array_equal(bits[:, :50], hashing.random_bits(keys, counter[:, :50]))
    np.testing.assert_array_equal(bits[1:2], hashing.random_bits(keys[1:2], counter))
    uniform = bits / 2.0**32
    assert abs(uniform.mean() - 0.5) < 0.005 and abs(uniform.var() - 1 / 12) < 0.002
    assert np.abs(np.corrcoef(uniform) - np.eye(3)).max() < 0.03  # keys are independent
    assert abs(np.corrcoef(uniform[0, 1:], uniform[0, :-1])[0, 1]) < 0.03  # so are neighbours
    octets = (bits[..., None] >> np.arange(0, 32, 8, dtype=np.uint32)) & 0xFF
    np.testing.assert_allclose((octets < 77).mean((0, 1)), 77 / 256, atol=0.01)


def test_dropout_keeps_the_mean_and_ignores_padding():
    keys = hashing.window_keys(hashing.words(jax.random.split(jax.random.key(3), 2)), 3)
    x = jnp.ones((2, 3, 50, 30))
    y = hashing.dropout(x, keys, 0.3)
    kept = np.asarray(y) > 0
    assert abs(kept.mean() - 0.7) < 0.02 and abs(float(y.mean()) - 1) < 0.03
    more = hashing.window_keys(hashing.words(jax.random.split(jax.random.key(3), 2)), 5)
    wider = hashing.dropout(jnp.ones((2, 5, 60, 30)), more, 0.3)
    np.testing.assert_array_equal(wider[:, :3, :50], y)
    assert hashing.dropout(x, None, 0.3) is x
