"""Score and evaluate a checkpoint, on its own dataset or on another prepared one.

    python -m ssad_jax.evaluate --workdir=runs/openstack [--step=N] [--prepared_dir=DIR]

Writes evaluation/metrics.json, evaluation/scores.parquet, evaluation/alerts.jsonl, evaluation/calibration.npz and
report.html into the workdir and prints a table of results. Nothing here but the figures themselves sees a label:
scales, calibration and thresholds come from normal training time.
"""

import sys
from pathlib import Path

import jax
import numpy as np
from absl import flags

from data_prep import command
from data_prep.errors import InputError
from ssad_jax import checkpoint, evaluation_log, prepared, resampling, train, trained
from ssad_jax import workdir as workdirs
from ssad_jax.prepared import Prepared
from ssad_jax.report.html import write_report
from ssad_jax.report.pairs import pair_distances
from ssad_jax.scoring import output
from ssad_jax.scoring.alarms import alarm_figures, find_alarms
from ssad_jax.scoring.assess import TestWindows, assess, draws, test_windows
from ssad_jax.scoring.detectors import (
    Scored,
    floor_detectors,
    make_detector,
    method_detectors,
    overlap_of,
    score_dataset,
    suspect_lists,
)
from ssad_jax.scoring.explain import alert_records
from ssad_jax.scoring.fitted import Fitted
from ssad_jax.scoring.terms import log_nodes, scorer
from ssad_jax.scoring.thresholds import METHODS, decide

WORKDIR = flags.DEFINE_string("workdir", None, "Working directory of a training run.")
STEP = flags.DEFINE_integer("step", None, "Checkpoint to evaluate; the newest by default.")
PREPARED_DIR = flags.DEFINE_string("prepared_dir", None, "Another prepared dataset than the run's own.")


def evaluate(workdir, prepared_dir=None, step: int | None = None, score=None, alerts=None, log=None) -> dict:
    """Evaluate a checkpoint of `workdir` and write the results there.

    Every process of a run may call it; process 0 alone computes and writes, the others return {}. `score`, `alerts`,
    `log`: settings to use instead of those of the checkpoint (how scores and alarms are made may change), and its
    `evaluation_log`.

    Returns:
        What `evaluation/metrics.json` holds.

    Raises:
        InputError: no checkpoint or no dataset, or one that does not fit the other, or a workdir that cannot be
            written or is in use.
        Failure: the disk is full.
    """
    if jax.process_index() != 0:
        return {}
    workdir = Path(workdir)
    restored = trained.restore(workdir, step)
    with workdirs.using(workdir, "evaluates again"):
        return _evaluate(restored, workdir, prepared_dir, score, alerts, log)


def _evaluate(restored, workdir: Path, prepared_dir, score, alerts, log) -> dict:
    context = restored.context
    config = context.config
    if score is not None:
        config.score = score
    if alerts is not None:
        config.alerts = alerts
    if log is not None:
        config.evaluation_log = log
    evaluation_log.checked_path(config)
    train.enable_compilation_cache(config)
    data = prepared.load(prepared_dir or config.data.prepared_dir)
    for key in ("tick_seconds", "window_length", "stride"):
        if data.manifest[key] != context.manifest[key]:
            raise InputError(
                f"{data.directory} has {key}={data.manifest[key]}, the checkpoint was trained with "
                f"{context.manifest[key]}; prepare the data with the same config.data.{key}"
            )
    method = trained.method(context, data.system, data.manifest.get("dataset_hash"))
    own = data.manifest.get("dataset_hash") == context.manifest.get("dataset_hash")
    facts = {
        "step": restored.step,
        "epoch": restored.epoch,
        "trained_on_this_dataset": own,
        "trained_dataset_hash": context.manifest.get("dataset_hash"),
    }
    return evaluate_params(config, data, method, restored.tree["params"], workdir, facts)


def evaluate_params(config, data: Prepared, method, params, workdir, facts: dict) -> dict:
    """Score, measure and write: the part of `evaluate` that needs no checkpoint.

    `facts` go into metrics.json as they are.
    """
    workdir, settings = Path(workdir), config.score
    score = scorer(method)
    _log("scoring")
    own = facts["trained_on_this_dataset"]
    scored = score_dataset(score, params, data, settings, own)
    _log(f"scored {len(scored.terms.window)} test windows; scoring the untrained network")
    untrained = score_dataset(score, train.untrained(config, method.init, config.seed), data, settings, own)

    test = test_windows(data.windows, data.faults, scored.terms.window)
    detectors = method_detectors(data, scored, settings)
    if settings.variant not in detectors["variants"]:
        raise InputError(f"config.score.variant is '{settings.variant}'; choose calibrated or paper")
    chosen = detectors["variants"][settings.variant]
    floors = floor_detectors(data, scored, settings, config.seed)
    floors["untrained"] = _untrained_detector(data, untrained, settings)

    _log("measuring")
    drawn = {d.name: draws(test, d, settings.bootstrap) for d in (*detectors["variants"].values(), *floors.values())}
    blocks = {
        group: {name: assess(test, d, drawn.get(d.name, {})) for name, d in members.items()}
        for group, members in {**detectors, "floors": floors}.items()
    }
    own = blocks["variants"][settings.variant]
    prototype = [method.prototype_names[p] for p in scored.terms.prototype]
    records = alert_records(data, scored, test, chosen, prototype, config)
    protocol = data.manifest.get("data_config", {}).get("protocol", "")
    evaluation_log.append(config, data.manifest, "evaluate", protocol, f"{config.method} ({chosen.name})", own)
    results = {
        **own,
        "method": config.method,
        "variant": settings.variant,
        "seed": config.seed,
        "dataset_hash": data.manifest.get("dataset_hash"),
        "source": data.manifest.get("source"),
        **facts,
        "num_test_windows": len(test.window),
        "num_null_windows": int((test.label < 0).sum()),
        "num_unjudged_windows": scored.unjudged,
        "num_calibration_windows": len(scored.held_out_terms.window),
        "masked_log_error": masked_log_error(data, scored),
        "thresholds": _thresholds(data, scored, test, config),
        "alarms": alarm_figures(
            test, find_alarms(test, chosen, config.alerts), own["normal_hours"], [r["since_unix_nano"] for r in records]
        ),
        "paired": {
            name: resampling.paired_difference(own, drawn[chosen.name], blocks["floors"][name], drawn[name])
            for name in floors
        },
        **blocks,
        "config": checkpoint.config_to_dict(config),
    }
    frame = output.scores_frame(test, chosen, scored.scores, scored.calibration, prototype)
    folder = workdir / "evaluation"
    output.write_json(folder / "metrics.json", results)
    output.write_frame(folder / "scores.parquet", frame)
    output.write_json_lines(folder / "alerts.jsonl", records)
    Fitted.of(data, scored, settings, facts["step"]).save(folder / "calibration.npz")
    _log("writing the report")
    first = jax.tree.map(lambda p: p[0], params)
    held_out = scored.held_out_terms.window
    pairs = pair_distances(method, first, data, held_out[data.windows.group[held_out] == 0], config)
    write_report(workdir / "report.html", results, data, scored, test, chosen, floors, records, pairs)
    print(output.results_table(results))
    print(f"report: {workdir / 'report.html'}")
    return results


def masked_log_error(data: Prepared, scored: Scored) -> float | None:
    """Mean squared residual of the log nodes' counts on the calibration windows.

    None without logs in fit time, and of a method that predicts no counts.

    Every node was masked when it was predicted; about 1 is what Poisson noise would leave of the true rates.
    """
    if len(log_nodes(data.system)) < 2 or scored.held_out_terms.log_error is None:  # lines of unknown services alone
        return None
    return float(scored.held_out_terms.log_error.mean(dtype=np.float64))


def _untrained_detector(data: Prepared, untrained: Scored, settings):
    name = settings.variant
    held_out, test = getattr(untrained.held_out, name), getattr(untrained.scores, name)
    layout = overlap_of(data, untrained)
    return make_detector("untrained", held_out, test, settings, layout, suspect_lists(data, untrained))


def _thresholds(data: Prepared, scored: Scored, test: TestWindows, config) -> dict:
    """What each way to choose the threshold would do with the same scores."""
    settings, layout = config.score, overlap_of(data, scored)
    held_out, scores = getattr(scored.held_out, settings.variant), getattr(scored.scores, settings.variant)
    normal, out = test.label == 0, {}
    for name in METHODS:
        with_name = settings.copy_and_resolve_references()
        with_name.threshold = name
        decided = decide(held_out, scores, with_name, layout)
        out[name] = {"threshold": decided.threshold.value, "method": decided.threshold.method}
        if len(scores):
            out[name] |= {"alert_share": float(decided.alert.mean())}
        if normal.any():
            out[name] |= {"alert_share_of_normal": float(decided.alert[normal].mean())}
    return out


def _log(message: str) -> None:
    print(f"evaluate: {message}", file=sys.stderr, flush=True)


def main() -> None:
    if not WORKDIR.value:
        raise InputError("--workdir is missing; name the working directory of a training run")
    with command.stopped_by_signals("the workdir is as it was but for files of this evaluation; evaluate again"):
        evaluate(WORKDIR.value, PREPARED_DIR.value, STEP.value)


if __name__ == "__main__":
    command.run(main)
