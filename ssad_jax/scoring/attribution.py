"""From node errors to suspects: which services deviate, and which of their nodes show it.

A node speaks of the service that `System.service` names. A dependency speaks of its two ends: the callee may have
answered late or wrongly, and a throttled caller makes all its callees look late. What it shows is divided between them
by what else speaks of each; with nothing else, most of it is the callee's.
"""

from typing import NamedTuple

import numpy as np

from ssad_jax.prepared import NODE_KINDS, System
from ssad_jax.scoring.calibration import Calibration, column_errors
from ssad_jax.scoring.terms import Columns

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
    """[M, services] f32: how far the worst node that speaks of a service exceeds its kind's normal level.

    Node errors are put on their kind's calibrated scale, so that kinds compare as they do in the score; 0 where
    no node of the service exceeds the worst node of its kind in a median normal window.
    """
    blame = np.zeros((len(node_error), len(system.service_names)), np.float32)
    calls = []
    for node in np.flatnonzero(system.node_mask & system.witness.any(1) & (system.service >= 0)):
        kind = system.kind[node]
        over = np.maximum((node_error[:, node] - calibration.node_median[kind]) / calibration.node_spread[kind], 0.0)
        service, caller = system.service[node], system.caller[node]
        if caller >= 0:
            calls.append((caller, service, over))
        else:
            np.maximum(blame[:, service], over, out=blame[:, service])
    speaks = blame.copy()  # of each service, everything together
    for caller, callee, over in calls:
        speaks[:, caller] += over
        speaks[:, callee] += over
    for caller, callee, over in calls:
        of_callee = np.square(CALLEE_PRIOR + speaks[:, callee] - over)
        of_caller = np.square(CALLER_PRIOR + speaks[:, caller] - over)
        share = of_callee / (of_callee + of_caller)
        np.maximum(blame[:, callee], share * over, out=blame[:, callee])
        np.maximum(blame[:, caller], (1 - share) * over, out=blame[:, caller])
    return blame


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
        channel = channels[place.channel[c]] if place.channel[c] < len(channels) else f"channel {place.channel[c]}"
        out.append(
            Deviation(
                node, system.node_names[node], kind, channel, float(observed[c]),
                float(observed[c] - residual[c]), float(error[c]),
            )
        )  # fmt: skip
    return out


def observed_signals(nodes: np.ndarray, place: Columns, context_dim: int) -> np.ndarray:
    """[M, C]: the signals of windows given as [M, N, context + signal], in the order of `place`."""
    return np.asarray(nodes)[:, place.node, context_dim + place.channel]
