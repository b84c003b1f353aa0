"""Prepared windows as padded jraph graphs, and the order in which training visits them.

The training examples are the rows of `Prepared.fit_sequences`. A dataset that fits the budget is one chunk
that stays on the device; a larger one is cut into chunks of examples (neighbours in time, so that their
overlapping windows are stored once), moved to the device one after another. Either way the order is a pure
function of (seed, epoch), so that a resumed run needs no saved position. The two orders differ: streaming
shuffles the chunks and the examples within each, it never mixes examples of different chunks in a batch.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jraph
import numpy as np

from data_prep.errors import InputError
from ssad_jax.prepared import Prepared

WINDOW_ARRAYS = ("nodes", "senders", "receivers", "edge_kind", "n_edge", "start_tick")


class Batch(NamedTuple):
    """B sequences of S consecutive windows (S = 1 where a method looks at windows alone)."""

    graphs: jraph.GraphsTuple  # leading axes [B, S]; see `graphs_tuple`
    window_mask: jax.Array  # [B, S] bool, false where there is no window
    start_tick: jax.Array  # [B, S] int32; windows i, j overlap iff |start_tick_i - start_tick_j| < window_length
    index: jax.Array  # [B] int32, the example's number in the whole dataset (for keys); -1 at padding
    ticks: jax.Array | None = None  # [B, S, T, C] float16: signals tick by tick, where a method reads them
    inputs: dict[str, jax.Array] | None = None  # [B, S, ...]: what `Needs.inputs` makes for each window
    shared: dict[str, jax.Array] | None = None  # what it makes for all of them together


class Inputs(NamedTuple):
    """What a method makes of a dataset's tables for some windows."""

    windows: dict[str, np.ndarray]  # [w, ...] of each window
    shared: dict[str, np.ndarray]  # what they refer to


class Needs(NamedTuple):
    """What a method reads of a dataset beside its event graphs."""

    tick_signals: tuple[np.ndarray, np.ndarray] | None = None  # node [C], channel [C]: signals to have tick by tick
    alone: bool = False  # examples are single windows, each once, instead of sequences
    inputs: Callable[[Prepared, np.ndarray], Inputs] | None = None  # dataset, rows of windows [w] -> Inputs


NOTHING_ELSE = Needs()


def resident(prepared: Prepared, ids=None, needs: Needs = NOTHING_ELSE) -> dict[str, np.ndarray]:
    """The arrays of the windows `ids` (all W of them by default) that batches are gathered from.

    Returns:
        nodes [W, N, 32] f32, senders, receivers [W, E] i32, edge_kind [W, E] i8, n_edge, n_node, start_tick [W] i32,
        and where a method needs them ticks [W, T, C] f16, and inputs and shared as `Needs.inputs` makes them.

    Raises:
        InputError: the dataset has no per-tick signals, and they are needed.
    """
    rows = slice(None) if ids is None else ids
    arrays = {name: np.asarray(getattr(prepared.windows, name)[rows]) for name in WINDOW_ARRAYS}
    n_node = np.full(len(arrays["n_edge"]), prepared.system.node_mask.sum(), np.int32)
    if needs.tick_signals is not None:
        if prepared.ticks is None:
            raise InputError(f"{prepared.directory} holds no per-tick signals; prepare the data again")
        windows = np.arange(prepared.windows.num_windows)[rows]
        arrays["ticks"] = prepared.ticks.of(windows, prepared.manifest["window_length"], *needs.tick_signals)
    if needs.inputs is not None:
        arrays["inputs"], arrays["shared"] = needs.inputs(prepared, np.arange(prepared.windows.num_windows)[rows])
    return {**arrays, "n_node": n_node}


def examples_for(prepared: Prepared, needs: Needs) -> Prepared:
    """The dataset with the training examples that a method learns from."""
    if not needs.alone:
        return prepared
    windows = np.unique(prepared.fit_sequences)
    return dataclasses.replace(prepared, fit_sequences=windows[windows >= 0][:, None].astype(np.int32))


def graphs_tuple(resident: dict[str, jax.Array], idx: jax.Array) -> jraph.GraphsTuple:
    """The windows `idx` ([B, S] int32; -1 means none and gives some window, to be masked by the caller).

    Returns:
        A GraphsTuple stacked over [B, S], each entry a padded jraph graph of one real and one padding graph:
        nodes [B, S, N, 32], edges (kinds), senders, receivers [B, S, E], n_node and n_edge [B, S, 2].
    """
    window = {name: resident[name][jnp.maximum(idx, 0)] for name in (*WINDOW_ARRAYS, "n_node")}
    num_nodes, num_edges = window["nodes"].shape[-2], window["senders"].shape[-1]

    def real_and_padding(real, total):
        return jnp.stack([real, total - real], axis=-1)

    return jraph.GraphsTuple(
        nodes=window["nodes"],
        edges=window["edge_kind"],
        senders=window["senders"],
        receivers=window["receivers"],
        globals=None,
        n_node=real_and_padding(window["n_node"], num_nodes),
        n_edge=real_and_padding(window["n_edge"], num_edges),
    )


def make_batch(windows: dict[str, jax.Array], sequences: jax.Array, index: jax.Array) -> Batch:
    """Gather sequences of windows: `sequences` [B, S] rows of `windows` (-1: none), `index` [B] example numbers."""
    mask = (sequences >= 0) & (index >= 0)[:, None]
    graphs = graphs_tuple(windows, sequences)
    first = jnp.maximum(sequences, 0)
    ticks = windows["ticks"][first] if "ticks" in windows else None
    inputs = jax.tree.map(lambda a: a[first], windows.get("inputs"))
    return Batch(graphs, mask, windows["start_tick"][first], index, ticks, inputs, windows.get("shared"))


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Training examples that are on the device together."""

    examples: np.ndarray  # [q] int32, rows of fit_sequences
    windows: np.ndarray  # [w] int32, the windows that they touch, ascending
    padded: int  # windows after padding, the same for every chunk: one compilation serves all


def plan_chunks(prepared: Prepared, batch_size: int, megabytes: float, needs: Needs = NOTHING_ELSE) -> list[Chunk]:
    """Cut the training examples into as few chunks as fit the budget.

    Two chunks of a streamed dataset are on the device at a time (the next is moved while one is used), so each
    takes at most half the budget, or a single batch where even that exceeds it. Every chunk but the last holds
    whole batches, so that streaming adds no padded rows.
    """
    sequences = prepared.fit_sequences
    num_examples = len(sequences)
    steps = -(-num_examples // batch_size)
    for count in range(1, steps + 1):
        cuts = [int(c) * batch_size for c in np.linspace(0, steps, count + 1).round()]
        parts = [np.arange(a, min(b, num_examples), dtype=np.int32) for a, b in zip(cuts, cuts[1:], strict=False)]
        ids = [np.unique(sequences[p][sequences[p] >= 0]) for p in parts]
        padded = max(len(i) for i in ids)
        needed = padded * window_bytes(prepared, needs) * (1 if count == 1 else 2)
        if needed <= megabytes * 2**20 or count == steps:
            break
    return [Chunk(p, i.astype(np.int32), padded) for p, i in zip(parts, ids, strict=True)]


def window_bytes(prepared: Prepared, needs: Needs = NOTHING_ELSE) -> int:
    """Bytes that one window takes on the device."""
    arrays = (getattr(prepared.windows, name) for name in WINDOW_ARRAYS)
    extra = 4
    if needs.tick_signals is not None:
        extra += np.float16().itemsize * prepared.manifest["window_length"] * len(needs.tick_signals[0])
    if needs.inputs is not None:  # what windows share is not counted
        extra += sum(a.nbytes for a in needs.inputs(prepared, np.arange(1)).windows.values())
    return sum(a.dtype.itemsize * int(np.prod(a.shape[1:])) for a in arrays) + extra


def load_chunk(prepared: Prepared, chunk: Chunk, needs: Needs = NOTHING_ELSE) -> dict:
    """A chunk's arrays: {'windows': see `resident`, 'sequences': [Q, S] rows of 'windows', -1 where none}.

    `sequences` has a row for every example of the dataset, so that orders and keys use the same numbers however
    the dataset is cut; rows of examples outside the chunk are -1.
    """
    padding = np.repeat(chunk.windows[:1], chunk.padded - len(chunk.windows))
    windows = resident(prepared, np.concatenate([chunk.windows, padding]), needs)
    sequences = np.full_like(prepared.fit_sequences, -1)
    own = prepared.fit_sequences[chunk.examples]
    sequences[chunk.examples] = np.where(own >= 0, np.searchsorted(chunk.windows, own), -1)
    return {"windows": windows, "sequences": sequences}


def example_groups(prepared: Prepared) -> np.ndarray:
    """[Q] the calibration group of each training example (its windows are all of one segment)."""
    return prepared.windows.group[prepared.fit_sequences[:, 0]]


def epoch_order(
    chunks: list[Chunk], group: np.ndarray, streams: np.ndarray, epoch: int, batch_size: int
) -> list[tuple[int, np.ndarray]]:
    """What epoch `epoch` visits: (chunk number, example numbers [K, steps, B] int32), chunk after chunk.

    A pure function of its arguments. Every example comes exactly once to each of the K networks but those of its
    group; the last batch of a chunk is filled with -1 (masked rows), none is dropped. A network with fewer batches than
    others ends with empty ones.

    Args:
        group: [Q], see `example_groups`.
        streams: [K, 2] seed and group of each network. Networks of one seed share the order of examples; the order of
            chunks is the first seed's for all.
    """
    rngs = {int(seed): np.random.Generator(np.random.Philox(key=[int(seed), epoch])) for seed in streams[:, 0]}
    sequence = [rng.permutation(len(chunks)) for rng in rngs.values()][0]
    visits = []
    for number in sequence:
        orders = {seed: rng.permutation(chunks[number].examples) for seed, rng in rngs.items()}
        own = [orders[int(seed)][group[orders[int(seed)]] != k] for seed, k in streams]
        steps = max(1, max(-(-len(o) // batch_size) for o in own))
        padded = np.full((len(streams), steps * batch_size), -1, np.int32)
        for row, examples in zip(padded, own, strict=True):
            row[: len(examples)] = examples
        visits.append((int(number), padded.reshape(len(streams), steps, batch_size)))
    return visits
