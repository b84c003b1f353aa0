import numpy as np
import pytest

from data_prep import padding


@pytest.mark.parametrize(("nodes", "budget"), [(1, 8), (7, 8), (8, 16), (337, 344)])
def test_node_budget_leaves_a_padding_node(nodes, budget):
    assert padding.node_budget(nodes) == budget


@pytest.mark.parametrize(("edges", "budget"), [(0, 64), (64, 64), (65, 128)])
def test_edge_budget(edges, budget):
    assert padding.edge_budget(edges) == budget


def test_edges_in_both_directions_then_padding():
    pairs, kind = np.array([[0, 1], [1, 2], [0, 3]]), np.array([1, 0, 2])
    active = np.array([[True, False, True], [False, False, False], [True, True, True]])
    senders, receivers, edge_kind, n_edge = padding.pad_edges(pairs, kind, active, 6, 7)
    assert n_edge.tolist() == [4, 0, 6]
    assert senders.tolist() == [[0, 0, 1, 3, 7, 7], [7] * 6, [0, 1, 0, 1, 2, 3]]
    assert receivers.tolist() == [[1, 3, 0, 0, 7, 7], [7] * 6, [1, 2, 3, 0, 1, 0]]
    assert edge_kind.tolist() == [[1, 2, 1, 2, 0, 0], [0] * 6, [1, 0, 2, 1, 0, 2]]
    assert senders.dtype == receivers.dtype == n_edge.dtype == np.int32 and edge_kind.dtype == np.int8


def test_no_candidates():
    senders, _, _, n_edge = padding.pad_edges(np.zeros((0, 2), int), np.zeros(0, int), np.zeros((2, 0), bool), 4, 1)
    assert senders.tolist() == [[1] * 4] * 2 and n_edge.tolist() == [0, 0]


def test_a_budget_that_is_too_small_is_an_error():
    with pytest.raises(ValueError, match="budget"):
        padding.pad_edges(np.array([[0, 1]]), np.array([0]), np.array([[True]]), 1, 7)
