"""Numbers at the edge of what training, scoring and thresholds accept; docs/edge_cases.md says the same in words."""

import dataclasses

import jax
import numpy as np
import polars as pl
import pytest

from data_prep.errors import Failure, InputError
from ssad_jax import checkpoint, evaluate, methods, parallel, prepared, train
from ssad_jax.config import use_method
from ssad_jax.metrics import point_metrics
from ssad_jax.scoring.distances import Normal
from ssad_jax.scoring.terms import score_runs, scorer
from ssad_jax.scoring.thresholds import METHODS, decide
from tests.data_prep.test_prepare import prepare_rows, telemetry
from tests.ssad_jax import toy
from tests.ssad_jax.gain_method import gain_method
from tests.ssad_jax.test_calibration import PLACE, apply_calibration, fit_calibration, settings, terms
from tests.ssad_jax.test_evaluate import FACTS, run, small_config
from tests.synthetic import make_prepared


def with_nodes(data, windows, value):
    """The data with `value` in every signal of the first log node of some windows."""
    nodes = np.array(data.windows.nodes)
    nodes[windows, 1, 16] = value
    return dataclasses.replace(data, windows=dataclasses.replace(data.windows, nodes=nodes))


def test_a_test_window_that_is_no_number_alerts_and_no_other_does_for_it(tmp_path):
    data = make_prepared(segments=8)
    bad = int(data.test_runs[0, 5])
    run(data, tmp_path / "good")
    run(with_nodes(data, bad, np.nan), tmp_path / "bad")
    good, found = (pl.read_parquet(tmp_path / name / "evaluation/scores.parquet") for name in ("good", "bad"))
    # The next window's step is from a state that is none, and the one a window length later adds up both residuals.
    odd = np.flatnonzero(~found["score"].is_finite())
    assert odd[0] == 5 and set(odd) <= {5, 6, 9} and found["is_alert"].to_numpy()[odd].all()
    rest = np.setdiff1d(np.arange(len(found)), odd)
    np.testing.assert_array_equal(found["score"].to_numpy()[rest], good["score"].to_numpy()[rest])
    assert (tmp_path / "bad" / "report.html").exists()


def test_a_calibration_window_that_is_no_number_is_an_input_error(tmp_path):
    data = make_prepared(segments=8)
    with pytest.raises(InputError, match="none of the 24 calibration scores is finite.*arrays hold values"):
        run(with_nodes(data, int(data.calibration_runs[0, 3]), np.inf), tmp_path)


def test_a_checkpoint_of_parameters_that_are_no_numbers_is_an_input_error(tmp_path):
    params = {"gain": np.full(1, np.nan, np.float32)}
    with pytest.raises(InputError, match="the checkpoint has diverged"):
        evaluate.evaluate_params(small_config(), make_prepared(segments=8), gain_method(), params, tmp_path, FACTS)


def test_a_fit_window_that_is_no_number_ends_training_with_the_step(tmp_path):
    data = make_prepared()
    config = toy.small_config()
    with pytest.raises(Failure, match=r"is not finite at step \d+ \(epoch 1\); none is saved yet"):
        train.train(config, with_nodes(data, int(data.fit_sequences[0, 0]), np.nan), tmp_path, toy.METHOD)
    assert checkpoint.steps(tmp_path / "checkpoints") == []


def one_step(tmp_path, learning_rate, num_epochs):
    """Train the toy with one update an epoch."""
    config = toy.small_config()
    config.data.batch_size, config.optimizer.learning_rate = 64, learning_rate
    config.train.num_epochs, config.train.checkpoint_every = num_epochs, 1
    return train.train(config, make_prepared(), tmp_path, toy.METHOD)


def test_parameters_that_the_last_update_broke_are_not_saved(tmp_path):
    with pytest.raises(Failure, match="a parameter is not finite at step 1; none is saved yet"):
        one_step(tmp_path, np.inf, 1)
    assert checkpoint.steps(tmp_path / "checkpoints") == []


def test_training_does_not_go_on_from_parameters_that_are_no_numbers(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(train, "finite", lambda _: True)
        one_step(tmp_path, np.inf, 1)
    with pytest.raises(InputError, match=r"checkpoints/1 holds parameters that are not finite; delete it"):
        one_step(tmp_path, np.inf, 2)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("value", [0.0, 5e-324, 1e30, -2.5])
def test_constant_scores_never_alert_and_anything_above_does(name, value):
    same, above = np.full(400, value), np.array([np.nextafter(value, np.inf)])
    config = settings(threshold=name, conformal_windows="all")
    decided = decide(same, np.full(50, value), config)
    assert decided.threshold.value == value and not decided.alert.any() and (decided.p_value == 1).all()
    assert decide(same, above, config).alert.all()


@pytest.mark.parametrize("name", METHODS)
def test_scores_that_tie_with_the_threshold_do_not_alert(name):
    held_out = np.repeat(np.arange(100.0), 5)  # every score five times
    config = settings(threshold=name, false_alarm_rate=0.05, quantile=0.95, pot_risk=0.05)
    decided = decide(held_out, held_out, config)
    assert decided.alert.mean() <= 0.05 + 1e-9
    if name != "adaptive":  # whose level moves
        np.testing.assert_array_equal(decided.alert, held_out > decided.threshold.value)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("count", [1, 3])
def test_few_calibration_scores_still_give_a_threshold_that_says_so(name, count):
    held_out = np.arange(1.0, count + 1)
    config = settings(threshold=name)
    decided = decide(held_out, np.array([0.5, 99.0]), config)
    remembered = count + (name == "adaptive")  # which has learnt the first of the two
    assert decided.threshold.value <= count and decided.p_value.tolist() == [1.0, 1 / (remembered + 1)]
    assert "too few" in decided.threshold.method or "cannot be guaranteed" in decided.threshold.method
    assert decided.alert.tolist() == [False, True]


def test_normal_time_without_any_variation_calibrates():
    """Scales, spreads and terms rest on their floors; the same again is usual, anything else is not."""
    same = terms(np.full((12, 3), 2.0), np.full(12, 0.5), np.full(12, 3.0))
    run_of = np.repeat([0, 1, 2], 4)
    calibration, held_out = fit_calibration(PLACE, same.take(slice(0)), same, run_of, 4, settings())
    for name, values in calibration.arrays().items():
        assert np.isfinite(values).all() or name == "node_spread"
    assert (held_out.calibrated == 0).all()
    assert (apply_calibration(calibration, PLACE, same, 4).calibrated == 0).all()
    other = same._replace(residual=same.residual + np.float32(1))
    assert (apply_calibration(calibration, PLACE, other, 4).calibrated > 0.5).all()


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e30])
def test_residuals_of_any_size_are_scored_without_becoming_infinite(size):
    rng = np.random.default_rng(0)
    some = terms(size * rng.normal(size=(40, 3)))
    run_of = np.repeat(np.arange(10), 4)
    calibration, held_out = fit_calibration(PLACE, some.take(slice(0)), some, run_of, 4, settings())
    new = apply_calibration(calibration, PLACE, terms(1e3 * size * rng.normal(size=(5, 3))), 4)
    assert np.isfinite(held_out.calibrated).all() and np.isfinite(new.calibrated).all()


def test_rounding_of_constant_representations_is_no_distance():
    rng = np.random.default_rng(0)
    same = np.repeat(rng.normal(size=(1, 2, 8)), 20, axis=0).astype(np.float32)
    rounded = same[:5] * (1 + 3e-7 * rng.choice([-1, 1], size=same[:5].shape)).astype(np.float32)
    normal = Normal.of(same, np.full(20, -1))
    assert (normal.distance(rounded, None, 5) == 0).all()
    assert (normal.distance(same[:5] + np.float32(0.01), None, 5) > 1).all()


@pytest.mark.parametrize("score", [np.zeros(8), np.full(8, 1e30), np.full(8, 5e-324)])
def test_scores_that_are_all_the_same_rank_nothing(score):
    out, _ = point_metrics(np.array([0, 1] * 4), score, np.zeros(8, bool))
    assert out["auroc"] == 0.5 and out["auprc"] == 0.5 and out["recall"] == 0 and out["precision"] in (None, 0)


@pytest.fixture(scope="module")
def modalities(tmp_path_factory):
    """Datasets of all telemetry, and of the logs alone."""
    rows, path = telemetry(until=300), tmp_path_factory.mktemp("modalities")
    parts = {"all": {**rows, "faults": rows["faults"][:1]}, "logs": {"logs": rows["logs"]}}
    return {name: prepare_rows(path / name, part, segment_seconds=30.0) for name, part in parts.items()}


@pytest.mark.parametrize("name", sorted(methods.METHODS))
def test_a_checkpoint_scores_datasets_of_other_modalities(name, modalities):
    """Parameters do not depend on the nodes: what training had may be missing, and what it had not may be there."""
    config = small_config(bootstrap=0)
    use_method(config, name)
    config.model.hidden_dim, config.data.window_length = 8, 10
    made = {part: methods.get(name).create(config, data.system, None) for part, data in modalities.items()}
    params = {part: train.init_params(method.init, train.streams(0, 1)) for part, method in made.items()}
    assert jax.tree.map(np.shape, params["all"]) == jax.tree.map(np.shape, params["logs"])
    logs = modalities["logs"]
    network = jax.tree.map(lambda p: p[0], params["all"])
    scored = score_runs(scorer(made["logs"]), network, logs, logs.test_runs, config.score.batch_runs)
    assert len(scored.window) == logs.manifest["counts"]["test_windows"]
    for values in (scored.residual, scored.prior, scored.state, scored.temporal[scored.position > 0]):
        assert np.isfinite(values).all()
    assert scored.service is None or np.isfinite(scored.service).all()


def test_only_a_method_that_uses_knowledge_reads_it(caplog):
    config = small_config()
    config.knowledge.path = "no-such-file.yaml"
    with pytest.raises(InputError, match="no-such-file.yaml cannot be read"):
        train.find_knowledge(config, make_prepared())
    config.method = "cross_service"
    assert train.find_knowledge(config, make_prepared()) is None and not caplog.records


def test_an_older_run_of_a_method_without_knowledge_goes_on(tmp_path):
    """Its checkpoints hold the rules that such runs kept before."""
    data, config = make_prepared(), toy.small_config()
    config.method, config.train.num_epochs = "cross_service", 1
    state = jax.device_get(train.init_state(toy.init, train.make_optimizer(config), train.streams(0, 1)))
    knowledge = {"names": ["a"], "keys": np.ones((1, 2), np.float32)}
    context = checkpoint.Context(config, data.system, data.manifest, knowledge)
    with checkpoint.Writer(tmp_path / "checkpoints", 2, context) as writer:
        writer.save(3, 1, state)
    after = train.train(config, data, tmp_path, toy.METHOD)
    jax.tree.map(np.testing.assert_array_equal, parallel.fetch(after["params"]), state["params"])


def test_one_seed_one_test_run_and_one_service_are_evaluated(tmp_path):
    data = make_prepared(segments=4, num_services=1)
    assert len(data.test_runs) == 1 and len(data.calibration_runs) == 1
    results = run(data, tmp_path)
    scores = pl.read_parquet(tmp_path / "evaluation/scores.parquet")
    assert scores["score"].is_finite().all() and np.isfinite(results["threshold"])


def test_arrays_that_do_not_fit_one_another_are_refused(tmp_path):
    """Numbers of nodes, windows or services that lead nowhere: no error from deep inside."""
    data = make_prepared()

    def written(**changed):
        with prepared.Writer(tmp_path / "data") as writer:
            system = dataclasses.replace(data.system, **{k: v for k, v in changed.items() if hasattr(data.system, k)})
            windows = {k: v for k, v in changed.items() if hasattr(data.windows, k)}
            windows = dataclasses.replace(data.windows, **windows)
            rest = {k: v for k, v in changed.items() if k in prepared.ARRAYS["sequences"]}
            writer.finish(dataclasses.replace(data, system=system, windows=windows, **rest), {})
        return prepared.load(tmp_path / "data")

    assert written().windows.num_windows == data.windows.num_windows
    for changed, words in (
        ({"senders": data.windows.senders + 1}, "array senders leads to number 16 of 16"),
        ({"test_runs": data.test_runs + 10**6}, "array test_runs leads to number 10000"),
        ({"label": data.windows.label[:-1]}, "array label is int8"),
        ({"identity": data.system.identity[:, :5]}, "array identity is float"),
        ({"part": data.windows.part.astype("U2")}, "array part is <U2"),
        ({"kind": data.system.kind + 9}, "array kind leads to number"),
    ):
        with pytest.raises(InputError, match=words):
            written(**changed)
