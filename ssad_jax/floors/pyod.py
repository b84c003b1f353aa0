"""PyOD's usual detectors with their default settings (Zhao, Nasrullah and Li, JMLR 2019), on flattened signals.

PyOD is the extra `baselines`; it is imported when a detector is fitted, not before: that takes seconds. Its ECOD and
COPOD also look at the distribution of the windows that they score, so that a score depends on its batch.
"""

import importlib

import numpy as np

from ssad_jax.floors.base import Fit, Score, Signals, standardised

CLASSES = {
    "pyod_iforest": ("iforest", "IForest"),
    "pyod_ecod": ("ecod", "ECOD"),
    "pyod_copod": ("copod", "COPOD"),
    "pyod_lof": ("lof", "LOF"),
    "pyod_knn": ("knn", "KNN"),
    "pyod_pca": ("pca", "PCA"),
}


def _fit(name: str) -> Fit:
    module, cls = CLASSES[name]

    def fit(fit_signals: Signals, seed: int) -> Score:
        scaled = standardised(fit_signals)
        values = scaled(fit_signals)
        varies = values.std(0) > 0
        options = {}
        if name in ("pyod_iforest", "pyod_pca"):
            options["random_state"] = seed
        if name == "pyod_pca":  # a direction without variance would decide alone: PyOD divides by the variance
            options["n_components"] = max(1, int(np.linalg.matrix_rank(values[:, varies] - values[:, varies].mean(0))))
        if name in ("pyod_lof", "pyod_knn"):
            default = 20 if name == "pyod_lof" else 5
            options["n_neighbors"] = min(default, len(values) - 1)
        model = getattr(importlib.import_module(f"pyod.models.{module}"), cls)(**options)
        model.fit(values[:, varies])
        return lambda some: np.asarray(
            model.decision_function(scaled(some)[:, varies]) if len(some.values) else np.zeros(0), np.float64
        )

    return fit


PYOD: dict[str, Fit] = {name: _fit(name) for name in CLASSES}
