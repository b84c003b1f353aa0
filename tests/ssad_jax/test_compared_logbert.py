"""LogBERT: pieces of a log by hand, its loss and score, what may change nothing, and that it finds broken sequences."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from flax import nnx
from sklearn.metrics import roc_auc_score

from data_prep.errors import InputError
from ssad_jax.checkpoint import Context
from ssad_jax.compared import logbert
from ssad_jax.compared.transformer import Encoder
from ssad_jax.config import default_config, use_method
from ssad_jax.trained import method as trained_method
from tests.ssad_jax.log_lines import prepared_with_logs, with_logs, wrong_and_right
from tests.ssad_jax.short_training import batch_of, jit, keys_of, total, trained


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepared_with_logs(tmp_path_factory.mktemp("logs") / "data")


@pytest.fixture(scope="module")
def config():
    config = default_config("toy")
    use_method(config, "logbert_adapted")
    config.compared.logbert.update({"events": 16, "layers": 1})
    return config


@pytest.fixture(scope="module")
def method(config, data):
    return logbert.create(config, data.system)


@pytest.fixture(scope="module")
def fitted(method, data, config):
    return trained(method, data, config, np.arange(64), steps=100)


@pytest.fixture(scope="module")
def scored(method, data, fitted):
    every = np.arange(data.windows.num_windows)
    return np.asarray(jit(method.score)(fitted[0], batch_of(method, data, every)).score[:, 0])


def pieces_of(tmp_path, rows, stride=5, most=3):
    """The pieces of windows of 10 ticks of 1 s that begin at 0, 5 and 10 s; rows: (second, unit, template, node)."""
    (tmp_path / "tables").mkdir()
    time, unit, template, node = zip(*rows, strict=True)
    pl.DataFrame(
        {"time_unix_nano": [int(t * 1e9) for t in time], "unit": unit, "template": template, "node": node}
    ).write_parquet(tmp_path / "tables" / "logs.parquet")
    system = SimpleNamespace(node_mask=np.array([True] * 4 + [False]), kind=np.array([0, 1, 1, 1, 0]),
                             node_names=("a", "a: z", "a: x", "b: y"))  # fmt: skip
    start = np.array([0, 5, 10]) * 10**9
    windows = SimpleNamespace(segment=np.zeros(3, int), start_unix_nano=start, end_unix_nano=start + 10 * 10**9)
    manifest = {"window_length": 10, "stride": stride, "tick_seconds": 1.0}
    return logbert.lister(most)(SimpleNamespace(directory=tmp_path, system=system, windows=windows, manifest=manifest))


def test_pieces_are_cut_where_windows_may_begin_and_in_equal_parts_of_at_most_so_many_events(tmp_path):
    lines = [(t, "a", 0, 2) for t in (0, 1, 2, 4.9)] + [(5, "a", 0, 1), (12, "b", 0, 3), (19, "b", 0, 3)]
    found = pieces_of(tmp_path, lines)
    assert found.arrays["many"].tolist() == [2, 2, 1, 1, 1]
    pairs = list(zip(found.window.tolist(), found.unit.tolist(), strict=True))
    assert pairs == [(0, 0), (0, 1), (0, 2), (1, 2), (1, 3), (2, 3), (2, 4)]


def test_no_piece_crosses_the_border_of_a_window_that_its_stride_does_not_divide(tmp_path):
    found = pieces_of(tmp_path, [(t, "a", 0, 2) for t in range(20)], stride=4)  # windows of 10: pieces of 2 s
    assert found.arrays["many"].tolist() == [2] * 10
    assert found.unit[found.window == 1].tolist() == [3, 4, 5, 6]  # begins at 5 s, within a piece


def test_keys_are_numbered_by_name_and_unseen_templates_are_one_key(tmp_path):
    lines = [(0, "b", 0, 3), (0, "a", 0, 1), (1, "a", 0, 2), (2, "a", -1, 2)]
    found = pieces_of(tmp_path, lines, most=4)
    assert found.arrays["events"][0].tolist() == [1, 2, 0, 3]  # a: z, b: y at one time; a: x; UNK


def test_a_key_is_missed_when_six_others_are_likelier():
    logits = jnp.arange(8.0)[None]
    assert [float(logbert.missed(logits, jnp.array([key]))[0]) for key in range(8)] == [1, 1, 0, 0, 0, 0, 0, 0]


def test_the_score_of_a_piece_is_the_mean_over_masks_of_shares_of_masked_keys():
    values = jnp.array([[1.0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 0, 0]])
    masked = jnp.array([[True, True, False, False], [False] * 4, [True, True, True, False]])
    assert float(logbert.masked_mean(values, masked)) == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_loss_is_the_cross_entropy_of_masked_keys_and_a_tenth_of_the_distance_from_the_centre(method, data, config):
    params = jit(method.init)(jax.random.key(1))
    params = jax.tree.map(jnp.zeros_like, params)  # every key as likely, h_DIST the sines and cosines of 0
    params["fixed"]["centre"] = jnp.full(config.compared.logbert.width, 2.0)
    batch = batch_of(method, data, [0, 1, 2])
    sums, counts, _ = jit(method.loss, static_argnums=3)(params, batch, keys_of([0, 1, 2]), None)
    _, num_keys = logbert.keys_of(data.system)
    assert float(sums["masked keys"] / counts["masked keys"]) == pytest.approx(np.log(num_keys + 1), rel=1e-5)
    assert float(sums["centre"] / counts["centre"]) == pytest.approx(0.1 * (4 + 1) / 2) and counts["centre"] == 6
    share = float(counts["masked keys"]) / (6 * 16)  # every piece of the data has 16 events
    assert 0.5 < share < 0.8


def test_the_centre_and_the_scale_are_those_of_training_pieces(method, data):
    params = jit(method.init)(jax.random.key(1))
    observe = jit(method.observe)
    for step in range(2):
        sums, count = observe(params, batch_of(method, data, np.arange(6), [True] * 4 + [False] * 2))
        before, params = params, method.absorb(params, jax.tree.map(lambda x, n=count: x / n, sums), step)
    alone = [observe(before, batch_of(method, data, [w]))[0] for w in range(4)]  # a piece of each window
    h = np.array([a["centre"] for a in alone])
    fixed = params["fixed"]
    np.testing.assert_allclose(fixed["centre"], h.mean(0), rtol=1e-4, atol=1e-5)
    distance = np.square(h - np.asarray(before["fixed"]["centre"])).mean(1)
    np.testing.assert_allclose(fixed["distance"], distance.mean(), rtol=1e-4)
    np.testing.assert_allclose(fixed["distance_sd"], distance.std(), rtol=1e-2)
    assert float(fixed["events"]) == 64 and float(fixed["events_sd"]) == 1  # all alike: one event at least


def test_loss_falls_by_a_third_within_50_steps(fitted):
    losses = fitted[1]
    assert losses[45:50].mean() < 0.7 * losses[:3].mean()


def test_broken_sequences_are_found(scored, data):
    wrong, right = wrong_and_right(data)
    labels = np.repeat([1, 0], [len(wrong), len(right)])
    for column in (0, 3, 4):  # score, undetected keys alone, likelihood
        assert roc_auc_score(labels, np.concatenate([scored[wrong, column], scored[right, column]])) > 0.9


def test_scores_differ_between_windows_and_from_those_of_an_untrained_network(scored, method, data):
    assert len(np.unique(scored[:, 0])) > 100 and scored[:, 0].std() > 1e-3 and np.isfinite(scored).all()
    untrained = jit(method.init)(jax.random.key(9))
    untrained = jit(method.score)(untrained, batch_of(method, data, np.arange(4))).score[:, 0]
    assert (np.asarray(untrained)[:, 4] > scored[:4, 4] + 0.3).all()  # the likelihood of masked keys


def test_a_window_s_score_does_not_depend_on_the_batch(scored, method, data, fitted):
    own = jit(method.score)(fitted[0], batch_of(method, data, [70, 7, 8], [True, True, False])).score[:, 0]
    np.testing.assert_allclose(own[:2], scored[[70, 7]], rtol=1e-4, atol=1e-5)
    assert np.isnan(own[2]).all()


def test_loss_and_observation_of_a_batch_are_the_sums_of_those_of_its_parts(method, data, fitted):
    def parts(windows, mask=None):
        batch = batch_of(method, data, windows, mask)
        sums, counts, _ = jit(method.loss, static_argnums=3)(fitted[0], batch, keys_of(windows), None)
        return jax.tree.leaves((sums, counts, jit(method.observe)(fitted[0], batch)))

    whole = parts([3, 4, 5, 6])
    first, second = parts([3, 4, 9], [True, True, False]), parts([5, 6])
    for both, a, b in zip(whole, first, second, strict=True):
        np.testing.assert_allclose(both, a + b, rtol=1e-4, atol=1e-4)


def test_the_order_of_nodes_changes_nothing(scored, method, config, data, fitted, tmp_path):
    system, real = data.system, int(data.system.node_mask.sum())
    order = np.concatenate([np.random.default_rng(0).permutation(real), np.arange(real, len(system.kind))])
    arrays = {f.name: getattr(system, f.name) for f in dataclasses.fields(system)}
    moved = {name: a[order] for name, a in arrays.items() if getattr(a, "shape", (0,))[:1] == (len(order),)}
    system = dataclasses.replace(system, **moved, node_names=tuple(system.node_names[i] for i in order[:real]))
    place = np.argsort(order)
    other = with_logs(
        data, tmp_path / "moved", lambda logs: logs.with_columns(node=pl.Series(place[logs["node"].to_numpy()]))
    )
    other = dataclasses.replace(other, system=system)
    again = logbert.create(config, system)
    own = jit(again.score)(fitted[0], batch_of(again, other, [5, 6])).score[:, 0]
    np.testing.assert_allclose(own, scored[[5, 6]], rtol=1e-5, atol=1e-6)


def test_a_dataset_of_other_names_is_refused(data, config):
    renamed = dataclasses.replace(data.system, node_names=tuple(f"x{name}" for name in data.system.node_names))
    context = Context(config, data.system, {"dataset_hash": "own"}, {})
    assert trained_method(context, data.system, "other").bound
    with pytest.raises(InputError, match="this dataset has other ones"):
        trained_method(context, renamed)


def test_windows_of_few_events_are_judged_by_their_number(method, data, fitted, tmp_path):
    """Window 0 keeps 4 lines, and so has 60 less than the 64 of all others; the last one has none."""
    start, end = data.windows.start_unix_nano, data.windows.end_unix_nano

    def thin(logs):
        time = pl.col("time_unix_nano")
        early = logs.filter(time < end[0]).head(4)
        return pl.concat([early, logs.filter((time >= end[0]) & (time < start[-1]))])

    other = with_logs(data, tmp_path / "thin", thin)
    params = {**fitted[0], "fixed": {**fitted[0]["fixed"], "events_sd": jnp.float32(4)}}
    own = jit(method.score)(params, batch_of(method, other, [0, 40, len(start) - 1])).score[:, 0]
    np.testing.assert_allclose(own[np.array([0, 2])], [[15] * 5, [16] * 5], rtol=1e-5)
    assert (np.abs(own[1]) < 14).all()
    without = {**params, "fixed": {**params["fixed"], "events": jnp.float32(0)}}  # no log lines at all in training
    assert np.isnan(jit(method.score)(without, batch_of(method, other, [len(start) - 1])).score).all()


@pytest.mark.parametrize("pre_norm", [True, False])
def test_an_encoder_does_not_see_positions_that_do_not_exist(pre_norm):
    encoder = nnx.jit(nnx.jit(lambda: Encoder(8, 2, 2, 2, pre_norm, rngs=nnx.Rngs(0)))())
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    there = jnp.arange(5)[None] < jnp.array([[3], [5]])
    changed = x.at[0, 3:].set(7.0)
    np.testing.assert_allclose(encoder(x, there)[0, :3], encoder(changed, there)[0, :3], rtol=1e-5, atol=1e-6)
    assert np.abs(encoder(x, there)[0, 0] - encoder(x.at[0, 2].set(7.0), there)[0, 0]).max() > 1e-3


def test_the_gradient_does_not_move_the_centre(method, data, fitted):
    batch, keys = batch_of(method, data, [1, 2]), keys_of([1, 2])
    gradient = jit(jax.grad(lambda params: total(method, params, batch, keys)))(fitted[0])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient["fixed"]))
    assert np.abs(gradient["token"]).max() > 0
