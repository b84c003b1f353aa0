"""The rule that an operator writes first: alert when there is unusually much or little of anything, or errors."""

import re

import numpy as np

from ssad_jax.floors.base import Score, Signals

ERRORS = re.compile(r"error|alert|fail|status|exception|fatal", re.IGNORECASE)
COUNTS = re.compile(r"count|call|operation|request|span|rate", re.IGNORECASE)


def fit_count_rule(fit: Signals, seed: int) -> Score:
    """The largest of three standardised totals: |log lines|, |calls and requests|, errors.

    Columns are told by their kind and channel name; a total without columns is left out. Without any, all columns
    are summed.
    """
    errors = np.array([bool(ERRORS.search(c)) for c in fit.channel], bool)
    logs = (fit.kind == "log") & (fit.channel != "balance") & ~errors
    calls = np.isin(fit.kind, ["service", "dependency"]) & ~errors
    calls &= np.array([bool(COUNTS.search(c)) for c in fit.channel], bool)
    groups = [(g, signed) for g, signed in ((logs, False), (calls, False), (errors, True)) if g.any()]
    groups = groups or [(np.ones(fit.values.shape[1], bool), False)]
    facts = []
    for group, signed in groups:
        total = fit.values[:, group].sum(1, dtype=np.float64)
        facts.append((group, signed, total.mean(), max(total.std(), 1e-6)))

    def score(some: Signals) -> np.ndarray:
        totals = [(some.values[:, g].sum(1, dtype=np.float64) - mean) / std for g, _, mean, std in facts]
        return np.max([t if signed else np.abs(t) for t, (_, signed, _, _) in zip(totals, facts, strict=True)], axis=0)

    return score
