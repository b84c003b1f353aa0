"""Which network judges which window, with a score function that tells who it was."""

import dataclasses

import numpy as np
import pytest

from ssad_jax.config import default_config
from ssad_jax.methods.interface import ScoreTerms
from ssad_jax.scoring import detectors
from ssad_jax.scoring.terms import Score, Terms, averaged, joined
from tests.synthetic import make_prepared

NETWORKS = {"number": np.arange(3, dtype=np.float32)}


@pytest.fixture(scope="module")
def turns():
    return make_prepared(segments=8, folds=3)


def score(params, windows, rows, index):
    """Everything is 10,000 times the network's number plus the window's start tick."""
    tick = windows["start_tick"][np.maximum(rows, 0)].astype(np.float32)
    value = 10_000 * params["number"] + tick
    residual = np.broadcast_to(value[..., None, None], (*value.shape, windows["nodes"].shape[1], 16))
    prototype = np.full(value.shape, int(params["number"]))
    return ScoreTerms(residual, value, value + 1, prototype, value + 2, value[..., None])


def run(data, networks=NETWORKS, own=True, **changed):
    config = default_config("test").score
    config.update({"temporal": "paper", "prior": "paper"} | changed)
    return detectors.score_dataset(Score(score), networks, data, config, own)


def expected(data, terms, number):
    return (10_000.0 * number + data.windows.start_tick[terms.window]).astype(np.float32)


@pytest.mark.parametrize("batch_runs", [4, 16])
def test_a_calibration_window_is_scored_by_the_network_that_was_not_fitted_on_it(turns, batch_runs):
    scored = run(turns, batch_runs=batch_runs)
    terms = scored.held_out_terms
    assert sorted(terms.window) == sorted(turns.calibration_runs[turns.calibration_runs >= 0])
    assert (np.diff(turns.windows.start_unix_nano[terms.window]) > 0).all()
    value = expected(turns, terms, turns.windows.group[terms.window])
    for i, column in enumerate((terms.residual[:, 0], terms.temporal, terms.prior, terms.paper_reconstruction)):
        np.testing.assert_array_equal(column, value + (0, 0, 1, 2)[i])
    np.testing.assert_array_equal(terms.prototype, turns.windows.group[terms.window])
    np.testing.assert_array_equal(terms.read, np.stack([value, value + 1], axis=1))


def test_test_windows_are_averaged_over_the_networks(turns):
    terms = run(turns).terms
    assert sorted(terms.window) == sorted(turns.test_runs[turns.test_runs >= 0])
    value = expected(turns, terms, 1)  # the mean of 0, 1 and 2
    np.testing.assert_array_equal(terms.residual, np.repeat(value[:, None], terms.residual.shape[1], axis=1))
    np.testing.assert_array_equal(terms.read, np.stack([value, value + 1], axis=1))
    np.testing.assert_array_equal(terms.paper_reconstruction, value + 2)
    assert (terms.prototype == 0).all()


def test_on_another_dataset_all_networks_score_everything(turns):
    scored = run(turns, own=False)
    for terms in (scored.held_out_terms, scored.terms):
        np.testing.assert_array_equal(terms.residual[:, 0], expected(turns, terms, 1))
    assert len(scored.held_out_terms.window) == turns.calibration_runs.size


def test_one_network_with_a_held_out_share_is_scaled_on_fit_windows_too():
    data = make_prepared(segments=8)
    one = {"number": np.zeros(1, np.float32)}
    scored = run(data, one)
    held_out = scored.held_out_terms
    assert set(data.windows.part[held_out.window]) == {1}
    np.testing.assert_array_equal(held_out.residual[:, 0], expected(data, held_out, 0))
    fitted = np.unique(data.fit_sequences)
    ticks = data.windows.start_tick[np.concatenate([fitted, held_out.window])].astype(float)
    centre = held_out.residual[:, 0].mean()
    assert scored.calibration.scale[0] == pytest.approx(np.sqrt(np.square(ticks - centre).mean()), rel=1e-5)


def test_groups_that_take_turns_are_scaled_on_themselves(turns):
    scored = run(turns)
    residual = scored.held_out_terms.residual[:, 0].astype(float)
    assert scored.calibration.scale[0] == pytest.approx(residual.std(), rel=1e-5)


def test_a_network_without_a_calibration_window_of_its_own_only_judges_test_windows(turns):
    four = {"number": np.arange(4, dtype=np.float32)}
    scored = run(turns, four)
    np.testing.assert_array_equal(
        scored.held_out_terms.residual[:, 0],
        expected(turns, scored.held_out_terms, turns.windows.group[scored.held_out_terms.window]),
    )
    np.testing.assert_array_equal(scored.terms.residual[:, 0], expected(turns, scored.terms, 1.5))


@pytest.mark.parametrize("length", [20, 18])
def test_the_window_before_is_the_last_that_shares_no_tick(turns, length):
    """At a stride of 5 windows of 20 ticks, or of 18, share none with the fourth before them."""
    data = dataclasses.replace(turns, manifest=turns.manifest | {"window_length": length})
    window = np.concatenate([np.arange(12), np.arange(24, 36)])  # two segments of 12 windows
    before = detectors._before(data, window)
    each = [-1] * 4 + list(range(8))
    assert before.tolist() == each + [i + 12 if i >= 0 else -1 for i in each]
    # A window that is not there leaves the fourth after it without one; the order is that of the windows given.
    assert detectors._before(data, np.array([6, 0, 4, 5])).tolist() == [-1, -1, 1, -1]


def test_joined_and_averaged_by_hand():
    def terms(value, window):
        row = np.full(2, value, np.float32)
        window = np.array(window)
        return Terms(window, window, row[:, None], row, row + 1, row + 2, np.full(2, int(value)), row[:, None], None)

    one, two = terms(1, [3, 4]), terms(4, [7, 8])
    both = joined([one, two])
    assert both.window.tolist() == [3, 4, 7, 8] and both.temporal.tolist() == [1, 1, 4, 4] and both.read is None
    read = np.array([[1, 2], [3, 4]], np.float32)
    mean = averaged([one._replace(read=read), two._replace(read=3 * read)])
    assert mean.window.tolist() == [3, 4] and mean.prototype.tolist() == [1, 1]
    assert mean.residual.dtype == np.float32 and mean.residual.tolist() == [[2.5], [2.5]]
    assert mean.prior.tolist() == [3.5, 3.5] and mean.read.tolist() == [[2, 4], [6, 8]]
