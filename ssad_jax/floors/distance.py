"""Floors that measure how far a window lies from the fit windows, in standardised flattened signals."""

import numpy as np

from ssad_jax.floors.base import Score, Signals, standardised

EXPLAINED = 0.9  # of the variance, by the principal components
NEIGHBOURS = 5


def fit_l2_norm(fit: Signals, seed: int) -> Score:
    """Euclidean norm of the standardised signals."""
    scaled = standardised(fit)
    return lambda some: np.linalg.norm(scaled(some), axis=1)


def fit_pca(fit: Signals, seed: int) -> Score:
    """Distance to the subspace of the principal components that explain 90% of the variance."""
    scaled = standardised(fit)
    _, strength, basis = np.linalg.svd(scaled(fit), full_matrices=False)
    share = np.cumsum(strength**2) / max(np.sum(strength**2), 1e-12)
    basis = basis[: int(np.searchsorted(share, EXPLAINED)) + 1]

    def score(some: Signals) -> np.ndarray:
        x = scaled(some)
        return np.linalg.norm(x - (x @ basis.T) @ basis, axis=1)

    return score


def fit_knn(fit: Signals, seed: int) -> Score:
    """Distance to the fifth nearest fit window (or the farthest, where there are fewer)."""
    scaled = standardised(fit)
    reference = scaled(fit)
    squares = (reference**2).sum(1)
    k = min(NEIGHBOURS, len(reference)) - 1

    def score(some: Signals) -> np.ndarray:
        x = scaled(some)
        blocks = [
            np.partition((b**2).sum(1)[:, None] + squares - 2 * b @ reference.T, k, axis=1)[:, k]
            for b in (x[i : i + 512] for i in range(0, len(x), 512))
        ]
        return np.sqrt(np.maximum(np.concatenate(blocks), 0.0)) if blocks else np.zeros(0)

    return score
