"""Alarms from windows, by hand: hysteresis, cool-down, fewest windows, time that is cut."""

import numpy as np
import polars as pl
import pytest

from ssad_jax.config import default_config
from ssad_jax.scoring.alarms import alarm_figures, find_alarms
from ssad_jax.scoring.assess import Detector, TestWindows

NS = 1_000_000_000
FAULTS = pl.DataFrame({"start_time_unix_nano": [40 * NS], "service_name": ["a"], "fault_type": ["x"]})


def windows(count, label=None, start=None):
    """Windows of 20 s, 5 s apart."""
    start = np.arange(count) * 5 * NS if start is None else np.array(start) * NS
    label = np.zeros(count, int) if label is None else np.array(label)
    fault = np.where(label == 1, 0, -1)
    return TestWindows(np.arange(count), start, start + 20 * NS, np.zeros(count, int), label, fault, FAULTS)


def detector(p_value, opens=0.01):
    p_value = np.array(p_value)
    return Detector("d", 1 - p_value, 1 - opens, "by hand", p_value <= opens, None, p_value)


def settings(**some):
    config = default_config("test").alerts
    config.update({"stay_open_rate": 0.05, "min_windows": 1, "cool_down_seconds": 0.0} | some)
    return config


def rows(alarms):
    return [alarm.rows.tolist() for alarm in alarms]


def test_hysteresis_keeps_an_alarm_open_and_opens_none():
    p = [0.5, 0.04, 0.01, 0.04, 0.005, 0.04, 0.5, 0.5, 0.5, 0.5, 0.5, 0.04, 0.5]
    alarms = find_alarms(windows(13), detector(p), settings())
    assert rows(alarms) == [[2, 3, 4, 5]]  # neither the unusual window before it nor the one that never alerts
    assert (alarms[0].num_alerts, alarms[0].first, alarms[0].peak) == (2, 2, 4)
    assert (alarms[0].start_unix_nano, alarms[0].end_unix_nano) == (10 * NS, 45 * NS)
    plain = find_alarms(windows(13), detector(p), settings(stay_open_rate=0.0, cool_down_seconds=-100.0))
    assert rows(plain) == [[2], [4]]


def test_cool_down_by_hand():
    p = np.full(20, 0.5)
    p[[2, 9]] = 0.01  # [10, 30) and [45, 65): 15 s between them
    assert rows(find_alarms(windows(20), detector(p), settings(cool_down_seconds=14.9))) == [[2], [9]]
    merged = find_alarms(windows(20), detector(p), settings(cool_down_seconds=15.0))
    assert rows(merged) == [[2, 9]] and merged[0].end_unix_nano == 65 * NS and merged[0].num_alerts == 2


def test_fewest_windows_are_counted_after_merging():
    p = np.full(20, 0.5)
    p[[2, 9, 17]] = 0.01
    assert rows(find_alarms(windows(20), detector(p), settings(cool_down_seconds=15.0, min_windows=2))) == [[2, 9]]
    assert find_alarms(windows(20), detector(p), settings(min_windows=4)) == []


def test_alarms_end_where_time_is_missing_but_not_where_it_is_cut():
    p = np.full(4, 0.001)
    cut = windows(4, start=[0, 5, 25, 30])  # a segment ends at 25 s
    assert rows(find_alarms(cut, detector(p), settings())) == [[0, 1, 2, 3]]
    hole = windows(4, start=[0, 5, 600, 605])
    assert rows(find_alarms(hole, detector(p), settings(cool_down_seconds=60.0))) == [[0, 1], [2, 3]]


def test_without_p_values_alerts_alone_count():
    plain = Detector("d", np.array([0.0, 2.0, np.nan, 2.0, 0.0]), 1.0, "by hand", np.array([0, 1, 1, 1, 0], bool))
    alarms = find_alarms(windows(5), plain, settings())
    assert rows(alarms) == [[1, 2, 3]] and alarms[0].peak == 2  # what cannot be scored is the worst
    assert find_alarms(windows(0), detector(np.zeros(0)), settings()) == []


def test_figures_by_hand():
    label = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, -1, -1, 0]
    p = np.full(16, 0.5)
    p[[0, 1, 7, 8, 13]] = 0.01
    test = windows(16, label)
    alarms = find_alarms(test, detector(p), settings(cool_down_seconds=-100.0))
    assert rows(alarms) == [[0, 1], [7, 8], [13]]
    figures = alarm_figures(test, alarms, 0.5, [0, 43 * NS, 65 * NS])
    assert (figures["num_true_alarms"], figures["num_near_alarms"], figures["num_false_alarms"]) == (1, 1, 1)
    assert figures["false_alarms_per_hour"] == 2.0
    assert figures["share_of_normal_windows"] == pytest.approx(3 / 12)
    assert figures["since_minus_onset_seconds_median"] == figures["since_error_seconds_median"] == 3.0
    nothing = alarm_figures(test, [], 0.0, [])
    assert nothing["num_alarms"] == 0 and nothing["false_alarms_per_hour"] is None
    assert nothing["share_of_normal_windows"] == 0.0 and nothing["seconds_median"] is None
