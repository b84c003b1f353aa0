"""Conformal p-values by hand, their guarantee, and the online variant under drift, faults and shifts."""

import numpy as np
import pytest

from ssad_jax.scoring.conformal import WIDEST, Online, disjoint, overlap, p_values, rank_for


def adaptive(calibration, scores, *settings, **named):
    return Online(calibration, *settings, **named).judge_all(scores)


def test_p_values_by_hand():
    calibration = np.array([3.0, 1.0, 2.0, 2.0])
    scores = np.array([0.5, 1.0, 2.0, 2.5, 3.0, 4.0])
    np.testing.assert_allclose(p_values(calibration, scores), np.array([5, 5, 4, 2, 2, 1]) / 5)


def test_a_score_that_is_not_finite_is_the_strangest():
    np.testing.assert_allclose(p_values(np.arange(3.0), np.array([np.nan, np.inf])), 0.25)


def test_rank_by_hand():
    assert rank_for(99, 0.01) == 0  # the largest calibration score may not be reached
    assert rank_for(98, 0.01) == -1  # 99 are needed
    assert rank_for(199, 0.01) == 1
    assert rank_for(19, 0.05) == 0
    assert rank_for(0, 0.5) == -1


@pytest.mark.parametrize("draw", [np.random.Generator.standard_normal, np.random.Generator.standard_cauchy])
def test_exchangeable_scores_alert_at_the_rate(draw):
    rng, rate, repeats = np.random.default_rng(0), 0.05, 4000
    alerts = sum(int(p_values(draw(rng, 59), draw(rng, 1))[0] <= rate) for _ in range(repeats))
    exact = 3 / 60  # floor(0.05 * 60) of 60 ranks
    assert abs(alerts / repeats - exact) < 3 * np.sqrt(exact * (1 - exact) / repeats)


def test_disjoint_windows_by_hand():
    np.testing.assert_array_equal(disjoint(np.array([0, 5, 19, 20, 25, 40, 100]), 20), [0, 3, 5, 6])
    np.testing.assert_array_equal(disjoint(np.array([30, 0, 10]), 20), [1, 0])  # rows, whatever their order
    assert overlap(np.arange(0, 100, 5), 20, 5).windows == 4
    assert len(overlap(np.arange(0, 100, 5), 20, 5).disjoint) == 5
    assert overlap(np.arange(0, 100, 30), 20, 30).windows == 1


def drifting(seed, num=6000, calibration=300, rise=3.0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(calibration), rng.standard_normal(num) + np.linspace(0, rise, num)


@pytest.mark.parametrize("rate", [0.01, 0.05])
def test_the_adaptive_rate_holds_where_a_fixed_threshold_does_not(rate):
    fixed, online = [], []
    for seed in range(4):
        calibration, scores = drifting(seed)
        fixed.append(np.mean(p_values(calibration, scores) <= rate))
        online.append(adaptive(calibration, scores, rate, longest=8, accept_after=720).alert.mean())
    assert np.mean(fixed) > 4 * rate
    assert np.mean(online) == pytest.approx(rate, rel=0.15)


def test_without_drift_the_adaptive_rate_is_the_rate():
    calibration, scores = drifting(7, rise=0.0)
    assert adaptive(calibration, scores, 0.02, 8, 720).alert.mean() == pytest.approx(0.02, rel=0.15)


def test_a_long_alarm_is_found_to_its_end_and_not_learnt():
    calibration, scores = drifting(1, num=2000, rise=0.0)
    scores[1000:1100] += 8.0
    faulty = adaptive(calibration, scores, 0.01, 8, 720)
    assert faulty.alert[1000:1100].all()
    quiet = adaptive(calibration, np.delete(scores, np.arange(1000, 1100)), 0.01, 8, 720)
    np.testing.assert_array_equal(np.delete(faulty.alert, np.arange(1000, 1100)), quiet.alert)


def test_a_shift_that_stays_becomes_normal():
    calibration, scores = drifting(2, num=3000, rise=0.0)
    scores[500:] += 8.0
    online = adaptive(calibration, scores, 0.01, longest=8, accept_after=100)
    assert online.alert[500:600].all()
    assert online.alert[1500:].mean() < 0.03


def test_what_beats_everything_remembered_alerts_and_the_level_is_bounded():
    calibration, scores = drifting(3, num=1500, rise=0.0)
    scores[::50] = 20.0 + np.arange(30)  # each higher than all before
    online = adaptive(calibration, scores, 0.01, 8, 720)
    assert online.alert[::50].all()
    assert online.level.max() <= WIDEST * 0.01 + 1e-12 and online.level.min() >= 1 / 301 - 1e-12
    none = adaptive(calibration, np.full(1500, -9.0), 0.01, 8, 720)
    assert not none.alert.any() and none.level[-1] == pytest.approx(WIDEST * 0.01)


def test_adaptive_judges_a_window_by_the_past_alone():
    calibration, scores = drifting(4, num=400)
    first = adaptive(calibration, scores[:200], 0.05, 8, 720)
    whole = adaptive(calibration, scores, 0.05, 8, 720)
    np.testing.assert_array_equal(whole.p_value[:200], first.p_value)
    assert np.isfinite(adaptive(calibration, np.array([np.nan, 0.0]), 0.05, 8, 720).p_value).all()
