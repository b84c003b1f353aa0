"""`report.html`: one page without scripts or external resources, readable from a file.

Everything that came from telemetry (service names, templates, log lines, fault types) passes through the templates'
autoescaping or through `svg.element`, or is drawn into an image.
"""

import dataclasses
from pathlib import Path

import jinja2
import numpy as np

from ssad_jax.prepared import Prepared
from ssad_jax.report import alarms, comparison, figures, graph, timeline
from ssad_jax.report.pairs import PairDistances
from ssad_jax.report.text import arrows, duration_text, number, percent, plain, time_text, two_digits
from ssad_jax.scoring import output
from ssad_jax.scoring.assess import Detector, TestWindows
from ssad_jax.scoring.attribution import service_blame
from ssad_jax.scoring.conformal import disjoint
from ssad_jax.scoring.detectors import Scored

BEHIND = ("untrained", "count_rule", "l2_norm", "pca", "knn", "iforest")  # floors drawn beside the method
PAIRED = {"auroc": "AUROC", "auprc": "AUPRC", "tpr_at_5_percent_fpr": "TPR at 5% FPR"}
ABSENT = {"alert_share": None, "alert_share_of_normal": None}
MOST_FAULTS = 200  # listed one by one
GRAPHS = 5  # alarms whose suspects are drawn into the dependency graph
NS = 1_000_000_000


def write_report(
    path: Path,
    results: dict,
    prepared: Prepared,
    scored: Scored,
    test: TestWindows,
    chosen: Detector,
    floors: dict[str, Detector],
    records: list[dict],
    pairs: PairDistances,
) -> None:
    """Write the report of an evaluation.

    Args:
        path: the page; a comparison.json in its directory or in the one above is shown too.
        results: what metrics.json holds.
        chosen: the detector whose score is `score`; `floors` the others, by name.
        records: its alarms, from `explain.alert_records`.
    """
    path = Path(path)
    tables = comparison.find(path.parent)
    text = render(results, prepared, scored, test, chosen, floors, records, pairs, tables)
    output.write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def render(results, prepared, scored, test, chosen, floors, records, pairs, tables=()) -> str:
    """The page as text; see `write_report`. `tables`: of a comparison."""
    has_both = results["auroc"] is not None
    blame = service_blame(prepared.system, scored.calibration, scored.scores.node_error)
    ordered = alarms.strongest_first(records, test)
    detailed = alarms.views(ordered[: alarms.DETAILED], prepared, scored, test)
    listed = {record["alert"] for record in ordered[: alarms.LISTED]}
    layout, graphs = _graphs(prepared, ordered, timeline.blame_top(blame))
    terms = {name: getattr(scored.scores, name) for name in ("reconstruction", "temporal", "prior")}
    named = dataclasses.replace(chosen, name=f"{results['method']} ({results['variant']})")
    others = [floors[name] for name in BEHIND if name in floors]
    calibration, note = _calibration(test, chosen)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )  # fmt: skip
    environment.globals |= {
        "plain": plain, "arrows": arrows, "number": number, "percent": percent, "time_text": time_text,
        "figure": output.format_figure, "score": two_digits, "rate": _rate,
        "channel_text": alarms.channel_text,
    }  # fmt: skip
    return environment.get_template("report.html.j2").render(
        title=plain(prepared.manifest.get("source", "telemetry"), 80),
        made_up=made_up(prepared.manifest),
        span=_span(test),
        results=results,
        headline=_headline(results, test, chosen, records),
        alarms=detailed,
        first_look=alarms.FIRST_LOOK,
        further=ordered[alarms.DETAILED : alarms.LISTED],
        number_of_alarms=len(records),
        alerting_windows=int(chosen.alert.sum()),
        timeline=timeline.draw(test, chosen, records, listed, prepared.system.service_names, blame),
        graphs=graphs,
        services_left_out=layout.left_out,
        table=_table(results),
        thresholds={name: ABSENT | row for name, row in results["thresholds"].items()},
        threshold_name=results["config"]["score"]["threshold"],
        paired_names=PAIRED,
        most_faults=MOST_FAULTS,
        curves=figures.curves(test, [named, *others]) if has_both else "",
        pairs=figures.pair_histogram(pairs) if len(pairs.positive) or len(pairs.negative) else "",
        terms=figures.terms_by_type(test, terms) if has_both else "",
        calibration=calibration,
        calibration_note=note,
        comparison=tables,
        dataset=dataset_facts(prepared),
        config=_flat(results["config"]),
    )


def _graphs(prepared: Prepared, ordered: list[dict], top: float):
    """The layout and a graph for each of the strongest alarms, or one without suspects: (layout, [(title, graph)])."""
    some = ordered[:GRAPHS]
    suspects = [s["service"] for record in some for s in record["suspects"]]
    layout = graph.arrange(prepared.system, suspects)
    if not layout.slots and not layout.alone:
        return layout, []
    if not some:
        return layout, [("no alarm", graph.draw(layout, prepared.system, None, top))]
    return layout, [(f"alarm {r['alert']}", graph.draw(layout, prepared.system, r, top)) for r in some]


def _calibration(test: TestWindows, chosen: Detector):
    """The plot of nominal against observed false alarms, and what it shows: (data URI or '', note)."""
    labelled = bool((test.label == 0).any())
    rows = np.flatnonzero(test.label == 0) if labelled else np.arange(len(test.window))
    which = "normal test windows" if labelled else "all test windows (none is known to be normal)"
    note = (
        f"How often {which} get a conformal p-value as small as the nominal rate. Below the band: fewer false alarms "
        "than promised; above it: more (drift, or faults that nobody labelled)."
    )
    if chosen.p_value is None or not len(rows):
        return "", note
    length = int((test.end_unix_nano - test.start_unix_nano).max())
    independent = len(disjoint(test.start_unix_nano[rows], length))
    least = float(chosen.p_value.min())
    return figures.false_alarm_rates(chosen.p_value[rows], independent, least, labelled), note


def _span(test: TestWindows) -> str:
    if not len(test.window):
        return "No test windows"
    first, last = int(test.start_unix_nano.min()), int(test.end_unix_nano.max())
    return f"{time_text(first)} to {time_text(last)} UTC"


def _headline(results: dict, test: TestWindows, chosen: Detector, records: list[dict]) -> list[tuple[str, str, str]]:
    """(title, figure, interval or remark) of the cards on top of the page."""
    interval = results["interval_95"]

    def between(key):
        pair = interval.get(key)
        return f"95%: {pair[0]:.3f} – {pair[1]:.3f}" if pair else "no interval"

    share = f"{percent(chosen.alert.mean())} of windows" if len(test.window) else "no window"
    cards = [("Alarms", str(len(records)), f"{share} alert")]
    if not results["num_faults"]:
        observed = duration_text(float(_observed(test)) / NS)
        return cards + [
            ("Test time", observed, f"{len(test.window)} windows"),
            ("Threshold", number(results["threshold"]), "from held-out normal windows"),
            ("Highest score", number(_highest(chosen)), "0 is usual"),
            ("Known faults", "none", "nothing to measure by"),
        ]
    found = results["num_faults"] - results["num_faults_never_alerted"]
    rate = results["false_alarms_per_hour"]
    return cards + [
        ("Faults found", f"{found} of {results['num_faults']}",
         f"median delay {output.format_figure('delay', results['delay_seconds_median'])} s"),
        ("False alarms", "–" if rate is None else f"{rate:.1f} / h", f"in {results['normal_hours']:.1f} normal hours"),
        ("Culprit first (HR@1)", output.format_figure("hr", results["hit_rate_at_1"]), between("hit_rate_at_1")),
        ("AUROC", output.format_figure("auroc", results["auroc"]), between("auroc")),
        ("TPR at 5% FPR", output.format_figure("tpr", results["tpr_at_5_percent_fpr"]),
         between("tpr_at_5_percent_fpr")),
    ]  # fmt: skip


def _rate(share) -> str:
    return "–" if share is None else f"{100 * share:.1f}%"


def _observed(test: TestWindows) -> int:
    """Nanoseconds that the test windows cover, each moment once."""
    order = np.argsort(test.start_unix_nano, kind="stable")
    start, end = test.start_unix_nano[order], np.maximum.accumulate(test.end_unix_nano[order])
    return int((end - np.maximum(start, np.append(start[:1], end[:-1]))).clip(0).sum())


def _highest(chosen: Detector) -> float | None:
    finite = chosen.score[np.isfinite(chosen.score)]
    return float(finite.max()) if len(finite) else None


def made_up(manifest: dict) -> str:
    """What of a dataset is simulated, in words; '' where nothing is."""
    if manifest.get("simulated"):
        return "simulated data"
    return "simulated faults in recorded telemetry" if manifest.get("injected") else ""


def dataset_facts(prepared: Prepared) -> list[tuple[str, str]]:
    """What the data is, in words."""
    windows, system, manifest = prepared.windows, prepared.system, prepared.manifest
    parts = {name: int((windows.part == p).sum()) for p, name in enumerate(("fit", "calibration", "test"))}
    facts = [
        ("source", plain(manifest.get("source", "unknown"))),
        ("simulated", made_up(manifest) or "no"),
        ("services", str(len(system.service_names))),
        ("nodes", f"{int(system.node_mask.sum())} (budget {len(system.kind)})"),
        ("window", f"{manifest.get('window_length')} ticks of {manifest.get('tick_seconds')} s"),
        ("stride", f"{manifest.get('stride')} ticks"),
        ("windows", ", ".join(f"{count} {name}" for name, count in parts.items())),
        ("faults", str(prepared.faults.height)),
    ]
    counts = manifest.get("counts", {})
    unknown = [(counts.get("unknown_units"), "services or instances"), (counts.get("unseen_templates"), "log lines")]
    if seen := ", ".join(f"{count} {what}" for count, what in unknown if count):
        facts.append(("not known from fit time", seen))
    facts += [("warning", plain(warning)) for warning in manifest.get("warnings", ())]
    if windows.num_windows:
        first, last = int(windows.start_unix_nano.min()), int(windows.end_unix_nano.max())
        facts.append(("time (UTC)", f"{time_text(first)} to {time_text(last)}"))
    return facts + [("dataset hash", plain(manifest.get("dataset_hash", ""), 80))]


def _table(results: dict) -> dict:
    rows = output.table_rows(results)
    rows += [(f"term: {name}", block) for name, block in results["terms"].items()]
    rows += [(f"kind: {name}", block) for name, block in results["kinds"].items()]
    columns = [*output.TABLE, ("oracle best F1", "oracle_best_f1")]
    return {
        "head": [title for title, _ in columns],
        "rows": [(name, [output.format_figure(k, block.get(k)) for _, k in columns]) for name, block in rows],
    }


def _flat(config: dict, prefix: str = "") -> list[tuple[str, str]]:
    out = []
    for key, value in config.items():
        name = f"{prefix}{key}"
        out += _flat(value, f"{name}.") if isinstance(value, dict) else [(plain(name), plain(value))]
    return out
