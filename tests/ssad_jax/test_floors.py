"""Every floor through the same test."""

import numpy as np
import pytest

from ssad_jax.floors import FLOORS, Signals, signals
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
