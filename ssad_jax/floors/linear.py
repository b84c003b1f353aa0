"""The linear recipe: closed-form expectations, no network.

What a ridge regression on operation counts leaves of the log counts, the net latency of the calls, and (`linear_cpu`)
what the work done leaves of the processor metrics; each signal in its own normal scale, each kind of node calibrated on
held-out normal windows, the largest kind is the score. With good signals this recipe is hard to beat: it is the rival
that a network has to justify itself against.
"""

import re

import numpy as np

from ssad_jax.prepared import CONTEXT_DIM, NODE_KINDS, Prepared
from ssad_jax.scoring.attribution import observed_signals
from ssad_jax.scoring.detectors import Scored, calibrate
from ssad_jax.scoring.terms import Columns, Terms, all_columns, columns

NET_LATENCY = "net latency, mean"  # of the calls in a window; their maximum has too heavy a tail
PROCESSOR = re.compile(r"cpu", re.IGNORECASE)


def score_linear(prepared: Prepared, score_config, processor: bool = False) -> Scored:
    """Score a dataset by the recipe; deterministic.

    Args:
        processor: also use the level of metrics whose name speaks of processors.

    Raises:
        InputError: there are no calibration windows.
    """
    return score_expectations(prepared, _columns(prepared, processor), score_config)


def closed_form(prepared: Prepared, score_config) -> Scored:
    """Score a dataset by its closed-form expectations alone, on all columns that method A's scores are made of.

    What a network adds is what it gains over this: signals, balance, calibration and blame are the same.

    Raises:
        InputError: there are no calibration windows.
    """
    return score_expectations(prepared, columns(prepared.system), score_config)


def score_expectations(prepared: Prepared, place: Columns, score_config) -> Scored:
    """Score a dataset by what closed-form expectations leave of the columns `place`, calibrated like residuals.

    The temporal and the prior term are 0.

    Raises:
        InputError: there are no calibration windows.
    """
    held_out, test = (_terms(prepared, place, runs) for runs in (prepared.calibration_runs, prepared.test_runs))
    none = _terms(prepared, place, prepared.test_runs[:0])
    return calibrate(prepared, place, none, held_out, test, score_config)


def _columns(prepared: Prepared, processor: bool) -> Columns:
    """The residual columns that the recipe looks at."""
    system, everything = prepared.system, all_columns(prepared.system)
    use = np.zeros(len(everything.node), bool)
    for i, (node, channel, kind) in enumerate(zip(*everything[:3], strict=True)):
        name = system.channels[NODE_KINDS[kind]][channel]
        metric = processor and name == "level" and PROCESSOR.search(system.node_names[node]) is not None
        use[i] = (NODE_KINDS[kind], name) in (("log", "count"), ("dependency", NET_LATENCY)) or metric
    return Columns(*(a[use] for a in everything))._replace(evidence=np.ones(use.sum(), bool))


def _terms(prepared: Prepared, place: Columns, runs: np.ndarray) -> Terms:
    ids = runs[runs >= 0]
    # A block at a time: the windows lie on disk.
    blocks = (np.asarray(prepared.windows.nodes[ids[i : i + 256]]) for i in range(0, len(ids), 256))
    residuals = [observed_signals(b, place, CONTEXT_DIM) - b[:, place.node, place.channel] for b in blocks]
    residual = np.concatenate(residuals) if residuals else np.zeros((0, len(place.node)), np.float32)
    nothing = np.zeros(len(ids), np.float32)
    position = np.broadcast_to(np.arange(runs.shape[1]), runs.shape)[runs >= 0]
    return Terms(ids, position, residual, nothing, nothing, nothing, np.zeros(len(ids), int))
