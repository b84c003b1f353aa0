"""Rows of the metric files: what a glances export on each host would have read.

The sampler's interval wanders between about 0.5 and 1.9 s, so that some seconds have two rows and some none;
its law is fitted to the one real export (steps of 0, 1, 2 s: 12.6, 69.4, 17.9 %, a gap in a thousand).
"""

import math

import numpy as np

from data_prep.simulate.cluster import BASE_CPU, CORES
from data_prep.simulate.state import Host

INTERVAL_MEAN, INTERVAL_SPREAD, INTERVAL_MEMORY = 1.165, 0.375, 120.0  # seconds, averages over time not rows
GAP_SHARE = 0.0011
PAGE = 4096


def sample_times(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Seconds at which the sampler reads, [rows] float64, increasing."""
    # One slowly wandering interval, on a grid of 10 s.
    grid = np.arange(0.0, seconds + 20.0, 10.0)
    interval = np.clip(INTERVAL_MEAN + INTERVAL_SPREAD * wander(rng, len(grid), INTERVAL_MEMORY / 10.0), 0.5, 1.95)
    times, now = [], rng.uniform(0.0, 1.0)
    while now < seconds:
        times.append(now)
        now += interval[int(now / 10.0)] * (1.0 + 0.015 * rng.standard_normal())
        if rng.random() < GAP_SHARE:
            now += min(1.5 + rng.pareto(0.9) * 2.0, 180.0)
    return np.asarray(times)


def wander(rng: np.random.Generator, steps: int, memory: float) -> np.ndarray:
    """A stationary Gaussian autoregression of unit variance; `memory` in steps."""
    keep = math.exp(-1.0 / memory)
    noise = rng.standard_normal(steps) * math.sqrt(1.0 - keep * keep)
    values = np.empty(steps)
    value = rng.standard_normal()
    for step in range(steps):
        value = keep * value + noise[step]
        values[step] = value
    return values


def load_averages(rng: np.random.Generator, runnable: np.ndarray) -> np.ndarray:
    """Load over 1, 5 and 15 minutes at each second, [seconds, 3], updated every 5 s as in the kernel."""
    decay = np.exp(-5.0 / np.array([60.0, 300.0, 900.0]))
    load = np.full(3, runnable[:60].mean())
    rows = np.empty((len(runnable), 3))
    phase = int(rng.integers(0, 5))
    for second, wanted in enumerate(rng.poisson(np.maximum(runnable, 0.0))):
        if second % 5 == phase:
            load = load * decay + wanted * (1.0 - decay)
        rows[second] = load
    return rows


def host_rows(host: Host, seconds: int, seed: int) -> tuple[np.ndarray, ...]:
    """(times, cpu.user %, mem.used bytes, loads [rows, 3]) of one host."""
    rng = np.random.default_rng([seed, 7, *host.name.encode()])
    times = sample_times(rng, seconds)
    busy = 100.0 * np.asarray(host.busy[:seconds]) / CORES
    second = times.astype(int)
    before = np.maximum(second - 1, 0)
    part = times - second
    base = BASE_CPU[host.name] * (1.0 + 0.12 * wander(rng, seconds // 10 + 1, 90.0)[second // 10])
    cpu = base + part * busy[second] + (1.0 - part) * busy[before]
    cpu += 0.18 * base * (rng.gamma(2.0, 1.0, len(times)) - 2.0) + 0.8 * rng.standard_normal(len(times))
    cpu = np.where(cpu > 96.0, 96.0 + 4.0 * rng.random(len(times)), cpu)
    changes = sorted(host.memory_changes)
    at, level = np.array([row[0] for row in changes]), np.cumsum([row[1] for row in changes])
    memory = level[np.searchsorted(at, times, side="right") - 1]
    memory += 60.0 * wander(rng, seconds // 10 + 1, 120.0)[second // 10] + 5.0 * rng.standard_normal(len(times))
    memory += (20.0 + 20.0 * rng.random()) * times / 3600.0  # slow growth, MB an hour
    runnable = np.asarray(host.busy[:seconds]) + np.asarray(host.waiting[:seconds]) + BASE_CPU[host.name] * CORES / 100
    loads = load_averages(rng, runnable)[second]
    pages = np.round(np.clip(memory, 500.0, 16013.0) * 2**20 / PAGE).astype(np.int64) * PAGE
    return times, np.round(np.clip(cpu, 0.3, 100.0), 1), pages, np.round(loads, 2)
