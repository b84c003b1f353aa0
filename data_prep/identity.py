"""Names -> fixed vectors: who a node is, as features that mean the same in every system.

A name is split into tokens; each token's pseudo-random vector is seeded by a hash of the token, and a name's vector is
their normalised sum. Nodes with common words lie near one another, nothing is learned, and a checkpoint can score
services it has never seen.
"""

import hashlib
import re

import numpy as np

NAME_DIM, OWNER_DIM, POSITION_DIM, KIND_DIM = 48, 32, 8, 8  # together 96


def stable_hash(text: str) -> int:
    """A 32-bit hash that is the same in every process and version."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


def tokens(name: str) -> list[str]:
    """Lower-case words and numbers of a name, in any script; camelCase is split."""
    return re.findall(r"[^\W\d_]+|\d+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())


def hashed_text(names, dim: int) -> np.ndarray:
    """[len(names), dim] float32 unit vectors of the names' tokens; zero for a name without any."""
    cache: dict[str, np.ndarray] = {}
    out = np.zeros((len(names), dim), np.float32)
    for row, name in enumerate(names):
        for token in tokens(name):
            if token not in cache:
                cache[token] = np.random.default_rng(stable_hash(token)).standard_normal(dim).astype(np.float32)
            out[row] += cache[token]
    norm = np.linalg.norm(out, axis=1, keepdims=True)
    return out / np.maximum(norm, 1e-6)


def laplacian_positions(num_nodes: int, pairs) -> np.ndarray:
    """[num_nodes, 8] first non-trivial eigenvectors of the graph's normalised Laplacian; pairs: undirected (i, j).

    An eigenvector has no sign of its own: the one is chosen that makes the sum of its cubes positive, and where that is
    zero (two halves that mirror one another) the first entry that is not zero. Isolated nodes lie at zero.
    """
    adjacency = np.zeros((num_nodes, num_nodes))
    for i, j in pairs:
        if i != j:
            adjacency[i, j] = adjacency[j, i] = 1
    degree = adjacency.sum(1)
    root = 1 / np.sqrt(np.maximum(degree, 1))
    connected = np.flatnonzero(degree)
    out = np.zeros((num_nodes, POSITION_DIM), np.float32)
    if len(connected) < 2:
        return out
    laplacian = np.eye(len(connected)) - (root[:, None] * adjacency * root)[np.ix_(connected, connected)]
    vectors = np.linalg.eigh(laplacian)[1][:, 1 : POSITION_DIM + 1]
    skew = (vectors**3).sum(0)
    first = np.take_along_axis(vectors, (np.abs(vectors) > 1e-6).argmax(0)[None], axis=0)[0]
    vectors = vectors * np.where(np.where(np.abs(skew) > 1e-6, skew, first) < 0, -1, 1) * np.sqrt(len(connected))
    out[connected, : vectors.shape[1]] = np.round(vectors, 5) / np.sqrt(POSITION_DIM)
    return out


def identities(names, owners, kinds, positions) -> np.ndarray:
    """[N, 96] identity features.

    Args: names: of the nodes; owners: names of the services they belong to; kinds: [N] small ints; positions: [N, 8] of
        the owner in the dependency graph.
    """
    return np.concatenate(
        [hashed_text(names, NAME_DIM), hashed_text(owners, OWNER_DIM), positions, np.eye(KIND_DIM)[kinds]], axis=1
    ).astype(np.float32)
