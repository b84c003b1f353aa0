"""Runs of windows through a method: the raw score terms of every window, on the host.

Residuals are kept as C columns, one for each (node, channel) that exists, instead of [N, 16] slots that are
mostly empty: a third of the memory and no padding to think of afterwards.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from ssad_jax.batching import Needs, make_batch, resident
from ssad_jax.layers.services import first_nodes
from ssad_jax.methods.interface import Representations, WindowScores
from ssad_jax.prepared import NODE_KINDS, Prepared, System

LOG_COUNT = 0  # channel of a log node: how often the line was written
DISTANCE = -1  # channel of a service's column that holds no residual but its distance from normal


class Columns(NamedTuple):
    """The C residual columns, ascending by node."""

    node: np.ndarray  # [C] int, node slot
    channel: np.ndarray  # [C] int, signal channel, or DISTANCE
    kind: np.ndarray  # [C] int, index into NODE_KINDS
    evidence: np.ndarray  # [C] bool, says that something is wrong; others only where
    rising: np.ndarray  # [C] bool, only what exceeds the expectation deviates


class Terms(NamedTuple):
    """Raw score terms of M windows."""

    window: np.ndarray  # [M] int, row of Prepared.windows
    position: np.ndarray  # [M] int, number of windows before it in its run
    residual: np.ndarray  # [M, C] f32: observed minus expected
    temporal: np.ndarray  # [M] f32, nan at a run's first window
    prior: np.ndarray  # [M] f32
    paper_reconstruction: np.ndarray  # [M] f32
    prototype: np.ndarray  # [M] int
    state: np.ndarray | None = None  # [M, H] f32: u_t of one network
    log_error: np.ndarray | None = None  # [M] f32: mean squared residual of the counts of log lines, each masked once
    read: np.ndarray | None = None  # [M, 2] f32: temporal and prior term as `scoring.states` reads them; None: as above
    service: np.ndarray | None = None  # [M, U, H] f32: representations of services, until distances are read off them
    own: np.ndarray | None = None  # [M, V] f32: a method's own scores of windows; nan where it had nothing to judge

    def take(self, rows) -> "Terms":
        return Terms(*(None if a is None else a[rows] for a in self))


def columns(system: System) -> Columns:
    """The residual columns of a system: the channels of its real nodes that speak of faults."""
    return _columns(system, system.witness)


def service_columns(system: System) -> Columns:
    """One column for each service, at its first node: how far it is from normal."""
    first = first_nodes(system)
    kind, yes = np.full(len(first), NODE_KINDS.index("service")), np.ones(len(first), bool)
    return Columns(first, np.full(len(first), DISTANCE), kind, yes, yes)


def log_nodes(system: System) -> np.ndarray:
    """The nodes of log lines."""
    return np.flatnonzero(system.node_mask & (system.kind == NODE_KINDS.index("log")))


def all_columns(system: System) -> Columns:
    """All signal channels of a system's real nodes, volumes included."""
    return _columns(system, system.signal_mask)


def _columns(system: System, channels: np.ndarray) -> Columns:
    node, channel = np.nonzero(channels & system.node_mask[:, None])
    marks = (facts[node, channel] for facts in (system.evidence, system.rising))
    return Columns(node, channel, system.kind[node].astype(int), *marks)


def score_runs(score, params, prepared: Prepared, runs: np.ndarray, batch_runs: int) -> Terms:
    """Raw terms of the windows in `runs` [R, L] (-1: none), each run scored from an empty history.

    `score` is from `scorer`: several calls share one compilation. Windows are gathered on the host, a batch of runs at
    a time; the last batch is filled with masked runs, so there is one shape. Where a window occurs in several runs its
    first occurrence counts.
    """
    place, logs = columns(prepared.system), log_nodes(prepared.system)
    length = runs.shape[1] if runs.ndim == 2 else 0
    batch_runs = max(1, min(batch_runs, len(runs)))
    parts = []
    for first in range(0, len(runs) if length else 0, batch_runs):
        ids = np.full((batch_runs, length), -1, np.int32)
        some = runs[first : first + batch_runs]
        ids[: len(some)] = some
        windows = resident(prepared, np.maximum(ids, 0).reshape(-1), score.needs)
        rows = np.where(ids >= 0, np.arange(ids.size, dtype=np.int32).reshape(ids.shape), -1)
        index = np.where((ids >= 0).any(1), first + np.arange(batch_runs, dtype=np.int32), -1)
        terms = jax.device_get(score(params, windows, rows, index))
        real = ids >= 0
        position = np.broadcast_to(np.arange(length), ids.shape)[real]
        if isinstance(terms, Representations):
            parts.append(_represented(ids[real], position, terms.service[real], terms.system[real]))
            continue
        if isinstance(terms, WindowScores):
            service = np.zeros((*ids.shape, 0)) if terms.service is None else terms.service
            parts.append(_judged(ids[real], position, service[real], terms.score[real]))
            continue
        everything = np.asarray(terms.residual)[real]
        residual = everything[:, place.node, place.channel]
        log_error = np.square(everything[:, logs, LOG_COUNT]).mean(1) if len(logs) else np.zeros(real.sum(), np.float32)
        rest = (terms.temporal, terms.prior, terms.paper_reconstruction, terms.prototype, terms.state)
        parts.append(Terms(ids[real], position, residual, *(np.asarray(a)[real] for a in rest), log_error=log_error))
    if not parts:
        empty = np.zeros(0, np.float32)
        no_ids = np.zeros(0, np.int32)
        if score.score_names:
            return _judged(no_ids, no_ids, np.zeros((0, 0)), np.zeros((0, len(score.score_names))))
        if score.by_distance:
            return _represented(no_ids, no_ids, np.zeros((0, 1, 1), np.float32), np.zeros((0, 1), np.float32))
        residual, state = np.zeros((0, len(place.node)), np.float32), np.zeros((0, 1), np.float32)
        return Terms(no_ids, no_ids, residual, empty, empty, empty, no_ids, state, log_error=empty)
    whole = joined(parts)
    _, unique = np.unique(whole.window, return_index=True)
    return whole.take(np.sort(unique))


def _represented(window, position, service, system) -> Terms:
    nothing = np.zeros(len(window), np.float32)
    residual, prototype = np.zeros((len(window), 0), np.float32), np.zeros(len(window), np.int32)
    return Terms(window, position, residual, nothing, nothing, nothing, prototype, system, service=service)


def _judged(window, position, service, score) -> Terms:
    nothing, service = np.zeros(len(window), np.float32), np.where(np.isnan(service), 0, service).astype(np.float32)
    prototype, score = np.zeros(len(window), np.int32), score.astype(np.float32)
    return Terms(window, position, service, nothing, nothing, nothing, prototype, own=score)


def joined(parts: list[Terms]) -> Terms:
    """The windows of all parts, in their order."""
    return Terms(*(None if a[0] is None else np.concatenate(a) for a in zip(*parts, strict=True)))


def averaged(parts: list[Terms]) -> Terms:
    """The mean terms of several networks for the same windows; the nearest prototype is the first network's."""
    names = ("residual", "temporal", "prior", "paper_reconstruction", "read", "log_error", "own")
    there = [name for name in names if getattr(parts[0], name) is not None]
    means = {name: np.mean([getattr(p, name) for p in parts], axis=0, dtype=np.float32) for name in there}
    return parts[0]._replace(**means)


class Score(NamedTuple):
    """A method's score function, compiled: score(params, windows, rows, index)."""

    run: Callable
    by_distance: bool = False  # it gives representations, whose distances from normal ones are read afterwards
    needs: Needs = Needs()
    score_names: tuple[str, ...] = ()  # it gives scores of its own

    def __call__(self, params, windows, rows, index):
        return self.run(params, windows, rows, index)


def scorer(method) -> Score:
    """`method.score`, compiled for batches that are gathered from `windows`."""

    def score(params, windows, rows, index):
        return method.score(params, make_batch(windows, rows, index))

    return Score(jax.jit(score), method.by_distance, method.needs, method.score_names)


def some_fit_runs(prepared: Prepared, most: int = 512) -> np.ndarray:
    """At most `most` training sequences, spread evenly over training time (for normal scales; [q, S])."""
    count = len(prepared.fit_sequences)
    return prepared.fit_sequences[np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int))]
