"""One detector under the protocol: all figures of its scores on the test windows."""

import dataclasses

import numpy as np
import polars as pl

from ssad_jax import metrics


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


def test_windows(windows, faults: pl.DataFrame, ids: np.ndarray) -> TestWindows:
    """The test windows `ids` (rows of Prepared.windows)."""
    label = windows.label[ids].astype(int)
    fault = np.where(label == 1, windows.fault[ids], -1).astype(int)
    return TestWindows(
        ids, windows.start_unix_nano[ids], windows.end_unix_nano[ids], windows.segment[ids].astype(int), label,
        fault, faults,
    )  # fmt: skip


def draws(test: TestWindows, detector: Detector, repeats: int) -> dict[str, np.ndarray]:
    """The detector's metrics on resampled segments; see `metrics.draw_metrics`."""
    return metrics.draw_metrics(test.label, detector.score, detector.alert, test.segment, repeats)


def assess(test: TestWindows, detector: Detector, drawn: dict[str, np.ndarray]) -> dict:
    """Every figure of the contract for one detector; None where the data cannot give it (see `reasons`).

    `drawn`: its `draws`, for intervals; {}: none wanted.
    """
    out, reasons = metrics.point_metrics(test.label, detector.score, detector.alert)
    out |= {"threshold": detector.threshold, "threshold_method": detector.threshold_method}
    out["interval_95"] = metrics.intervals(drawn)

    rows = [int(f) for f in np.unique(test.fault[test.fault >= 0])]
    onsets = {f: int(test.faults["start_time_unix_nano"][f]) for f in rows}
    events, delays = metrics.event_metrics(test.fault, onsets, test.end_unix_nano, detector.alert)
    out |= events
    out |= metrics.false_alarms(test.label, detector.alert, test.segment, test.start_unix_nano, test.end_unix_nano)
    ranks: dict[int, int | None] = {}
    if detector.suspects is not None:
        culprits = {f: str(test.faults["service_name"][f]) for f in rows}
        ranks = metrics.culprit_ranks(culprits, test.fault, detector.suspects)
    rates, intervals = metrics.hit_rates(ranks.values(), max(map(len, drawn.values()), default=0))
    out |= rates
    out["interval_95"] |= intervals
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
        out[name] |= metrics.hit_rates([ranks[f] for f in here] if ranks else [])[0]
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
