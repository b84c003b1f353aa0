"""One detector under the protocol: all figures of its scores on the test windows."""

import dataclasses

import numpy as np
import polars as pl

from ssad_jax import metrics, resampling
from ssad_jax.vus import vus_pr


@dataclasses.dataclass(frozen=True)
class TestWindows:
    """What is known of M test windows besides their signals. Labels serve evaluation alone."""

    __test__ = False  # not a test case, whatever its name

    window: np.ndarray  # [M] rows of Prepared.windows, in time order
    start_unix_nano: np.ndarray  # [M] int64
    end_unix_nano: np.ndarray  # [M] int64
    segment: np.ndarray  # [M] int
    label: np.ndarray  # [M] 1 faulty, 0 normal, -1 null
    fault: np.ndarray  # [M] row of `faults` of a faulty window, else -1
    faults: pl.DataFrame

    @property
    def fault_rows(self) -> list[int]:
        """The faults that have a faulty window."""
        return [int(f) for f in np.unique(self.fault[self.fault >= 0])]

    @property
    def fault_type(self) -> list[str | None]:
        types = self.faults["fault_type"].to_list() if self.faults.height else []
        return [str(types[f]) if f >= 0 else None for f in self.fault]


@dataclasses.dataclass(frozen=True)
class Detector:
    """A named score of the test windows and how it alerts."""

    name: str
    score: np.ndarray  # [M]
    threshold: float
    threshold_method: str
    alert: np.ndarray  # [M] bool
    suspects: list[list[str]] | None = None  # M ordered lists of service names
    p_value: np.ndarray | None = None  # [M] conformal, of the window's score
    held_out: np.ndarray | None = None  # [H] scores of the calibration windows, in time order


def test_windows(windows, faults: pl.DataFrame, ids: np.ndarray) -> TestWindows:
    """The test windows `ids` (rows of Prepared.windows)."""
    label = windows.label[ids].astype(int)
    fault = np.where(label == 1, windows.fault[ids], -1).astype(int)
    return TestWindows(
        ids, windows.start_unix_nano[ids], windows.end_unix_nano[ids], windows.segment[ids].astype(int), label,
        fault, faults,
    )  # fmt: skip


def draws(test: TestWindows, detector: Detector, repeats: int, block: np.ndarray | None = None) -> dict:
    """Every figure of `resampling.FIGURES` on resampled blocks of test windows: name -> [repeats].

    `block`: [M] instead of the fault events with the windows around them and the stretches without faults.
    """
    if not repeats or not (test.label >= 0).any():
        return {}
    if block is None:
        block = resampling.event_blocks(test.segment, test.start_unix_nano, test.fault)
    weights = resampling.block_draws(block, repeats)
    out = resampling.draw_windows(test.label, detector.score, detector.alert, weights)
    if np.isfinite(detector.score).all():
        out["vus_pr"] = _vus(test, detector, weights)
    alarms, hours = _alarms_and_hours(test, detector)
    with np.errstate(divide="ignore", invalid="ignore"):
        out["false_alarms_per_hour"] = weights @ alarms / (weights @ hours)
    delays, ranks = _delays(test, detector)[1], _ranks(test, detector)
    first = [int(np.argmax(test.fault == f)) for f in delays]  # an event is drawn with all its windows
    return out | resampling.draw_events(delays, ranks, weights[:, first])


def _vus(test: TestWindows, detector: Detector, weights=None) -> np.ndarray:
    """VUS-PR with buffers of up to a window's length."""
    order = np.lexsort((test.start_unix_nano, test.segment))
    apart = np.diff(test.start_unix_nano[order])[np.diff(test.segment[order]) == 0]
    length = int((test.end_unix_nano - test.start_unix_nano).max())
    longest = -(-length // int(apart.min(initial=length)))
    return vus_pr(test.label, detector.score, test.segment, test.start_unix_nano, longest, weights)


def _alarms_and_hours(test: TestWindows, detector: Detector):
    return metrics.alarms_and_hours(test.label, detector.alert, test.segment, test.start_unix_nano, test.end_unix_nano)


def _delays(test: TestWindows, detector: Detector) -> tuple[dict, dict[int, float | None]]:
    onsets = {f: int(test.faults["start_time_unix_nano"][f]) for f in test.fault_rows}
    return metrics.event_metrics(test.fault, onsets, test.end_unix_nano, detector.alert)


def _ranks(test: TestWindows, detector: Detector) -> dict[int, int | None]:
    if detector.suspects is None:
        return {}
    culprits = {f: str(test.faults["service_name"][f]) for f in test.fault_rows}
    return metrics.culprit_ranks(culprits, test.fault, detector.suspects)


def assess(test: TestWindows, detector: Detector, drawn: dict[str, np.ndarray]) -> dict:
    """Every figure of the contract for one detector; None where the data cannot give it (see `reasons`).

    `drawn`: its `draws`, for intervals; {}: none wanted.
    """
    out, reasons = metrics.point_metrics(test.label, detector.score, detector.alert)
    out["vus_pr"] = None if out["auroc"] is None else float(_vus(test, detector)[0])
    out |= {"threshold": detector.threshold, "threshold_method": detector.threshold_method}
    out["interval_95"] = resampling.intervals(drawn)
    rows, ranks = test.fault_rows, _ranks(test, detector)
    events, delays = _delays(test, detector)
    out |= events
    out |= metrics.false_alarms(test.label, detector.alert, test.segment, test.start_unix_nano, test.end_unix_nano)
    out |= metrics.hit_rates(ranks.values())
    if not rows:
        reasons["faults"] = "no fault has a faulty test window: no event recall, delay or hit rate"
    elif detector.suspects is None:
        reasons["hit_rate"] = "the detector names no suspects"
    out["reasons"] = reasons
    out["by_fault_type"] = _by_type(test, detector, delays, ranks)
    out["by_fault"] = [_fault(test, detector, f, delays[f], ranks.get(f)) for f in rows]
    return out


def _by_type(test: TestWindows, detector: Detector, delays: dict, ranks: dict) -> dict[str, dict]:
    """The same figures of each fault type against all normal windows."""
    types = np.array([t or "" for t in test.fault_type], dtype=object)
    out = {}
    for name in sorted(set(types) - {""}):
        mine = types == name
        rows = np.flatnonzero((test.label == 0) | mine)
        label = np.where(mine[rows], 1, 0)
        point, _ = metrics.point_metrics(label, detector.score[rows], detector.alert[rows])
        here = [int(f) for f in np.unique(test.fault[mine])]
        found = [delays[f] for f in here if delays[f] is not None]
        keep = ("auroc", "auprc", "tpr_at_5_percent_fpr", "recall", "f1")
        out[name] = {k: point[k] for k in keep} | {
            "num_windows": int(mine.sum()),
            "num_faults": len(here),
            "event_recall": len(found) / len(here),
            "delay_seconds_median": float(np.median(found)) if found else None,
        }
        out[name] |= metrics.hit_rates([ranks[f] for f in here] if ranks else [])
    return out


def _fault(test: TestWindows, detector: Detector, fault: int, delay, rank) -> dict:
    info, mine = test.faults.row(fault, named=True), test.fault == fault
    return {
        "start_time_unix_nano": info["start_time_unix_nano"],
        "service_name": info["service_name"],
        "fault_type": info["fault_type"],
        "num_windows": int(mine.sum()),
        "median_score": float(np.median(detector.score[mine])),
        "alerted": float(detector.alert[mine].mean()),
        "delay_seconds": delay,
        "culprit_rank": rank,
    }
