"""Calibration against cases counted by hand, and what it is for: one bad node in many, a useless term."""

import numpy as np
import pytest

from data_prep.errors import InputError
from ssad_jax.config import default_config
from ssad_jax.scoring.calibration import Calibration, apply_calibration, evidence, fit_calibration, node_errors
from ssad_jax.scoring.terms import Columns, Terms, joined

# Node 0 (service): one channel; node 2 (log): two channels. N = 4, node 3 is padding.
PLACE = Columns(node=np.array([0, 2, 2]), channel=np.array([0, 0, 1]), kind=np.array([0, 1, 1]))


def settings(**kwargs):
    config = default_config("test").score
    config.update(kwargs)
    return config


def terms(residual, temporal=None, prior=None, paper=None, position=50):
    residual = np.asarray(residual, np.float32)
    m = len(residual)
    zeros = np.zeros(m, np.float32)
    return Terms(
        np.arange(m), np.full(m, position), residual, zeros if temporal is None else np.asarray(temporal, np.float32),
        zeros if prior is None else np.asarray(prior, np.float32),
        zeros if paper is None else np.asarray(paper, np.float32), np.zeros(m, int),
    )  # fmt: skip


def random_terms(rng, m, **kwargs):
    return terms(rng.normal(size=(m, 3)), 1 + 0.1 * rng.normal(size=m), 2 + rng.normal(size=m) ** 2, **kwargs)


def test_node_error_is_the_largest_scaled_channel():
    error = node_errors(np.array([[3.0, -4.0, 1.0]]), np.array([1.0, 2.0, 0.2]), PLACE, 4)
    np.testing.assert_allclose(error, [[3.0, 0.0, 5.0, 0.0]])


def test_scale_is_the_rms_over_fit_and_calibration_windows_with_a_floor():
    fit, held_out = terms([[3.0, 0.1, 1.0]] * 2), terms([[1.0, 0.1, 1.0]] * 2)
    calibration, _ = fit_calibration(PLACE, fit, held_out, np.array([0, 1]), 4, 4, settings(scale_floor=0.2))
    np.testing.assert_allclose(calibration.scale, [np.sqrt(5.0), 0.2, 1.0], rtol=1e-6)


def test_a_run_is_judged_by_scales_fitted_without_it():
    held_out = terms([[6.0, 0, 0], [2.0, 0, 0]])
    _, scores = fit_calibration(PLACE, terms([[2.0, 0, 0]]), held_out, np.array([0, 1]), 4, 4, settings())
    assert scores.node_error[0, 0] == pytest.approx(3.0)  # 6 / rms(2, 2)
    assert scores.node_error[1, 0] == pytest.approx(2 / np.sqrt((36 + 4) / 2))


def test_kinds_and_terms_are_centred_on_their_median_and_scaled_by_q95():
    rng = np.random.default_rng(0)
    held_out = random_terms(rng, 2000)
    run = np.arange(2000) // 20
    calibration, scores = fit_calibration(PLACE, random_terms(rng, 2000), held_out, run, 4, 4, settings())
    values = [scores.kind[:, 0], scores.kind[:, 1], scores.temporal, scores.prior]
    for column in values:
        assert np.median(column) == pytest.approx(0, abs=1e-6)
        assert np.quantile(column, 0.95) == pytest.approx(1, abs=1e-6)
    np.testing.assert_array_equal(scores.reconstruction, scores.kind.max(1))
    again = apply_calibration(calibration, PLACE, held_out, 4)
    np.testing.assert_allclose(again.calibrated, scores.calibrated, atol=0.05)


def test_joint_score_by_hand():
    calibration = Calibration(
        scale=np.ones(3, np.float32), kinds=np.array([0, 1]), kind_median=np.array([1.0, 2.0]),
        kind_spread=np.array([1.0, 2.0]), term_median=np.array([0.5, 1.0]), term_spread=np.array([0.5, 1.0]),
        warm_up=np.array(3), weights=np.array([2.0, 3.0, 5.0]),
    )  # fmt: skip
    new = terms([[3.0, 0.0, -8.0], [1.0, 2.0, 0.0]], temporal=[2.0, np.nan], prior=[4.0, 1.5], paper=[10.0, 20.0])
    scores = apply_calibration(calibration, PLACE, new, 4)
    np.testing.assert_allclose(scores.kind, [[2.0, 3.0], [0.0, 0.0]])
    np.testing.assert_allclose(scores.temporal, [3.0, 0.0])  # no history: no evidence
    np.testing.assert_allclose(scores.prior, [3.0, 0.5])
    np.testing.assert_allclose(scores.calibrated, [(2 + 3 + 5) * np.log(4), 5 * np.log(1.5)])
    np.testing.assert_allclose(scores.paper, [10 + 2 + 4, 20 + 0 + 1.5])
    np.testing.assert_allclose(evidence(np.array([-5.0, 0.0, 1.0, np.e - 1])), [0, 0, np.log(2), 1])
    early = apply_calibration(calibration, PLACE, new._replace(position=np.array([2, 3])), 4)
    np.testing.assert_allclose(early.calibrated, [2 * np.log(4), 5 * np.log(1.5)])  # before the warm-up is over
    np.testing.assert_allclose(early.prior, [0.0, 0.5])


def test_a_kind_that_is_silent_in_normal_time_does_not_divide_by_zero():
    nothing, silent = terms(np.zeros((0, 3))), terms(np.zeros((6, 3)))
    calibration, _ = fit_calibration(PLACE, nothing, silent, np.arange(6), 4, 4, settings())
    scores = apply_calibration(calibration, PLACE, terms([[0, 0, 0], [0, 1.0, 0]]), 4)
    assert scores.reconstruction[0] == 0 and scores.reconstruction[1] == pytest.approx(5 / 0.25)


def test_one_bad_node_and_a_useless_heavy_tailed_term():
    rng = np.random.default_rng(1)
    place = Columns(np.arange(200), np.zeros(200, int), np.ones(200, int))

    def draw(m):
        return terms(rng.normal(size=(m, 200)), prior=np.exp(2 * rng.normal(size=m)))

    calibration, _ = fit_calibration(place, draw(300), draw(300), np.arange(300) // 10, 200, 4, settings())
    normal, faulty = draw(400), draw(400)
    faulty.residual[:, 17] += 7.0
    low, high = (apply_calibration(calibration, place, t, 200) for t in (normal, faulty))

    def auroc(a, b):
        return (a[:, None] < b).mean()

    assert auroc(low.calibrated, high.calibrated) > 0.97
    plain = [s.reconstruction + s.temporal + s.prior for s in (low, high)]
    assert auroc(*plain) < auroc(low.calibrated, high.calibrated)
    mean = [np.square(t.residual).mean(1) for t in (normal, faulty)]
    assert auroc(*mean) < 0.95


def test_calibration_goes_through_arrays():
    rng = np.random.default_rng(0)
    calibration, _ = fit_calibration(PLACE, random_terms(rng, 9), random_terms(rng, 9), np.arange(9), 4, 4, settings())
    again = Calibration.from_arrays(calibration.arrays())
    new = random_terms(rng, 5)
    for one, two in zip(*(apply_calibration(c, PLACE, new, 4) for c in (calibration, again)), strict=True):
        np.testing.assert_array_equal(one, two)


def test_secondary_terms_are_calibrated_past_the_warm_up_or_not_at_all():
    rng = np.random.default_rng(0)
    early, late = random_terms(rng, 40), random_terms(rng, 40)
    early.prior[:] += 100  # of a state that starts from zero
    early = early._replace(position=np.zeros(40, int))
    both = joined([early, late])
    calibration, scores = fit_calibration(PLACE, late, both, np.arange(80) // 8, 4, 4, settings())
    assert calibration.term_median[1] == pytest.approx(np.median(late.prior)) and (scores.prior[:40] == 0).all()
    calibration, scores = fit_calibration(PLACE, late, early, np.arange(40) // 8, 4, 4, settings())
    np.testing.assert_array_equal(scores.calibrated, evidence(scores.reconstruction))
    np.testing.assert_array_equal(apply_calibration(calibration, PLACE, late, 4).prior, 0)


def test_no_calibration_window_is_an_input_error():
    none = terms(np.zeros((0, 3)))
    with pytest.raises(InputError, match="calibration_share"):
        fit_calibration(PLACE, terms(np.ones((4, 3))), none, np.zeros(0, int), 4, 4, settings())


def test_runs_of_single_windows_have_no_temporal_term():
    held_out = terms(np.ones((3, 3)), temporal=[np.nan] * 3)
    _, scores = fit_calibration(PLACE, held_out, held_out, np.arange(3), 4, 4, settings())
    np.testing.assert_array_equal(scores.temporal, 0)
    assert np.isfinite(scores.calibrated).all()
