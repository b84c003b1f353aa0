"""Switches that take a part of method A away: what is left works, and the part is really gone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_prep.errors import InputError
from ssad_jax import knowledge, settings
from ssad_jax.config import default_config
from tests.ssad_jax.test_knowledge import POSITIONS, SERVICES, rule, write
from tests.ssad_jax.test_knowledge_ssl import (
    batch_of,
    build,
    identity,
    jit,
    keys_of,
    objective,
    small_config,
)
from tests.synthetic import make_prepared


@pytest.fixture(scope="module")
def prepared():
    return make_prepared()


def perturbed(method):
    """Parameters without zeros."""
    rng = np.random.default_rng(0)
    params = jit(method.init)(jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(x + 0.05 * rng.normal(size=x.shape), jnp.float32), params)


def neighbours_of(prepared, node):
    windows = prepared.windows
    real = int(windows.n_edge[0])
    return np.unique(windows.senders[0, :real][windows.receivers[0, :real] == node])


@pytest.mark.parametrize("layers", [0, 2])
def test_without_graph_layers_a_node_does_not_see_its_neighbours(prepared, layers):
    """The state, which sees the whole window, is kept out of the decoder here."""
    method = build(prepared, small_config(num_graph_layers=layers))
    params = perturbed(method)
    params["decoder"]["of_state"] = jax.tree.map(jnp.zeros_like, params["decoder"]["of_state"])
    neighbour = int(np.flatnonzero(prepared.system.kind == 1)[0])
    (service,) = neighbours_of(prepared, neighbour)
    run = batch_of(prepared, prepared.test_runs[:1, :4])
    nodes = run.graphs.nodes.at[0, 3, neighbour, 16:].add(3.0)
    score = jit(method.score)
    before, after = (
        score(params, run._replace(graphs=run.graphs._replace(nodes=x))).residual[0, 3, service]
        for x in (run.graphs.nodes, nodes)
    )
    assert (np.abs(after - before).max() > 1e-4) == (layers > 0)


@pytest.mark.parametrize("temporal", ["gru", "none"])
def test_without_a_temporal_encoder_earlier_windows_do_not_matter(prepared, temporal):
    method = build(prepared, small_config(temporal=temporal))
    run, score, params = prepared.test_runs[0], jit(method.score), perturbed(method)
    whole, tail = (score(params, batch_of(prepared, r[None])) for r in (run, run[4:]))
    same_state = np.allclose(tail.state[0], whole.state[0, 4:], atol=1e-5)
    same_residual = np.allclose(tail.residual[0], whole.residual[0, 4:], atol=1e-5)
    assert (same_state, same_residual) == (temporal == "none",) * 2
    assert np.abs(np.diff(whole.state[0], axis=0)).max() > 1e-3  # but the window itself does


def test_without_memory_the_state_is_the_encoders_and_the_prior_term_is_zero(prepared):
    method = build(prepared, small_config(memory=False))
    params = perturbed(method)
    assert "memory" not in params and method.prototype_names == ("none",)
    batch = batch_of(prepared, prepared.fit_sequences[:6])
    (_, (sums, _, diagnostics)), gradient = objective(method)(params, batch, keys_of(batch))
    assert set(sums) == {"reconstruction", "contrastive"} and float(diagnostics["prototype_entropy"][0]) == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
    terms = jit(method.score)(params, batch_of(prepared, prepared.test_runs[:1]))
    np.testing.assert_array_equal(terms.prior, 0)
    np.testing.assert_array_equal(terms.prototype, 0)
    assert np.nanmax(terms.temporal) > 0


@pytest.mark.parametrize("off", ["reconstruction", "contrastive", "knowledge"])
def test_a_term_of_weight_zero_is_not_computed_and_leaves_the_others_alone(prepared, off):
    config = small_config()
    method = build(prepared, config)
    params, batch = perturbed(method), batch_of(prepared, prepared.fit_sequences[:6])
    whole = jit(lambda p, b, k: method.loss(p, b, k, identity))(params, batch, keys_of(batch))
    config.loss[off] = 0.0
    sums, counts, diagnostics = jit(lambda p, b, k: build(prepared, config).loss(p, b, k, identity))(
        params, batch, keys_of(batch)
    )
    assert set(sums) == set(counts) == {"reconstruction", "contrastive", "knowledge"} - {off}
    for name in sums:
        np.testing.assert_allclose(sums[name], whole[0][name], rtol=1e-5)
    (value, _), gradient = objective(build(prepared, config))(params, batch, keys_of(batch))
    assert np.isfinite(value)
    untouched = {"reconstruction": "decoder", "contrastive": "embedding"}.get(off)
    if untouched:
        assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(gradient[untouched]))
    assert ("positive_cosine" in diagnostics) == (off != "contrastive")


def test_without_contrast_a_step_encodes_once(prepared):
    def encodings(weight):
        config = small_config()
        config.loss.contrastive = weight
        method = build(prepared, config)
        params, batch = jax.eval_shape(method.init, jax.random.key(0)), batch_of(prepared, prepared.fit_sequences[:6])
        program = jax.make_jaxpr(lambda p, b, k: method.loss(p, b, k, identity))(params, batch, keys_of(batch))
        return str(program).count("scan[")  # each encoding has one, over time

    assert (encodings(0.5), encodings(0.0)) == (2, 1)


def test_no_loss_at_all_is_an_input_error():
    config = default_config("x")
    config.loss.update({"reconstruction": 0.0, "contrastive": 0.0})
    settings.check(config)
    config.model.memory = False
    with pytest.raises(InputError, match="switched off"):
        settings.check(config)


def keys_of_rules(tmp_path, variant):
    texts = ["Broker is away.", "Disk is full.", "Many retries follow.", "Workers are throttled."]
    rules = [
        rule(f"r{i}", description=text).replace('[a, "b-*"]', f"[{service}]").replace("logs", modality)
        for i, (text, service, modality) in enumerate(
            zip(texts, ("a", "b-1", "b-2", "c"), ("logs", "metrics", "traces", "logs"), strict=True)
        )
    ]
    return knowledge.load(write(tmp_path, *rules), SERVICES, POSITIONS, 8, variant)


def test_shuffled_rules_are_the_same_parts_in_other_rows(tmp_path):
    whole, shuffled, again = (keys_of_rules(tmp_path, v) for v in ("rules", "shuffled", "shuffled"))
    np.testing.assert_array_equal(shuffled.keys, again.keys)
    assert shuffled.names == whole.names
    a, b = whole.keys[:4], shuffled.keys[:4]
    assert (np.abs(a[:, :96] - b[:, :96]).max(1) > 0.01).all()  # other words
    assert (np.abs(a[:, 96:104] - b[:, 96:104]).max(1) > 0.01).all()  # of other components
    for part in (slice(96, 104), slice(104, None)):
        np.testing.assert_array_equal(a[np.lexsort(a[:, part].T), part], b[np.lexsort(b[:, part].T), part])
    np.testing.assert_array_equal(whole.keys[4:], shuffled.keys[4:])


def test_shuffling_keeps_every_word():
    contents = [knowledge._Content(list(text), [text], [True]) for text in ("abc", "de", "fghi")]
    shuffled = knowledge._shuffled(contents)
    assert sorted(w for c in shuffled for w in c.words) == list("abcdefghi")
    assert [len(c.words) for c in shuffled] == [3, 2, 4]
    assert all(a.components != b.components for a, b in zip(contents, shuffled, strict=True))


def test_random_rows_keep_their_norms_and_nothing_else(tmp_path):
    whole, other = keys_of_rules(tmp_path, "rules"), keys_of_rules(tmp_path, "random")
    np.testing.assert_allclose(np.linalg.norm(other.keys, axis=1), np.linalg.norm(whole.keys, axis=1), rtol=1e-5)
    cosine = (whole.keys * other.keys).sum(1) / np.square(np.linalg.norm(whole.keys, axis=1))
    assert np.abs(cosine).max() < 0.5 and other.names == whole.names


def test_no_rules_are_topology_and_free_prototypes(tmp_path):
    loaded = keys_of_rules(tmp_path, "none")
    assert [name.split(":")[0].split("-")[0] for name in loaded.names] == ["topology"] * 4 + ["free"] * 4
