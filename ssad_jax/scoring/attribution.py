"""From node errors to suspects: which services deviate, and which of their nodes show it.

A node speaks of the service that `System.service` names. A dependency speaks of its two ends: the callee may have
answered late or wrongly, and a throttled caller makes all its callees look late. What it shows is divided between them
by what else speaks of each: its own nodes, and its other calls in the mean. With nothing else, most of it is the
callee's.
"""

from typing import NamedTuple

import numpy as np

from ssad_jax.prepared import CONTEXT_DIM, NODE_KINDS, System
from ssad_jax.scoring.calibration import Calibration, column_errors
from ssad_jax.scoring.terms import DISTANCE, LOG_COUNT, Columns

CALLEE_PRIOR, CALLER_PRIOR = 1.0, 0.5  # what speaks of an end before anything does, in calibrated errors


class Deviation(NamedTuple):
    """One signal that is not as expected, in the prepared dataset's scaled units."""

    node: int
    name: str
    kind: str
    channel: str
    observed: float
    expected: float
    error: float  # |observed - expected| in normal scales


def service_blame(system: System, calibration: Calibration, node_error: np.ndarray) -> np.ndarray:
    """[M, services] f32: how far what speaks of a service exceeds its kind's normal level.

    Node errors are put on their kind's calibrated scale, so that kinds compare as they do in the score; of each kind
    the worst node counts, and kinds that agree add up as independent ones (root of the sum of squares). 0 where no node
    of the service exceeds the worst node of its kind in a median normal window.
    """
    real = system.node_mask & (system.service >= 0)
    over = np.zeros_like(node_error, np.float32)
    kind = system.kind[real]
    over[:, real] = np.maximum((node_error[:, real] - calibration.node_median[kind]) / calibration.node_spread[kind], 0)
    calls = real & (system.caller >= 0) & system.witness.any(1)
    shape = len(node_error), len(system.service_names)
    worst = np.zeros((len(NODE_KINDS), *shape), np.float32)
    own = np.flatnonzero(real & (system.caller < 0))
    _raise(worst, system.kind[own], system.service[own], over[:, own])
    speaks = worst.max(0)
    over, caller, callee, kind = over[:, calls], system.caller[calls], system.service[calls], system.kind[calls]
    served, made = (_Mean(shape, end, over) for end in (callee, caller))
    of_callee = np.square(CALLEE_PRIOR + speaks[:, callee] + served.without(callee, over) + made.of(callee))
    of_caller = np.square(CALLER_PRIOR + speaks[:, caller] + made.without(caller, over) + served.of(caller))
    # A call of a service to itself is its own.
    share = np.where(caller == callee, 1.0, of_callee / (of_callee + of_caller))
    _raise(worst, kind, callee, share * over)
    _raise(worst, kind, caller, (1 - share) * over)
    return np.sqrt(np.square(worst).sum(0))


def _raise(worst: np.ndarray, kind: np.ndarray, service: np.ndarray, to: np.ndarray) -> None:
    """worst [kinds, M, services] is at least `to` [M, n] at (kind, service) [n]."""
    np.maximum.at(worst, (kind, slice(None), service), to.T)


class _Mean:
    """What the calls at one end of a service say in the mean: one of many that deviates speaks of its other end."""

    def __init__(self, shape: tuple[int, int], service: np.ndarray, over: np.ndarray):
        self.total, self.count = np.zeros(shape, np.float32), np.bincount(service, minlength=shape[1])
        np.add.at(self.total, (slice(None), service), over)

    def of(self, service: np.ndarray) -> np.ndarray:
        return self.total[:, service] / np.maximum(self.count[service], 1)

    def without(self, service: np.ndarray, over: np.ndarray) -> np.ndarray:
        """The same of all calls of that end but one."""
        return (self.total[:, service] - over) / np.maximum(self.count[service] - 1, 1)


def suspects(system: System, blame: np.ndarray) -> list[list[str]]:
    """Service names by descending blame, ties by name; services without deviation are left out."""
    names = np.array(system.service_names)
    by_name = np.argsort(names, kind="stable") if len(names) else np.zeros(0, int)
    order = by_name[np.argsort(-blame[:, by_name], axis=1, kind="stable")]
    return [[str(names[s]) for s in row if b[s] > 0] for row, b in zip(order, blame, strict=True)]


def top_deviations(
    system: System, place: Columns, calibration: Calibration, residual: np.ndarray, observed: np.ndarray, most: int = 6
) -> list[Deviation]:
    """The signals of one window that deviate most, one a node, worst first.

    `residual` and `observed` [C]: what the method could not explain, and the window's scaled signals, in the
    order of `place`.
    """
    residual_now = (residual - calibration.centre)[None]
    error = column_errors(residual_now, residual_now, calibration.scale, place)[0]
    rank = (error - calibration.node_median[place.kind]) / calibration.node_spread[place.kind]
    out, seen = [], set()
    for c in np.argsort(-rank, kind="stable"):
        node = int(place.node[c])
        if node in seen or len(out) >= most:
            continue
        seen.add(node)
        kind = NODE_KINDS[place.kind[c]]
        channels = system.channels.get(kind, [])
        if place.channel[c] == DISTANCE:
            name, channel = system.service_names[system.service[node]], "distance from normal"
            values = float(residual[c]), float(calibration.centre[c])
        else:
            name = system.node_names[node]
            channel = channels[place.channel[c]] if place.channel[c] < len(channels) else f"channel {place.channel[c]}"
            values = float(observed[c]), float(observed[c] - residual[c])
        out.append(Deviation(node, name, kind, channel, *values, float(error[c])))
    return out


def lines_seen_and_expected(nodes: np.ndarray, node: int):
    """How often the line of a log node was written, and how often the work done lets expect it; scaled.

    That is what is shown of a line whose `balance` deviates. `nodes`: [..., N, context + signal].
    """
    return nodes[..., node, CONTEXT_DIM + LOG_COUNT], nodes[..., node, LOG_COUNT]


def observed_signals(nodes: np.ndarray, place: Columns, context_dim: int) -> np.ndarray:
    """[M, C]: the signals of windows given as [M, N, context + signal], in the order of `place`; 0 of distances."""
    signals = np.asarray(nodes)[:, place.node, context_dim + place.channel]
    return np.where(place.channel == DISTANCE, 0, signals)
