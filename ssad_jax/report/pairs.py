"""Distances of positive and negative pairs on held-out normal windows (the paper's Figure 2)."""

from typing import NamedTuple

import jax
import numpy as np

from ssad_jax.batching import make_batch, resident
from ssad_jax.prepared import Prepared

MOST_NEGATIVES = 20_000


class PairDistances(NamedTuple):
    """Cosine distances between embeddings."""

    positive: np.ndarray  # [p]: two views of one window
    negative: np.ndarray  # [q]: windows that do not overlap in time


def pair_distances(method, params, prepared: Prepared, held_out: np.ndarray, config) -> PairDistances:
    """Distances within one training-sized batch of held-out windows (rows of Prepared.windows, in run order).

    Windows are taken in sequences of the training length; a sequence stays within one segment. None of a method that
    compares no pairs.
    """
    if method.pair_distances is None:
        return PairDistances(np.zeros(0), np.zeros(0))
    length, batch_size = 1 if method.needs.alone else config.data.sequence_length, config.data.batch_size
    segment = prepared.windows.segment[held_out]
    sequences = []
    for members in np.split(held_out, np.flatnonzero(np.diff(segment)) + 1):
        for first in range(0, len(members), length):
            part = members[first : first + length]
            sequences.append(np.pad(part, (0, length - len(part)), constant_values=-1))
    some = np.unique(np.linspace(0, len(sequences) - 1, min(batch_size, len(sequences))).round().astype(int))
    ids = np.full((batch_size, length), -1, np.int32)
    ids[: len(some)] = np.stack(sequences)[some]
    windows = resident(prepared, np.maximum(ids, 0).reshape(-1), method.needs)
    rows = np.where(ids >= 0, np.arange(ids.size, dtype=np.int32).reshape(ids.shape), -1)
    keys = jax.random.split(jax.random.key(config.seed), batch_size)

    def distances(params, windows, rows, keys):
        index = jax.numpy.arange(batch_size, dtype=jax.numpy.int32)
        return method.pair_distances(params, make_batch(windows, rows, index), keys)

    positive, negative = (np.asarray(d).ravel() for d in jax.jit(distances)(params, windows, rows, keys))
    positive, negative = (d[np.isfinite(d)] for d in (positive, negative))
    stride = max(1, len(negative) // MOST_NEGATIVES)
    return PairDistances(positive, negative[::stride])
