"""Scores that a method gives windows by itself: their scale, and what a window without a score is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_prep.errors import InputError
from ssad_jax.config import default_config
from ssad_jax.methods.interface import Method, WindowScores
from ssad_jax.scoring.detectors import method_detectors, score_dataset, suspect_lists
from ssad_jax.scoring.terms import scorer
from ssad_jax.scoring.window_scores import on_held_out_scale
from tests.synthetic import make_prepared


def test_the_scale_is_that_of_the_held_out_windows():
    held_out = np.arange(101.0)
    low, high = on_held_out_scale(held_out, np.array([50.0, 95.0, 140.0]))
    assert low[50] == 0 and low[95] == 1 and high.tolist() == [0, 1, 2]


def test_each_score_has_its_own_scale():
    held_out = np.stack([np.arange(101.0), 10 * np.arange(101.0) + 7], axis=1)
    low, _ = on_held_out_scale(held_out, held_out)
    np.testing.assert_allclose(low[:, 0], low[:, 1])


def test_a_window_without_a_score_is_usual():
    low, high = on_held_out_scale(np.array([np.nan, 1.0, 2.0, 3.0]), np.array([np.nan, 2.0]))
    assert low[0] == 0 and high.tolist() == [0, 0]


@pytest.mark.parametrize("held_out", [np.full(5, 3.0), np.full(5, np.nan)])
def test_constant_or_no_scores_in_normal_time_leave_differences_as_they_are(held_out):
    low, high = on_held_out_scale(held_out, np.array([3.0, 4.0]))
    assert not low.any() and high[1] - high[0] == 1


def test_scores_that_differ_by_rounding_are_all_usual_and_others_are_not():
    constant = np.float32([7, 7, np.nextafter(np.float32(7), 8), 7])
    low, high = on_held_out_scale(constant, np.float32([7.000001, 6.999999, 8, np.nan]))
    assert not low.any() and high.tolist() == [0, 0, 1, 0]
    columns = np.stack([constant, np.float32([0, 1, 2, 3])], axis=1)
    low, _ = on_held_out_scale(columns, columns)
    assert not low[:, 0].any() and len(set(low[:, 1])) == 4


def own_scores(names, services: bool) -> Method:
    """Scores: the mean square of a window's nodes times a gain; nan in each fourth window."""

    def score(params, batch, keys=None):
        each = params["gain"] * jnp.square(batch.graphs.nodes).mean((-1, -2))
        each = jnp.where(batch.start_tick % 4 == 0, jnp.nan, each)
        service = jnp.square(batch.graphs.nodes[..., 0])[..., :3] if services else None
        return WindowScores(jnp.stack([each, -each], axis=-1), service)

    return Method(lambda key: {"gain": jax.random.uniform(key, ())}, None, score, score_names=names)


def scored_by(method, gains, data):
    params = {"gain": jnp.asarray(gains)}
    return score_dataset(scorer(method), params, data, default_config("toy").score)


@pytest.fixture(scope="module")
def data():
    return make_prepared()


def test_the_first_score_is_the_method_s_and_others_stand_beside_it(data):
    scored = scored_by(own_scores(("up", "down"), False), [1.0], data)
    detectors = method_detectors(data, scored, default_config("toy").score)
    assert list(detectors["variants"]) == ["calibrated", "paper"] and list(detectors["terms"]) == ["down"]
    np.testing.assert_array_equal(detectors["variants"]["calibrated"].score, scored.terms.own[:, 0])
    assert detectors["kinds"] == {}


def test_a_larger_gain_changes_no_calibrated_score(data):
    method = own_scores(("up", "down"), False)
    one, ten = (scored_by(method, [gain], data) for gain in (1.0, 10.0))
    np.testing.assert_allclose(one.scores.calibrated, ten.scores.calibrated, rtol=1e-4, atol=1e-4)


def test_windows_without_a_score_are_counted_and_usual(data):
    scored = scored_by(own_scores(("up", "down"), False), [1.0], data)
    silent = data.windows.start_tick[scored.terms.window] % 4 == 0
    assert 0 < scored.unjudged == silent.sum() < len(silent)
    assert not scored.scores.calibrated[silent].any() and scored.scores.calibrated[~silent].any()


def test_no_held_out_score_may_be_infinite(data):
    with pytest.raises(InputError, match="18 of 24 held-out windows are infinite"):
        scored_by(own_scores(("up", "down"), False), [np.inf], data)


def test_an_infinite_score_of_a_test_window_alerts(data):
    nodes, row = data.windows.nodes.copy(), int(data.test_runs[0, 1])
    nodes[row] = 1e30  # the square overflows
    other = dataclasses.replace(data, windows=dataclasses.replace(data.windows, nodes=nodes))
    scored = scored_by(own_scores(("up", "down"), False), [1.0], other)
    found = method_detectors(other, scored, default_config("toy").score)["variants"]["calibrated"]
    place = int(np.flatnonzero(scored.terms.window == row)[0])
    assert np.isinf(found.score[place]) and found.alert[place]


def test_services_of_which_nothing_is_said_are_usual(data):
    method = own_scores(("up", "down"), True)

    def score(params, batch, keys=None):
        found = method.score(params, batch)
        return found._replace(service=found.service.at[..., 1].set(jnp.nan))

    scored = scored_by(method._replace(score=score), [1.0], data)
    assert np.isfinite(scored.scores.node_error).all()
    assert all(len(names) == len(set(names)) for names in suspect_lists(data, scored))


def test_a_method_without_service_scores_names_no_suspects(data):
    assert suspect_lists(data, scored_by(own_scores(("up", "down"), False), [1.0], data)) is None


def test_networks_that_take_turns_are_put_on_one_scale(data):
    groups = data.windows.group.copy()
    own = np.unique(data.calibration_runs[data.calibration_runs >= 0])
    groups[own] = np.arange(len(own)) % 2
    turns = dataclasses.replace(data, windows=dataclasses.replace(data.windows, group=groups))
    method = own_scores(("up", "down"), False)
    same, unlike = (scored_by(method, gains, turns) for gains in ([1.0, 1.0], [1.0, 1000.0]))
    np.testing.assert_allclose(same.scores.calibrated, unlike.scores.calibrated, rtol=1e-3, atol=1e-3)
