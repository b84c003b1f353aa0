"""Alarms explained: why, where and since when, as plain records (`evaluation/alerts.jsonl`).

A record holds text from the telemetry (names, templates, log lines) as it is: data, which whoever shows it must
escape.
"""

from pathlib import Path

import numpy as np
import polars as pl

from data_prep.errors import InputError
from data_prep.vocabulary import UNKNOWN
from ssad_jax import knowledge
from ssad_jax.prepared import CONTEXT_DIM, NODE_KINDS, Prepared
from ssad_jax.scoring.alarms import Alarm, find_alarms
from ssad_jax.scoring.assess import Detector, TestWindows
from ssad_jax.scoring.attribution import lines_seen_and_expected, observed_signals, service_blame, top_deviations
from ssad_jax.scoring.calibration import evidence, kind_names
from ssad_jax.scoring.detectors import Scored
from ssad_jax.scoring.raw import MS, Tables, Units

MOST_SUSPECTS, LINES_OF, LONGEST_LINE = 5, 3, 600
SERVICE = NODE_KINDS.index("service")
LEAST_ERROR = 1.0  # normal scales; of the deviations but the first
LOG_COLUMNS = ("service_name", "body", "template", "node", "alert")


def alert_records(
    prepared: Prepared, scored: Scored, test: TestWindows, detector: Detector, prototype: list[str], config
) -> list[dict]:
    """One record for each alarm of the detector, in order of time.

    Figures of one moment are those of the peak: the alerting window with the highest score.

    Args:
        scored: what the detector's score is made of; test: the same windows, in time order.
        detector: one of the method's two variants.
        prototype: name of the nearest prototype of each test window.
        config: of the run (`alerts`, `score`, `knowledge`).

    Returns:
        Dicts of plain values: alert (from 1), start_unix_nano, end_unix_nano, since_unix_nano (estimated begin of the
        deviation), peak_start_unix_nano, peak_end_unix_nano, num_windows (that alert), score, threshold, p_value, terms
        (shares), kinds, suspects, deviations, rule, log_lines, traces, truth (text for a known fault or none, else
        null).
    """
    explainer = _Explainer(prepared, scored, test, detector, prototype, config)
    alarms = find_alarms(test, detector, config.alerts)
    return [explainer.record(number, alarm) for number, alarm in enumerate(alarms, start=1)]


def term_shares(scored: Scored, row: int, variant: str) -> dict[str, float]:
    """Share of each term in the score of one window; only what raises it counts. Sum 1, or all 0."""
    scores, terms = scored.scores, scored.terms
    if variant == "paper":
        parts = [terms.paper_reconstruction[row], terms.temporal[row], terms.prior[row]]
    else:
        _, beta, eta = scored.calibration.weights
        secondary = [beta * float(evidence(scores.temporal[row])), eta * float(evidence(scores.prior[row]))]
        parts = [scores.calibrated[row] - sum(secondary), *secondary]
    parts = np.maximum(np.nan_to_num(np.array(parts, np.float64), nan=0.0), 0.0)
    total = parts.sum()
    shares = parts / total if total > 0 else parts
    return dict(zip(("reconstruction", "temporal", "prior"), shares.tolist(), strict=True))


def begin_of_deviation(test: TestWindows, score: np.ndarray, alarm: Alarm, usual: float) -> int:
    """When the deviation behind an alarm began: nanoseconds since 1970.

    Going back from the first window that alerts, windows count as deviating while their scores exceed `usual`. Of the
    earliest of them only what the window before it had not seen yet is new. (On two simulated systems, 30 faults of
    the kinds restart, latency, error and cpu: 9 s off in the median, 4 s late; a CUSUM read backwards: 11 s.)

    Args: score [M]; usual: a score that normal windows seldom reach and deviating ones exceed.
    """
    start, end = test.start_unix_nano, test.end_unix_nano
    begin = alarm.first
    while begin and start[begin] <= end[begin - 1] and score[begin - 1] > usual:
        begin -= 1
    follows = begin and start[begin] <= end[begin - 1]
    return int(max(end[begin - 1], start[begin]) if follows else start[begin])


class _Explainer:
    """What all records of one evaluation share."""

    def __init__(self, prepared, scored, test, detector, prototype, config):
        self.prepared, self.scored, self.test, self.detector = prepared, scored, test, detector
        self.prototype, self.settings, self.variant = prototype, config.alerts, config.score.variant
        self.tables = Tables(prepared.directory)
        self.units = Units(prepared, self.tables)
        self.rules = _descriptions(config.knowledge.path)
        held_out = np.asarray(getattr(scored.held_out, self.variant), np.float64)
        middle = np.median(held_out[np.isfinite(held_out)]) if np.isfinite(held_out).any() else detector.threshold
        self.usual = float((middle + detector.threshold) / 2)

    def record(self, number: int, alarm: Alarm) -> dict:
        test, scored, detector, peak = self.test, self.scored, self.detector, alarm.peak
        start, end = int(test.start_unix_nano[peak]), int(test.end_unix_nano[peak])
        since = begin_of_deviation(test, detector.score, alarm, self.usual)
        suspects = self._suspects(alarm)
        deviations = self._deviations(peak, start, end)
        names = [s["service"] for s in suspects[:LINES_OF]]
        return {
            "alert": number,
            "start_unix_nano": alarm.start_unix_nano,
            "end_unix_nano": alarm.end_unix_nano,
            "since_unix_nano": since,
            "peak_start_unix_nano": start,
            "peak_end_unix_nano": end,
            "num_windows": alarm.num_alerts,
            "score": float(detector.score[peak]),
            "threshold": float(detector.threshold),
            "p_value": None if detector.p_value is None else float(detector.p_value[peak]),
            "terms": term_shares(scored, peak, self.variant),
            "kinds": dict(zip(kind_names(scored.calibration), scored.scores.kind[peak].tolist(), strict=True)),
            "suspects": suspects,
            "deviations": deviations,
            "rule": {"name": self.prototype[peak], "description": self.rules.get(self.prototype[peak])},
            "log_lines": self._log_lines(start, end, [d["node"] for d in deviations if d["kind"] == "log"], names),
            "traces": self._traces(start, end, deviations, names),
            "truth": truth(test, alarm),
        }

    def _suspects(self, alarm: Alarm) -> list[dict]:
        """By their mean blame over the alerting windows."""
        rows = alarm.rows[self.detector.alert[alarm.rows]]
        system = self.prepared.system
        blame = service_blame(system, self.scored.calibration, self.scored.scores.node_error[rows]).mean(0)
        order = sorted(range(len(blame)), key=lambda s: (-blame[s], system.service_names[s]))
        total = float(blame.sum())
        return [
            {"service": system.service_names[s], "blame": float(blame[s]), "share": float(blame[s]) / total}
            for s in order[:MOST_SUSPECTS] if blame[s] > 0
        ]  # fmt: skip

    def _deviations(self, row: int, start: int, end: int) -> list[dict]:
        system, place = self.prepared.system, self.scored.place
        window = self.prepared.windows.nodes[self.test.window[row]][None]
        seen = observed_signals(window, place, CONTEXT_DIM)[0]
        out = []
        for d in top_deviations(system, place, self.scored.calibration, self.scored.terms.residual[row], seen):
            if out and d.error < LEAST_ERROR:
                continue
            channel, observed, expected = d.channel, d.observed, d.expected
            if d.kind == "log":
                channel, (observed, expected) = "count", lines_seen_and_expected(window[0], d.node)
            observed, expected, unit = self.units.convert(d.node, channel, observed, expected, start, end)
            service = int(system.service[d.node])
            out.append({
                "node": d.node, "name": d.name, "kind": d.kind,
                "service": system.service_names[service] if service >= 0 else None, "channel": channel,
                "observed": float(observed), "expected": float(expected), "unit": unit, "error": d.error,
            })  # fmt: skip
        return out

    def _log_lines(self, start: int, end: int, nodes: list[int], services: list[str]) -> list[dict]:
        """Lines of the deviating log nodes first, then warnings and errors of the suspects, then their other lines.

        Each deviating node in turn, the worst first, gives its next line, so that one of them cannot fill the list.
        """
        logs = self.tables.between("logs", start, end, LOG_COLUMNS)
        if logs is None or not self.settings.log_lines:
            return []
        suspected = pl.col("service_name").is_in(services)
        rank = pl.when(pl.col("node").is_in(nodes)).then(0).when(suspected & pl.col("alert")).then(1)
        rows = (
            logs.with_columns(rank=rank.when(suspected).then(2).otherwise(3))
            .filter(pl.col("rank") < 3)
            .sort("rank", "time_unix_nano", maintain_order=True)
            .unique(["service_name", "body"], keep="first", maintain_order=True)
            .with_columns(
                turn=pl.when(pl.col("rank") == 0).then(pl.int_range(pl.len()).over("rank", "node")).otherwise(0),
                place=pl.col("node").replace_strict(nodes, range(len(nodes)), default=len(nodes)),
            )
            .sort("rank", "turn", "place", "time_unix_nano", maintain_order=True)
            .head(self.settings.log_lines)
        )
        texts = self.prepared.manifest.get("templates", [])
        return [
            {
                "time_unix_nano": row["time_unix_nano"], "service": row["service_name"],
                "body": row["body"][:LONGEST_LINE],
                "template": texts[row["template"]] if 0 <= row["template"] < len(texts) else None,
            }
            for row in rows.iter_rows(named=True)
        ]  # fmt: skip

    def _traces(self, start: int, end: int, deviations: list[dict], services: list[str]) -> list[dict]:
        """Traces behind deviating dependencies and services, else behind the suspects: failed ones, then the slowest.

        Each deviation (or suspect) in turn gives its next trace, so that one of them cannot fill the list.
        """
        system, columns = self.prepared.system, ("trace_id", "duration_ns", "error", "operation")
        calls = self.tables.between("calls", start, end, (*columns, "caller", "callee"))
        spans = self.tables.between("spans", start, end, (*columns, "unit", "self_ns"))
        lists = []
        for d in deviations:
            caller, _, callee = d["name"].partition(" -> ")
            if d["kind"] == "dependency" and calls is not None:
                mine = calls.filter((pl.col("caller") == caller) & (pl.col("callee") == callee))
                lists.append((d["service"], _worst(mine, "gap_ns" if "net latency" in d["channel"] else "duration_ns")))
            elif d["kind"] == "service" and spans is not None:
                lists.append((d["service"], _worst(spans.filter(self._of_units([d["name"]])), "self_ns")))
        if not any(rows for _, rows in lists) and spans is not None:
            is_service = (system.kind == SERVICE) & system.node_mask
            for name in services:
                nodes = np.flatnonzero(is_service & (system.service == system.service_names.index(name)))
                units = [system.node_names[n] for n in nodes]
                lists.append((name, _worst(spans.filter(self._of_units(units)), "self_ns")))
        chosen: dict[str, dict] = {}
        for turn in range(self.settings.traces):
            for service, rows in lists:
                if turn < len(rows) and len(chosen) < self.settings.traces:
                    row = rows[turn]
                    chosen.setdefault(row["trace_id"], {
                        "trace_id": row["trace_id"], "service": service, "operation": row["operation"],
                        "start_unix_nano": row["time_unix_nano"], "duration_ms": row["duration_ns"] / MS,
                    })  # fmt: skip
        return list(chosen.values())


    def _of_units(self, units: list[str]) -> pl.Expr:
        """Spans of service nodes; `<unknown>` stands for every unit that fit time has not seen."""
        own = pl.col("unit").is_in(units)
        if UNKNOWN not in units:
            return own
        system = self.prepared.system
        known = [system.node_names[n] for n in np.flatnonzero(system.node_mask & (system.kind == SERVICE))]
        return own | ~pl.col("unit").is_in(known)


def truth(test: TestWindows, alarm: Alarm) -> str | None:
    """What the labels say of an alarm, for the reader; None where nothing is known."""
    faults = test.fault[alarm.rows]
    if (faults >= 0).any():
        rows = test.faults[np.unique(faults[faults >= 0])].iter_rows(named=True)
        return "known fault: " + ", then ".join(f"{row['fault_type']} at {row['service_name']}" for row in rows)
    if not test.faults.height:
        return None
    return "near a known fault" if (test.label[alarm.rows] < 0).all() else "no known fault"


def _worst(frame: pl.DataFrame, column: str) -> list[dict]:
    rows = frame.sort("error", column, descending=True, nulls_last=True, maintain_order=True)
    return rows.unique("trace_id", keep="first", maintain_order=True).head(20).to_dicts()


def _descriptions(path: str) -> dict[str, str]:
    """Rule name -> description; {} without the knowledge file (a run may be evaluated elsewhere)."""
    if not path or not Path(path).is_file():
        return {}
    try:
        return {rule["name"]: " ".join(rule["description"].split()) for rule in knowledge.read_rules(path)}
    except InputError:
        return {}
