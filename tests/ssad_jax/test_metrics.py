"""Every figure against a case small enough to count by hand."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from ssad_jax import metrics, resampling

NS = metrics.NS
LABEL = np.array([0, 0, 1, 1, -1])
SCORE = np.array([0.1, 0.4, 0.35, 0.8, 9.0])
ALERT = np.array([False, True, False, True, True])


def test_point_metrics_by_hand():
    # Pairs (faulty, normal): .35 > .1, .35 < .4, .8 > both: 3 of 4. Precision at the two faulty ones: 1, then 2/3.
    out, reasons = metrics.point_metrics(LABEL, SCORE, ALERT)
    assert reasons == {}
    assert out["auroc"] == 0.75
    assert out["auprc"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert out["tpr_at_5_percent_fpr"] == 0.5
    assert (out["accuracy"], out["precision"], out["recall"], out["f1"], out["fpr"]) == (0.5, 0.5, 0.5, 0.5, 0.5)
    assert out["oracle_best_f1"] == pytest.approx(0.8)  # threshold .35: tp 2, fp 1, fn 0
    assert (out["num_windows"], out["num_anomalous"], out["prevalence"]) == (4, 2, 0.5)
    assert out["all_positive_f1"] == pytest.approx(2 / 3)


def test_tied_scores_count_half():
    out, _ = metrics.point_metrics(np.array([0, 1]), np.array([1.0, 1.0]), None)
    assert (out["auroc"], out["auprc"], out["tpr_at_5_percent_fpr"]) == (0.5, 0.5, 0.0)
    assert out["f1"] is None


@pytest.mark.parametrize("decimals", [1, 6])  # with and without ties
def test_weighted_ranking_is_that_of_repeated_windows(decimals):
    rng = np.random.default_rng(0)
    y = rng.random(60) < 0.4
    score = np.round(rng.random(60) + 0.4 * y, decimals)
    weights = rng.integers(0, 4, (5, 60))
    ours = metrics.weighted_ranking(y, score, weights.astype(float))
    for row, times in enumerate(weights):
        yy, ss = np.repeat(y, times), np.repeat(score, times)
        fpr, tpr, _ = roc_curve(yy, ss, drop_intermediate=False)
        assert ours["auroc"][row] == pytest.approx(roc_auc_score(yy, ss))
        assert ours["auprc"][row] == pytest.approx(average_precision_score(yy, ss))
        assert ours["tpr_at_5_percent_fpr"][row] == pytest.approx(tpr[fpr <= 0.05].max())


@pytest.mark.parametrize(
    "label, score, words",
    [
        ([], [], "no labelled"),
        ([-1, -1], [1.0, 2.0], "no labelled"),
        ([0, 0], [1.0, 2.0], "normal"),
        ([1, 1], [1.0, 2.0], "faulty"),
        ([0, 1], [1.0, np.nan], "not finite"),
    ],
)
def test_what_cannot_be_measured_is_none_with_a_reason(label, score, words):
    label, score = np.array(label, int), np.array(score, float)
    out, reasons = metrics.point_metrics(label, score, np.zeros(len(label), bool))
    assert out["auroc"] is None and words in reasons["auroc"]
    drawn = resampling.draw_windows(label, score, np.zeros(len(label), bool), np.ones((10, len(label))))
    assert resampling.intervals(drawn).get("auroc") is None
    assert "auroc" not in resampling.paired_difference(out, drawn, out, drawn)


def test_culprit_ranks_sum_reciprocal_ranks_over_the_windows_of_a_fault():
    fault = np.array([0, 0, -1, 3, 5])
    suspects = [["a", "b", "c"], ["b", "a"], ["z"], ["x", "y"], []]
    # Fault 0: a = 1 + 1/2, b = 1/2 + 1, c = 1/3. Ties go to the culprit.
    ranks = metrics.culprit_ranks({0: "c", 3: "y", 5: "x"}, fault, suspects)
    assert ranks == {0: 3, 3: 2, 5: None}
    assert metrics.culprit_ranks({0: "b"}, fault, suspects) == {0: 1}
    rates = metrics.hit_rates(ranks.values())
    assert rates == {"hit_rate_at_1": 0.0, "hit_rate_at_3": pytest.approx(2 / 3), "hit_rate_at_5": pytest.approx(2 / 3)}
    assert metrics.hit_rates([]) == {"hit_rate_at_1": None, "hit_rate_at_3": None, "hit_rate_at_5": None}


def test_point_adjustment_by_hand():
    # The second event is found by one lucky window; adjusted, all its windows count as found.
    event = np.array([-1, 0, 0, -1, 1, 1, 1, -1])
    score = np.array([0.3, 0.9, 0.1, 0.2, 0.1, 0.8, 0.1, 0.5])
    adjusted = metrics.point_adjusted(score, event)
    np.testing.assert_array_equal(adjusted, [0.3, 0.9, 0.9, 0.2, 0.8, 0.8, 0.8, 0.5])
    assert metrics.best_f1(event >= 0, adjusted) == 1.0
    assert metrics.best_f1(event >= 0, score) == pytest.approx(10 / 13)  # everything is called faulty
    assert score[2] == 0.1


def test_delay_is_the_end_of_the_first_alerting_faulty_window_minus_onset():
    fault = np.array([4, 4, 4, 8, -1, 9])
    end = np.array([20, 25, 30, 20, 5, 70]) * NS
    alert = np.array([False, True, True, False, True, True])
    events, delays = metrics.event_metrics(fault, {4: 10 * NS, 8: 10 * NS, 9: 40 * NS}, end, alert)
    assert delays == {4: 15.0, 8: None, 9: 30.0}
    assert events["event_recall"] == pytest.approx(2 / 3)
    assert (events["delay_seconds_median"], events["delay_seconds_p90"]) == (22.5, pytest.approx(28.5))
    assert (events["num_faults"], events["num_faults_never_alerted"]) == (3, 1)
    nothing, _ = metrics.event_metrics(np.zeros(0, int), {}, np.zeros(0, int), np.zeros(0, bool))
    assert nothing["event_recall"] is None and nothing["delay_seconds_median"] is None


def test_false_alarms_are_runs_and_normal_time_is_counted_once():
    # Segment 0: windows of 20 s every 5 s; normal 0-35 s in four windows, then a faulty one. Segment 1: one window.
    start = np.array([0, 5, 10, 15, 20, 100]) * NS
    label, segment = np.array([0, 0, 0, 0, 1, 0]), np.array([0, 0, 0, 0, 0, 1])
    alert = np.array([True, True, False, True, True, True])
    out = metrics.false_alarms(label, alert, segment, start, start + 20 * NS)
    assert out["false_alarms"] == 3
    assert out["normal_hours"] == pytest.approx((35 + 20) / 3600)
    assert out["false_alarms_per_hour"] == pytest.approx(3 * 3600 / 55)
    order = np.array([5, 2, 0, 4, 1, 3])
    assert metrics.false_alarms(label[order], alert[order], segment[order], start[order], start[order] + 20 * NS) == out
    none = metrics.false_alarms(np.ones(2, int), alert[:2], segment[:2], start[:2], start[:2])
    assert none["false_alarms_per_hour"] is None
