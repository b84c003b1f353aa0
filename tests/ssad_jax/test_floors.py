"""Every floor through the same test."""

import dataclasses

import numpy as np
import pytest

from ssad_jax.floors import FLOORS, Signals, signals
from ssad_jax.floors.cross_fit import Windows
from ssad_jax.floors.pyod import PYOD
from tests.synthetic import make_prepared

BLIND = ("random", "all_positive")


def cloud(m, shift=0.0, seed=0):
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(m, 6)) + shift).astype(np.float32)
    kind = np.array(["log", "log", "service", "dependency", "dependency", "metric"])
    channel = np.array(["count", "count", "requests", "calls", "error_share", "level"])
    return Signals(values, kind, channel)


@pytest.mark.parametrize("name", FLOORS)
def test_one_finite_score_a_window(name):
    score = FLOORS[name](cloud(100), 0)
    for m in (0, 1, 40):
        out = score(cloud(m, seed=1))
        assert out.shape == (m,) and np.isfinite(out).all()


@pytest.mark.parametrize("name", [n for n in FLOORS if n not in BLIND])
def test_far_away_windows_score_higher(name):
    score = FLOORS[name](cloud(300), 0)
    assert np.quantile(score(cloud(50, 6.0, seed=2)), 0.1) > np.quantile(score(cloud(50, seed=3)), 0.9)


@pytest.mark.parametrize("name", FLOORS)
def test_the_same_seed_gives_the_same_scores(name):
    one, two = (FLOORS[name](cloud(50), 3)(cloud(9, seed=1)) for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_constant_columns_and_few_fit_windows_do_no_harm():
    flat = cloud(2)
    flat.values[:] = 1.0
    for name, fit in FLOORS.items():
        assert np.isfinite(fit(flat, 0)(cloud(5))).all(), name


def test_count_rule_by_hand():
    kind, channel = np.array(["log", "dependency"]), np.array(["count", "errors"])
    fit = Signals(np.array([[0, 0], [2, 4]], np.float32), kind, channel)
    score = FLOORS["count_rule"](fit, 0)
    # Logs: mean 1, deviation 1, both directions; errors: mean 2, deviation 2, more only.
    new = fit._replace(values=np.array([[-2, 2], [1, 8], [1, -8]], np.float32))
    np.testing.assert_allclose(score(new), [3, 3, 0])


def test_signals_are_those_of_the_windows():
    data = make_prepared(segments=4, windows_per_segment=4)
    some = np.array([3, 7])
    out = signals(data, some)
    mask = data.system.signal_mask
    np.testing.assert_array_equal(out.values, data.windows.nodes[some][:, :, 16:][:, mask])
    assert list(out.channel[out.kind == "dependency"]) == ["calls", "gap"] * 2


@pytest.mark.parametrize("name", PYOD)
def test_pyod_on_flattened_signals(name):
    pytest.importorskip("pyod")
    fit = cloud(60)
    fit.values[:, 2] = 1.0  # tells nothing
    fit.values[:, 3] = 2 * fit.values[:, 4]  # no variance of its own
    score = PYOD[name](fit, 0)
    for m in (0, 1, 40):
        out = score(cloud(m, seed=1))
        assert out.shape == (m,) and np.isfinite(out).all()
    some = cloud(60, seed=3)
    some.values[:4] += 8.0
    out = score(some)
    assert out[:4].min() > np.quantile(out[4:], 0.9)


def test_a_floor_that_scores_a_calibration_group_was_fitted_without_it():
    data = make_prepared(segments=6, windows_per_segment=4)
    part = np.where(data.windows.segment < 4, 0, 2).astype(np.int8)
    group = np.where(part == 0, data.windows.segment % 2, -1).astype(np.int8)
    data = dataclasses.replace(data, windows=dataclasses.replace(data.windows, part=part, group=group))
    held_out, test = np.flatnonzero(part == 0)[::-1], np.flatnonzero(part == 2)
    fitted = []

    def fit(some, seed):  # a score that tells how many windows it was fitted on, and which windows it sees
        fitted.append(len(some.values))
        return lambda other: np.full(len(other.values), float(len(some.values))) + 1e-3 * other.values[:, 0]

    low, high = Windows(data, held_out, test).scores(fit, 0)
    assert sorted(fitted) == [8, 8, 16]
    np.testing.assert_allclose(low, 8 + 1e-3 * signals(data, held_out).values[:, 0], rtol=1e-6)
    np.testing.assert_allclose(high, 16 + 1e-3 * signals(data, test).values[:, 0], rtol=1e-6)
    # Windows held out for good belong to a group that nothing was fitted on: one fit serves both.
    part[group == 1], group[:] = 1, np.where(group == 1, 0, -1)
    fitted.clear()
    held_out = np.flatnonzero(part == 1)
    Windows(data, held_out, test).scores(fit, 0)
    assert fitted == [8]
