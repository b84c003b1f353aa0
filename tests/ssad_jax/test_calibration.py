"""Calibration against cases counted by hand, and what it is for: one bad node in many, a useless term."""

import numpy as np
import pytest

from data_prep.errors import InputError
from ssad_jax.config import default_config
from ssad_jax.prepared import NODE_KINDS
from ssad_jax.scoring import calibration as calibrations
from ssad_jax.scoring.calibration import KIND_FLOOR, Calibration, column_errors, evidence, lasting_residual, node_errors
from ssad_jax.scoring.terms import Columns, Terms, joined

# Node 0 (service): one channel; node 2 (log): two channels. N = 4, node 3 is padding.
PLACE = Columns(
    node=np.array([0, 2, 2]), channel=np.array([0, 0, 1]), kind=np.array([0, 1, 1]), evidence=np.ones(3, bool),
    rising=np.zeros(3, bool),
)  # fmt: skip


def settings(**kwargs):
    config = default_config("test").score
    config.update({"alpha": 1.0, "beta": 1.0, "eta": 1.0} | kwargs)
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


def alone(some: Terms) -> np.ndarray:
    """No window has one before it."""
    return np.full(len(some.window), -1)


def fit_calibration(place, fit, held_out, run, num_nodes, score_config):
    return calibrations.fit_calibration(place, fit, held_out, alone(held_out), run, num_nodes, 4, score_config)


def apply_calibration(calibration, place, new, num_nodes):
    return calibrations.apply_calibration(calibration, place, new, alone(new), num_nodes)


def test_errors_by_hand():
    place = PLACE._replace(rising=np.array([False, True, True]))
    residual = np.array([[3.0, -4.0, 1.0], [-3.0, 4.0, -1.0]])
    lasting = lasting_residual(residual, np.array([-1, 0]))
    np.testing.assert_allclose(lasting, np.zeros((2, 3)), atol=1e-7)
    error = column_errors(residual, lasting, np.array([1.0, 2.0, 0.2]), place)
    np.testing.assert_allclose(error, [[3.0, 0.0, 5.0], [3.0, 2.0, 0.0]])
    np.testing.assert_allclose(node_errors(error, place, 4), [[3.0, 0.0, 5.0, 0.0], [3.0, 0.0, 2.0, 0.0]])


def test_a_deviation_that_lasts_counts_more_than_noise_that_does_not():
    residual = np.array([[2.0], [2.0], [-2.0]])
    lasting = lasting_residual(residual, np.array([-1, 0, 1]))
    np.testing.assert_allclose(lasting[:, 0], [0, 4 / np.sqrt(2), 0], atol=1e-6)
    place = Columns(*(a[:1] for a in PLACE))
    np.testing.assert_allclose(column_errors(residual, lasting, np.ones(1), place)[:, 0], [2, 4 / np.sqrt(2), 2])


def test_scale_is_the_rms_about_the_held_out_mean_with_a_floor():
    fit, held_out = terms([[3.0, 0.1, 1.0]] * 2), terms([[1.0, 0.1, 1.0]] * 2)
    calibration, _ = fit_calibration(PLACE, fit, held_out, np.array([0, 1]), 4, settings(scale_floor=0.2))
    np.testing.assert_allclose(calibration.centre, [1.0, 0.1, 1.0])
    floors = [0.2 * KIND_FLOOR.get(NODE_KINDS[k], 1.0) for k in PLACE.kind]
    np.testing.assert_allclose(calibration.scale, [np.sqrt(2.0), *floors[1:]], rtol=1e-6)


def test_a_run_is_judged_by_scales_fitted_without_it():
    held_out = terms([[9.0, 0, 0], [0, 0, 0], [0, 0, 0]])  # mean 3: they are 6, -3 and -3 off
    _, scores = fit_calibration(PLACE, terms([[3.0, 0, 0]]), held_out, np.array([0, 1, 1]), 4, settings())
    assert scores.node_error[0, 0] == pytest.approx(6 / np.sqrt(18 / 3))
    assert scores.node_error[1, 0] == pytest.approx(3 / np.sqrt(36 / 2))


def test_kinds_are_scaled_by_runs_and_terms_by_windows():
    rng = np.random.default_rng(0)
    held_out = random_terms(rng, 2000)
    run = np.arange(2000) // 20
    calibration, scores = fit_calibration(PLACE, random_terms(rng, 2000), held_out, run, 4, settings())
    for k in (0, 1):
        assert np.median(scores.kind[:, k]) == pytest.approx(0, abs=1e-6)
        worst = scores.kind[:, k].reshape(100, 20).max(1)
        assert np.mean(worst > 1) == pytest.approx(0.25, abs=0.01)
    for column in (scores.temporal, scores.prior):
        assert np.median(column) == pytest.approx(0, abs=1e-6)
        assert np.quantile(column, 0.95) == pytest.approx(1, abs=1e-6)
    np.testing.assert_array_equal(scores.reconstruction, scores.kind.max(1))
    again = apply_calibration(calibration, PLACE, held_out, 4)
    np.testing.assert_allclose(again.calibrated, scores.calibrated, atol=0.05)


def by_hand(**kwargs) -> Calibration:
    values = dict(
        centre=np.zeros(3, np.float32), scale=np.ones(3, np.float32), kinds=np.array([0, 1]),
        kind_median=np.array([1.0, 2.0]), kind_spread=np.array([1.0, 2.0]), node_median=np.zeros(5),
        node_spread=np.ones(5), term_median=np.array([0.5, 1.0]), term_spread=np.array([0.5, 1.0]),
        warm_up=np.array(3), weights=np.array([2.0, 3.0, 5.0]),
    )  # fmt: skip
    return Calibration(**values | kwargs)


def test_joint_score_by_hand():
    calibration = by_hand()
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


def test_terms_that_were_read_off_the_states_take_the_place_of_the_papers():
    new = terms([[0.0, 0.0, 0.0]], temporal=[9.0], prior=[9.0])._replace(read=np.array([[1.5, 3.0]], np.float32))
    scores = apply_calibration(by_hand(), PLACE, new, 4)
    assert (scores.temporal[0], scores.prior[0], scores.paper[0]) == (2.0, 2.0, 18.0)


def test_channels_that_are_no_evidence_tell_suspects_apart_and_no_more():
    place = PLACE._replace(evidence=np.array([True, True, False]))
    scores = apply_calibration(by_hand(), place, terms([[3.0, 4.0, 9.0]]), 4)
    np.testing.assert_allclose(scores.kind, [[2.0, 1.0]])
    np.testing.assert_allclose(scores.node_error, [[3.0, 0.0, 9.0, 0.0]])


def test_a_kind_that_is_silent_in_normal_time_does_not_divide_by_zero():
    nothing, silent = terms(np.zeros((0, 3))), terms(np.zeros((6, 3)))
    calibration, _ = fit_calibration(PLACE, nothing, silent, np.arange(6), 4, settings())
    scores = apply_calibration(calibration, PLACE, terms([[0, 0, 0], [0, 1.0, 0]]), 4)
    assert scores.reconstruction[0] == 0 and scores.reconstruction[1] == pytest.approx(1 / calibration.scale[1] / 0.25)


def test_one_bad_node_and_a_useless_heavy_tailed_term():
    rng = np.random.default_rng(1)
    count = 200
    place = Columns(
        np.arange(count), np.zeros(count, int), np.ones(count, int), np.ones(count, bool), np.zeros(count, bool)
    )

    def draw(m):
        return terms(rng.normal(size=(m, count)), prior=np.exp(2 * rng.normal(size=m)))

    score_config = settings(beta=0.5, eta=0.5)
    calibration, _ = fit_calibration(place, draw(300), draw(300), np.arange(300) // 10, count, score_config)
    normal, faulty = draw(400), draw(400)
    faulty.residual[:, 17] += 7.0
    low, high = (apply_calibration(calibration, place, t, count) for t in (normal, faulty))

    def auroc(a, b):
        return (a[:, None] < b).mean()

    assert auroc(low.calibrated, high.calibrated) > 0.95
    plain = [s.reconstruction + s.temporal + s.prior for s in (low, high)]
    assert auroc(*plain) < auroc(low.calibrated, high.calibrated)
    mean = [np.square(t.residual).mean(1) for t in (normal, faulty)]
    assert auroc(*mean) < 0.95


def test_two_terms_that_agree_outweigh_one_that_is_alone():
    agreeing, lonely = [[2.0, 2.0, 2.0], [8.0, 0.0, 0.0]]
    assert sum(evidence(np.array(agreeing))) > sum(evidence(np.array(lonely)))


def test_calibration_goes_through_arrays():
    rng = np.random.default_rng(0)
    calibration, _ = fit_calibration(PLACE, random_terms(rng, 9), random_terms(rng, 9), np.arange(9), 4, settings())
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
    calibration, scores = fit_calibration(PLACE, late, both, np.arange(80) // 8, 4, settings())
    assert calibration.term_median[1] == pytest.approx(np.median(late.prior)) and (scores.prior[:40] == 0).all()
    calibration, scores = fit_calibration(PLACE, late, early, np.arange(40) // 8, 4, settings())
    np.testing.assert_array_equal(scores.calibrated, evidence(scores.reconstruction))
    np.testing.assert_array_equal(apply_calibration(calibration, PLACE, late, 4).prior, 0)


def test_no_calibration_window_is_an_input_error():
    none = terms(np.zeros((0, 3)))
    with pytest.raises(InputError, match="calibration_share"):
        fit_calibration(PLACE, terms(np.ones((4, 3))), none, np.zeros(0, int), 4, settings())


def test_runs_of_single_windows_have_no_temporal_term():
    held_out = terms(np.ones((3, 3)), temporal=[np.nan] * 3)
    _, scores = fit_calibration(PLACE, held_out, held_out, np.arange(3), 4, settings())
    np.testing.assert_array_equal(scores.temporal, 0)
    assert np.isfinite(scores.calibrated).all()
