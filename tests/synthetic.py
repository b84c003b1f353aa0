"""A small prepared dataset made of numbers, for tests of everything after preparation.

Two services call one another; each has log and metric nodes. Signals follow a shared random load; the
`context` of a log node is its closed-form expectation. In faulty windows the log counts of one service
leave their expectation.
"""

import dataclasses

import numpy as np
import polars as pl

from ssad_jax.prepared import CONTEXT_DIM, IDENTITY_DIM, SIGNAL_DIM, Prepared, System, Ticks, Windows, Writer

NS = 1_000_000_000
WINDOW_LENGTH, STRIDE = 20, 5
START = 1_600_000_000 * NS


def make_prepared(
    segments=8, windows_per_segment=12, num_services=3, logs_per_service=2, budget=16, edge_budget=48,
    sequence_length=4, seed=0, folds=0,
) -> Prepared:  # fmt: skip
    """First half of the segments fit, next quarter calibration, rest test (with faults in every second one).

    With `folds` the first three quarters fit and calibrate, in so many groups that take turns.
    """
    rng = np.random.default_rng(seed)
    kind, owner, names = [], [], []
    services = [f"service-{i}" for i in range(num_services)]
    for i, service in enumerate(services):
        kind += [0] + [1] * logs_per_service + [2]
        owner += [i] * (logs_per_service + 2)
        names += [service] + [f"{service}/template {j}" for j in range(logs_per_service)] + [f"{service}/cpu"]
    caller = [-1] * len(names)
    for i in range(num_services - 1):
        kind.append(3)
        owner.append(i + 1)
        caller.append(i)
        names.append(f"{services[i]} -> {services[i + 1]}")
    real = len(names)
    assert real < budget
    pad = budget - real
    kind = np.array(kind + [0] * pad, np.int8)
    owner = np.array(owner + [-1] * pad, np.int32)
    caller = np.array(caller + [-1] * pad, np.int32)
    node_mask = np.arange(budget) < real
    channels = {
        "service": ["requests"], "log": ["count"], "metric": ["level"], "dependency": ["calls", "gap"], "event": [],
    }  # fmt: skip
    width = np.array([len(channels[k]) for k in ("service", "log", "metric", "dependency", "event")])
    signal_mask = (np.arange(SIGNAL_DIM) < width[kind][:, None]) & node_mask[:, None]
    identity = rng.normal(size=(budget, IDENTITY_DIM)).astype(np.float32) / np.sqrt(IDENTITY_DIM)
    identity[real:] = 0
    system = System(
        identity=identity, kind=kind, node_mask=node_mask, signal_mask=signal_mask,
        evidence=signal_mask, witness=signal_mask, rising=np.zeros_like(signal_mask),
        mask_unit=np.where(node_mask, np.arange(budget), -1).astype(np.int32),
        unit_hash=rng.integers(0, 2**32, budget, dtype=np.uint32), service=owner, caller=caller,
        lag=np.zeros(budget, np.int32),
        service_position=rng.normal(size=(num_services, 8)).astype(np.float32),
        node_names=tuple(names), service_names=tuple(services), channels=channels,
    )  # fmt: skip

    first = {s: names.index(s) for s in services}
    pairs = [(first[services[o]], i, 1) for i, o in enumerate(owner[:real]) if kind[i] in (1, 2)]
    for i in np.flatnonzero(kind[:real] == 3):
        pairs += [(first[services[caller[i]]], i, 0), (i, first[services[owner[i]]], 0)]
    both = [(a, b, k) for a, b, k in pairs] + [(b, a, k) for a, b, k in pairs]
    assert len(both) <= edge_budget
    count = segments * windows_per_segment
    senders = np.full((count, edge_budget), budget - 1, np.int32)
    receivers = senders.copy()
    edge_kind = np.zeros((count, edge_budget), np.int8)
    for e, (a, b, k) in enumerate(both):
        senders[:, e], receivers[:, e], edge_kind[:, e] = a, b, k
    n_edge = np.full(count, len(both), np.int32)

    segment = np.repeat(np.arange(segments), windows_per_segment).astype(np.int32)
    position = np.tile(np.arange(windows_per_segment), segments)
    ticks_per_segment = windows_per_segment * STRIDE + WINDOW_LENGTH
    start_tick = (segment * ticks_per_segment + position * STRIDE).astype(np.int32)
    start = START + start_tick.astype(np.int64) * NS
    part = np.where(segment < segments // 2, 0, np.where(segment < 3 * segments // 4, 1, 2)).astype(np.int8)
    group = np.where(part == 1, 0, -1).astype(np.int8)
    num_fit = segments // 2
    if folds:
        part[part == 1], group = 0, np.where(part < 2, segment % folds, -1).astype(np.int8)
        num_fit = 3 * segments // 4
    faulty = (part == 2) & (segment % 2 == 1) & (position >= windows_per_segment // 2)
    load = rng.normal(size=(count, num_services)).astype(np.float32)
    nodes = np.zeros((count, budget, CONTEXT_DIM + SIGNAL_DIM), np.float32)
    for i in range(real):
        own = load[:, owner[i]]
        noise = 0.3 * rng.normal(size=count)
        if kind[i] == 1:
            nodes[:, i, 0] = own
            nodes[:, i, CONTEXT_DIM] = own + noise + 6.0 * (faulty & (owner[i] == num_services - 1))
        elif kind[i] == 3:
            nodes[:, i, CONTEXT_DIM] = 0.7 * load[:, caller[i]] + 0.7 * own + noise
            nodes[:, i, CONTEXT_DIM + 1] = noise
        else:
            nodes[:, i, CONTEXT_DIM] = own + noise
    fault_rows = [(int(start[np.flatnonzero(faulty & (segment == s))[0]]), s) for s in np.unique(segment[faulty])]
    fault = np.full(count, -1, np.int32)
    for row, (_, s) in enumerate(fault_rows):
        fault[faulty & (segment == s)] = row
    faults = pl.DataFrame(
        {
            "start_time_unix_nano": [t for t, _ in fault_rows],
            "end_time_unix_nano": [int(start[segment == s].max()) + WINDOW_LENGTH * NS for _, s in fault_rows],
            "service_name": [services[-1]] * len(fault_rows),
            "fault_type": ["planted"] * len(fault_rows),
            "onset_uncertain_from_unix_nano": [t for t, _ in fault_rows],
        }
    )
    windows = Windows(
        nodes=nodes, senders=senders, receivers=receivers, edge_kind=edge_kind, n_edge=n_edge,
        start_unix_nano=start, end_unix_nano=start + WINDOW_LENGTH * NS, start_tick=start_tick, segment=segment,
        part=part, group=group, label=faulty.astype(np.int8), fault=fault,
    )  # fmt: skip
    runs = np.arange(count, dtype=np.int32).reshape(segments, windows_per_segment)
    fit = runs[:num_fit]
    sequences = np.stack(
        [row[i : i + sequence_length] for row in fit for i in range(0, windows_per_segment - sequence_length + 1, 2)]
    )
    manifest = {
        "source": "synthetic", "tick_seconds": 1.0, "window_length": WINDOW_LENGTH, "stride": STRIDE,
        "dataset_hash": f"synthetic-{seed}", "edges": [],
    }  # fmt: skip
    return Prepared(
        system, windows, sequences, runs[0 if folds else num_fit : 3 * segments // 4], runs[3 * segments // 4 :],
        faults, manifest, None, _ticks(rng, system, segments * ticks_per_segment, start_tick, faulty),
    )  # fmt: skip


def _ticks(rng, system: System, count: int, start_tick, faulty) -> Ticks:
    """Noise in every signal; in faulty windows the log lines of the last service leave it."""
    signals = 0.5 * rng.normal(size=(count, *system.signal_mask.shape)) * system.signal_mask
    culprit = (system.kind == 1) & (system.service == len(system.service_names) - 1)
    for first in start_tick[faulty]:
        signals[first : first + WINDOW_LENGTH, culprit, 0] = 2.0
    return Ticks(signals.astype(np.float16), start_tick.astype(np.int64))


def save(prepared: Prepared, directory) -> None:
    """Write a dataset as preparing does, ticks included."""
    with Writer(directory) as writer:
        ticks = writer.path / "ticks"
        ticks.mkdir()
        np.save(ticks / "signals.npy", prepared.ticks.signals)
        np.save(ticks / "start_unix_nano.npy", START + np.arange(len(prepared.ticks.signals)) * NS)
        writer.finish(prepared, {})


def as_split(base, name):
    """The same windows and labels, divided by fold:K, or in time order."""
    segment, count = base.windows.segment, int(base.windows.segment.max()) + 1
    if name == "chronological":
        test, held_out = segment >= count * 3 // 4, (segment >= count // 2) & (segment < count * 3 // 4)
    else:
        test, held_out = segment % 5 == int(name[-1]), segment % 5 == (int(name[-1]) + 1) % 5
    part = np.where(test, 2, np.where(held_out, 1, 0)).astype(np.int8)
    windows = dataclasses.replace(base.windows, part=part, group=np.where(held_out, 0, -1).astype(np.int8))
    runs = np.arange(len(segment), dtype=np.int32).reshape(count, -1)
    fit = [row[i : i + 4] for row in runs if part[row[0]] == 0 for i in (0, 4, 8)]
    return dataclasses.replace(
        base, windows=windows, fit_sequences=np.stack(fit), calibration_runs=runs[part[runs[:, 0]] == 1],
        test_runs=runs[part[runs[:, 0]] == 2],
    )  # fmt: skip
