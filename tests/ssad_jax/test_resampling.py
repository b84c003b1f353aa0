"""Blocks, draws and intervals against cases small enough to count by hand."""

import numpy as np
import polars as pl
import pytest

from ssad_jax import metrics, resampling
from ssad_jax.scoring.assess import Detector, TestWindows, assess, draws

NS = metrics.NS


def make_test(segment, label, fault, services=("a", "b")) -> TestWindows:
    """Windows of 20 s every 5 s; segments begin 1000 s apart."""
    segment = np.array(segment)
    position = np.array([(segment[:i] == s).sum() for i, s in enumerate(segment)])
    start = (segment * 1000 + position * 5) * NS
    onset = [int(start[np.array(fault) == f].min(initial=start.max())) for f in range(len(services))]
    faults = pl.DataFrame({"start_time_unix_nano": onset, "service_name": services, "fault_type": ["x"] * len(onset)})
    ids = np.arange(len(segment))
    return TestWindows(ids, start, start + 20 * NS, segment, np.array(label), np.array(fault), faults)


def random_test(num_segments=20, width=10, seed=0):
    """One fault in the second half of every segment; scores share a shift within a segment."""
    rng = np.random.default_rng(seed)
    segment = np.repeat(np.arange(num_segments), width)
    label = np.tile([0] * (width // 2) + [1] * (width // 2), num_segments)
    test = make_test(segment, label, np.where(label == 1, segment, -1), ["s"] * num_segments)
    return test, label + rng.normal(size=len(label)) + rng.normal(size=num_segments)[segment], rng


def detector(score, suspects=None):
    return Detector("d", score, 0.5, "by hand", score > 0.5, suspects)


def test_a_block_is_a_fault_event_with_the_windows_around_it_or_a_segment_without_faults():
    #           segment 0: two faults, windows between them go to the nearer one;      1: none;  2: one fault
    segment = [0] * 9 + [1] * 2 + [2] * 3
    fault = [-1, 4, 4, -1, -1, -1, 7, -1, -1] + [-1, -1] + [-1, -1, 2]
    start = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 100, 101, 200, 201, 202])
    block = resampling.event_blocks(np.array(segment), start, np.array(fault))
    groups = [np.flatnonzero(block == b).tolist() for b in dict.fromkeys(block.tolist())]
    assert groups == [[0, 1, 2, 3, 4], [5, 6, 7, 8], [9, 10], [11, 12, 13]]  # window 4 is as near to both: the earlier


def test_blocks_are_drawn_whole():
    block = np.array([7, 7, 7, 2, 2, 9])
    drawn = resampling.block_draws(block, 200, seed=1)
    np.testing.assert_array_equal(drawn[:, [1, 2, 4]], drawn[:, [0, 0, 3]])
    np.testing.assert_array_equal(drawn[:, 0] + drawn[:, 3] + drawn[:, 5], 3)
    assert abs(drawn[:, 0].mean() - 1) < 0.2


def test_draws_of_events_by_hand():
    # Three faults: delays 10 and 30 s, one never alerted; culprits ranked 1, 2, never.
    delays, ranks = {0: 10.0, 3: 30.0, 5: None}, {0: 1, 3: 2, 5: None}
    weights = np.array([[1, 1, 1], [0, 2, 1], [0, 0, 3], [3, 0, 0]], float)
    out = resampling.draw_events(delays, ranks, weights)
    np.testing.assert_allclose(out["event_recall"], [2 / 3, 2 / 3, 0, 1])
    np.testing.assert_array_equal(out["delay_seconds_median"], [20, 30, np.nan, 10])
    np.testing.assert_allclose(out["hit_rate_at_1"], [1 / 3, 0, 0, 1])
    np.testing.assert_allclose(out["hit_rate_at_3"], [2 / 3, 2 / 3, 0, 1])
    assert "hit_rate_at_1" not in resampling.draw_events(delays, {}, weights)


def test_a_draw_is_what_the_drawn_blocks_alone_would_give():
    test, score, _ = random_test(num_segments=4)
    names = [["s"] if s > 0 else ["t", "s"] for s in score]
    whole = detector(score, names)
    drawn = draws(test, whole, 30)
    weights = resampling.block_draws(resampling.event_blocks(test.segment, test.start_unix_nano, test.fault), 30)
    for row in (0, 7):
        # Each drawn block as a segment of its own, with a fault of its own.
        rows, segment, fault, copies = [], [], [], 0
        for s in range(4):
            for _ in range(int(weights[row][test.segment == s][0])):
                mine = np.flatnonzero(test.segment == s)
                rows += mine.tolist()
                segment += [copies] * len(mine)
                fault += np.where(test.label[mine] == 1, copies, -1).tolist()
                copies += 1
        again = make_test(segment, test.label[rows], fault, ["s"] * copies)
        figures = assess(again, detector(score[rows], [names[r] for r in rows]), {})
        for name in resampling.FIGURES:
            if name != "vus_pr":  # its 250 thresholds are those of all windows
                assert drawn[name][row] == pytest.approx(figures[name]), name
        assert drawn["vus_pr"][row] == pytest.approx(figures["vus_pr"], abs=0.01)


def test_interval_covers_the_figure_and_narrows_with_more_events():
    def width(num_segments):
        test, score, _ = random_test(num_segments)
        figure = metrics.point_metrics(test.label, score, None)[0]["auroc"]
        low, high = resampling.intervals(draws(test, detector(score), 300))["auroc"]
        assert low < figure < high
        return high - low

    assert width(100) < 0.6 * width(10)


def test_paired_difference_is_narrower_than_the_intervals_themselves():
    test, first, rng = random_test()
    both = [detector(first), detector(first + 0.3 * rng.normal(size=len(first)))]
    drawn = [draws(test, d, 300) for d in both]
    one, two = (assess(test, d, {}) for d in both)
    pair = resampling.paired_difference(one, drawn[0], two, drawn[1])
    assert set(pair) == set(resampling.FIGURES) - set(metrics.HIT_RATES)
    for key, value in pair.items():
        assert value["difference"] == pytest.approx(one[key] - two[key])
    low, high = pair["auroc"]["interval_95"]
    alone = resampling.intervals(drawn[0])["auroc"]
    assert low < pair["auroc"]["difference"] < high and high - low < alone[1] - alone[0]
    assert resampling.paired_difference(one, {}, two, {})["auroc"]["interval_95"] is None


def test_nothing_is_drawn_without_labels():
    test = make_test([0, 0], [-1, -1], [-1, -1])
    assert draws(test, detector(np.zeros(2)), 10) == {} == draws(test, detector(np.zeros(2)), 0)
