"""Thresholds from normal scores alone."""

import numpy as np
import pytest

from data_prep.errors import InputError
from ssad_jax.config import default_config
from ssad_jax.scoring.conformal import Online, overlap, p_values
from ssad_jax.scoring.thresholds import (
    choose_threshold,
    conformal_threshold,
    decide,
    pot_threshold,
    quantile_threshold,
)


def test_quantile_by_hand():
    threshold = quantile_threshold(np.arange(1001.0), 0.99)
    assert threshold.value == pytest.approx(990.0)
    assert threshold.method == "0.99 quantile of 1001 held-out normal windows"
    few = quantile_threshold(np.arange(101.0), 0.99, effective=20)  # two of 20 lie above the 0.9 quantile
    assert few.value == 90.0 and "too few" in few.method


@pytest.mark.parametrize("name", ["quantile", "pot", "conformal", "adaptive"])
def test_a_new_score_that_is_not_finite_alerts(name):
    config = default_config("test").score
    config.threshold = name
    normal = np.random.default_rng(0).normal(size=300)
    decided = decide(normal, np.array([0.0, np.nan, -np.inf, 0.0]), config)
    assert decided.alert.tolist() == [False, True, True, False]
    assert decided.p_value[1] == decided.p_value.min() == pytest.approx(1 / 301)


def test_scores_that_are_not_finite_are_left_out():
    assert quantile_threshold(np.array([1.0, np.nan, 3.0, np.inf]), 0.5).value == 2.0
    with pytest.raises(InputError, match="diverged"):
        quantile_threshold(np.array([np.nan]), 0.5)


def test_pot_extrapolates_an_exponential_tail():
    scores = np.random.default_rng(0).exponential(size=20_000)
    assert pot_threshold(scores, 1e-4).value == pytest.approx(-np.log(1e-4), rel=0.12)
    heavy = np.random.default_rng(0).pareto(3.0, size=20_000)
    assert pot_threshold(heavy, 1e-3).value == pytest.approx(1e-3 ** (-1 / 3) - 1, rel=0.15)


@pytest.mark.parametrize("scores", [np.arange(20.0), np.ones(500)])
def test_pot_without_a_tail_says_that_it_took_the_quantile(scores):
    threshold = pot_threshold(scores, 0.05)
    assert threshold.value == quantile_threshold(scores, 0.95).value
    assert "POT needs" in threshold.method


def test_choice():
    config = default_config("test").score
    scores = np.random.default_rng(0).exponential(size=1000)
    assert choose_threshold(scores, config).method.startswith("0.99 quantile")
    config.threshold = "pot"
    assert choose_threshold(scores, config).method.startswith("POT")
    config.threshold = "guess"
    with pytest.raises(InputError, match="quantile, pot, conformal or adaptive"):
        choose_threshold(scores, config)


def test_conformal_threshold_is_the_p_value():
    rng = np.random.default_rng(0)
    calibration, scores = np.round(rng.exponential(size=400), 2), np.round(rng.exponential(size=3000), 2)
    for rate in (0.01, 0.0499, 0.2):
        threshold = conformal_threshold(calibration, rate)
        np.testing.assert_array_equal(scores > threshold.value, p_values(calibration, scores) <= rate)
        assert "guaranteed" not in threshold.method


def test_conformal_says_when_windows_are_too_few():
    few = conformal_threshold(np.arange(50.0), 0.01)
    assert few.value == 49.0 and "cannot be guaranteed" in few.method and "takes 99 windows" in few.method
    assert "least rate is 0.02" in few.method  # 1 / 51
    overlapping = conformal_threshold(np.arange(199.0), 0.01, effective=50)
    assert overlapping.value == 197.0 and "50 that do not overlap" in overlapping.method
    assert "cannot be guaranteed" in overlapping.method
    assert "guaranteed" not in conformal_threshold(np.arange(99.0), 0.01).method


def decided(threshold, windows="all", layout=None, held_out=None, test=None):
    config = default_config("test").score
    config.update({"threshold": threshold, "false_alarm_rate": 0.05, "conformal_windows": windows})
    held_out = np.arange(100.0) if held_out is None else held_out
    return decide(held_out, np.array([10.0, 94.0, 95.0, 200.0]) if test is None else test, config, layout)


def test_decisions_by_hand():
    layout = overlap(np.arange(100) * 5, 20, 5)
    assert decided("quantile").alert.tolist() == [False, False, False, True]  # two of 100 lie above 97.02
    quantile = decided("quantile", layout=layout)  # of 25 that share no tick above the 0.92 quantile: 91.08
    assert quantile.threshold.value == pytest.approx(91.08) and quantile.alert.tolist() == [False, True, True, True]
    np.testing.assert_allclose(quantile.p_value, np.array([91, 7, 6, 1]) / 101)
    conformal = decided("conformal", layout=layout)
    assert conformal.threshold.value == 95.0 and conformal.alert.tolist() == [False, False, False, True]
    thinned = decided("conformal", "disjoint", layout)  # of every fourth: 0, 4, ..., 96
    np.testing.assert_allclose(thinned.p_value, np.array([23, 2, 2, 1]) / 26)
    assert thinned.threshold.value == 96.0 and "25 held-out" in thinned.threshold.method


def test_the_adaptive_decision_is_the_online_one():
    rng = np.random.default_rng(0)
    held_out, test = rng.standard_normal(200), rng.standard_normal(500) + np.linspace(0, 3, 500)
    layout = overlap(np.arange(200) * 5, 20, 5)
    result = decided("adaptive", layout=layout, held_out=held_out, test=test)
    online = Online(held_out, 0.05, longest=10, accept_after=720).judge_all(test)
    np.testing.assert_array_equal(result.alert, online.alert)
    np.testing.assert_array_equal(result.p_value, online.p_value)
    assert "adapted online" in result.threshold.method
    with pytest.raises(InputError, match="diverged"):
        decided("adaptive", held_out=np.full(5, np.nan))
