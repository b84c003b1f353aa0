"""Seconds of repeated calls, by turns where several programs are compared: these machines are noisy."""

import time
from collections.abc import Callable

import jax
import numpy as np


def seconds(call: Callable) -> float:
    """Of one call, until all arrays that it returns are there."""
    begin = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begin


def by_turns(calls: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each call returns, in `rounds` rounds of one call each."""
    out = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            out[name].append(call())
    return out


def median_time(call: Callable, repeats: int) -> float:
    """Median seconds of `repeats` calls after one that warms up."""
    seconds(call)
    return float(np.median([seconds(call) for _ in range(repeats)]))


def rates(work: float, times: list[float]) -> dict[str, float]:
    """Units of work a second: of the median time, and of the quartiles."""
    low, middle, high = (float(work / q) for q in np.quantile(times, [0.75, 0.5, 0.25]))
    return {"median": middle, "low": low, "high": high}
