import dataclasses

import jax.numpy as jnp
import jraph
import numpy as np
import pytest

from ssad_jax import batching
from tests.synthetic import make_prepared

BATCH = 4


@pytest.fixture(scope="module")
def prepared():
    return make_prepared()


def test_graphs_are_padded_jraph_graphs_of_the_windows(prepared):
    arrays = batching.resident(prepared)
    graphs = batching.graphs_tuple(arrays, jnp.array([[3, 4], [7, -1]]))
    budget = prepared.system.node_mask.size
    assert graphs.nodes.shape == (2, 2, budget, 32)
    np.testing.assert_array_equal(graphs.nodes[1, 0], prepared.windows.nodes[7])
    one = jraph.GraphsTuple(*(None if a is None else a[0, 1] for a in graphs))
    np.testing.assert_array_equal(jraph.get_node_padding_mask(one), prepared.system.node_mask)
    assert int(jraph.get_edge_padding_mask(one).sum()) == prepared.windows.n_edge[4]
    np.testing.assert_array_equal(graphs.n_node.sum(-1), np.full((2, 2), budget))


def test_batch_masks_missing_windows_and_padded_rows(prepared):
    arrays = batching.resident(prepared)
    batch = batching.make_batch(arrays, jnp.array([[0, 1], [5, -1], [6, 7]]), jnp.array([0, 1, -1]))
    np.testing.assert_array_equal(batch.window_mask, [[True, True], [True, False], [False, False]])
    np.testing.assert_array_equal(batch.start_tick[0], prepared.windows.start_tick[:2])


def test_order_is_a_permutation_and_a_pure_function_of_seed_and_epoch(prepared):
    chunks = batching.plan_chunks(prepared, BATCH, 1000)
    assert len(chunks) == 1
    [(_, order)] = batching.epoch_order(chunks, 3, 5, BATCH)
    count = len(prepared.fit_sequences)
    assert order.shape == (-(-count // BATCH), BATCH) and order.dtype == np.int32
    np.testing.assert_array_equal(np.sort(order[order >= 0]), np.arange(count))
    np.testing.assert_array_equal(order, batching.epoch_order(chunks, 3, 5, BATCH)[0][1])
    for other in ((3, 6), (4, 5)):
        assert not np.array_equal(order, batching.epoch_order(chunks, *other, BATCH)[0][1])


@pytest.mark.parametrize("count", [1, 3, 4, 5, 19])
def test_last_partial_batch_is_padded_not_dropped(prepared, count):
    few = dataclasses.replace(prepared, fit_sequences=prepared.fit_sequences[:count])
    [(_, order)] = batching.epoch_order(batching.plan_chunks(few, BATCH, 1000), 0, 0, BATCH)
    assert (order >= 0).sum() == count and order.size == -(-count // BATCH) * BATCH


def test_streamed_chunks_hold_the_same_examples(prepared):
    budget = 12 * batching.window_bytes(prepared) * 2 / 2**20
    chunks = batching.plan_chunks(prepared, BATCH, budget)
    assert len(chunks) > 1
    [whole] = batching.plan_chunks(prepared, BATCH, 1000)
    resident = batching.load_chunk(prepared, whole)
    visits = batching.epoch_order(chunks, 0, 0, BATCH)
    assert sum(len(order) for _, order in visits) == -(-len(prepared.fit_sequences) // BATCH)
    seen = []
    for number, order in visits:
        arrays = batching.load_chunk(prepared, chunks[number])
        assert len(arrays["windows"]["nodes"]) * batching.window_bytes(prepared) <= budget * 2**20 / 2
        examples = order[order >= 0]
        streamed = batching.make_batch(arrays["windows"], arrays["sequences"][examples], examples)
        expected = batching.make_batch(resident["windows"], resident["sequences"][examples], examples)
        np.testing.assert_array_equal(streamed.graphs.nodes, expected.graphs.nodes)
        np.testing.assert_array_equal(streamed.graphs.senders, expected.graphs.senders)
        np.testing.assert_array_equal(streamed.start_tick, expected.start_tick)
        seen.append(examples)
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(len(prepared.fit_sequences)))
