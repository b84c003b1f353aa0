"""A prepared dataset of any size, made of numbers: for measuring speed, not for learning anything.

Its shape is that of a microservice system: a tenth of the nodes are services, the others their log lines, metrics and
calls, in the proportions of Train Ticket. Every window has the same nodes and most of the same edges, as real ones do.
"""

import jax
import numpy as np
import polars as pl

from ssad_jax.prepared import CONTEXT_DIM, IDENTITY_DIM, NODE_KINDS, SIGNAL_DIM, Prepared, System, Windows

WINDOW_LENGTH, STRIDE = 20, 5  # ticks (Table 2 of the paper)
SHARES = {"service": 0.1, "log": 0.55, "metric": 0.1, "dependency": 0.25}  # of the nodes
CHANNELS = {"service": 4, "log": 2, "metric": 2, "dependency": 4, "event": 1}  # signal channels that a kind has
FEWEST_EDGES = 0.8  # of the budget: windows differ in the edges that are active
TEST_ROWS = 1 << 16  # windows x nodes of a test run that keep an accelerator busy
NS = 1_000_000_000


def test_windows(num_nodes: int) -> int:
    """Length of a test run by which scoring is measured on the devices present."""
    return 64 if jax.default_backend() == "cpu" else max(64, TEST_ROWS // num_nodes)


def make_prepared(
    num_nodes: int, num_edges: int, sequence_length: int, num_sequences: int, test_windows: int = 64, seed: int = 0
) -> Prepared:
    """`num_sequences` training sequences that share no window, and one test run.

    Args:
        num_nodes: real nodes; one padding slot is added.
        num_edges: directed edge slots of a window, of which FEWEST_EDGES or more are used.
        test_windows: length of the test run and of each of two calibration runs.
    """
    rng = np.random.default_rng(seed)
    slots = num_nodes + 1
    system = _system(num_nodes, slots, rng)
    lengths = np.array([sequence_length] * num_sequences + [test_windows] * 3)
    count = int(lengths.sum())
    segment = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
    position = np.arange(count) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    span = lengths * STRIDE + WINDOW_LENGTH
    start_tick = ((np.cumsum(span) - span)[segment] + position * STRIDE).astype(np.int32)
    part = np.where(segment < num_sequences, 0, np.where(segment < num_sequences + 2, 1, 2)).astype(np.int8)
    senders, receivers, n_edge = _edges(num_nodes, num_edges, count, rng)
    nodes = np.zeros((count, slots, CONTEXT_DIM + SIGNAL_DIM), np.float32)
    signal = rng.standard_normal((count, num_nodes, SIGNAL_DIM), np.float32) * system.signal_mask[:num_nodes]
    nodes[:, :num_nodes, CONTEXT_DIM:] = signal
    nodes[:, :num_nodes, :CONTEXT_DIM] = 0.7 * signal
    start = 1_600_000_000 * NS + start_tick.astype(np.int64) * NS
    windows = Windows(
        nodes=nodes, senders=senders, receivers=receivers, edge_kind=np.zeros(senders.shape, np.int8), n_edge=n_edge,
        start_unix_nano=start, end_unix_nano=start + WINDOW_LENGTH * NS, start_tick=start_tick, segment=segment,
        part=part, group=np.where(part == 1, 0, -1).astype(np.int8), label=np.zeros(count, np.int8),
        fault=np.full(count, -1, np.int32),
    )  # fmt: skip
    ids = np.arange(count, dtype=np.int32)
    fit, rest = np.split(ids, [num_sequences * sequence_length])
    runs = rest.reshape(3, test_windows)
    faults = pl.DataFrame(
        schema={"start_time_unix_nano": pl.Int64, "end_time_unix_nano": pl.Int64, "service_name": pl.String,
                "fault_type": pl.String, "onset_uncertain_from_unix_nano": pl.Int64}
    )  # fmt: skip
    manifest = {
        "source": "synthetic", "tick_seconds": 1.0, "window_length": WINDOW_LENGTH, "stride": STRIDE,
        "dataset_hash": f"synthetic-{num_nodes}-{num_edges}-{seed}",
    }  # fmt: skip
    return Prepared(
        system, windows, fit.reshape(num_sequences, sequence_length), runs[:2], runs[2:], faults, manifest, None
    )


def _system(num_nodes: int, slots: int, rng) -> System:
    names = list(SHARES)
    kind = np.zeros(slots, np.int8)
    cuts = (np.cumsum(list(SHARES.values())) * num_nodes).round().astype(int)
    cuts[-1] = num_nodes
    begin = 0
    for name, end in zip(names, cuts, strict=True):
        kind[begin:end] = NODE_KINDS.index(name)
        begin = end
    num_services = max(1, int(cuts[0]))
    mask = np.arange(slots) < num_nodes
    channels = np.array([CHANNELS[name] for name in NODE_KINDS])[kind]
    signal_mask = (np.arange(SIGNAL_DIM) < channels[:, None]) & mask[:, None]
    service = np.where(mask, np.arange(slots) % num_services, -1).astype(np.int32)
    calls = mask & (kind == NODE_KINDS.index("dependency"))
    caller = np.where(calls, (service + 1) % num_services, -1).astype(np.int32)
    unit = np.where(mask, kind.astype(np.int32) * num_services + service, -1)  # siblings: one kind, one service
    hashes = rng.integers(0, 2**32, len(NODE_KINDS) * num_services, dtype=np.uint32)
    identity = rng.standard_normal((slots, IDENTITY_DIM), np.float32) / np.float32(np.sqrt(IDENTITY_DIM))
    return System(
        identity=identity * mask[:, None], kind=kind, node_mask=mask, signal_mask=signal_mask, evidence=signal_mask,
        witness=signal_mask, rising=np.zeros_like(signal_mask), mask_unit=unit,
        unit_hash=np.where(mask, hashes[np.maximum(unit, 0)], 0).astype(np.uint32), service=service, caller=caller,
        lag=np.zeros(slots, np.int32),
        service_position=rng.standard_normal((num_services, 8), np.float32),
        node_names=tuple(f"node {i}" for i in range(num_nodes)),
        service_names=tuple(f"service {i}" for i in range(num_services)),
        channels={name: [f"channel {c}" for c in range(CHANNELS[name])] for name in NODE_KINDS},
    )  # fmt: skip


def _edges(num_nodes: int, num_edges: int, count: int, rng):
    """Senders, receivers [W, E] and the number of real edges [W]; every edge is there in both directions."""
    pairs = max(1, num_edges // 2)
    a = rng.integers(0, num_nodes, pairs)
    b = (a + 1 + rng.integers(0, max(num_nodes - 1, 1), pairs)) % num_nodes
    both = np.stack([np.stack([a, b], 1), np.stack([b, a], 1)], 1).reshape(-1, 2).astype(np.int32)  # [2 * pairs, 2]
    real = 2 * rng.integers(int(FEWEST_EDGES * pairs), pairs + 1, count).astype(np.int32)
    shift = 2 * rng.integers(0, pairs, count)
    edge = np.arange(2 * pairs)
    row = (edge[None] + shift[:, None]) % (2 * pairs)
    chosen = np.where((edge[None] < real[:, None])[..., None], both[row], num_nodes)
    return np.ascontiguousarray(chosen[..., 0]), np.ascontiguousarray(chosen[..., 1]), real
