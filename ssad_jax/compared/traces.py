"""Traces as trees of at most 64 spans: what a trace is, and attention along its calls."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from flax import nnx

from ssad_jax.compared import units
from ssad_jax.compared.units import Units
from ssad_jax.prepared import Prepared

MOST = 64  # spans of a trace that are looked at: the first in breadth-first order
BOUND = 10.0  # of logits of attention, so that exponentials need no maximum


@functools.cache  # one function a number, so that `units.reader` knows what it has listed
def lister(num_operations: int):
    """What lists a dataset's traces.

    operation [V, 64] int32: rank among the operations of fit windows, `num_operations` where it is not among the most
    frequent ones; parent [V, 64] int32: place of the calling span, -1 of none; log_us [V, 64] f32: log(1 + us) of the
    duration; service [V, 64] int32, -1 of none; size [V] int32: number of spans.
    """

    def traces(prepared: Prepared) -> Units:
        table = read_spans(prepared)
        row, parent = breadth_first(table)
        table, trace = table[row], table["trace"].to_numpy()[row]
        _, first, size = np.unique(trace, return_index=True, return_counts=True)
        begin = pl.DataFrame({"trace": trace, "time": table["time_unix_nano"]}).group_by("trace").agg(
            pl.col("time").min()
        ).sort("trace")["time"].to_numpy()  # fmt: skip
        place = np.arange(len(trace)) - np.repeat(first, size)
        kept = place < MOST
        service = {name: i for i, name in enumerate(prepared.system.service_names)}
        columns = {
            "operation": operations(prepared, table, num_operations), "parent": parent,
            "log_us": np.log1p(np.maximum(table["duration_ns"].to_numpy(), 0) / 1e3).astype(np.float32),
            "service": np.array([service.get(name, -1) for name in table["unit"]], np.int32),
        }  # fmt: skip
        arrays = {}
        for name, values in columns.items():
            arrays[name] = np.full((len(first), MOST), -1, values.dtype)
            arrays[name][trace[kept], place[kept]] = values[kept]
        arrays["size"] = np.minimum(size, MOST).astype(np.int32)
        order = np.argsort(begin, kind="stable")
        window, occurrence = units.in_windows(prepared, begin[order])
        return Units.of(arrays, window, order[occurrence])

    return traces


def read_spans(prepared: Prepared) -> pl.DataFrame:
    """Spans with the numbers of their trace and of their parent's row (-1: none in the trace)."""
    names = ["time_unix_nano", "unit", "operation", "duration_ns", "trace_id", "span_id", "parent_span_id"]
    table = pl.read_parquet(prepared.directory / "tables" / "spans.parquet", columns=names).with_row_index("row")
    own = table.select("trace_id", parent_span_id="span_id", parent="row").unique(
        ["trace_id", "parent_span_id"], keep="first", maintain_order=True
    )
    table = table.join(own, on=["trace_id", "parent_span_id"], how="left", maintain_order="left")
    return table.with_columns(
        pl.col("trace_id").rank("dense").cast(pl.Int64).fill_null(0).alias("trace") - pl.lit(1),
        pl.col("parent").cast(pl.Int64).fill_null(-1),
    ).filter(pl.col("trace") >= 0)


def breadth_first(table: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `table` trace by trace, callers first, siblings in time order; and each one's parent in its trace.

    Spans that call one another in a circle count as roots.
    """
    name = {row: i for i, row in enumerate(table["row"].to_list())}
    parent = np.array([name.get(p, -1) for p in table["parent"].to_list()], int)
    trace = table["trace"].to_numpy()
    depth = np.where(parent < 0, 0, -1)
    level = 0
    while True:
        below = (depth < 0) & (depth[parent] == level) & (parent >= 0)
        if not below.any():
            break
        level += 1
        depth[below] = level
    parent[depth < 0], depth[depth < 0] = -1, 0
    rank = np.zeros(len(parent), int)  # of a span among those of its depth
    time = table["time_unix_nano"].to_numpy()
    for level in range(depth.max(initial=-1) + 1):
        own = np.flatnonzero(depth == level)
        order = own[np.lexsort((time[own], rank[parent[own]] if level else np.zeros(len(own)), trace[own]))]
        rank[order] = np.arange(len(order))
    row = np.lexsort((rank, depth, trace))
    _, first, size = np.unique(trace[row], return_index=True, return_counts=True)
    place = np.empty(len(row), int)
    place[row] = np.arange(len(row)) - np.repeat(first, size)
    return row, np.where(parent < 0, -1, place[parent])[row].astype(np.int32)


def operations(prepared: Prepared, table: pl.DataFrame, most: int) -> np.ndarray:
    """[n] the number of each span's operation (of its service): the most frequent of fit windows first, then names."""
    key, time = ["unit", "operation"], table["time_unix_nano"].to_numpy()
    fit = prepared.windows.part == 0
    inside = np.zeros(len(time) + 1, int)
    order = np.argsort(time, kind="stable")
    for edge, step in ((prepared.windows.start_unix_nano, 1), (prepared.windows.end_unix_nano, -1)):
        np.add.at(inside, np.searchsorted(time[order], edge[fit]), step)
    seen = np.empty(len(time), bool)
    seen[order] = np.cumsum(inside)[:-1] > 0
    known = table.filter(seen).group_by(key).len().sort(["len", *key], descending=[True, False, False]).head(most)
    known = known.select(*key, number=pl.int_range(pl.len(), dtype=pl.Int32))
    joined = table.select(key).join(known, on=key, how="left", nulls_equal=True, maintain_order="left")
    return joined["number"].fill_null(most).to_numpy()


class Attention(nnx.Module):
    """Graph attention (Velickovic et al. 2018) along a trace's calls: [V, F] -> [V, width].

    A span attends to itself, its parent and its children. As a dispatching layer each span's state is divided among
    itself (its self time) and its children instead: the weights of what leaves a span add up to 1.
    """

    def __init__(self, features: int, width: int, heads: int, *, dispatching: bool = False, rngs: nnx.Rngs):
        self.heads, self.dispatching = heads, dispatching
        self.map = nnx.Linear(features, width, rngs=rngs)
        self.own = nnx.Linear(features, 2 * heads, rngs=rngs)  # logits of a span as sender and as receiver
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    def __call__(self, x: jax.Array, calls: jax.Array, there: jax.Array) -> jax.Array:
        """`calls` [V, V]: 1 from a span (row) to its parent (column); `there` [V] bool."""
        sender, receiver = jnp.split(self.own(x), 2, axis=-1)  # [V, heads]
        h = self.map(x).reshape(len(x), self.heads, -1)
        child = calls.sum(1)[:, None]  # 1 of spans that have a parent
        alone = weight(sender + receiver)
        down = weight(calls @ sender + receiver) * child  # from a span's parent to it
        up = weight(sender + calls @ receiver) * child  # from it to its parent

        def spread(matrix, values):
            return jnp.einsum("vu,uhf->vhf", matrix, values)

        if self.dispatching:
            total = alone + calls.T @ down  # of all that leaves a span
            mixed = (alone / total)[..., None] * h + down[..., None] * spread(calls, h / total[..., None])
        else:
            total = alone + down + calls.T @ up
            mixed = alone[..., None] * h + down[..., None] * spread(calls, h) + spread(calls.T, up[..., None] * h)
            mixed = mixed / total[..., None]
        return jax.nn.leaky_relu(self.norm(mixed.reshape(len(x), -1))) * there[:, None]


def weight(logits: jax.Array) -> jax.Array:
    return jnp.exp(BOUND * jnp.tanh(jax.nn.leaky_relu(logits) / BOUND))


def call_matrix(parent: jax.Array) -> jax.Array:
    """[V, V] f32 from parents' places [V]: 1 from a span to its parent; a row of zeros of a root or padding."""
    return jax.nn.one_hot(parent, parent.shape[0])
