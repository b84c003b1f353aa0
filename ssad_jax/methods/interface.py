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


class WindowScores(NamedTuple):
    """The same of a method that has a score of its own for each window; larger is more anomalous.

    nan of windows in which it has nothing to judge, and of windows that do not exist; an infinite score alerts.
    """

    score: jax.Array  # [B, L, V]: as `Method.score_names` has them
    service: jax.Array | None = None  # [B, L, U]: how far each service deviates, >= 0; None: it names no suspects


class Carry(NamedTuple):
    """What the windows of a run leave to the next one."""

    state: jax.Array  # [1, H]: s of the last window; 0 before the first
    recalled: jax.Array  # [1, H]: u of the last window; nan before the first


class Method(NamedTuple):
    """Pure functions; see the functions of the same names in the modules of methods.

    What is computed from training windows and not learned (a centre, a scale) lies in `params["fixed"]`, which has no
    gradient: `observe` is averaged over a pass through the training windows before an epoch (where they are streamed,
    of a chunk, before its part of the epoch), `absorb` puts the means where they belong.
    """

    init: Callable  # key -> params, a nested dict of arrays
    loss: Callable  # params, batch, keys [B], gather -> sums, counts, diagnostics
    score: Callable  # params, batch, keys=None -> ScoreTerms, Representations or WindowScores
    pair_distances: Callable | None = None  # params, batch, keys [B] -> positive [n], negative [n, n]
    prototype_names: tuple[str, ...] = ("none",)
    begin: Callable | None = None  # -> Carry before a run's first window
    step: Callable | None = None  # params, batch of one run's next L windows, carry -> ScoreTerms, carry
    needs: Needs = Needs()  # what it reads of a dataset
    by_distance: bool = False  # `score` gives Representations
    score_names: tuple[str, ...] = ()  # `score` gives WindowScores; the first is the method's score, others are shown
    observe: Callable | None = None  # params, batch -> sums (a pytree), count, over the batch's windows
    absorb: Callable | None = None  # params, means, step -> params, before the epoch that begins at a step
    bound: bool = False  # parameters belong to the names of the dataset that they were trained on
    one_dataset: bool = False  # to that dataset alone: they number what its own training time holds
