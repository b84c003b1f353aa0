"""VUS-PR against a literal transcription of its definition, and by hand."""

import numpy as np
import pytest

from ssad_jax.vus import vus_pr


def by_definition(y, score, longest):
    """One segment, one threshold after the other, window by window (Paparrizos et al., as TSB-AD averages it)."""
    m = len(y)
    edges = np.diff(np.concatenate([[0], y, [0]]))
    events = list(zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) - 1, strict=True))
    order, areas = np.sort(score)[::-1], []
    for length in range(longest + 1):
        half, worth, regions = length // 2, y.astype(float), []
        for a, b in events:
            for t in range(m):
                d = a - t if t < a else t - b
                if 0 < d <= half and not y[t]:
                    worth[t] += np.sqrt(1 - d / length)
            if regions and a - half <= regions[-1][1]:
                regions[-1][1] = b + half
            else:
                regions.append([max(a - half, 0), b + half])
        worth, area, before = np.minimum(worth, 1), 0.0, 0.0
        for i in np.linspace(0, m - 1, 250).astype(int):
            alert = score >= order[i]
            hit = sum(worth[t] for t in range(m) if alert[t])
            widened = sum(1.0 if y[t] else worth[t] * alert[t] for t in range(m))
            recall = min(hit / ((y.sum() + widened) / 2), 1.0)
            recall *= np.mean([alert[a : b + 1].any() for a, b in regions])
            area += (recall - before) * hit / alert.sum()
            before = recall
        areas.append(area)
    return np.mean(areas)


def one_segment(m):
    return np.zeros(m, int), np.arange(m)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("longest", [0, 5])
def test_it_is_the_definition(seed, longest):
    rng = np.random.default_rng(seed)
    y = np.zeros(40, int)
    y[0:3] = y[12:15] = y[17:18] = y[30:36] = 1  # an event at the edge, two whose buffers meet
    score = np.round(rng.random(40) + 0.5 * y, 1 if seed % 2 else 6)  # with and without ties
    expected = by_definition(y, score, longest)
    assert vus_pr(y, score, *one_segment(40), longest)[0] == pytest.approx(expected)


def test_by_hand():
    # Found one window early: without a buffer the alert is false, with l = 2 it is worth sqrt(1 - 1/2).
    y, score = np.array([0, 0, 1, 0, 0, 0]), np.array([0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    half = np.sqrt(0.5)
    hard = 1 / 6  # at the second threshold everything alerts
    first = half / (1 + half / 2)  # recall, at precision sqrt(.5)
    everything = min((1 + 2 * half) / (1 + half), 1)
    wide = first * half + (everything - first) * (1 + 2 * half) / 6
    figure = vus_pr(y, score, *one_segment(6), 2)[0]
    assert figure == pytest.approx((hard + hard + wide) / 3)  # l = 1 has no buffer either: 1 // 2 windows


def test_a_perfect_score_has_one_without_buffers_and_less_credit_is_lost_near_an_event():
    y = np.repeat([0, 1, 0], [20, 10, 20])
    assert vus_pr(y, y * 1.0, *one_segment(50), 0)[0] == pytest.approx(1.0)
    early, far = np.roll(y, -2) * 1.0, np.roll(y, 15) * 1.0
    assert vus_pr(y, early, *one_segment(50), 6)[0] > vus_pr(y, early, *one_segment(50), 0)[0] + 0.05
    assert vus_pr(y, far, *one_segment(50), 6)[0] < 0.4


def test_buffers_and_events_end_at_the_segment_and_null_windows_are_left_out():
    y = np.array([0, 0, 1, 1, 0, 0])
    segment, start = np.array([0, 0, 0, 1, 1, 1]), np.arange(6)
    score = np.array([0.1, 0.2, 0.9, 0.0, 0.3, 0.1])
    apart = vus_pr(y, score, segment, start, 0)[0]
    # Two events, of which the second scores below everything: it is touched only where all windows alert.
    assert apart == pytest.approx(0.5 * 0.5 * 1.0 + (1 - 0.25) * 2 / 6)
    assert apart < vus_pr(y, score, np.zeros(6, int), start, 0)[0]
    more = np.array([0, 0, -1, 1, 1, 0, 0])
    again = vus_pr(more, np.insert(score, 2, 5.0), np.insert(segment, 2, 0), np.arange(7), 3)[0]
    assert again == pytest.approx(vus_pr(y, score, segment, start, 3)[0])
    shuffled = np.array([5, 0, 3, 1, 4, 2])
    assert vus_pr(y[shuffled], score[shuffled], segment[shuffled], start[shuffled], 0)[0] == pytest.approx(apart)


def test_weights_count_windows_and_one_class_gives_nan():
    rng = np.random.default_rng(0)
    y = np.tile(np.repeat([0, 1, 0], 4), 3)
    score, segment = rng.random(36) + 0.5 * y, np.repeat([0, 1, 2], 12)
    weights = np.repeat([[1, 1, 1], [2, 2, 2], [1, 0, 1], [0, 0, 0]], 12, axis=1)
    out = vus_pr(y, score, segment, np.arange(36), 4, weights)
    assert out[0] == pytest.approx(out[1]) == pytest.approx(vus_pr(y, score, segment, np.arange(36), 4)[0])
    some = segment != 1
    assert out[2] == pytest.approx(vus_pr(y[some], score[some], segment[some], np.arange(24), 4)[0], abs=0.05)
    assert np.isnan(out[3])
    assert np.isnan(vus_pr(np.zeros(3, int), np.arange(3.0), *one_segment(3), 2)).all()
