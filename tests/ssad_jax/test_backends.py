"""What is done differently on different devices gives the same results."""

import jax
import numpy as np
import pytest

from ssad_jax import backends
from ssad_jax.methods import knowledge_ssl
from tests.ssad_jax.test_knowledge_ssl import assert_trees_close, batch_of, build, keys_of, objective, small_config
from tests.synthetic import make_prepared


@pytest.fixture(scope="module")
def prepared():
    return make_prepared()


def on(monkeypatch, **choices):
    """Compute as on a device with these choices."""
    monkeypatch.setattr(knowledge_ssl, "choices", lambda: backends.CPU._replace(**choices))


def test_choices_are_of_the_device():
    assert backends.choices("cpu") is backends.CPU
    assert backends.choices("gpu") is backends.choices("tpu") is backends.ACCELERATOR
    assert backends.choices() is backends.CPU


def test_views_together_give_the_same_loss_and_gradient(prepared, monkeypatch):
    sequences = prepared.fit_sequences[:6].copy()
    sequences[1, 2:] = -1
    batch = batch_of(prepared, sequences)
    found = []
    for together in (False, True):
        on(monkeypatch, views_together=together)
        method = build(prepared, small_config())
        params = method.init(jax.random.key(0))
        found.append(objective(method)(params, batch, keys_of(batch)))
    assert_trees_close(*found)


def test_passes_and_runs_together_give_the_same_scores(prepared, monkeypatch):
    runs = prepared.test_runs[:, :7].copy()
    runs[1, 5:] = -1
    batch, found = batch_of(prepared, runs), []
    rows = len(prepared.system.kind) * runs.size
    for together in (1, rows, 100 * rows):  # neither; runs; runs and passes
        on(monkeypatch, rows_together=together)
        method = build(prepared, small_config())
        params = method.init(jax.random.key(0))
        found.append(jax.jit(method.score)(params, batch))
    for other in found[1:]:
        assert_trees_close(found[0]._replace(prototype=0), other._replace(prototype=0))
        np.testing.assert_array_equal(found[0].prototype, other.prototype)
