"""sweep.json as Markdown, and as plain text for the terminal."""

import difflib

from data_prep.errors import InputError
from ssad_jax.comparison.tables import ALERTING, RANKING, table
from ssad_jax.scoring.output import format_figure
from ssad_jax.sensitivity.parameter import NEEDS

SHOWN = ("auroc", "auprc", "f1", "tpr_at_5_percent_fpr")  # beside what is drawn
TITLES = {key: title for title, key in (*RANKING, *ALERTING)}
LEVELS = {"reconstruction": "service level", "prior": "system level"}  # terms of method B
WARNING = (
    "These are test windows: the figures show how much the setting matters. Do not pick its value by them; choose on "
    "self-supervised errors or on simulated faults, and report what was chosen before these figures were seen."
)


def markdown(results: dict) -> str:
    """The whole page."""
    key = results["parameter"]
    lines = [f"# Sensitivity of {results['config']['name']} to {key}", "", WARNING, "", caption(results), ""]
    lines += ["## Means over seeds, least and greatest in brackets", "", *table(main_rows(results)), ""]
    lines += ["## 95% intervals of the mean over seeds", "", INTERVALS, "", *table(_intervals(results)), ""]
    lines += ["## AUROC, AUPRC of each seed", "", *table(_seeds(results)), ""]
    lines += [f"How it was run: {how(results)}."]
    lines += [f"Note: {note}." for note in results["notes"]]
    return "\n".join(lines) + "\n"


INTERVALS = (
    "Block bootstrap over fault events with the windows around them and segments without faults. *minus untrained*: "
    "paired on the same draws."
)


def parse_figures(text: str) -> tuple[str, ...]:
    """Names of figures, separated by commas.

    Raises:
        InputError: there is no such figure, or none was named.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in TITLES:
            near = difflib.get_close_matches(name, TITLES, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(f"--figures: {name!r} is unknown; {hint}there are {', '.join(TITLES)}")
    if not names:
        raise InputError("--figures is empty; name figures such as auroc or accuracy,precision,recall,f1")
    return names


def columns(results: dict) -> list[str]:
    """The figures of the tables: what is drawn, then the usual ones."""
    return list(dict.fromkeys((*results["shown"], *SHOWN)))


def score_title(results: dict, score: str) -> str:
    """What a score is called."""
    return LEVELS.get(score, score) if results["method"] == "cross_service" else score


def plain(results: dict) -> str:
    """The main table for the terminal."""
    rows = main_rows(results)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([caption(results), "", *lines, "", WARNING])


def caption(results: dict) -> str:
    """What the figures were measured on."""
    score = f"Score `{results['score']}`, protocol {results['protocol']}"
    tested = {_tested(entry) for entry in results["values"]}
    if len(tested) > 1:
        return f"{score}. Each value has its own test windows."
    return f"{score}: {tested.pop()}."


def how(results: dict) -> str:
    """The form of the trainings and the devices."""
    form, device = results["form"], results["device"]
    where = f"{device['count']} x {device['kind']} ({device['cores']} cores of the machine)"
    needs = f"another value needs {NEEDS[results['needs']]}"
    if results["parameter"] != "train.num_epochs":
        where += f", {results['config']['train']['num_epochs']} epochs"
    return f"{needs}; {'at the last start ' + form['text'] + ' on ' if form else ''}{where}"


def _tested(entry: dict) -> str:
    if entry["prevalence"] is None:
        return "no labelled test window"
    return (
        f"{entry['num_windows']} labelled test windows, prevalence {entry['prevalence']:.3f} (F1 of calling everything "
        f"faulty {entry['all_positive_f1']:.3f}), {entry['num_faults']} faults"
    )


def entries(results: dict):
    """(name, kind, entry of the value, facts) of the rows: every value, then what it is held against.

    A reference that no value changes stands there once.
    """
    values = results["values"]
    for entry in values:
        yield show(entry["value"]), entry, entry["detectors"][results["method"]]
    for score in results["scores"][1:]:
        for entry in values:
            facts = entry["detectors"][f"{results['method']}: {score}"]
            yield f"{show(entry['value'])}, {score_title(results, score)}", entry, facts
    once = results["needs"] == "traced"
    for name in results["references"]:
        for entry in values[:1] if once else values:
            yield name if once else f"{name}, {show(entry['value'])}", entry, entry["detectors"][name]


def show(value) -> str:
    """A value as people write it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def main_rows(results: dict) -> list[list[str]]:
    own = results["needs"] == "data"
    titles = [TITLES[key] for key in columns(results)]
    rows = [[results["parameter"], "seeds", *titles, *(["windows"] if own else [])]]
    for name, entry, facts in entries(results):
        count = "any" if facts["deterministic"] else str(len(facts["seeds"]))
        if name == show(entry["value"]) and entry["diverged"]:
            count += f" ({len(entry['diverged'])} diverged)"
        shown = [_figure(facts, key) for key in columns(results)]
        rows.append([name, count, *shown, *([_windows(entry)] if own else [])])
    return rows


def _windows(entry: dict) -> str:
    return f"{_tested(entry)}; {entry['normal_windows']} normal windows to fit and calibrate on"


def _figure(facts: dict, key: str) -> str:
    mean, low, high = (format_figure(key, facts[part][key]) for part in ("mean", "min", "max"))
    return mean if low == high else f"{mean} ({low}–{high})"


def _intervals(results: dict) -> list[list[str]]:
    keys, untrained = columns(results), f"minus {results['references'][0]}"
    rows = [[results["parameter"], *(TITLES[key] for key in keys), "AUROC minus untrained"]]
    for name, entry, facts in entries(results):
        cells = [_ends(facts["interval_95"].get(key), "{:.3f}") for key in keys]
        pair = entry["paired"].get(untrained, {}).get("auroc") if name == show(entry["value"]) else None
        difference = f"{pair['difference']:+.3f} {_ends(pair['interval_95'], '{:+.3f}')}" if pair else ""
        rows.append([name, *cells, difference])
    return rows


def _ends(ends, style: str) -> str:
    return "-" if ends is None else f"[{style.format(ends[0])}, {style.format(ends[1])}]"


def _seeds(results: dict) -> list[list[str]]:
    seeds = results["seeds"]
    rows = [[results["parameter"], *(f"seed {seed}" for seed in seeds)]]
    for entry in results["values"]:
        found = {row["seed"]: row for row in entry["detectors"][results["method"]]["per_seed"]}
        rows.append([show(entry["value"]), *(_both(found.get(seed)) for seed in seeds)])
    return rows


def _both(row: dict | None) -> str:
    if row is None:
        return "diverged"
    return f"{format_figure('auroc', row['auroc'])}, {format_figure('auprc', row['auprc'])}"
