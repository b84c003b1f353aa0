"""`report.html`: one page without scripts or links, readable from a file.

Everything that came from telemetry (service names, templates, log lines, fault types) passes through the template's
autoescaping, or is drawn into an image.
"""

from pathlib import Path

import jinja2

from ssad_jax.prepared import Prepared
from ssad_jax.report import figures
from ssad_jax.report.alerts import time_text, top_alerts
from ssad_jax.report.pairs import PairDistances
from ssad_jax.scoring import output
from ssad_jax.scoring.assess import Detector, TestWindows
from ssad_jax.scoring.detectors import Scored

TEMPLATE = Path(__file__).with_name("report.html.j2")
BEHIND = ("untrained", "count_rule", "l2_norm", "pca", "knn", "iforest")  # floors drawn beside the method


def write_report(
    path: Path,
    results: dict,
    prepared: Prepared,
    scored: Scored,
    test: TestWindows,
    chosen: Detector,
    floors: dict[str, Detector],
    prototype: list[str],
    pairs: PairDistances,
) -> None:
    """Write the report of an evaluation.

    Args:
        results: what metrics.json holds.
        chosen: the detector whose score is `score`; `floors` the others, by name.
        prototype: name of the nearest prototype of each test window.
    """
    text = render(results, prepared, scored, test, chosen, floors, prototype, pairs)
    output.write_atomically(Path(path), lambda p: p.write_text(text, encoding="utf-8"))


def render(results, prepared, scored, test, chosen, floors, prototype, pairs) -> str:
    """The page as text; see `write_report`."""
    has_windows = len(test.window) > 0
    has_both = results["auroc"] is not None
    others = [floors[name] for name in BEHIND if name in floors]
    timeline, shown = figures.timeline(test, chosen) if has_windows else ("", 0)
    terms = {name: getattr(scored.scores, name) for name in ("reconstruction", "temporal", "prior")}
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        results=results,
        dataset=dataset_facts(prepared),
        config=_flat(results["config"]),
        table=_table(results),
        headline=_headline(results),
        timeline=timeline,
        shown=shown,
        curves=figures.curves(test, [chosen, *others]) if has_both else "",
        pairs=figures.pair_histogram(pairs) if len(pairs.positive) or len(pairs.negative) else "",
        terms=figures.terms_by_type(test, terms) if has_both else "",
        alerts=top_alerts(prepared, scored, test, chosen, prototype),
        number_of_alerts=int(chosen.alert.sum()),
        figure=output.format_figure,
    )


def dataset_facts(prepared: Prepared) -> list[tuple[str, str]]:
    """What the data is, in words."""
    windows, system, manifest = prepared.windows, prepared.system, prepared.manifest
    parts = {name: int((windows.part == p).sum()) for p, name in enumerate(("fit", "calibration", "test"))}
    facts = [
        ("source", str(manifest.get("source", "unknown"))),
        ("services", str(len(system.service_names))),
        ("nodes", f"{int(system.node_mask.sum())} (budget {len(system.kind)})"),
        ("window", f"{manifest.get('window_length')} ticks of {manifest.get('tick_seconds')} s"),
        ("stride", f"{manifest.get('stride')} ticks"),
        ("windows", ", ".join(f"{count} {name}" for name, count in parts.items())),
        ("faults", str(prepared.faults.height)),
    ]
    if windows.num_windows:
        first, last = int(windows.start_unix_nano.min()), int(windows.end_unix_nano.max())
        facts.append(("time (UTC)", f"{time_text(first)} to {time_text(last)}"))
    return facts + [("dataset hash", str(manifest.get("dataset_hash", "")))]


def _headline(results: dict) -> list[tuple[str, str, str]]:
    """(title, figure, interval or remark) of the figures on top of the page."""
    interval = results["interval_95"]

    def between(key):
        pair = interval.get(key)
        return f"95%: {pair[0]:.3f} – {pair[1]:.3f}" if pair else "no interval"

    prevalence = results["prevalence"]
    share = "no labels" if prevalence is None else f"prevalence {prevalence:.3f}"
    alarms = results["false_alarms_per_hour"]
    alarms = "-" if alarms is None else f"{alarms:.1f} / h"
    found = results["num_faults"] - results["num_faults_never_alerted"]
    return [
        ("AUROC", output.format_figure("auroc", results["auroc"]), between("auroc")),
        ("AUPRC", output.format_figure("auprc", results["auprc"]), share),
        ("TPR at 5% FPR", output.format_figure("tpr", results["tpr_at_5_percent_fpr"]),
         between("tpr_at_5_percent_fpr")),
        ("Faults found", f"{found} of {results['num_faults']}",
         f"median delay {output.format_figure('delay', results['delay_seconds_median'])} s"),
        ("False alarms", alarms, f"in {results['normal_hours']:.1f} normal hours"),
        ("Culprit first (HR@1)", output.format_figure("hr", results["hit_rate_at_1"]), between("hit_rate_at_1")),
    ]  # fmt: skip


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
        out += _flat(value, f"{name}.") if isinstance(value, dict) else [(name, str(value))]
    return out
