"""Units of windows: what is listed, how windows refer to it, and their scores, by hand."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_prep.errors import InputError
from ssad_jax.batching import Batch
from ssad_jax.compared import units
from ssad_jax.compared.units import Units


def listed() -> Units:
    """Window 0 holds unit 2 twice and unit 0, window 1 nothing, window 2 units 3, 1, 0."""
    arrays = {"value": np.array([[1.0], [2.0], [3.0], [4.0]], np.float32)}
    return Units.of(arrays, np.array([0, 0, 0, 2, 2, 2]), np.array([2, 0, 2, 3, 1, 0]))


def batch_of(some: Units, rows, mask=None) -> Batch:
    rows = np.asarray(rows)
    inputs, shared = some.inputs(rows.ravel())
    inputs = {name: jnp.asarray(a).reshape(*rows.shape, -1) for name, a in inputs.items()}
    mask = np.ones(rows.shape, bool) if mask is None else np.asarray(mask)
    return Batch(None, jnp.asarray(mask), None, jnp.arange(len(rows)), None, inputs, shared)


def test_a_window_refers_to_each_of_its_units_once_with_how_often_it_holds_it():
    inputs, shared = listed().inputs(np.array([0, 1]))
    assert inputs["unit"].tolist() == [[0, 1, -1], [-1, -1, -1]]  # units 0 and 2 of the dataset
    assert inputs["count"].tolist() == [[1, 2, 0], [0, 0, 0]]
    assert shared["value"][:2].tolist() == [[1.0], [3.0]] and not shared["value"][2:].any()


def test_shared_arrays_hold_no_unit_of_other_windows_and_fill_up_to_a_power_of_two():
    many = Units.of({"n": np.arange(500)}, np.repeat(np.arange(5), 100), np.arange(500))
    assert [len(many.inputs(np.arange(n)).shared["n"]) for n in (0, 1, 2, 5)] == [64, 128, 256, 512]


def test_a_dataset_without_units_has_windows_without_units():
    none = Units.of({"n": np.zeros(0)}, np.zeros(0, int), np.zeros(0, int))
    assert none.inputs(np.arange(3)).windows["unit"].tolist() == [[-1]] * 3


def test_scores_of_windows_by_hand():
    scores = units.of_windows(jnp.array([1.0, 2.0, 3.0, 4.0]), batch_of(listed(), [[0, 2, 1]]))
    # units 0 and 2 (twice): best 2 of the two rows; the mean counts occurrences
    first = units.of_windows(jnp.array([1.0, 5.0]), batch_of(listed(), [[0]]))
    np.testing.assert_allclose(first[0, 0], [5, 5, 11 / 3], rtol=1e-6)
    np.testing.assert_allclose(scores[0, 1], [4, 4, (1 + 2 + 4) / 3], rtol=1e-6)
    assert np.isnan(scores[0, 2]).all()


def test_the_top_of_a_window_is_the_mean_of_its_highest_twentieth():
    many = Units.of({"n": np.arange(60)}, np.zeros(60, int), np.arange(60))
    top, most, mean = units.of_windows(jnp.arange(64.0), batch_of(many, [[0]]))[0, 0]
    assert (top, most, mean) == ((59 + 58 + 57) / 3, 59, 29.5)


def test_masked_windows_have_no_score():
    scores = units.of_windows(jnp.ones(4), batch_of(listed(), [[0, 2]], [[True, False]]))
    assert np.isfinite(scores[0, 0]).all() and np.isnan(scores[0, 1]).all()


def test_what_is_drawn_are_own_units_by_the_example_s_key_alone():
    keys = jax.random.split(jax.random.key(0), 3)
    drawn, there = units.draw(keys, batch_of(listed(), [[0], [1], [2]]), 50)
    assert [sorted(set(d)) for d in drawn[:, 0].tolist()] == [[0, 2], [0], [0, 1, 3]]
    assert there[:, 0].all(-1).tolist() == [True, False, True]
    alone, _ = units.draw(keys[2:], batch_of(listed(), [[2]]), 50)
    assert alone.tolist()[0][0] == [{0: 0, 1: 1, 3: 2}[u] for u in drawn[2, 0].tolist()]


def test_occurrences_lie_in_the_windows_that_hold_their_time():
    some = types.SimpleNamespace(start_unix_nano=np.array([0, 5, 20]), end_unix_nano=np.array([10, 15, 30]))
    window, row = units.in_windows(types.SimpleNamespace(windows=some), np.array([0, 5, 9, 10, 15, 29]))
    pairs = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (1, 3), (2, 5)]
    assert list(zip(window.tolist(), row.tolist(), strict=True)) == pairs


def test_units_are_built_once_for_a_dataset_and_need_its_tables():
    built = []

    def build(prepared):
        built.append(prepared.directory)
        return listed()

    inputs = units.reader(build)
    a, b = (types.SimpleNamespace(directory=d, manifest={"dataset_hash": d}) for d in "ab")
    for prepared in (a, a, b, b, a):
        inputs(prepared, np.arange(1))
    assert built == ["a", "b"]
    with pytest.raises(InputError, match="tables of logs and spans"):
        inputs(types.SimpleNamespace(directory=None, manifest={}), np.arange(1))


@pytest.mark.parametrize(("piece", "judged"), [(4, 8), (6, 6), (64, 64)])
def test_units_that_fill_up_are_not_judged_beyond_the_piece_that_holds_the_last_real_one(piece, judged):
    """64 units judged `piece` (or a common divisor of both) at a time, of which 5 are real."""
    value = jnp.arange(64.0) + 1
    found = units.judge(lambda unit: jnp.stack([unit["value"], -unit["value"]]), {"value": value}, piece, jnp.int32(5))
    assert found[:judged, 0].tolist() == value[:judged].tolist() and not found[judged:].any()
    every = units.judge(lambda unit: jnp.stack([unit["value"], -unit["value"]]), {"value": value}, piece)
    assert found[:5].tolist() == every[:5].tolist()


def test_used_units_are_those_that_windows_refer_to():
    assert [int(units.num_used(batch_of(listed(), rows))) for rows in ([[0]], [[0, 2]], [[1]])] == [2, 4, 0]
