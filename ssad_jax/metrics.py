"""Scores and labels to numbers. Labels are 1 faulty, 0 normal, -1 null (never counted).

A figure that a data set cannot give (one class only, no windows, a score that is not finite, no faults) is None,
and a reason goes with it. Event recall, delay and hit rates count the faulty windows of a fault: those of which at
least half lies in it. Intervals of all of them are in `ssad_jax/resampling.py`.
"""

import numpy as np

NS = 1_000_000_000
RANKING = ("auroc", "auprc", "tpr_at_5_percent_fpr")
ALERTING = ("accuracy", "precision", "recall", "f1", "fpr")
HIT_RATES = {f"hit_rate_at_{k}": k for k in (1, 3, 5)}


def point_metrics(label: np.ndarray, score: np.ndarray, alert: np.ndarray | None) -> tuple[dict, dict]:
    """Figures over windows with label 0 or 1: (metrics, reasons for those that are None).

    accuracy, precision, recall, f1 and fpr belong to the alerts given; oracle_best_f1 is the best over all thresholds,
    which nobody without labels could choose.
    """
    use = label >= 0
    y, s = label[use] == 1, np.asarray(score, np.float64)[use]
    out = dict.fromkeys(RANKING + ("oracle_best_f1",) + ALERTING)
    reasons = {}
    why = _why_no_ranking(y, s)
    if why:
        reasons = dict.fromkeys(RANKING + ("oracle_best_f1",), why)
    else:
        ones = np.ones((1, len(y)))
        out |= {k: float(v[0]) for k, v in weighted_ranking(y, s, ones).items()}
        out["oracle_best_f1"] = best_f1(y, s)
    if not len(y):
        reasons |= dict.fromkeys(ALERTING, why)
    elif alert is not None:
        counts = confusion(y, np.asarray(alert)[use])
        out |= {k: float(v) for k, v in alert_rates(counts).items()}
    prevalence = float(y.mean()) if len(y) else None
    out |= {
        "num_windows": int(len(y)),
        "num_anomalous": int(y.sum()),
        "prevalence": prevalence,
        "all_positive_f1": 2 * prevalence / (1 + prevalence) if len(y) else None,
    }
    return out, reasons


def _why_no_ranking(y, s) -> str:
    if not len(y):
        return "no labelled test window"
    if not np.isfinite(s).all():
        return f"{int((~np.isfinite(s)).sum())} scores are not finite"
    if y.all() or not y.any():
        return f"all {len(y)} labelled windows are {'faulty' if y.all() else 'normal'}"
    return ""


def weighted_ranking(y: np.ndarray, score: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """AUROC, average precision and the best recall at a false positive rate of at most 5%, for B weightings at once.

    Args: y [M] bool; score [M], finite; weights [B, M] >= 0 (how often each window was drawn).
    Ties count half in AUROC. A weighting that holds one class only gives nan.
    """
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)  # of each group of equal scores
    w = weights[:, order]
    tp = np.cumsum(w * y[order], axis=1)[:, last]
    fp = np.cumsum(w, axis=1)[:, last] - tp
    with np.errstate(divide="ignore", invalid="ignore"):
        tpr, fpr = tp / tp[:, -1:], fp / fp[:, -1:]
        precision = np.where(tp + fp > 0, tp / (tp + fp), 0.0)
        rise = np.diff(tpr, axis=1, prepend=0.0)
        auroc = (np.diff(fpr, axis=1, prepend=0.0) * (tpr - rise / 2)).sum(1)
        auprc = (rise * precision).sum(1)
        at_five = np.where(fpr <= 0.05, tpr, 0.0).max(1)
    one_class = (tp[:, -1] == 0) | (fp[:, -1] == 0)
    return {k: np.where(one_class, np.nan, v) for k, v in zip(RANKING, (auroc, auprc, at_five), strict=True)}


def best_f1(y: np.ndarray, score: np.ndarray) -> float:
    """F1 at the best threshold on these labels (an oracle: for orientation only)."""
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    tp = np.cumsum(y[order])[last]
    return float((2 * tp / (last + 1 + y.sum())).max())


def confusion(y: np.ndarray, alert: np.ndarray) -> np.ndarray:
    """[4] true positives, false positives, false negatives, true negatives."""
    return np.array([(alert & y).sum(), (alert & ~y).sum(), (~alert & y).sum(), (~alert & ~y).sum()])


def alert_rates(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Rates of confusion counts [..., 4]; a rate without any case is 0."""
    tp, fp, fn, tn = np.moveaxis(np.asarray(counts, np.float64), -1, 0)

    def share(a, b):
        return a / np.maximum(b, 1.0)

    return {
        "accuracy": share(tp + tn, tp + fp + fn + tn),
        "precision": share(tp, tp + fp),
        "recall": share(tp, tp + fn),
        "f1": share(2 * tp, 2 * tp + fp + fn),
        "fpr": share(fp, fp + tn),
    }


def culprit_ranks(culprits: dict[int, str], fault: np.ndarray, suspects: list[list[str]]) -> dict[int, int | None]:
    """Rank of each fault's culprit after merging its windows' suspect lists by summed reciprocal rank.

    Args: culprits: fault row -> service; fault [M]: the fault of each window, -1 none; suspects: M ordered lists.
    Returns: fault row -> rank from 1 (ties in the culprit's favour), None where it was never suspected.
    """
    totals: dict[int, dict[str, float]] = {f: {} for f in culprits}
    for row in np.flatnonzero(np.isin(fault, list(culprits))):
        total = totals[int(fault[row])]
        for position, name in enumerate(suspects[row]):
            total[name] = total.get(name, 0.0) + 1.0 / (position + 1)
    ranks = {}
    for f, culprit in culprits.items():
        mine = totals[f].get(culprit, 0.0)
        ranks[f] = 1 + sum(v > mine for v in totals[f].values()) if mine else None
    return ranks


def hit_rates(ranks) -> dict[str, float | None]:
    """Share of faults with the culprit among the first 1, 3, 5; `ranks` from 1, None: never suspected."""
    ranks = np.array([np.inf if r is None else r for r in ranks], np.float64)
    return {k: float((ranks <= n).mean()) if len(ranks) else None for k, n in HIT_RATES.items()}


def event_metrics(fault, onset_unix_nano: dict[int, int], end_unix_nano, alert) -> tuple[dict, dict[int, float | None]]:
    """Recall and delay by fault event.

    Args:
        fault: [M] the fault whose faulty window this is, -1 for other windows.
        onset_unix_nano: fault row -> onset; the faults that have a faulty window.
        end_unix_nano: [M] end of each window.
        alert: [M] bool.

    Returns:
        event_recall (alerted at least once), delay_seconds_median and delay_seconds_p90 (end of the first alerting
        window minus onset, over alerted faults), num_faults, num_faults_never_alerted; and each fault's delay in
        seconds, None where it was never alerted.
    """
    delays: dict[int, float | None] = {}
    for f, onset in onset_unix_nano.items():
        ends = end_unix_nano[(fault == f) & alert]
        delays[f] = float((ends.min() - onset) / NS) if len(ends) else None
    found = [d for d in delays.values() if d is not None]
    return {
        "event_recall": len(found) / len(delays) if delays else None,
        "delay_seconds_median": float(np.median(found)) if found else None,
        "delay_seconds_p90": float(np.quantile(found, 0.9)) if found else None,
        "num_faults": len(delays),
        "num_faults_never_alerted": len(delays) - len(found),
    }, delays


def false_alarms(label, alert, segment, start_unix_nano, end_unix_nano) -> dict:
    """False alarms in normal test time: an alarm is a run of alerting normal windows that follow one another.

    Returns: false_alarms, normal_hours (the union of the normal windows), false_alarms_per_hour.
    """
    alarms, hours = (a.sum() for a in alarms_and_hours(label, alert, segment, start_unix_nano, end_unix_nano))
    return {
        "false_alarms": int(alarms),
        "normal_hours": float(hours),
        "false_alarms_per_hour": float(alarms / hours) if hours > 0 else None,
    }


def alarms_and_hours(label, alert, segment, start_unix_nano, end_unix_nano) -> tuple[np.ndarray, np.ndarray]:
    """What each window adds to the false alarms and to the hours of normal time: [M] 0 or 1, [M] >= 0."""
    order = np.lexsort((start_unix_nano, segment))
    normal, raised, seg = label[order] == 0, np.asarray(alert)[order], segment[order]
    start, end = start_unix_nano[order], end_unix_nano[order]
    false = normal & raised
    before = np.append(False, false[:-1] & (seg[1:] == seg[:-1])) if len(false) else false
    alarms, hours = np.zeros(len(order)), np.zeros(len(order))
    alarms[order] = false & ~before
    start, end, seg = start[normal], end[normal], seg[normal]
    if len(start):
        same = np.append(False, seg[1:] == seg[:-1])
        previous = np.append(start[0], end[:-1])
        hours[order[normal]] = (end - np.where(same, np.maximum(start, previous), start)) / (NS * 3600)
    return alarms, hours


def point_adjusted(score: np.ndarray, event: np.ndarray) -> np.ndarray:
    """Scores after point adjustment: each window of an event gets the event's largest score (event [M], -1 none).

    Published figures often use it. It flatters everything: long events are found by chance, and random scores then
    beat trained models (Kim et al., AAAI 2022). Never quote it without random scores adjusted alike.
    """
    out = np.array(score, np.float64)
    for e in np.unique(event[event >= 0]):
        out[event == e] = out[event == e].max()
    return out
