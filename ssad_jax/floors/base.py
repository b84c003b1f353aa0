"""What every floor sees: all scaled signals of the same windows that the method sees, flattened.

A floor is a function fit(signals, seed) -> score, and score(signals) -> [M] float64, larger for more anomalous.
It knows nothing of graphs, order or labels.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ssad_jax.prepared import CONTEXT_DIM, NODE_KINDS, Prepared
from ssad_jax.scoring.attribution import observed_signals
from ssad_jax.scoring.terms import all_columns


class Signals(NamedTuple):
    """Signals of M windows."""

    values: np.ndarray  # [M, C] f32
    kind: np.ndarray  # [C] str, node kind of each column
    channel: np.ndarray  # [C] str, channel name of each column


Score = Callable[[Signals], np.ndarray]
Fit = Callable[[Signals, int], Score]


def signals(prepared: Prepared, windows: np.ndarray) -> Signals:
    """The signals of the windows `windows` [M] (rows of Prepared.windows)."""
    place = all_columns(prepared.system)
    blocks = [
        observed_signals(prepared.windows.nodes[windows[i : i + 256]], place, CONTEXT_DIM)
        for i in range(0, len(windows), 256)
    ]  # a block at a time: the windows may lie on disk
    values = np.concatenate(blocks) if blocks else np.zeros((0, len(place.node)), np.float32)
    kinds = [NODE_KINDS[k] for k in place.kind]
    names = [_channel(prepared.system.channels.get(k, []), c) for k, c in zip(kinds, place.channel, strict=True)]
    return Signals(values, np.array(kinds, dtype=str), np.array(names, dtype=str))


def _channel(names, index) -> str:
    return names[index] if index < len(names) else ""


def standardised(fit: Signals) -> Callable[[Signals], np.ndarray]:
    """A function that centres and scales columns by the mean and standard deviation of the fit windows."""
    mean, deviation = fit.values.mean(0), fit.values.std(0)
    deviation = np.where(deviation > 1e-6, deviation, 1.0)
    return lambda some: ((some.values - mean) / deviation).astype(np.float64)
