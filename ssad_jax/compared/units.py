"""What systems judge that judge something smaller than a window: log lines, pieces of a log, traces.

A dataset's units are listed once, each window refers to those that lie in it. A unit is judged once, however many
overlapping windows hold it; the score of a window is made of those of its units by one rule for all systems.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from data_prep.errors import InputError
from ssad_jax.batching import Batch, Inputs
from ssad_jax.layers.hashing import fold, uniform, window_keys, words
from ssad_jax.prepared import Prepared

SCORE_NAMES = ("top", "max", "mean")  # the first was chosen before any label was seen
TOP = 0.05  # share of a window's units whose mean is its score: one unit at least
LEAST = 64  # units that a program is compiled for; then powers of two
DRAW = 7  # stream of a window's key
KEPT = 2  # datasets whose units stay in memory

_kept: dict = {}


@dataclasses.dataclass(frozen=True)
class Units:
    """V units, and the P pairs (window, unit), ascending; a pair counts how often the window holds the unit."""

    arrays: dict[str, np.ndarray]  # [V, ...] of each unit
    window: np.ndarray  # [P] int: row of Prepared.windows
    unit: np.ndarray  # [P] int
    count: np.ndarray  # [P] int

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray], windows: np.ndarray, units: np.ndarray) -> "Units":
        """Of occurrences: unit units[i] in window windows[i]."""
        size = max(1, int(units.max(initial=0)) + 1)
        pairs, count = np.unique(windows.astype(np.int64) * size + units, return_counts=True)
        return cls(arrays, pairs // size, pairs % size, count)

    def inputs(self, rows: np.ndarray) -> Inputs:
        """For the windows `rows` [w]: unit [w, R] int32 (rows of the shared arrays, -1 none), count [w, R] f32.

        R is the most units that a window of the dataset has. Shared are the arrays of those units alone, filled up to
        a power of two.
        """
        width = max(1, int(np.bincount(self.window).max(initial=0)))
        first, last = (np.searchsorted(self.window, rows, side) for side in ("left", "right"))
        place = first[:, None] + np.arange(width)
        there = place < last[:, None]
        place = np.minimum(place, max(len(self.unit) - 1, 0))
        if not len(self.unit):
            used, unit, count = np.zeros(0, int), np.zeros(place.shape, int), np.zeros(place.shape)
        else:
            used = np.unique(self.unit[place[there]])
            unit, count = np.searchsorted(used, self.unit[place]), self.count[place]
        size = max(LEAST, 1 << max(len(used) - 1, 0).bit_length())
        shared = {
            name: np.concatenate([array[used], np.zeros((size - len(used), *array.shape[1:]), array.dtype)])
            for name, array in self.arrays.items()
        }
        windows = {
            "unit": np.where(there, unit, -1).astype(np.int32),
            "count": np.where(there, count, 0).astype(np.float32),
        }
        return Inputs(windows, shared)


def reader(build: Callable[[Prepared], Units]) -> Callable[[Prepared, np.ndarray], Inputs]:
    """`Needs.inputs` of the units that `build` makes of a dataset, once for each of the last few datasets."""

    def inputs(prepared: Prepared, rows: np.ndarray) -> Inputs:
        if prepared.directory is None:
            raise InputError("this method reads tables of logs and spans, and the dataset has none on disk")
        key = build, str(prepared.directory), prepared.manifest.get("dataset_hash")
        if key not in _kept:
            while len(_kept) >= KEPT:
                del _kept[next(iter(_kept))]
            _kept[key] = build(prepared)
        return _kept[key].inputs(rows)

    return inputs


def in_windows(prepared: Prepared, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(window, occurrence) of every occurrence in every window; `time` [n] ns, ascending."""
    first = np.searchsorted(time, prepared.windows.start_unix_nano)
    count = np.searchsorted(time, prepared.windows.end_unix_nano) - first
    window = np.repeat(np.arange(len(first)), count)
    begin = np.repeat(first - np.cumsum(count) + count, count)
    return window, begin + np.arange(len(window))


def draw(keys, batch: Batch, number: int) -> tuple[jax.Array, jax.Array]:
    """Units of each window to learn from, drawn evenly (several times where it has few).

    Returns:
        Rows of batch.shared [B, S, number], and which exist, [B, S, number] bool.
    """
    own = batch.inputs["unit"]
    many = (own >= 0).sum(-1)  # they come first
    drawn = fold(window_keys(words(keys), batch.window_mask.shape[1]), DRAW)
    share = uniform(drawn, jnp.arange(number, dtype=jnp.uint32)[None, None])  # [B, S, number]
    place = jnp.minimum((share * many[..., None]).astype(int), jnp.maximum(many[..., None] - 1, 0))
    there = (many[..., None] > 0) & batch.window_mask[..., None] & jnp.ones(place.shape, bool)
    return jnp.maximum(jnp.take_along_axis(own, place, axis=-1), 0), there


def judge(score: Callable, shared: dict[str, jax.Array], piece: int, used: jax.Array | None = None) -> jax.Array:
    """`score` (arrays of one unit -> scalar or array) of every unit, `piece` units at a time.

    used: how many of them there are before the filling up; then pieces beyond are not judged, their scores are 0.
    """
    if used is None:
        return jax.lax.map(score, shared, batch_size=piece)
    size = len(jax.tree.leaves(shared)[0])
    piece = math.gcd(size, piece)
    pieces = jax.tree.map(lambda a: a.reshape(-1, piece, *a.shape[1:]), shared)
    judge_piece = jax.vmap(score)
    nothing = jax.eval_shape(judge_piece, jax.tree.map(lambda a: a[0], pieces))

    def of_piece(numbered):
        number, units = numbered
        return jax.lax.cond(
            number * piece < used, judge_piece, lambda _: jnp.zeros(nothing.shape, nothing.dtype), units
        )

    scores = jax.lax.map(of_piece, (jnp.arange(size // piece), pieces))
    return scores.reshape(size, *nothing.shape[1:])


def num_used(batch: Batch) -> jax.Array:
    """How many units the windows of a batch refer to: they come first among the shared ones."""
    return batch.inputs["unit"].max(initial=-1) + 1


def of_windows(scores: jax.Array, batch: Batch) -> jax.Array:
    """[B, L, 3] the windows' scores of SCORE_NAMES from those of units [v]; nan of windows without a unit."""
    unit, count = batch.inputs["unit"], batch.inputs["count"]
    there = (unit >= 0) & batch.window_mask[..., None]
    own = scores[jnp.maximum(unit, 0)]
    many = there.sum(-1)
    ranked = -jnp.sort(jnp.where(there, -own, jnp.inf), axis=-1)
    counted = jnp.maximum(jnp.ceil(TOP * many), 1)
    best = jnp.broadcast_to(jnp.arange(unit.shape[-1]), unit.shape) < counted[..., None]
    top = jnp.where(best & (ranked > -jnp.inf), ranked, 0).sum(-1) / counted
    weight = jnp.where(there, count, 0)
    mean = jnp.where(there, own * weight, 0).sum(-1) / jnp.maximum(weight.sum(-1), 1)
    found = jnp.stack([top, ranked[..., 0], mean], axis=-1)
    return jnp.where((many > 0)[..., None], found, jnp.nan)
