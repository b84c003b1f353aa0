"""comparison.json as Markdown, and as plain text for the terminal."""

from ssad_jax.compared import COMPACT, OURS, REPORTED, CompactForm
from ssad_jax.scoring.output import format_figure

RANKING = (
    ("AUROC", "auroc"), ("AUPRC", "auprc"), ("TPR@5%FPR", "tpr_at_5_percent_fpr"), ("VUS-PR", "vus_pr"),
    ("HR@1", "hit_rate_at_1"), ("HR@3", "hit_rate_at_3"), ("HR@5", "hit_rate_at_5"),
)  # fmt: skip
ALERTING = (
    ("F1", "f1"), ("P", "precision"), ("R", "recall"), ("ACC", "accuracy"), ("FPR", "fpr"),
    ("event recall", "event_recall"), ("false alarms/h", "false_alarms_per_hour"),
    ("delay s, median", "delay_seconds_median"), ("delay s, p90", "delay_seconds_p90"),
    ("oracle best F1", "oracle_best_f1"),
)  # fmt: skip
PAIRED = (
    ("AUROC", "auroc"), ("AUPRC", "auprc"), ("TPR@5%FPR", "tpr_at_5_percent_fpr"), ("VUS-PR", "vus_pr"), ("F1", "f1"),
    ("HR@1", "hit_rate_at_1"), ("HR@3", "hit_rate_at_3"), ("delay s, median", "delay_seconds_median"),
)  # fmt: skip
COST = (
    "Medians over seeds and splits: seconds of one training of all its networks, windows scored a second, both with "
    "compilation (the first seed pays it) and the reading of windows; test windows in which there was nothing to judge."
)
COMPARED = (
    "Compact forms of published systems on the windows of this dataset; how much of a system its form is stands under "
    "fidelity (docs/compared.md). What the paper's Table 3 reports was found on other data, by a protocol that it does "
    "not state: the two columns cannot be subtracted."
)
MEASURED_REPORTED = ("measured: ACC / PRE / REC / AUC, %", "reported (other data, protocol unstated)")


def markdown(results: dict) -> str:
    """All tables of a comparison as one Markdown page."""
    lines = [f"# Comparison: {results['config']['name']}", ""]
    for protocol, part in results["protocols"].items():
        lines += [f"## {protocol}", "", caption(part), ""]
        lines += ["### Scores and suspects", "", *table(_rows(part, RANKING)), ""]
        lines += ["### 95% intervals of the mean over seeds", "", _resampled(part), ""]
        lines += [*table(_interval_rows(part)), ""]
        lines += ["### Alerts at each detector's own threshold, chosen without labels", ""]
        lines += [*table(_rows(part, ALERTING)), ""]
        for title, pairs in part["paired"].items():
            lines += [f"### Paired differences: detector {title}", "", "On the same draws for both.", ""]
            lines += [*table(_paired_rows(pairs)), ""]
        lines += ["### By fault type: AUROC against all normal windows (HR@1)", "", *table(_type_rows(part)), ""]
        lines += ["### Cost", "", COST, "", *table(_cost_rows(part)), ""]
        if any(name in COMPACT for name in part["detectors"]):
            lines += ["### Reported by the paper (other data, protocol unstated)", "", COMPARED, ""]
            lines += [*table(_reported_rows(part)), ""]
        lines += [*_footnote(part), ""]
    lines += [f"Note: {note}." for note in results["notes"]]
    return "\n".join(lines).rstrip() + "\n"


def plain(results: dict) -> str:
    """The main table of each protocol for the terminal."""
    lines = []
    columns = (*RANKING[:5], *ALERTING[:1], *ALERTING[4:8])
    for protocol, part in results["protocols"].items():
        rows = _rows(part, columns)
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines += [f"{protocol}: {caption(part)}", ""]
        for row in rows:
            lines.append(
                "  ".join(
                    c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
                )
            )
        lines.append("")
    return "\n".join(lines).rstrip()


def caption(part: dict) -> str:
    """What the figures of a protocol were measured on."""
    if part["prevalence"] is None:
        return f"No labelled test window ({part['num_null_windows']} without a label): there are no figures."
    return (
        f"{part['num_windows']} labelled test windows of {len(part['splits'])} split(s), {part['num_faults']} faults, "
        f"prevalence {part['prevalence']:.3f}, F1 of calling everything faulty {part['all_positive_f1']:.3f}. Means "
        "over seeds, with least and greatest in brackets where they differ. Seeds `any`: the detector draws nothing."
    )


def _resampled(part: dict) -> str:
    return (
        f"Block bootstrap over {part['num_blocks']['events']} blocks: a fault event with the windows around it, or a "
        "segment without faults. comparison.json also holds the intervals over whole segments "
        f"({part['num_blocks']['segments']})."
    )


def _interval_rows(part: dict) -> list[list[str]]:
    rows = [["detector", *(title for title, _ in PAIRED)]]
    for name, facts in part["detectors"].items():
        row = [name]
        for _, key in PAIRED:
            mean, ends = facts["mean"][key], facts["interval_95"].get(key)
            text = _number(key, mean)
            row.append(text if mean is None or ends is None else f"{text} [{', '.join(_number(key, e) for e in ends)}]")
        rows.append(row)
    return rows


def _number(key: str, value) -> str:
    return f"{value:.1f}" if key == "false_alarms_per_hour" and value is not None else format_figure(key, value)


def _rows(part: dict, columns) -> list[list[str]]:
    rows = [["detector", "seeds", *(title for title, _ in columns)]]
    for name, facts in part["detectors"].items():
        seeds = "any" if facts["deterministic"] else str(len(facts["seeds"]))
        rows.append([name, seeds, *(_figure(facts, key) for _, key in columns)])
    return rows


def _figure(facts: dict, key: str) -> str:
    mean, low, high = (_number(key, facts[part][key]) for part in ("mean", "min", "max"))
    return mean if low == high else f"{mean} ({low}–{high})"


def _paired_rows(pairs: dict) -> list[list[str]]:
    rows = [["detector", *(title for title, _ in PAIRED)]]
    for name, figures in pairs.items():
        rows.append([name, *(_difference(key, figures.get(key)) for _, key in PAIRED)])
    return rows


def _difference(key: str, pair: dict | None) -> str:
    if pair is None:
        return "-"
    digits = 1 if key.startswith("delay") else 3
    text = f"{pair['difference']:+.{digits}f}"
    if pair["interval_95"] is None:
        return text
    return f"{text} [{pair['interval_95'][0]:+.{digits}f}, {pair['interval_95'][1]:+.{digits}f}]"


def _type_rows(part: dict) -> list[list[str]]:
    types = sorted({kind for facts in part["detectors"].values() for kind in facts["by_fault_type"]})
    rows = [["detector", *types]]
    for name, facts in part["detectors"].items():
        row = [name]
        for kind in types:
            found = facts["by_fault_type"][kind]
            rate = "" if found["hit_rate_at_1"] is None else f" ({found['hit_rate_at_1']:.2f})"
            row.append(format_figure("auroc", found["auroc"]) + rate)
        rows.append(row)
    return rows


def _cost_rows(part: dict) -> list[list[str]]:
    """Of each computation one row."""
    rows = [["detector", "training s", "windows/s", "windows not judged", "device"]]
    for name, facts in part["detectors"].items():
        if name == facts["family"]:
            cost = facts["cost"]
            shown = [cost.get(key) for key in ("train_seconds", "windows_per_second", "unjudged_windows")]
            shown = ["-" if x is None else f"{x:,.{d}f}" for x, d in zip(shown, (1, 0, 0), strict=True)]
            rows.append([name, *shown, cost.get("device") or "-"])
    return rows


def _reported_rows(part: dict) -> list[list[str]]:
    rows = [["detector", "system", "fidelity", *MEASURED_REPORTED]]
    for name, facts in part["detectors"].items():
        if name in COMPACT or name in OURS:
            form = COMPACT.get(name) or CompactForm("the paper's own", "-", "", OURS[name])
            measured = [None if facts["mean"][key] is None else 100 * facts["mean"][key] for key in REPORTED]
            rows.append([name, form.system, form.fidelity, _percent(measured), _percent(form.reported)])
    return rows


def _percent(values) -> str:
    return " / ".join("-" if x is None else f"{x:.2f}" for x in values) if values else "-"


def _footnote(part: dict) -> list[str]:
    adjusted = part["point_adjustment"]
    if len(adjusted) < 2 or None in adjusted.values():
        return []
    figures = ", ".join(f"{name} {value:.3f}" for name, value in adjusted.items())
    return [
        f"Point adjustment, at the best threshold on these labels: F1 {figures}. **Do not quote it:** a long event is "
        "found by chance, so that random scores do well once adjusted (Kim et al., AAAI 2022). It stands here only to "
        "read other publications by."
    ]


def table(rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table; the first row is its head."""
    head, *body = ["| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in rows]
    return [head, "|---" * len(rows[0]) + "|", *body]


def _escaped(cell: str) -> str:
    """Names come from telemetry: none may end its cell or its row, or become markup."""
    text = " ".join(cell.split()).replace("\\", "\\\\")
    return text.replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
