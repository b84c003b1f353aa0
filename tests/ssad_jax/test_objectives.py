"""Hand-computed objectives, and properties of the views."""

import jax
import jax.numpy as jnp
import numpy as np

from ssad_jax.layers.hashing import window_keys, words
from ssad_jax.layers.layout import Graphs
from ssad_jax.objectives import views
from ssad_jax.objectives.alignment import alignment, assign, state_variance, usage_entropy
from ssad_jax.objectives.contrastive import info_nce
from ssad_jax.objectives.reconstruction import masked_entries, masked_error


def identity(x):
    return x


def unit(*degrees):
    angle = np.deg2rad(np.array(degrees))
    return jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], 1), jnp.float32)


def test_info_nce_by_hand_with_false_negatives_masked():
    # Windows 0 and 1 overlap (5 < 20 ticks), 2 is far from both, 3 does not exist.
    anchor, positive = unit(0, 10, 90, 0), unit(20, 30, 100, 0)
    tick, mask = jnp.array([0, 5, 100, 200]), jnp.array([True, True, True, False])
    total, count, diagnostics = info_nce(anchor, positive, tick, mask, identity, 20, 0.2)
    cos = np.asarray(anchor) @ np.asarray(positive).T / 0.2
    negatives = {0: [2], 1: [2], 2: [0, 1]}
    expected = 0
    for i, others in negatives.items():
        for similarity in (cos, cos.T):
            scores = np.exp(np.array([similarity[i, i]] + [similarity[i, j] for j in others]))
            expected += -0.5 * np.log(scores[0] / scores.sum())
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert int(count) == 3
    assert int(diagnostics["negative_cosine"][1]) == 4


def test_info_nce_does_not_feel_a_window_that_overlaps_all_others():
    tick, mask = jnp.array([0, 15, 30]), jnp.ones(3, bool)
    results = [info_nce(unit(0, a, 90), unit(20, b, 80), tick, mask, identity, 20, 0.2) for a, b in [(0, 0), (40, 9)]]
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6)
    assert [int(r[1]) for r in results] == [2, 2]


def test_info_nce_without_negatives_is_zero_with_zero_gradient():
    z, tick, mask = unit(0, 50), jnp.array([0, 5]), jnp.ones(2, bool)

    def loss(z):
        total, count, _ = info_nce(z, z[::-1], tick, mask, identity, 20, 0.2)
        return total, count

    (total, count), gradient = jax.value_and_grad(loss, has_aux=True)(z)
    assert float(total) == 0 and int(count) == 0
    np.testing.assert_array_equal(gradient, 0)


def test_alignment_and_collapse_diagnostics_by_hand():
    state, prototype = jnp.array([[1.0, 2], [0, 0], [9, 9]]), jnp.array([[1.0, 0], [3, 4], [0, 0]])
    total, count = alignment(state, prototype, jnp.array([True, True, False]))
    assert float(total) == 29 and int(count) == 2
    shares = jax.grad(lambda s, p: alignment(s, p, jnp.array([True, True, False]))[0], argnums=(0, 1))(state, prototype)
    np.testing.assert_allclose(shares[0], [[0, 1], [-1.5, -2], [0, 0]])  # a quarter of 2 (u - m)
    np.testing.assert_allclose(shares[1], [[0, -4], [6, 8], [0, 0]])
    mask = jnp.array([True, True, True, True, False])
    np.testing.assert_allclose(usage_entropy(jnp.array([0, 1, 0, 1, 2]), mask, 4, identity), np.log(2), rtol=1e-6)
    assert float(usage_entropy(jnp.array([3, 3, 3, 3, 0]), mask, 4, identity)) == 0
    values = jnp.array([[1.0, 0], [3, 0], [100, 100]])
    np.testing.assert_allclose(state_variance(values, jnp.array([True, True, False]), identity), 0.5)


def test_assignment_goes_by_similarity_above_the_mean():
    state, memory = unit(10, 20, 30, 170), unit(15, -60)
    mask = jnp.array([True, True, True, False])
    plain = jnp.argmax(state @ memory.T, axis=-1)
    np.testing.assert_array_equal(plain[:3], 0)  # all are nearest to the first
    np.testing.assert_array_equal(assign(state, memory, mask, identity)[:3], [1, 0, 0])


def test_masked_error_by_hand():
    signal = jnp.array([[[[2.0, 50.0], [3.0, 4.0]]]])  # one window, two nodes, two channels; 50 is clipped to 20
    masked = jnp.array([[[True, False]]])
    entries = masked_entries(masked, np.array([[True, True], [True, True]]), jnp.array([[True]]))
    total, count = masked_error(jnp.array([[[[1.0, 18.0], [0, 0]]]]), signal, entries)
    assert float(total) == 1 + 4 and int(count) == 2
    missing = masked_entries(masked, np.array([[True, False], [True, True]]), jnp.array([[True]]))
    assert int(masked_error(signal, signal, missing)[1]) == 1
    assert int(masked_entries(masked, np.ones((2, 2), bool), jnp.array([[False]])).sum()) == 0


def make_graphs(batch=3, length=4, nodes=10, seed=0):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, nodes, (2, batch, length, 20))
    shape = (batch, length, nodes, 16)
    return Graphs(
        jnp.asarray(rng.normal(size=shape), jnp.float32), jnp.asarray(rng.normal(size=shape), jnp.float32),
        jnp.asarray(np.concatenate([a, b], -1), jnp.int32), jnp.asarray(np.concatenate([b, a], -1), jnp.int32),
        jnp.ones((batch, length, 40)),
    )  # fmt: skip


def test_dropped_edges_go_in_both_directions_and_do_not_depend_on_their_order():
    graphs, keys = make_graphs(), window_keys(words(jax.random.split(jax.random.key(0), 3)), 4)
    weight = views.drop_edges(keys, graphs, 0.3).weight
    np.testing.assert_array_equal(weight[..., :20], weight[..., 20:])
    assert 0.15 < 1 - float(weight.mean()) < 0.45
    order = np.random.default_rng(1).permutation(40)
    other = graphs._replace(senders=graphs.senders[..., order], receivers=graphs.receivers[..., order])
    np.testing.assert_array_equal(views.drop_edges(keys, other, 0.3).weight, weight[..., order])
    first = views.drop_edges(keys[:1], jax.tree.map(lambda x: x[:1], graphs), 0.3)
    np.testing.assert_array_equal(first.weight, weight[:1])


def test_dropped_attributes_are_zero_and_context_stays():
    graphs, keys = make_graphs(), window_keys(words(jax.random.split(jax.random.key(0), 3)), 4)
    dropped = views.drop_attributes(keys, graphs, 0.2)
    zero = np.asarray(dropped.signal == 0)
    assert 0.15 < zero.mean() < 0.25
    np.testing.assert_array_equal(np.where(zero, 0, graphs.signal), dropped.signal)
    np.testing.assert_array_equal(dropped.context, graphs.context)


def test_random_masks_take_whole_units_at_the_ratio():
    keys = window_keys(words(jax.random.split(jax.random.key(0), 40)), 5)
    units = np.random.default_rng(0).integers(0, 2**32, 30, dtype=np.uint32).repeat(3)
    real = np.arange(90) < 80
    masked = np.asarray(views.random_mask(keys, units, real, 0.15))
    assert not masked[..., 80:].any()
    whole = masked[..., :78].reshape(40, 5, 26, 3)
    np.testing.assert_array_equal(whole.any(-1), whole.all(-1))
    assert abs(whole.mean() - 0.15) < 0.02
    order = np.random.default_rng(1).permutation(90)
    np.testing.assert_array_equal(views.random_mask(keys, units[order], real[order], 0.15), masked[..., order])


def test_jitter_moves_to_existing_neighbours_only():
    batch, length = 64, 4
    graphs = make_graphs(batch, length)
    graphs = graphs._replace(weight=jnp.broadcast_to(jnp.arange(4.0)[None, :, None], graphs.weight.shape))
    mask = jnp.broadcast_to(jnp.array([True, True, True, False])[None], (batch, length))
    moved = views.jitter(words(jax.random.split(jax.random.key(0), batch)), graphs, mask, 1)
    source = np.asarray(moved.weight[..., 0]).astype(int)
    rows = {tuple(row) for row in source[:, :3]}
    # Forward: window 2 has no neighbour (3 is missing). Backward: window 0 has none.
    assert rows == {(0, 1, 2), (1, 2, 2), (0, 0, 1)}
    share = (source[:, :3] != np.arange(3)).any(1).mean()
    assert 0.08 < share < 0.35
    picked = np.take_along_axis(np.asarray(graphs.signal), source[..., None, None], axis=1)
    np.testing.assert_array_equal(moved.signal, picked)
