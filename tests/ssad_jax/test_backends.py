"""What is done differently on different devices gives the same results."""

import jax
import numpy as np
import pytest

from ssad_jax import backends
from tests.ssad_jax.test_knowledge_ssl import assert_trees_close, batch_of, build, keys_of, objective, small_config
from tests.synthetic import make_prepared


@pytest.fixture(scope="module")
def prepared():
    return make_prepared()


def test_choices_are_of_the_device():
    assert backends.choices("cpu") is backends.CPU
    assert backends.choices("gpu") is backends.choices("tpu") is backends.ACCELERATOR
    assert backends.choices() is backends.CPU
    with backends.instead(gru_unroll=3):
        assert backends.choices() == backends.CPU._replace(gru_unroll=3)
        assert backends.choices("cpu") is backends.CPU
    assert backends.choices() is backends.CPU


@pytest.mark.parametrize("form", [{"views_together": True}, {"rows_trained": 1}, {"rows_trained": 200}])
def test_views_and_sequences_together_give_the_same_loss_and_gradient(prepared, form):
    sequences = prepared.fit_sequences[:6].copy()
    sequences[1, 2:] = -1
    batch = batch_of(prepared, sequences)
    found = []
    for changed in ({"rows_trained": 1 << 20}, form):
        with backends.instead(**changed):
            method = build(prepared, small_config())
            params = method.init(jax.random.key(0))
            found.append(objective(method)(params, batch, keys_of(batch)))
    assert_trees_close(*found)


def test_passes_runs_and_pieces_give_the_same_scores(prepared):
    runs = prepared.test_runs[:, :7].copy()
    runs[1, 5:] = -1
    batch, found = batch_of(prepared, runs), []
    rows = len(prepared.system.kind) * runs.size
    # A window at a time; three, which do not divide seven; a run with all passes; everything.
    for together in (1, 3 * len(prepared.system.kind), 5 * rows, 100 * rows):
        with backends.instead(rows_scored=together):
            method = build(prepared, small_config())
            params = method.init(jax.random.key(0))
            found.append(jax.jit(method.score)(params, batch))
    for other in found[1:]:
        assert_trees_close(found[0]._replace(prototype=0), other._replace(prototype=0))
        np.testing.assert_array_equal(found[0].prototype, other.prototype)
