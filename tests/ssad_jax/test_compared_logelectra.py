"""LogELECTRA: tokens and lines by hand, its loss and scores, what may change nothing, and that it finds odd lines."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from ssad_jax.compared import logelectra
from ssad_jax.compared.logelectra import MOST_MASKED, NOTHING, SPECIAL, tokens_of
from ssad_jax.config import default_config, use_method
from ssad_jax.layers.hashing import words
from tests.ssad_jax.log_lines import prepared_with_logs, with_logs, wrong_and_right
from tests.ssad_jax.short_training import batch_of, jit, keys_of, trained


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepared_with_logs(tmp_path_factory.mktemp("logs") / "data")


@pytest.fixture(scope="module")
def config():
    config = default_config("toy")
    use_method(config, "logelectra_adapted")
    config.compared.logelectra.update({"buckets": 512, "width": 32, "layers": 1, "generator_layers": 1, "tokens": 16})
    config.optimizer.learning_rate = 2e-3  # a small network, and few steps
    return config


@pytest.fixture(scope="module")
def method(config, data):
    return logelectra.create(config, data.system)


@pytest.fixture(scope="module")
def fitted(method, data, config):
    return trained(method, data, config, np.arange(64), steps=200)


@pytest.fixture(scope="module")
def scored(method, data, fitted):
    every = np.arange(data.windows.num_windows)
    return jax.device_get(jit(method.score)(fitted[0], batch_of(method, data, every)))


def test_tokens_are_pieces_of_words_without_case_and_punctuation():
    bodies = "OrderService#L12 [<num>]: HTTPError", "order service l 12"
    first, second = (tokens_of(body, 4096, 64) for body in bodies)
    assert len(first) == 7 and first[:4] == second and min(first) >= SPECIAL
    assert tokens_of("http error", 4096, 64) == first[5:] and tokens_of("a b c", 4096, 2) == tokens_of("a b", 4096, 64)
    assert tokens_of("<num>", 4096, 64) != tokens_of("num", 4096, 64) and tokens_of("--", 4096, 64) == []


def test_lines_are_the_distinct_masked_bodies_of_each_service(data, tmp_path):
    """Numbers are masked, words are not; a line without words is none."""
    start = int(data.windows.start_unix_nano[0])
    rows = [("b", 2, "went 1"), ("a", 1, "went 2"), ("b", 2, "went 33"), ("a", 1, "came 1"), ("a", 1, "--"),
            ("a", 1, None)]  # fmt: skip
    table = pl.DataFrame(rows, schema=["unit", "node", "body"], orient="row").with_columns(time_unix_nano=start)
    other = with_logs(data, tmp_path / "lines", lambda _: table)
    found = logelectra.lister(4096, 64)(other)
    came, went = tokens_of("came <num>", 4096, 64), tokens_of("went <num>", 4096, 64)
    assert found.arrays["tokens"].tolist() == [came, went, went]
    assert found.arrays["service"].tolist() == data.system.service[[1, 1, 2]].tolist()
    assert (found.window.tolist(), found.count.tolist()) == ([0, 0, 0], [1, 1, 2])


def test_a_seventh_of_a_line_is_masked_one_token_at_least():
    length = np.array([1, 3, 10, 20, 60, 0])
    tokens = jnp.where(jnp.arange(60)[None] < length[:, None], SPECIAL, NOTHING)
    places, masked = jit(logelectra.choose)(tokens, words(jax.random.split(jax.random.key(0), 6)))
    assert masked.sum(1).tolist()[:5] == [1, 1, 2, 3, MOST_MASKED]
    assert all((places[i][masked[i]] < length[i]).all() for i in range(5))
    assert all(len(set(row)) == MOST_MASKED for row in places.tolist())


def test_samples_have_the_probabilities_of_the_softmax():
    logits = jnp.log(jnp.array([0.5, 0.0, 0.2, 0.3]))
    keys = words(jax.random.split(jax.random.key(0), 4000))
    drawn = jit(logelectra.sample)(jnp.broadcast_to(logits, (4000, 2, 4)), keys) - SPECIAL
    share = np.bincount(np.asarray(drawn).ravel(), minlength=4) / 8000
    np.testing.assert_allclose(share, [0.5, 0, 0.2, 0.3], atol=0.02)


def test_the_loss_of_networks_that_know_nothing(method, data, config):
    """All tokens as likely, all as likely replaced: log 512 and 50 log 2."""
    params = jax.tree.map(jnp.zeros_like, jit(method.init)(jax.random.key(0)))
    sums, counts, _ = jit(method.loss, static_argnums=3)(params, batch_of(method, data, [0, 1]), keys_of([0, 1]), None)
    means = {name: float(sums[name] / counts[name]) for name in sums}
    assert means == pytest.approx({"masked tokens": np.log(512), "replaced tokens": 50 * np.log(2)}, rel=1e-5)
    assert counts["masked tokens"] == 4 * 2  # of two lines of two windows: 0.15 of 12 tokens each
    assert counts["replaced tokens"] == 4 * 12


def test_the_discriminator_is_told_of_tokens_that_differ_from_the_line(method, data, config):
    """A generator that always says one token, a discriminator that always says replaced with P = 0.9."""
    params = jax.tree.map(jnp.zeros_like, jit(method.init)(jax.random.key(0)))
    batch = batch_of(method, data, [0, 1, 2])
    most = int(batch.shared["tokens"][0, 0])
    params["bias"] = params["bias"].at[most - SPECIAL].set(100.0)
    params["replaced"]["bias"] = params["replaced"]["bias"] + np.log(9)
    sums, counts, _ = jit(method.loss, static_argnums=3)(params, batch, keys_of([0, 1, 2]), None)
    kept = int(round(float(counts["masked tokens"]) - float(sums["masked tokens"]) / 100))  # masked ones of that token
    replaced = int(counts["masked tokens"]) - kept
    expected = -50 * (replaced * np.log(0.9) + (int(counts["replaced tokens"]) - replaced) * np.log(0.1))
    assert float(sums["replaced tokens"]) == pytest.approx(expected, rel=1e-4)


def test_loss_falls_by_a_third_within_50_steps(fitted):
    losses = fitted[1]
    assert losses[45:50].mean() < 0.7 * losses[:3].mean()


def test_lines_of_words_that_do_not_belong_together_are_found(scored, data):
    wrong, right = wrong_and_right(data)
    labels = np.repeat([1, 0], [len(wrong), len(right)])
    for column in (0, 1, 3):  # score, worst line, three worst tokens
        each = scored.score[:, 0, column]
        assert roc_auc_score(labels, np.concatenate([each[wrong], each[right]])) > 0.9


def test_scores_differ_between_windows_and_from_those_of_an_untrained_network(scored, method, data):
    each = scored.score[:, 0]
    assert len(np.unique(each[:, 0])) > 100 and each[:, 0].std() > 1e-4 and np.isfinite(each).all()
    untrained = jit(method.init)(jax.random.key(9))
    untrained = jit(method.score)(untrained, batch_of(method, data, np.arange(4))).score[:, 0]
    assert (np.abs(np.asarray(untrained) - each[:4])[:, 0] > 0.1).all()


def test_the_score_of_a_line_is_the_mean_of_its_tokens_and_of_the_three_worst(method, data, fitted):
    """With a discriminator that says the same of every token, both are its probability."""
    params = {**fitted[0], "replaced": jax.tree.map(jnp.zeros_like, fitted[0]["replaced"])}
    found = jit(method.score)(params, batch_of(method, data, [3]))
    np.testing.assert_allclose(found.score[0, 0], [0.5] * 4, rtol=1e-6)


def test_a_service_s_score_is_that_of_its_worst_line_and_0_without_lines(scored, method, data, fitted, tmp_path):
    np.testing.assert_allclose(scored.service[:, 0].max(1), scored.score[:, 0, 1], rtol=1e-6)
    silent = data.system.service_names[1]
    other = with_logs(data, tmp_path / "silent", lambda logs: logs.filter(pl.col("unit") != silent))
    found = jit(method.score)(fitted[0], batch_of(method, other, [5])).service[0, 0]
    assert found[1] == 0
    np.testing.assert_allclose(found[0], scored.service[5, 0, 0], rtol=1e-4)


def test_a_window_s_score_does_not_depend_on_the_batch_and_is_nan_without_lines(scored, method, data, fitted, tmp_path):
    own = jit(method.score)(fitted[0], batch_of(method, data, [70, 7, 8], [True, True, False])).score[:, 0]
    np.testing.assert_allclose(own[:2], scored.score[[70, 7], 0], rtol=1e-4, atol=1e-6)
    assert np.isnan(own[2]).all()
    end = int(data.windows.end_unix_nano[0])
    other = with_logs(data, tmp_path / "late", lambda logs: logs.filter(pl.col("time_unix_nano") >= end))
    own = np.asarray(jit(method.score)(fitted[0], batch_of(method, other, [0, 1])).score[:, 0])
    assert np.isnan(own[0]).all() and np.isfinite(own[1]).all()


def test_the_loss_of_a_batch_is_the_sum_of_those_of_its_parts(method, data, fitted):
    def parts(windows, mask=None):
        batch = batch_of(method, data, windows, mask)
        sums, counts, _ = jit(method.loss, static_argnums=3)(fitted[0], batch, keys_of(windows), None)
        return jax.tree.leaves((sums, counts))

    whole, first, second = parts([3, 4, 5, 6]), parts([3, 4, 9], [True, True, False]), parts([5, 6])
    for both, a, b in zip(whole, first, second, strict=True):
        np.testing.assert_allclose(both, a + b, rtol=1e-4, atol=1e-4)


def test_tokens_beyond_the_end_of_a_line_change_nothing(method, data, fitted):
    """As in a dataset that has longer lines."""
    batch = batch_of(method, data, [3, 4])
    wider = jnp.pad(batch.shared["tokens"], [(0, 0), (0, 3)], constant_values=NOTHING)
    assert wider.shape[1] <= 16
    longer = batch._replace(shared={**batch.shared, "tokens": wider})
    loss, score = jit(method.loss, static_argnums=3), jit(method.score)
    for both in zip(*(jax.tree.leaves((loss(fitted[0], some, keys_of([3, 4]), None)[:2], score(fitted[0], some)))
                      for some in (batch, longer)), strict=True):  # fmt: skip
        np.testing.assert_allclose(*both, rtol=1e-4, atol=1e-5)


def test_parameters_serve_a_dataset_of_other_names(method, config, data):
    renamed = dataclasses.replace(data.system, node_names=tuple(f"x{name}" for name in data.system.node_names))
    other = logelectra.create(config, renamed)
    assert not method.bound
    assert jax.eval_shape(method.init, jax.random.key(0)) == jax.eval_shape(other.init, jax.random.key(0))
