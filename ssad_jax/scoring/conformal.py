"""Split-conformal p-values from held-out normal scores, and an online variant for systems that drift.

Vovk, Gammerman & Shafer 2005: if a new normal score is exchangeable with the n calibration scores, then
p = (1 + #{calibration scores >= score}) / (n + 1) is at most a with probability at most a, whatever the scores'
distribution. Windows that share ticks are not exchangeable: of n overlapping windows only about n times stride /
window length are independent looks, so p-values below 1 / (effective n + 1) promise more than the data can keep.
`disjoint` finds windows that share no tick; their number is the effective n, and thresholds may rest on them alone.

Where the system drifts no fixed set of scores stays exchangeable with new ones. `Online` replaces it with the latest
normal looking scores and steers the level that p is compared with, so that the share of alerts among them comes back
to the wanted rate (adaptive conformal inference: Gibbs & Candes, NeurIPS 2021).
"""

import math
from typing import NamedTuple

import numpy as np

STEP = 0.25  # of the log level: an alert lowers it by STEP * (1 - rate), any other window raises it by STEP * rate
WIDEST = 4.0  # times the wanted rate: the level rises no higher after a long silence


class Adaptive(NamedTuple):
    """What the online variant said of M windows in time order."""

    p_value: np.ndarray  # [M], against the scores that were current
    level: np.ndarray  # [M]: an alert where p_value <= level
    alert: np.ndarray  # [M] bool


def p_values(calibration: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """[M] conformal p-values; a score that is not finite is the strangest of all (the model has diverged).

    Args: calibration [n] finite, of normal windows that neither model nor scales were fitted on; scores [M].
    """
    ordered = np.sort(np.asarray(calibration, np.float64))
    scores = np.asarray(scores, np.float64)
    scores = np.where(np.isfinite(scores), scores, np.inf)
    at_least = len(ordered) - np.searchsorted(ordered, scores, side="left")
    return (1 + at_least) / (len(ordered) + 1)


def rank_for(count: int, rate: float) -> int:
    """How many of `count` calibration scores may be at least as high as a score that alerts; -1: p is never so small.

    p <= rate is the same as: at most floor(rate * (count + 1)) - 1 calibration scores reach the score.
    """
    return math.floor(rate * (count + 1) + 1e-9) - 1


class Overlap(NamedTuple):
    """How a detector's windows lie in time."""

    disjoint: np.ndarray  # rows of calibration windows that share no tick with one another
    windows: int  # how many begin within one window length, at the stride of scoring


def overlap(start: np.ndarray, length: int, stride: int) -> Overlap:
    """Args: start [n] of the calibration windows, length of a window, stride of scoring; all in ticks."""
    return Overlap(disjoint(start, length), max(1, -(-length // stride)))


def disjoint(start: np.ndarray, length: float) -> np.ndarray:
    """Rows of windows that share no tick: in order of time, each the first that begins after the one before it ended.

    Args: start [n], in any unit; length: of a window, in the same.
    """
    kept, free = [], -np.inf
    for row in np.argsort(start, kind="stable"):
        if start[row] >= free:
            kept.append(int(row))
            free = start[row] + length
    return np.array(kept, int)


class Judgement(NamedTuple):
    """What the online variant says of one window."""

    p_value: float
    level: float
    alert: bool


class Online:
    """An online detector without labels whose share of alerts among normal windows stays near `rate` under drift.

    One window at a time. Its p-value is taken against the latest `memory` normal looking scores (at first the
    calibration scores); it alerts where that is at most the level. After an alert the log level falls by STEP *
    (1 - rate), after any other window it rises by STEP * rate: where as many steps lead up as down the share of alerts
    is `rate`. The level never falls below 1 / (memory + 1), so that a score above everything remembered always alerts,
    and never rises above WIDEST times the rate.

    A fault lasts, and must neither be learnt nor raise the threshold: of a run of more than `longest` alerts no score
    is remembered, and the level is put back to where it was when the run began. A run of more than `accept_after`
    alerts is how the system is now: its scores are remembered after all.

    Args:
        calibration: [n] finite scores of normal windows, in time order.
        longest: alerts in a row that may still be a false alarm (windows that overlap alert together).
        accept_after: alerts in a row after which they are the new normal.
        memory: scores that are remembered; 0: as many as there are calibration scores, but at least 2 / rate.
    """

    def __init__(self, calibration: np.ndarray, rate: float, longest: int, accept_after: int, memory: int = 0):
        self.rate, self.longest, self.accept_after = rate, longest, accept_after
        self.memory = memory or max(len(calibration), math.ceil(2 / rate))
        self.recent = [float(s) for s in np.asarray(calibration, np.float64)[-self.memory :]]
        self.ordered = np.sort(self.recent)
        self.level, self.before = rate, rate  # now, and when the present run of alerts began
        self.run: list[float] = []  # scores of the present run of alerts

    def judge(self, score: float) -> Judgement:
        """Judge the next window; a score that is not finite is the strangest of all."""
        score = float(score) if math.isfinite(score) else math.inf
        floor = 1 / (len(self.recent) + 1)
        level = self.level = min(max(self.level, floor), max(WIDEST * self.rate, floor))
        at_least = len(self.ordered) - np.searchsorted(self.ordered, score, side="left")
        p = float(1 + at_least) / (len(self.ordered) + 1)
        alert = p <= level * (1 + 1e-9)
        new: list[float] = []
        if alert:
            if not self.run:
                self.before = level
            self.run.append(score)
            if len(self.run) <= self.longest:
                self.level = level * math.exp(-STEP * (1 - self.rate))
            elif len(self.run) <= self.accept_after:
                self.level = self.before
            else:
                new, self.run = self.run, []
        else:
            new = [*self.run, score] if len(self.run) <= self.longest else [score]
            self.run = []
            self.level = level * math.exp(STEP * self.rate)
        if new:
            self.recent = (self.recent + [s for s in new if math.isfinite(s)])[-self.memory :]
            self.ordered = np.sort(self.recent)
        return Judgement(p, level, alert)

    def judge_all(self, scores: np.ndarray) -> Adaptive:
        """Judge windows [M] in time order."""
        judged = np.array([self.judge(score) for score in scores], np.float64).reshape(-1, 3)
        return Adaptive(judged[:, 0], judged[:, 1], judged[:, 2].astype(bool))
