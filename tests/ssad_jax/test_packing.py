"""Masked nodes as rows: which ones, enough slots, and the same loss and gradient as with every row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssad_jax import backends
from ssad_jax.layers import packing
from ssad_jax.layers.layout import Layout
from ssad_jax.objectives import views
from tests.ssad_jax.test_knowledge_ssl import assert_trees_close, batch_of, build, keys_of, objective, small_config
from tests.synthetic import make_prepared


@pytest.fixture(scope="module")
def layout():
    return Layout.of(make_prepared(num_services=4, logs_per_service=4, budget=40, edge_budget=80).system)


def test_rows_are_the_masked_nodes_by_kind(layout):
    rng = np.random.default_rng(0)
    masked = rng.random((2, 3, len(layout.order))) < 0.2
    masked &= layout.node_mask
    capacity = tuple(6 * (end - first) for _, first, end in layout.slices)
    rows = packing.pack(jnp.asarray(masked), layout, capacity)
    found = np.asarray(rows.flat)[np.asarray(rows.real)]
    assert sorted(found) == sorted(np.flatnonzero(masked.reshape(-1)))
    np.testing.assert_array_equal(np.asarray(rows.flat), np.asarray(rows.window) * len(layout.order) + rows.node)
    np.testing.assert_array_equal(layout.kind[np.asarray(rows.node)], rows.kind)
    for kind, first, end in rows.slices:
        assert set(rows.kind[first:end]) <= {kind}
    x = rng.normal(size=(*masked.shape, 5)).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(rows.take(jnp.asarray(x)))[np.asarray(rows.real)], x.reshape(-1, 5)[found])


def test_too_few_slots_leave_out_and_never_repeat(layout):
    masked = jnp.asarray(np.broadcast_to(layout.node_mask, (1, 2, len(layout.order))))
    rows = packing.pack(masked, layout, tuple(1 for _ in layout.slices))
    assert len(rows.flat) == len(layout.slices) == len(set(np.asarray(rows.flat).tolist()))


def test_slots_are_enough_for_many_draws(layout):
    ratio, windows = 0.15, 64
    capacity = packing.slots(layout, windows, ratio)
    assert capacity is not None and sum(capacity) < 0.6 * windows * len(layout.order)
    for seed in range(200):
        keys = jax.random.bits(jax.random.key(seed), (windows, 1, 2), jnp.uint32)
        masked = np.asarray(views.random_mask(keys, layout.unit_hash, layout.node_mask, ratio))
        counts = [masked[..., first:end].sum() for _, first, end in layout.slices]
        assert all(count <= size for count, size in zip(counts, capacity, strict=True))


def test_few_windows_or_high_ratios_are_not_packed(layout):
    assert packing.slots(layout, 1, 0.15) is None
    assert packing.slots(layout, 64, 0.7) is None


def test_loss_and_gradient_do_not_depend_on_packing():
    system = dict(num_services=4, logs_per_service=4, budget=40, edge_budget=80)
    prepared, config = make_prepared(segments=12, windows_per_segment=20, **system), small_config()
    batch = batch_of(prepared, prepared.fit_sequences[:16])
    assert packing.slots(Layout.of(prepared.system), batch.window_mask.size, config.loss.mask_ratio) is not None
    method = build(prepared, config)
    params = method.init(jax.random.key(0))
    packed = objective(method)(params, batch, keys_of(batch))
    with backends.instead(masked_rows=False):
        assert_trees_close(packed, objective(build(prepared, config))(params, batch, keys_of(batch)))
