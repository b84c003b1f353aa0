import dataclasses

import jax.numpy as jnp
import jraph
import numpy as np
import pytest

from ssad_jax import batching
from tests.synthetic import make_prepared

BATCH = 4


ONE = np.array([[3, 0]], np.uint32)


@pytest.fixture(scope="module")
def prepared():
    return make_prepared()


@pytest.fixture(scope="module")
def turns():
    """Of eight segments the first six fit, in three groups of two."""
    return make_prepared(segments=8, folds=3)


def order_of(prepared, streams=ONE, epoch=5, megabytes=1000, batch=BATCH):
    chunks = batching.plan_chunks(prepared, batch, megabytes)
    return batching.epoch_order(chunks, batching.example_groups(prepared), np.asarray(streams), epoch, batch)


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
    [(_, order)] = order_of(prepared)
    count = len(prepared.fit_sequences)
    assert order.shape == (1, -(-count // BATCH), BATCH) and order.dtype == np.int32
    np.testing.assert_array_equal(np.sort(order[order >= 0]), np.arange(count))
    np.testing.assert_array_equal(order, order_of(prepared)[0][1])
    for streams, epoch in ((ONE, 6), ([[4, 0]], 5)):
        assert not np.array_equal(order, order_of(prepared, streams, epoch)[0][1])


def test_each_network_visits_every_example_once_but_those_of_its_group(turns):
    group = batching.example_groups(turns)
    np.testing.assert_array_equal(group, turns.windows.segment[turns.fit_sequences[:, 0]] % 3)
    streams = np.array([[3, 0], [3, 1], [3, 2]])
    [(_, order)] = order_of(turns, streams)
    for k, own in enumerate(order):
        np.testing.assert_array_equal(np.sort(own[own >= 0]), np.flatnonzero(group != k))
        assert (np.diff((own.ravel() >= 0).astype(int)) <= 0).all()  # padding comes last
    assert order.shape == (3, -(-(len(group) * 2 // 3) // BATCH), BATCH)
    np.testing.assert_array_equal(order, order_of(turns, streams)[0][1])
    # Networks of one seed share the order of what both visit.
    shared = [[e for e in own.ravel() if e >= 0 and group[e] == 2] for own in order[:2]]
    assert shared[0] == shared[1]


def test_a_network_with_fewer_examples_ends_with_empty_batches(turns):
    few = dataclasses.replace(turns, fit_sequences=turns.fit_sequences[:12])  # 5 of group 0, 5 of 1, 2 of 2
    streams = np.array([[3, 0], [3, 1], [3, 2], [3, 7]])
    [(_, order)] = order_of(few, streams, batch=2)
    assert order.shape == (4, 6, 2)
    assert [int((own >= 0).any(1).sum()) for own in order] == [4, 4, 5, 6]
    assert ((order >= 0).sum((1, 2)) == [7, 7, 10, 12]).all()


def test_networks_of_another_seed_have_the_order_of_a_run_of_their_own(turns):
    streams = np.array([[3, 0], [3, 1], [8, 0], [8, 1]])
    [(_, both)] = order_of(turns, streams)
    for part in (slice(0, 2), slice(2, 4)):
        [(_, alone)] = order_of(turns, streams[part])
        np.testing.assert_array_equal(both[part], alone)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 19])
def test_last_partial_batch_is_padded_not_dropped(prepared, count):
    few = dataclasses.replace(prepared, fit_sequences=prepared.fit_sequences[:count])
    [(_, order)] = order_of(few)
    assert (order >= 0).sum() == count and order.size == -(-count // BATCH) * BATCH


def test_streamed_chunks_hold_the_same_examples(prepared):
    budget = 12 * batching.window_bytes(prepared) * 2 / 2**20
    chunks = batching.plan_chunks(prepared, BATCH, budget)
    assert len(chunks) > 1
    [whole] = batching.plan_chunks(prepared, BATCH, 1000)
    resident = batching.load_chunk(prepared, whole)
    visits = order_of(prepared, megabytes=budget)
    assert sum(order.shape[1] for _, order in visits) == -(-len(prepared.fit_sequences) // BATCH)
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


def test_networks_go_through_the_same_chunks(turns):
    streams = np.array([[3, 0], [3, 1], [3, 2]])
    group = batching.example_groups(turns)
    budget = 24 * batching.window_bytes(turns) * 2 / 2**20
    chunks = batching.plan_chunks(turns, BATCH, budget)
    visits = order_of(turns, streams, megabytes=budget)
    assert len(chunks) > 2 and sorted(number for number, _ in visits) == list(range(len(chunks)))
    for number, order in visits:
        for k, own in enumerate(order):
            examples = chunks[number].examples
            np.testing.assert_array_equal(np.sort(own[own >= 0]), examples[group[examples] != k])
