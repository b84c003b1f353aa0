"""The strongest alerts with what is behind them: suspects, unexpected signals, log lines."""

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl

from ssad_jax.prepared import CONTEXT_DIM, NODE_KINDS, Prepared
from ssad_jax.report import figures
from ssad_jax.scoring.assess import Detector, TestWindows
from ssad_jax.scoring.attribution import Deviation, observed_signals, top_deviations
from ssad_jax.scoring.detectors import Scored

MOST_ALERTS, MOST_LINES, AROUND = 8, 6, 12
LOG_COLUMNS = ("time_unix_nano", "service_name", "body")


@dataclasses.dataclass(frozen=True)
class Alert:
    """One alert as the report shows it."""

    start: str
    end: str
    score: float
    truth: str  # what the labels say, for the reader
    suspects: list[str]
    prototype: str
    deviations: list[Deviation]
    lines: list[tuple[str, str, str]]  # time, service, body
    lines_note: str  # why there are no lines, or ''
    plot: str  # data URI


def top_alerts(
    prepared: Prepared, scored: Scored, test: TestWindows, detector: Detector, prototype: list[str]
) -> list[Alert]:
    """The highest window of each alarm (a run of alerting windows), strongest first, at most `MOST_ALERTS`."""
    raised = np.flatnonzero(detector.alert & np.isfinite(detector.score))
    follows = (np.diff(raised) == 1) & (np.diff(test.segment[raised]) == 0) if len(raised) else np.zeros(0, bool)
    alarms = np.split(raised, np.flatnonzero(~follows) + 1) if len(raised) else []
    peaks = [alarm[np.argmax(detector.score[alarm])] for alarm in alarms]
    peaks = sorted(peaks, key=lambda w: -detector.score[w])[:MOST_ALERTS]
    logs = _Logs(prepared.directory)
    return [_alert(prepared, scored, test, detector, prototype, int(w), logs) for w in peaks]


def _alert(prepared: Prepared, scored: Scored, test, detector, prototype, row: int, logs: "_Logs") -> Alert:
    around = np.arange(max(0, row - AROUND), min(len(test.window), row + AROUND + 1))
    around = around[test.segment[around] == test.segment[row]]
    seen = observed_signals(prepared.windows.nodes[test.window[around]], scored.place, CONTEXT_DIM)
    here = int(np.searchsorted(around, row))
    residual = scored.terms.residual[around]
    deviations = top_deviations(prepared.system, scored.place, scored.calibration, residual[here], seen[here])
    shown = deviations[:3]
    columns = [_column(scored, prepared, d) for d in shown]
    plot = ""
    if columns:
        names = [f"{d.name} [{d.channel}]" for d in shown]
        plot = figures.expectation(names, seen[:, columns].T, (seen - residual)[:, columns].T, here)
    suspected = (detector.suspects or [[]] * len(test.window))[row][:3]
    nodes = [d.node for d in deviations if d.kind == "log"]
    start, end = int(test.start_unix_nano[row]), int(test.end_unix_nano[row])
    lines, note = logs.behind(start, end, nodes, suspected)
    return Alert(
        time_text(start), time_text(end), float(detector.score[row]), _truth(test, row), suspected, prototype[row],
        deviations, lines, note, plot,
    )  # fmt: skip


def _column(scored: Scored, prepared: Prepared, deviation: Deviation) -> int:
    mine = np.flatnonzero(scored.place.node == deviation.node)
    names = prepared.system.channels.get(NODE_KINDS[scored.place.kind[mine[0]]], [])
    channels = [int(c) for c in scored.place.channel[mine]]
    wanted = names.index(deviation.channel) if deviation.channel in names else channels[0]
    return int(mine[channels.index(wanted)])


def _truth(test: TestWindows, row: int) -> str:
    if test.fault[row] >= 0:
        info = test.faults.row(int(test.fault[row]), named=True)
        return f"known fault: {info['fault_type']} at {info['service_name']}"
    return {0: "no known fault (false alarm)", -1: "near a known fault (not counted)"}.get(
        int(test.label[row]), "faulty"
    )


def time_text(unix_nano: int) -> str:
    """UTC to the millisecond, without zeros that say nothing."""
    text = str(np.datetime64(unix_nano, "ns").astype("datetime64[ms]")).replace("T", " ")
    return text.removesuffix(".000")


class _Logs:
    """The templated log lines beside the prepared windows, as far as there are any."""

    def __init__(self, directory: Path | None):
        self._frame = None
        self._note = "The prepared dataset keeps no log lines (tables/logs.parquet)."
        path = None if directory is None else Path(directory) / "tables" / "logs.parquet"
        if path is None or not path.is_file():
            return
        frame = pl.scan_parquet(path)
        missing = [c for c in LOG_COLUMNS if c not in frame.collect_schema().names()]
        if missing:
            self._note = f"The prepared log table has no column {missing[0]}."
            return
        self._frame = frame

    def behind(self, start: int, end: int, nodes: list[int], services: list[str]):
        """Log lines of the window, those of deviating log nodes first, then those of suspects: (lines, note)."""
        if self._frame is None:
            return [], self._note
        inside = self._frame.filter(pl.col("time_unix_nano").is_between(start, end, closed="left"))
        has_node = "node" in self._frame.collect_schema().names()
        deviates = pl.col("node").is_in(nodes).fill_null(False) if has_node and nodes else pl.lit(False)
        suspected = pl.col("service_name").is_in(services).fill_null(False)
        rows = (
            inside.with_columns(rank=pl.when(deviates).then(0).when(suspected).then(1).otherwise(2))
            .filter(pl.col("rank") < 2)
            .unique(["service_name", "body"], keep="first", maintain_order=True)
            .sort("rank", "time_unix_nano", maintain_order=True)
            .head(MOST_LINES)
            .select(LOG_COLUMNS)
            .collect()
            .rows()
        )
        lines = [(time_text(int(t)), str(s), str(b)[:600]) for t, s, b in rows]
        return lines, "" if lines else "No log line of a deviating template or a suspect in this window."
