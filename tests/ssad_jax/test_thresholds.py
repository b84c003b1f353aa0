"""Thresholds from normal scores alone."""

import numpy as np
import pytest

from data_prep.errors import InputError
from ssad_jax.config import default_config
from ssad_jax.scoring.thresholds import choose_threshold, pot_threshold, quantile_threshold


def test_quantile_by_hand():
    threshold = quantile_threshold(np.arange(101.0), 0.99)
    assert threshold.value == pytest.approx(99.0)
    assert "0.99 quantile of 101" in threshold.method and "fewer" not in threshold.method
    assert "fewer" in quantile_threshold(np.arange(50.0), 0.99).method


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
