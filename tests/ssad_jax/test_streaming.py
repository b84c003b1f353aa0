"""Windows pushed one by one get the scores of batch evaluation."""

import dataclasses
import functools

import jax
import numpy as np
import polars as pl
import pytest

from data_prep.errors import InputError
from ssad_jax import checkpoint, evaluate, knowledge, methods, prepared, train
from ssad_jax.prepared import Prepared
from ssad_jax.scoring.assess import test_windows as of_test
from ssad_jax.scoring.detectors import Scored, method_detectors, score_dataset
from ssad_jax.scoring.fitted import Fitted
from ssad_jax.scoring.output import scores_frame
from ssad_jax.scoring.states import AsMeasured, Forecast, Mahalanobis, Silent
from ssad_jax.scoring.terms import scorer as batch_scorer
from ssad_jax.streaming import Scorer, Window, latencies
from tests.ssad_jax.gain_method import gain_method
from tests.ssad_jax.test_evaluate import small_config
from tests.synthetic import STRIDE, WINDOW_LENGTH, make_prepared


@dataclasses.dataclass(frozen=True)
class Setting:
    config: object
    data: Prepared
    method: object
    params: object
    scored: Scored

    @functools.cached_property
    def shared(self) -> Scorer:
        """One for most tests: each scorer compiles."""
        return self.scorer()

    def scorer(self, **score) -> Scorer:
        settings = self.config.score.copy_and_resolve_references()
        settings.update(score)
        fitted = Fitted.of(self.data, self.scored, settings, 0)
        return Scorer(self.method, self.params, self.data.system, fitted, WINDOW_LENGTH, STRIDE)

    def batch(self, **score) -> pl.DataFrame:
        """scores.parquet."""
        settings = self.config.score.copy_and_resolve_references()
        settings.update(score)
        chosen = method_detectors(self.data, self.scored, settings)["variants"][settings.variant]
        test = of_test(self.data.windows, self.data.faults, self.scored.terms.window)
        prototype = [self.method.prototype_names[p] for p in self.scored.terms.prototype]
        return scores_frame(test, chosen, self.scored.scores, self.scored.calibration, prototype)


@functools.cache
def make(networks: int, **score) -> Setting:
    # Enough normal windows with history for readings to be fitted on.
    data = make_prepared(segments=24) if networks == 1 else make_prepared(segments=12, folds=networks)
    config = small_config(**score)
    config.data.calibration_folds = networks if networks > 1 else 0
    rules = knowledge.load("", data.system.service_names, data.system.service_position, config.model.num_prototypes)
    method = methods.get(config.method).create(config, data.system, rules)
    params = jax.device_get(train.init_params(method.init, train.streams(0, networks)))
    return Setting(config, data, method, params, score_dataset(batch_scorer(method), params, data, config.score))


@pytest.fixture(params=[1, 3])
def setting(request):
    return make(request.param)


def push_all(scorer: Scorer, data: Prepared, runs=None):
    """The scores of the test windows in time order, a reset before each run."""
    out = []
    for run in data.test_runs if runs is None else runs:
        scorer.reset()
        out += [scorer.push(Window.of(data, row)) for row in run[run >= 0]]
    return out


def assert_rows(scores, frame: pl.DataFrame):
    """Numbers close, everything else equal; one score a row."""
    assert len(scores) == frame.height > 0
    for name, dtype in frame.drop("label", "fault_type").schema.items():
        if name.startswith("score_kind_"):
            found = [s.score_kinds[name.removeprefix("score_kind_")] for s in scores]
        else:
            found = [getattr(s, name) for s in scores]
        if dtype == pl.Float64:
            np.testing.assert_allclose(found, frame[name], rtol=1e-5, atol=1e-5, err_msg=name)
        else:
            assert found == frame[name].to_list(), name


def test_the_readings_of_these_tests_are_fitted(setting):
    kinds = {tuple(map(type, network)) for network in setting.scored.readings}
    assert kinds == {(Forecast, Mahalanobis)}


def test_scores_of_every_run_are_those_of_batch(setting):
    scorer, frame = setting.shared, setting.batch()
    scores = push_all(scorer, setting.data)
    assert_rows(scores, frame)
    assert 0 < frame["is_alert"].sum() < frame.height and frame["suspects"].list.len().max() > 0
    assert np.ptp(frame["score_temporal"].to_numpy()) > 0.1 and np.ptp(frame["score_prior"].to_numpy()) > 0.1
    np.testing.assert_allclose([s.node_error for s in scores], setting.scored.scores.node_error, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose([s.residual for s in scores], setting.scored.terms.residual, rtol=1e-4, atol=1e-5)
    assert [s.position for s in scores] == setting.scored.terms.position.tolist()
    assert {s.threshold for s in scores} == {setting.shared.fitted.rule.threshold.value}


@pytest.mark.parametrize("threshold", ["pot", "conformal", "adaptive"])
def test_alerts_and_p_values_of_every_threshold_are_those_of_batch(threshold):
    setting, chosen = make(1), {"threshold": threshold, "false_alarm_rate": 0.05}
    assert_rows(push_all(setting.scorer(**chosen), setting.data), setting.batch(**chosen))


def test_the_papers_variant_and_readings():
    setting = make(1, variant="paper", temporal="paper", prior="paper")
    assert {tuple(map(type, network)) for network in setting.scored.readings} == {(AsMeasured, AsMeasured)}
    scores = push_all(setting.shared, setting.data)
    assert_rows(scores, setting.batch())
    assert all(s.score == s.score_paper for s in scores)


def test_too_few_normal_windows_read_nothing():
    setting = make(1)
    few = dataclasses.replace(setting.data, calibration_runs=setting.data.calibration_runs[:2])
    scored = score_dataset(batch_scorer(setting.method), setting.params, few, setting.config.score)
    assert scored.readings == ((Silent(), Silent()),)
    few = dataclasses.replace(setting, data=few, scored=scored)
    assert_rows(push_all(few.shared, few.data), few.batch())


def test_a_gap_begins_a_new_run(setting):
    """The runs of the dataset lie apart in time: a reset between them changes nothing."""
    scorer = setting.shared
    scorer.reset()
    rows = setting.data.test_runs[:2].reshape(-1)
    straight = [scorer.push(Window.of(setting.data, row)) for row in rows]
    for one, two in zip(push_all(scorer, setting.data, setting.data.test_runs[:2]), straight, strict=True):
        assert (one.score, one.position, one.suspects) == (two.score, two.position, two.suspects)
    length = setting.data.test_runs.shape[1]
    assert straight[length - 1].position == length - 1 and straight[length].position == 0


def test_what_came_before_matters_and_a_missing_window_is_a_gap():
    setting = make(1)
    windows = [Window.of(setting.data, row) for row in setting.data.test_runs[1]]
    whole = push_all(setting.shared, setting.data, setting.data.test_runs[1:2])
    scorer = setting.shared
    scorer.reset()
    for window in windows[:6]:
        scorer.push(window)
    after = [scorer.push(window) for window in windows[7:]]
    assert [s.position for s in after] == list(range(len(after)))
    assert after[-1].score != pytest.approx(whole[-1].score, rel=1e-4)


def test_time_does_not_go_back_and_a_refused_window_changes_nothing():
    setting = make(1)
    windows = [Window.of(setting.data, row) for row in setting.data.test_runs[0]]
    scorer = setting.shared
    scorer.reset()
    scores = [scorer.push(w) for w in windows[:5]]
    bad = {
        "call reset": [windows[4], windows[0], windows[5]._replace(start_tick=windows[4].start_tick + STRIDE - 1)],
        r"nodes has shape \(15, 32\); windows of this system have \(16, 32\)": [
            windows[5]._replace(nodes=windows[5].nodes[:15])],
        "senders has shape": [windows[5]._replace(senders=windows[5].senders[:-1])],
        "receivers must lie in 0 .. 15": [windows[5]._replace(receivers=windows[5].receivers + 1)],
        "n_edge is 49": [windows[5]._replace(n_edge=49)],
    }  # fmt: skip
    for message, refused in bad.items():
        for window in refused:
            with pytest.raises(ValueError, match=message):
                scorer.push(window)
    scores += [scorer.push(w) for w in windows[5:]]
    expected = push_all(setting.shared, setting.data, setting.data.test_runs[:1])
    assert [s.score for s in scores] == [s.score for s in expected]
    scorer.reset()
    assert scorer.push(windows[0]).score == expected[0].score


def test_pushes_share_one_compilation(setting):
    scorer = setting.shared
    push_all(scorer, setting.data, setting.data.test_runs[:2])
    window = Window.of(setting.data, setting.data.test_runs[0, 0])
    other_types = window._replace(
        nodes=window.nodes.astype(np.float64), senders=window.senders.tolist(), n_edge=int(window.n_edge)
    )
    scorer.reset()
    scorer.push(other_types)
    assert scorer._step._cache_size() == 1


def test_latencies_are_of_every_push():
    setting = make(1)
    windows = [Window.of(setting.data, row) for row in setting.data.test_runs[:2].reshape(-1)]
    taken = latencies(setting.shared, windows, repeats=2)
    assert taken.shape == (2 * len(windows),) and (taken > 0).all() and np.median(taken) < 1


def test_what_does_not_fit_is_refused():
    one, three = make(1), make(3)
    with pytest.raises(ValueError, match="no `step`"):
        Scorer(gain_method(), one.params, one.data.system, one.shared.fitted, WINDOW_LENGTH, STRIDE)
    with pytest.raises(ValueError, match="3 networks .* is of 1 and"):
        Scorer(three.method, three.params, three.data.system, one.shared.fitted, WINDOW_LENGTH, STRIDE)


def write_workdir(setting: Setting, tmp_path):
    with prepared.Writer(tmp_path / "data") as writer:
        writer.finish(setting.data, {})
    config = setting.config.copy_and_resolve_references()
    config.data.prepared_dir, config.score.bootstrap = str(tmp_path / "data"), 0
    data = prepared.load(tmp_path / "data")
    rules = knowledge.load("", data.system.service_names, data.system.service_position, config.model.num_prototypes)
    context = checkpoint.Context(config, data.system, data.manifest, {"names": list(rules.names), "keys": rules.keys})
    with checkpoint.Writer(tmp_path / "work" / "checkpoints", 2, context) as writer:
        writer.save(3, 1, {"params": setting.params, "step": np.int32(3)})
        writer.save(4, 2, {"params": setting.params, "step": np.int32(4)})
    return tmp_path / "work", data


def test_from_an_evaluated_workdir(setting, tmp_path):
    workdir, data = write_workdir(setting, tmp_path)
    with pytest.raises(InputError, match="evaluate first: python -m ssad_jax.evaluate"):
        Scorer.load(workdir)
    evaluate.evaluate(workdir, step=3)
    frame = pl.read_parquet(workdir / "evaluation" / "scores.parquet")
    scorer = Scorer.load(workdir)
    assert scorer.fitted.step == 3
    assert_rows(push_all(scorer, data), frame)
    assert len(push_all(Scorer.load(workdir, 3, tmp_path / "data"), data, data.test_runs[:1])) > 0
    with pytest.raises(InputError, match="evaluated at step 3, not 4; run .* --step=4"):
        Scorer.load(workdir, step=4)


def test_of_another_dataset_and_of_a_damaged_file(tmp_path):
    workdir, data = write_workdir(make(1), tmp_path)
    other = make_prepared(segments=24, seed=1)
    with prepared.Writer(tmp_path / "other") as writer:
        writer.finish(other, {})
    evaluate.evaluate(workdir, tmp_path / "other")
    with pytest.raises(InputError, match="name it as prepared_dir"):
        Scorer.load(workdir)
    with pytest.raises(InputError, match="on another dataset than .*data; run .* --prepared_dir"):
        Scorer.load(workdir, prepared_dir=tmp_path / "data")
    frame = pl.read_parquet(workdir / "evaluation" / "scores.parquet")
    assert_rows(push_all(Scorer.load(workdir, prepared_dir=tmp_path / "other"), other), frame)
    path = workdir / "evaluation" / "calibration.npz"
    with np.load(path) as file:
        old = {name: array for name, array in file.items() if name != "facts"}
    np.savez(path, **old)
    with pytest.raises(InputError, match="of an earlier version; evaluate again"):
        Scorer.load(workdir)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="damaged"):
        Scorer.load(workdir)
