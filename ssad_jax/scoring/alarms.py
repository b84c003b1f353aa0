"""From alerting windows to alarms: what somebody on call would be told once.

Windows overlap and a fault lasts, so that one cause raises many alerts. An alarm opens with a window that alerts, stays
open while windows stay unusual at a lower level (hysteresis), and goes on where it reopens soon after it closed
(cool-down). `is_alert` in scores.parquet stays the decision on each window alone.
"""

import dataclasses

import numpy as np

from ssad_jax.metrics import NS
from ssad_jax.scoring.assess import Detector, TestWindows


@dataclasses.dataclass(frozen=True)
class Alarm:
    """One alarm over the windows `rows`, in time order."""

    rows: np.ndarray  # [n] rows of the test windows while it was open; of a reopened one not those between
    start_unix_nano: int  # of its first alerting window
    end_unix_nano: int  # of its last window
    num_alerts: int  # of `rows`, those that alert
    first: int  # row of the first window that alerts
    peak: int  # row of the highest score among those that alert


def find_alarms(test: TestWindows, detector: Detector, settings) -> list[Alarm]:
    """The alarms of a detector, in order of time.

    Args:
        test: windows in time order; detector: with `p_value` where there is to be hysteresis.
        settings: `config.alerts`.
    """
    raised = np.asarray(detector.alert, bool)
    unusual = raised.copy()
    if detector.p_value is not None:
        unusual |= np.asarray(detector.p_value) <= settings.stay_open_rate
    start, end = test.start_unix_nano, test.end_unix_nano
    runs: list[list[int]] = []
    for row in np.flatnonzero(unusual):
        # Where time is cut into segments the system itself goes on, and so does an alarm.
        follows = runs and row == runs[-1][-1] + 1 and start[row] <= end[row - 1]
        if follows:
            runs[-1].append(int(row))
        elif raised[row]:
            runs.append([int(row)])
    cool_down = int(settings.cool_down_seconds * NS)
    merged: list[list[int]] = []
    for run in runs:
        if merged and start[run[0]] - end[merged[-1][-1]] <= cool_down:
            merged[-1] += run
        else:
            merged.append(run)
    return [_alarm(np.array(rows), raised, test, detector) for rows in merged
            if raised[rows].sum() >= settings.min_windows]  # fmt: skip


def _alarm(rows: np.ndarray, raised: np.ndarray, test: TestWindows, detector: Detector) -> Alarm:
    alerting = rows[raised[rows]]
    score = np.where(np.isfinite(detector.score[alerting]), detector.score[alerting], np.inf)
    return Alarm(
        rows, int(test.start_unix_nano[rows[0]]), int(test.end_unix_nano[rows].max()), len(alerting), int(alerting[0]),
        int(alerting[np.argmax(score)]),
    )  # fmt: skip


def alarm_figures(test: TestWindows, alarms: list[Alarm], normal_hours: float, since: list[int]) -> dict:
    """Figures over merged alarms; labels serve these figures alone.

    An alarm is true if one of its windows is faulty, near a fault if all of them are null, and false otherwise.
    `share_of_normal_windows` tells what counts hide: an alarm that never closes is one alarm.

    Args:
        normal_hours: of observed normal test time (`metrics.false_alarms`).
        since: the estimated begin of the deviation behind each alarm, ns (`explain.begin_of_deviation`).
    """
    kinds = {"true": 0, "near": 0, "false": 0}
    covered, late, found = np.zeros(len(test.window), bool), [], set()
    for alarm, begin in zip(alarms, since, strict=True):
        faults = test.fault[alarm.rows]
        fault = int(faults[np.argmax(faults >= 0)]) if (faults >= 0).any() else -1
        if fault >= 0 and fault not in found:  # of a fault's alarms the first one
            found.add(fault)
            late.append((begin - test.faults["start_time_unix_nano"][fault]) / NS)
        labels = test.label[alarm.rows]
        covered[alarm.rows] = True
        kinds["true" if (labels == 1).any() else "false" if (labels == 0).any() else "near"] += 1
    normal = test.label == 0
    seconds = [(a.end_unix_nano - a.start_unix_nano) / NS for a in alarms]
    return {
        "num_alarms": len(alarms),
        **{f"num_{kind}_alarms": count for kind, count in kinds.items()},
        "false_alarms_per_hour": kinds["false"] / normal_hours if normal_hours > 0 else None,
        "share_of_normal_windows": float(covered[normal].mean()) if normal.any() else None,
        "seconds_median": float(np.median(seconds)) if seconds else None,
        "since_minus_onset_seconds_median": float(np.median(late)) if late else None,
        "since_error_seconds_median": float(np.median(np.abs(late))) if late else None,
    }
