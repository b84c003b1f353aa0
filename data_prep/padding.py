"""Ragged graphs -> fixed size. The budget is the maximum seen in all windows, rounded up; nothing is ever cut off."""

import numpy as np


def node_budget(num_nodes: int) -> int:
    """Slots for `num_nodes` real nodes: at least one is padding (padding edges point there), a multiple of 8."""
    return -(-(num_nodes + 1) // 8) * 8


def edge_budget(most_edges: int) -> int:
    """Slots for the fullest window, a multiple of 64."""
    return max(64, -(-most_edges // 64) * 64)


def pad_edges(pairs: np.ndarray, kind: np.ndarray, active: np.ndarray, budget: int, padding_node: int):
    """Directed, padded edges of each window.

    Args:
        pairs: [C, 2] candidate edges; kind: [C]; active: [W, C] bool.
        budget: E, at least twice the most active edges of a window; padding_node: where padding edges point.

    Returns: senders, receivers [W, E] int32, edge_kind [W, E] int8, n_edge [W] int32. Each active edge stands in both
        directions; real edges come first.
    """
    directed = np.concatenate([pairs, pairs[:, ::-1]]).astype(np.int32)
    both_kinds = np.concatenate([kind, kind])
    both = np.concatenate([active, active], axis=1)
    n_edge = both.sum(1).astype(np.int32)
    if n_edge.max(initial=0) > budget:
        raise ValueError(f"a window has {n_edge.max()} edges, more than the budget of {budget}")
    window, edge = np.nonzero(both)
    slot = np.arange(len(window)) - np.repeat(np.cumsum(n_edge) - n_edge, n_edge)
    senders = np.full((len(active), budget), padding_node, np.int32)
    receivers = senders.copy()
    edge_kind = np.zeros((len(active), budget), np.int8)
    senders[window, slot], receivers[window, slot] = directed[edge].T
    edge_kind[window, slot] = both_kinds[edge]
    return senders, receivers, edge_kind, n_edge
