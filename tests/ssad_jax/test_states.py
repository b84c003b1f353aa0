"""Terms read off the states: by hand, without looking at the own run, and what whitening is for."""

import numpy as np
import pytest

from ssad_jax.config import default_config
from ssad_jax.scoring.states import FORECAST_RIDGE, Forecast, Mahalanobis, States, read_states
from ssad_jax.scoring.terms import Terms

RUNS, LENGTH, WARM_UP = 12, 30, 4


def settings(**kwargs):
    config = default_config("test").score
    config.update(kwargs)
    return config


def terms(states, length=LENGTH):
    """Runs of `length` windows with these states [M, H]; the paper's terms are recognisable."""
    m = len(states)
    position = np.arange(m) % length
    temporal = np.where(position == 0, np.nan, 7.0).astype(np.float32)
    return Terms(
        np.arange(m), position, np.zeros((m, 1), np.float32), temporal, np.full(m, 8, np.float32),
        np.zeros(m, np.float32), np.zeros(m, int), np.asarray(states, np.float32),
    )  # fmt: skip


def loaded_states(rng, runs=RUNS, length=LENGTH):
    """A slow load along (1, 1, 1, 1) / 2 that decides where states are, and small noise in all directions."""
    load = rng.normal(size=(runs, length)).cumsum(1)
    states = load[..., None] * np.full(4, 0.5) + 0.1 * rng.normal(size=(runs, length, 4))
    return states.reshape(-1, 4)


def auroc(normal, faulty):
    return (normal[:, None] < faulty).mean()


def test_mahalanobis_by_hand():
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(200_000, 2)) * [1.0, 10.0] + [5.0, 0.0]
    distance = Mahalanobis.fit(States(normal, normal))
    new = np.array([[5.0, 0.0], [7.0, 0.0], [5.0, 20.0], [8.0, 40.0]])
    np.testing.assert_allclose(distance(States(new, new)), [0, 2, 2, 5], atol=0.03)


def test_forecast_by_hand():
    """States follow 2 + 0.5 (what was before); errors have spreads 1 and 0.5."""
    rng = np.random.default_rng(0)
    before = rng.normal(size=(50_000, 2))
    normal = States(2 + 0.5 * before + rng.normal(size=before.shape) * [1.0, 0.5], before)
    distance = Forecast.fit(normal)
    at = np.array([[10.0, -10.0]])
    slope = 0.5 / (1 + FORECAST_RIDGE)  # before has the same spread in all directions
    spread = np.sqrt([1.0 + (0.5 - slope) ** 2, 0.25 + (0.5 - slope) ** 2])
    for steps, size in (([0, 0], 0), ([3, 0], 3), ([0, 2], 2), ([3, 4], 5)):
        assert distance(States(2 + slope * at + steps * spread, at))[0] == pytest.approx(size, abs=0.1)


def test_a_small_step_off_the_usual_line_counts_more_than_a_large_one_along_it():
    rng = np.random.default_rng(0)
    calibration, normal, faulty = (terms(loaded_states(rng)) for _ in range(3))
    faulty.state[:, 0] += 0.7
    run = np.arange(RUNS * LENGTH) // LENGTH
    read = [read_states(calibration, run, test, WARM_UP, settings())[1].read for test in (normal, faulty)]
    late = normal.position >= WARM_UP
    for column in (0, 1):
        assert auroc(read[0][late, column], read[1][late, column]) > 0.95
    off = [np.linalg.norm(t.state - calibration.state.mean(0), axis=1) for t in (normal, faulty)]
    assert auroc(*off) < 0.6


def test_calibration_windows_are_judged_without_their_own_run():
    """In many dimensions, with few windows, distances from a fit that has seen them would be too small."""
    rng = np.random.default_rng(0)
    calibration, test = (terms(rng.normal(size=(6 * 12, 40)), 12) for _ in range(2))
    run = np.arange(72) // 12
    held_out, new, _ = read_states(calibration, run, test, WARM_UP, settings())
    late = calibration.position >= WARM_UP
    for column in (0, 1):
        assert np.median(held_out.read[late, column]) == pytest.approx(np.median(new.read[late, column]), rel=0.1)
    shifted = calibration._replace(state=calibration.state + 50 * (run == 2)[:, None])
    again, _, _ = read_states(shifted, run, test, WARM_UP, settings())
    assert again.read[run == 2, 1].min() > 10 * held_out.read[run == 2, 1].max()


def test_windows_without_history_and_settings_of_the_paper():
    rng = np.random.default_rng(0)
    calibration, test = (terms(loaded_states(rng)) for _ in range(2))
    run = np.arange(RUNS * LENGTH) // LENGTH
    _, new, _ = read_states(calibration, run, test, WARM_UP, settings())
    np.testing.assert_array_equal(np.isnan(new.read[:, 0]), test.position == 0)
    assert np.isfinite(new.read[:, 1]).all()
    _, paper, _ = read_states(calibration, run, test, WARM_UP, settings(temporal="paper", prior="paper"))
    np.testing.assert_array_equal(paper.read, np.stack([test.temporal, test.prior], axis=1))
    np.testing.assert_array_equal(new.temporal, test.temporal)  # the paper's score still sees its own


@pytest.mark.parametrize("states", [np.zeros((60, 3)), np.full((60, 3), np.nan), np.ones((60, 3))])
def test_states_that_say_nothing_are_no_error(states):
    calibration = terms(states, 30)
    held_out, test, _ = read_states(calibration, np.arange(60) // 30, terms(states, 30), WARM_UP, settings())
    for read in (held_out.read, test.read):
        assert (np.nan_to_num(read) == 0).all()


def test_a_single_short_calibration_run():
    rng = np.random.default_rng(0)
    calibration, test = terms(rng.normal(size=(8, 3)), 8), terms(rng.normal(size=(60, 3)), 30)
    held_out, new, _ = read_states(calibration, np.zeros(8, int), test, WARM_UP, settings())
    np.testing.assert_array_equal(held_out.read, 0)
    np.testing.assert_array_equal(new.read, 0)


@pytest.mark.parametrize("runs", [2, 3])
def test_terms_are_read_of_all_windows_or_of_none(runs):
    """Enough windows with history together, too few without one run: what cannot calibrate must not be scored."""
    rng, length = np.random.default_rng(0), 26  # 22 with history a run, 40 are needed
    normal, new = terms(loaded_states(rng, runs, length), length), terms(loaded_states(rng, 1, length), length)
    run = np.repeat(np.arange(runs), length)
    read = [part.read[part.position >= WARM_UP] for part in read_states(normal, run, new, WARM_UP, settings())[:2]]
    assert [(part > 0).all() for part in read] == [runs == 3] * 2
    assert [(part == 0).all() for part in read] == [runs == 2] * 2
