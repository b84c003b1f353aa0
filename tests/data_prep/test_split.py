from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from data_prep import split
from data_prep.errors import InputError
from data_prep.split import CALIBRATION, FIT, NS, TEST, UNUSED

SCHEMA = {
    split.START: pl.Int64, split.END: pl.Int64, "service_name": pl.String, "fault_type": pl.String,
    split.UNCERTAIN: pl.Int64,
}  # fmt: skip


def make_config(**changed):
    values = {
        "tick_seconds": 1.0, "window_length": 10, "stride": 5, "train_stride": 5, "segment_seconds": 100.0,
        "recording_gap_hours": 6.0, "protocol": "chronological", "train_share": 0.6, "calibration_share": 0.34,
        "calibration_folds": 0, "train_on": "normal",
    }  # fmt: skip
    return SimpleNamespace(**{**values, **changed})


def faults(*rows):
    """(uncertain from, start, end) in seconds."""
    rows = [(start * NS, end * NS, "a", "cpu", uncertain * NS) for uncertain, start, end in rows]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def seconds(pairs):
    return [(a // NS, b // NS) for a, b in pairs]


def intervals(*pairs):
    return [(a * NS, b * NS) for a, b in pairs]


def test_gaps_leave_whole_seconds():
    gaps = [(50 * NS, 60 * NS), (55 * NS, 70 * NS + 1), (95 * NS, 400 * NS)]
    got = split.observed_intervals(10 * NS + 5, 99 * NS + 7, gaps)
    assert seconds(got) == [(10, 50), (71, 95)]


def test_a_gap_before_or_after_everything_takes_nothing():
    gaps = [(0, 5 * NS), (200 * NS, 300 * NS)]
    assert seconds(split.observed_intervals(10 * NS, 99 * NS, gaps)) == [(10, 99)]


def test_long_intervals_are_cut_and_the_rest_is_not_shorter_than_half():
    assert seconds(split.cut(intervals((0, 340)), 100 * NS, faults())) == [(0, 100), (100, 200), (200, 340)]


def test_no_cut_falls_into_a_fault_or_its_uncertain_beginning():
    got = split.cut(intervals((0, 400)), 100 * NS, faults((95, 105, 130), (120, 125, 150)))
    assert seconds(got) == [(0, 150), (150, 250), (250, 400)]
    assert seconds(split.cut(intervals((0, 200)), 100 * NS, faults((90, 90, 199)))) == [(0, 199), (199, 200)]
    assert seconds(split.cut(intervals((0, 200)), 100 * NS, faults((90, 90, 210)))) == [(0, 200)]


def test_chronological_parts_of_each_recording():
    day = 24 * 3600
    first = [(i * 200, i * 200 + 100) for i in range(5)]
    second = [(day + a, day + b) for a, b in first]
    segments = split.make_segments(intervals(*first, *second), faults(), make_config())
    assert segments.recording.tolist() == [0] * 5 + [1] * 5
    # Three of five train; of the six training segments the second, then every third, is held out.
    assert segments.part.tolist() == [FIT, CALIBRATION, FIT, TEST, TEST, FIT, CALIBRATION, FIT, TEST, TEST]


def test_folds_take_every_fifth_segment():
    pairs = intervals(*((i * 200, i * 200 + 100) for i in range(12)))
    tested = []
    for fold in range(5):
        segments = split.make_segments(pairs, faults(), make_config(protocol=f"fold:{fold}"))
        tested.append(np.flatnonzero(segments.part == TEST).tolist())
    assert tested == [[0, 5, 10], [1, 6, 11], [2, 7], [3, 8], [4, 9]]


@pytest.mark.parametrize("protocol", ["fold:5", "fold:", "random"])
def test_unknown_protocol(protocol):
    pairs = intervals((0, 100), (200, 300), (400, 500))
    with pytest.raises(InputError, match="data.protocol"):
        split.make_segments(pairs, faults(), make_config(protocol=protocol))


def test_the_held_out_share_is_one_group():
    segments = split.make_segments(intervals(*((i * 200, i * 200 + 100) for i in range(10))), faults(), make_config())
    assert (segments.group == np.where(segments.part == CALIBRATION, 0, -1)).all() and (segments.group == 0).any()


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_groups_take_turns_and_every_usable_training_segment_has_one(folds):
    pairs = intervals(*((i * 200, i * 200 + 100) for i in range(20)))
    config = make_config(calibration_folds=folds)
    fault = faults((595, 600, 710))  # all of the fourth segment
    segments = split.make_segments(pairs, fault, config)
    assert segments.part.tolist() == [FIT] * 12 + [TEST] * 8
    assert segments.group[3] == -1 and (segments.group[12:] == -1).all()
    usable = np.delete(np.arange(12), 3)
    assert segments.group[usable].tolist() == [i % folds for i in range(11)]
    everything = split.make_segments(pairs, fault, make_config(calibration_folds=folds, train_on="all"))
    assert everything.group[:12].tolist() == [i % folds for i in range(12)]


def test_more_groups_than_usable_segments_is_an_input_error():
    pairs = intervals(*((i * 200, i * 200 + 100) for i in range(5)))
    assert split.make_segments(pairs, faults(), make_config(calibration_folds=3)).group.tolist() == [0, 1, 2, -1, -1]
    with pytest.raises(InputError, match="3 of them with normal training windows"):
        split.make_segments(pairs, faults(), make_config(calibration_folds=4))


def test_two_training_segments_are_enough_to_calibrate_on_one():
    config = make_config(calibration_share=0.25)
    segments = split.make_segments(intervals((0, 100), (200, 300), (400, 500)), faults(), config)
    assert segments.part.tolist() == [FIT, CALIBRATION, TEST]


def test_segments_without_a_normal_window_are_not_held_out_for_calibration():
    pairs = intervals(*((i * 200, i * 200 + 100) for i in range(5)))
    segments = split.make_segments(pairs, faults((195, 200, 310)), make_config())
    assert segments.part.tolist() == [FIT, FIT, CALIBRATION, TEST, TEST]


@pytest.mark.parametrize("pairs", [[(0, 9), (20, 29)], [(0, 100)], [(0, 100), (200, 300)]])
def test_too_little_time_is_an_input_error(pairs):
    with pytest.raises(InputError, match="segment"):
        split.make_segments(intervals(*pairs), faults(), make_config())


def test_labels_by_the_contract():
    fault = faults((20, 30, 60))
    start = np.array([5, 10, 11, 24, 25, 50, 55, 56, 59, 60]) * NS
    label, row = split.label_windows(start, start + 10 * NS, fault)
    # Two end before the uncertain onset, two reach into it, three lie half in the fault, two less, one begins after.
    assert label.tolist() == [0, 0, -1, -1, 1, 1, 1, -1, -1, 0]
    assert row.tolist() == [-1, -1, -1, -1, 0, 0, 0, -1, -1, -1]


def test_a_short_fault_only_makes_windows_null_and_the_longer_of_two_names_the_window():
    start = np.array([0, 10]) * NS
    label, row = split.label_windows(start, start + 10 * NS, faults((4, 4, 8)))
    assert label.tolist() == [-1, 0] and row.tolist() == [-1, -1]
    label, row = split.label_windows(start, start + 10 * NS, faults((0, 0, 9), (4, 4, 20)))
    assert label.tolist() == [1, 1] and row.tolist() == [0, 1]


def windows_of(pairs, parts, config, fault=None, groups=None):
    start, end = (np.array(column, np.int64) * NS for column in zip(*pairs, strict=True))
    groups = np.where(np.array(parts) == CALIBRATION, 0, -1) if groups is None else np.array(groups)
    segments = split.Segments(
        start, end, np.zeros(len(start), np.int32), np.array(parts, np.int8), groups.astype(np.int8)
    )
    return split.make_windows(segments, faults() if fault is None else fault, config)


def test_windows_are_anchored_at_segment_starts_and_stay_inside():
    config = make_config(train_stride=2, stride=4)
    windows = windows_of([(3, 20), (100, 117), (200, 219)], [FIT, CALIBRATION, TEST], config)
    assert windows.offset.tolist() == [0, 2, 4, 6, 0, 4, 0, 4, 8]
    assert windows.segment.tolist() == [0] * 4 + [1] * 2 + [2] * 3
    assert (windows.start // NS).tolist() == [3, 5, 7, 9, 100, 104, 200, 204, 208]
    assert (windows.end - windows.start == 10 * NS).all()
    assert (windows.part == windows_part(windows, [FIT, CALIBRATION, TEST])).all()


def windows_part(windows, parts):
    return np.array(parts)[windows.segment]


def test_a_train_stride_that_does_not_divide_the_stride():
    config = make_config(train_stride=3, stride=5)
    windows = windows_of([(0, 40), (100, 120), (200, 220)], [FIT, CALIBRATION, TEST], config)
    sequences = split.training_sequences(windows, 5, 3, 3)
    fit = windows.part == FIT
    assert set(np.diff(windows.offset[fit])) == {1}
    for row in sequences:
        assert (row >= 0).all() and set(np.diff(windows.offset[row])) == {5}
    assert set(windows.offset[sequences[:, 0]]) >= {0, 3, 6, 9, 12, 15, 18}


def test_purge_keeps_a_window_length_between_parts():
    config = make_config()
    windows = windows_of([(0, 50), (50, 100), (100, 150)], [FIT, CALIBRATION, TEST], config)
    used = {p: windows.offset[(windows.part == p)].tolist() for p in (FIT, CALIBRATION, TEST)}
    # A window of 10 s must end 10 s before the next part begins: at 40 at the latest, so it starts by 30.
    assert used[FIT] == [0, 5, 10, 15, 20, 25, 30] and used[CALIBRATION] == used[FIT]
    assert used[TEST] == [0, 5, 10, 15, 20, 25, 30, 35, 40]
    backwards = windows_of([(0, 50), (50, 100), (100, 150)], [TEST, CALIBRATION, FIT], config)
    assert backwards.offset[backwards.part == FIT].tolist() == [10, 15, 20, 25, 30, 35, 40]


def test_purge_keeps_a_window_length_between_groups_that_take_turns():
    config = make_config(calibration_folds=2)
    pairs, groups = [(0, 50), (50, 100), (100, 150), (155, 205), (300, 350), (350, 400)], [0, 1, 1, 0, 1, -1]
    windows = windows_of(pairs, [FIT] * 5 + [TEST], config, groups=groups)
    used = [windows.offset[(windows.segment == g) & (windows.part == FIT)].tolist() for g in range(5)]
    # Every window of 10 s stays 10 s away from another group's segment, on both sides: 0-40, 60-100, 100-145, 160-205.
    assert used[0] == [0, 5, 10, 15, 20, 25, 30] and used[1] == [10, 15, 20, 25, 30, 35, 40]
    assert used[2] == [0, 5, 10, 15, 20, 25, 30, 35] and used[3] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert used[4] == [0, 5, 10, 15, 20, 25, 30]  # a test segment follows
    assert (windows.part[windows.segment == 5] == TEST).all()


def test_nothing_that_a_network_is_fitted_on_comes_near_what_it_judges():
    rng = np.random.default_rng(0)
    for folds in (2, 3):
        config = make_config(calibration_folds=folds, train_stride=2, segment_seconds=60.0)
        pairs = intervals((0, 500), (530, 900), (909, 1500), (1600, 1700))
        begins = np.sort(rng.choice(1000, 4, replace=False)).tolist()
        fault = faults(*((b - 3, b, b + 20) for b in begins))
        segments = split.make_segments(split.cut(pairs, 60 * NS, fault), fault, config)
        windows = split.make_windows(segments, fault, config)
        group, fit = segments.group[windows.segment], windows.part == FIT
        assert set(group[fit]) == set(range(folds))
        for k in range(folds):
            judged, fitted = fit & (group == k), fit & (group != k)
            before = windows.end[fitted][:, None] <= windows.start[judged] - 10 * NS
            after = windows.start[fitted][:, None] >= windows.end[judged] + 10 * NS
            assert (before | after).all()


def test_windows_that_touch_a_known_fault_are_not_trained_on_unless_all_are():
    pairs, parts = [(0, 60), (100, 160), (200, 260)], [FIT, CALIBRATION, TEST]
    fault = faults((20, 25, 30), (210, 210, 230))
    normal = windows_of(pairs, parts, make_config(), fault)
    assert normal.offset[normal.part == FIT].tolist() == [0, 5, 10, 30, 35, 40, 45, 50]
    assert (normal.part[normal.segment == 2] == TEST).all()
    everything = windows_of(pairs, parts, make_config(train_on="all"), fault)
    assert not (everything.part == UNUSED).any()


def test_nothing_left_to_fit_on_is_an_input_error():
    with pytest.raises(InputError, match="no window is left"):
        windows_of([(0, 60), (100, 160), (200, 260)], [FIT, CALIBRATION, TEST], make_config(), faults((0, 0, 60)))


def test_a_group_without_a_window_is_an_input_error():
    config = make_config(calibration_folds=2)
    with pytest.raises(InputError, match="calibration group 1 .*data.calibration_folds"):  # 25 s between two others
        windows_of([(0, 60), (60, 85), (85, 145), (200, 260)], [FIT] * 3 + [TEST], config, groups=[0, 1, 0, -1])


def test_fit_intervals_are_unions_of_fit_windows():
    fault = faults((20, 25, 30))
    windows = windows_of([(0, 60), (100, 160), (200, 260)], [FIT, CALIBRATION, TEST], make_config(), fault)
    assert [(g, a // NS, b // NS) for g, a, b in split.fit_intervals(windows)] == [(0, 0, 20), (0, 30, 60)]


def test_training_sequences_cover_every_run_and_pad_short_ones():
    fault = faults((20, 25, 30))
    windows = windows_of([(0, 60), (100, 160), (200, 260)], [FIT, CALIBRATION, TEST], make_config(), fault)
    sequences = split.training_sequences(windows, 5, 5, 4)
    assert [windows.offset[row[row >= 0]].tolist() for row in sequences] == [
        [0, 5, 10], [30, 35, 40, 45], [35, 40, 45, 50]
    ]  # fmt: skip
    assert sequences[0].tolist()[3] == -1
    whole = split.training_sequences(windows, 5, 5, 99)
    assert whole.shape == (2, 99) and (whole >= 0).sum() == 8


def test_runs_end_at_segments_and_at_unused_windows():
    fault = faults((120, 120, 125))
    windows = windows_of([(0, 30), (100, 150), (300, 330)], [FIT, CALIBRATION, TEST], make_config(), fault)
    calibration = split.runs(windows, CALIBRATION, 5)
    assert [windows.offset[row[row >= 0]].tolist() for row in calibration] == [[0, 5, 10], [25, 30, 35, 40]]
    assert calibration[0].tolist()[3] == -1
    test = split.runs(windows, TEST, 5)
    assert windows.offset[test[0]].tolist() == [0, 5, 10, 15, 20]


def test_runs_of_dense_training_windows_pass_over_those_between_the_strides():
    config = make_config(calibration_folds=2, train_stride=1)
    fault = faults((20, 22, 24))
    windows = windows_of([(0, 70), (100, 150), (300, 330)], [FIT, FIT, TEST], config, fault, groups=[0, 1, -1])
    assert (windows.part == FIT).sum() > 60
    runs = split.runs(windows, FIT, 5)
    # Windows that start at 11 to 23 touch the fault; the stride goes on counting from the segment's start.
    assert [windows.offset[row[row >= 0]].tolist() for row in runs] == [
        [0, 5, 10], list(range(25, 65, 5)), list(range(0, 45, 5))
    ]  # fmt: skip
    assert [windows.segment[row[0]] for row in runs] == [0, 0, 1]
