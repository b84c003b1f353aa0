"""What a method is to training, scoring and streaming: pure functions of parameters and batches."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from ssad_jax.batching import Needs


class ScoreTerms(NamedTuple):
    """What scoring B runs of L windows gives; calibration and pooling come after.

    All but `residual` are 0, or nan where it says so, of windows that do not exist.
    """

    residual: jax.Array | None  # [B, L, N, 16]: x - x_hat of each node when masked; 0 at padding and missing channels
    temporal: jax.Array  # [B, L]: 1 - cos(u_t, u_{t-1}); nan where there is no window before
    prior: jax.Array  # [B, L]: |u_t - m*_t|^2
    prototype: jax.Array  # [B, L] int32: index of m*_t
    paper_reconstruction: jax.Array  # [B, L]: mean squared error over one random mask of the paper's ratio
    state: jax.Array  # [B, L, H]: u_t


class Representations(NamedTuple):
    """The same of a method that judges windows by their distance from normal ones. 0 of windows that do not exist."""

    service: jax.Array  # [B, L, U, H]
    system: jax.Array  # [B, L, F]


class Carry(NamedTuple):
    """What the windows of a run leave to the next one."""

    state: jax.Array  # [1, H]: s of the last window; 0 before the first
    recalled: jax.Array  # [1, H]: u of the last window; nan before the first


class Method(NamedTuple):
    """Pure functions; see the functions of the same names in the modules of methods."""

    init: Callable  # key -> params, a nested dict of arrays
    loss: Callable  # params, batch, keys [B], gather -> sums, counts, diagnostics
    score: Callable  # params, batch, keys=None -> ScoreTerms or Representations
    pair_distances: Callable  # params, batch, keys [B] -> positive [n], negative [n, n]
    prototype_names: tuple[str, ...]
    begin: Callable | None = None  # -> Carry before a run's first window
    step: Callable | None = None  # params, batch of one run's next L windows, carry -> ScoreTerms, carry
    needs: Needs = Needs()  # what it reads of a dataset
    by_distance: bool = False  # `score` gives Representations
