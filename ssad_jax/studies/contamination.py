"""What faults that nobody knows of cost in training: `data.train_on=all` with 0, 1, 5 and 10% of the time faulty.

    python -m ssad_jax.studies.contamination --config=configs/openstack.py --workdir=runs/contamination

Writes contamination.json and contamination.md into `--output`. All systems are simulated; of one seed they differ only
in which faults the training time has: those of a smaller share are among those of a larger one, and the test time has
the same plan of faults. Finished cells are kept in the workdir, so that an interrupted study goes on.
"""

import dataclasses
import json
import random
import shutil
from pathlib import Path

import numpy as np
from absl import flags, logging

from data_prep import command
from data_prep.errors import InputError
from data_prep.prepare import prepare
from data_prep.simulate import simulate
from data_prep.simulate.faults import Fault, schedule
from ssad_jax import metrics, prepared
from ssad_jax.floors.linear import closed_form
from ssad_jax.scoring import output
from ssad_jax.scoring.assess import test_windows
from ssad_jax.scoring.detectors import overlap_of
from ssad_jax.scoring.thresholds import METHODS, decide
from ssad_jax.studies.common import begin, table, trained, write_results

SHARES = (0.0, 0.01, 0.05, 0.1)
KINDS = ("restart", "latency", "error", "cpu")  # never memory and message_loss: this study is about choosing
HIDDEN = 32
FIRST_SEED = 7100  # of the simulations: no seed that anything else was chosen on
FAULTS_PER_HOUR = 10.0
EDGE = 120.0  # seconds before the end of training time without a fault
FIGURES = ("auroc", "auprc", "tpr_at_5_percent_fpr")
AT_THRESHOLD = ("recall", "f1", "fpr")


def plan(seconds: float, border: float, share: float, seed: int) -> list[Fault]:
    """Faults of one system: the test time's, and as many in training time as take `share` of it.

    Args: border: where the test time begins, seconds. The last fault of the training time is cut to fit.
    """
    test = [f for f in schedule(seconds, seed, KINDS, FAULTS_PER_HOUR) if f.start > border]
    pool = [f for f in schedule(seconds, seed + 1000, KINDS, FAULTS_PER_HOUR) if f.start + f.duration < border - EDGE]
    random.Random(seed).shuffle(pool)
    left, chosen = share * border, []
    for fault in pool:
        if left <= 0:
            break
        chosen.append(dataclasses.replace(fault, duration=min(fault.duration, left)))
        left -= chosen[-1].duration
    if left > 1e-6:
        raise InputError(
            f"{share:.0%} of {border:.0f} s of training time do not fit into the {len(pool)} faults that there are; "
            "raise --hours"
        )
    return sorted([*chosen, *test], key=lambda fault: fault.start)


def cell(workdir: Path, config, share: float, seed: int, hours: float) -> dict:
    """Figures of one share and seed: detector -> figures; from `workdir` where they are there."""
    directory = workdir / f"share-{share:g}-seed-{seed}"
    if (directory / "cell.json").is_file():
        return json.loads((directory / "cell.json").read_text())
    own, seconds = config.copy_and_resolve_references(), hours * 3600
    border = own.data.train_share * seconds
    faults = plan(seconds, border, share, FIRST_SEED + seed)
    own.data.update({
        "source": "openstack", "raw_dir": str(directory / "raw"), "prepared_dir": str(directory / "prepared"),
        "train_on": "all",
    })  # fmt: skip
    own.seed = seed
    if not prepared.exists(own.data.prepared_dir):  # else a run that was stopped goes on
        shutil.rmtree(directory, ignore_errors=True)
        simulate(directory / "raw", hours=hours, seed=FIRST_SEED + seed, plan=faults)
        prepare(own)
    data = prepared.load(own.data.prepared_dir)
    train = (data.windows.part == 0) | (data.windows.part == 1)
    results = {
        "share": share,
        "seed": seed,
        "share_of_training_windows_faulty": float((data.windows.label[train] == 1).mean()),
        "faults_in_training_time": sum(f.start < border for f in faults),
        "closed_form": figures(data, closed_form(data, own.score), own.score),
        "knowledge_ssl": figures(data, trained(data, own, directory / "run"), own.score),
    }
    output.write_json(directory / "cell.json", results)
    for name in ("raw", "prepared", "run"):
        shutil.rmtree(directory / name)
    return results


def figures(data, scored, score_config) -> dict:
    """Ranking figures, and those at each label-free threshold."""
    test = test_windows(data.windows, data.faults, scored.terms.window)
    held_out, scores = scored.held_out.calibrated, scored.scores.calibrated
    point, _ = metrics.point_metrics(test.label, scores, None)
    out = {name: point[name] for name in (*FIGURES, "prevalence")}
    settings = score_config.copy_and_resolve_references()
    for name in METHODS:
        settings.threshold = name
        decided = decide(held_out, scores, settings, overlap_of(data, scored))
        alerting, _ = metrics.point_metrics(test.label, scores, decided.alert)
        out[name] = {figure: alerting[figure] for figure in AT_THRESHOLD} | {"threshold": decided.threshold.value}
    return out


def page(results: dict) -> str:
    """The study as Markdown."""
    facts = results["settings"]
    lines = [
        "# Faults in training time that nobody knows of\n",
        f"`data.train_on=all`; {facts['seeds']} simulated OpenStacks of {facts['hours']:g} h for each share "
        f"(simulation seeds from {facts['first_seed']}, fault kinds {', '.join(facts['kinds'])}), the first "
        f"{facts['train_share']:.0%} to train and to calibrate on. A share is injected time over training time. Fitted "
        "statistics, calibration and thresholds come from the same contaminated time. Mean over seeds ± standard "
        f"deviation. `knowledge_ssl`: method A with {facts['hidden_dim']} hidden units, {facts['epochs']} epochs; "
        "`closed_form`: residuals of the closed-form expectations, no network. FPR is the share of normal test windows "
        "that alert. Simulated data; written by `python -m ssad_jax.studies.contamination`.\n",
    ]
    for detector in ("knowledge_ssl", "closed_form"):
        lines.append(f"## {detector}\n")
        head = ["faulty share", "AUROC", "AUPRC", "prevalence", "TPR at 5% FPR"]
        rows = [[_share(c)] + [_cell([x[detector][k] for x in c]) for k in (*FIGURES[:2], "prevalence", FIGURES[2])]
                for c in _by_share(results)]  # fmt: skip
        lines.append(table(head, rows))
        for name in METHODS:
            head = [f"threshold: {name}", "TPR", "F1", "FPR"]
            rows = [[_share(c)] + [_cell([x[detector][name][k] for x in c]) for k in AT_THRESHOLD]
                    for c in _by_share(results)]  # fmt: skip
            lines.append(table(head, rows))
    return "\n".join(lines)


def _by_share(results: dict) -> list[list[dict]]:
    return [[c for c in results["cells"] if c["share"] == share] for share in SHARES]


def _share(cells: list[dict]) -> str:
    windows = np.mean([c["share_of_training_windows_faulty"] for c in cells])
    return f"{cells[0]['share']:.0%} ({windows:.1%} of windows)"


def _cell(values: list) -> str:
    if any(v is None for v in values):
        return "-"
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}"


def run(config, workdir: Path, output: Path, seeds: int, hours: float, epochs: int) -> dict:
    """The whole study; returns what contamination.json holds.

    Args: config: of an OpenStack; seeds: systems (and networks) of each share; hours: simulated time of a system;
        epochs: of method A.
    """
    config = config.copy_and_resolve_references()
    config.model.hidden_dim = HIDDEN
    config.train.num_epochs = config.train.checkpoint_every = epochs
    begin(config, workdir, output, hours=hours)
    cells = []
    for seed in range(seeds):
        for share in SHARES:
            cells.append(cell(workdir, config, share, seed, hours))
            logging.info("share %g, seed %d: AUROC %s", share, seed, cells[-1]["knowledge_ssl"]["auroc"])
    settings = {
        "seeds": seeds, "hours": hours, "first_seed": FIRST_SEED, "kinds": list(KINDS), "shares": SHARES,
        "train_share": config.data.train_share, "hidden_dim": config.model.hidden_dim, "epochs": epochs,
    }  # fmt: skip
    results = {"settings": settings, "cells": cells}
    write_results(output, "contamination", results, page(results))
    return results


if __name__ == "__main__":
    CONFIG = command.define_config_flag()
    WORKDIR = flags.DEFINE_string("workdir", "runs/contamination", "Where cells are computed and kept.")
    OUTPUT = flags.DEFINE_string("output", "docs/studies", "Where contamination.json and contamination.md go.")
    SEEDS = flags.DEFINE_integer("seeds", 3, "Systems (and networks) of each share.", lower_bound=1)
    HOURS = flags.DEFINE_float("hours", 4.0, "Simulated hours of a system.", lower_bound=0.5)
    EPOCHS = flags.DEFINE_integer("epochs", 10, "Of method A.", lower_bound=1)

    def main():
        with command.stopped_by_signals(f"what is finished is kept in {WORKDIR.value}; the same command goes on there"):
            results = run(
                CONFIG.value, Path(WORKDIR.value), Path(OUTPUT.value), SEEDS.value, HOURS.value, EPOCHS.value
            )
        print(page(results))

    command.run(main)
