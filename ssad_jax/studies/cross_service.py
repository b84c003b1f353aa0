"""Method B's sensitivity studies: what the paper reports beside what is measured.

    python -m ssad_jax.studies.cross_service --study=temperature --config=configs/train_ticket.py \
        --config.data.raw_dir=DIR

Writes <study>_<config name>.json, .md and .png into `--output`. A study is a sweep (`ssad_jax.sweep`): finished cells
are kept in the workdir, so that an interrupted one goes on. The figures are of labelled test windows: they show how
much a setting matters and are no way to choose its value.
"""

import dataclasses
from pathlib import Path

import numpy as np
from absl import flags

from data_prep import command
from ssad_jax import settings, sweep
from ssad_jax.comparison.tables import table
from ssad_jax.config import use_method
from ssad_jax.scoring import output
from ssad_jax.sensitivity import plot, tables
from ssad_jax.sensitivity.parameter import Parameter

METHOD = "cross_service"
BATCHES = (16, 32, 64, 128)
EPOCHS = 4


@dataclasses.dataclass(frozen=True)
class Study:
    """What is varied, how it is measured, and what the paper says of it."""

    key: str
    values: tuple
    figures: tuple[str, ...]
    reported: str
    best: dict[str, tuple]  # of a figure that the paper speaks of: the values that it finds best
    protocol: str = "chronological"
    scores: tuple[str, ...] = ("calibrated",)
    changes: tuple[tuple[str, object], ...] = ()  # of the config
    equal_updates: bool = False  # epochs in proportion to the value, from the config's for the first one


_RATE = "optimizer.learning_rate"
_BATCH = (
    "recall rises from 16 to 32, drops at 64 and rises again at 128; the method needs a relatively large batch"
)
STUDIES = {
    "learning_rate": Study(
        _RATE, (1e-4, 2e-4, 3e-4, 4e-4, 5e-4, 6e-4), ("accuracy", "precision", "recall", "f1"),
        "all four figures rise steadily as the rate falls from 6e-4; best at 1e-4 and 2e-4",
        dict.fromkeys(("accuracy", "precision", "recall", "f1"), (1e-4, 2e-4)), "folds",
    ),
    "temperature": Study(
        "loss.temperature", (0.05, 0.1, 0.2, 0.5, 1.0), ("accuracy", "precision", "recall", "f1"),
        "a middle temperature is best for F1 and recall; accuracy and precision are more stable and fall at both ends",
        dict.fromkeys(("accuracy", "precision", "recall", "f1"), (0.1, 0.2, 0.5)), "folds",
        ("calibrated", "reconstruction", "prior"),
    ),
    "window": Study(
        "data.window_length", (16, 32, 48, 64, 80), ("accuracy", "precision", "recall", "f1"),
        "accuracy and F1 rise from 16 to 48 and fall slightly at 64 and 80; precision and recall are best between",
        {"accuracy": (48,), "f1": (48,), "precision": (32, 48, 64), "recall": (32, 48, 64)},
        changes=(("data.tick_seconds", 1.0),),
    ),
    "batch_at_equal_epochs": Study("data.batch_size", BATCHES, ("recall", "f1"), _BATCH, {"recall": (32, 128)}),
    "batch_at_equal_updates": Study(
        "data.batch_size", BATCHES, ("recall", "f1"), _BATCH, {"recall": (32, 128)}, equal_updates=True,
    ),
}  # fmt: skip


def run(config, name: str, workdir: Path, directory: Path, seeds: int, hidden: int, epochs: int) -> dict:
    """One study; returns what its JSON file holds.

    Args:
        config: of either method; that of method B is made of it.
        name: of `STUDIES`.
        hidden, epochs: of the networks: smaller ones than the config's keep the studies short.
    """
    study = STUDIES[name]
    config = config.copy_and_resolve_references()
    if config.method != METHOD:
        use_method(config, METHOD)
    config.model.hidden_dim = hidden
    config.train.num_epochs = config.train.checkpoint_every = epochs
    config.update_from_flattened_dict(dict(study.changes))
    if study.changes:
        config.data.prepared_dir = f"{config.data.prepared_dir.rstrip('/')}_{name}"
    settings.check(config)
    along = ()
    if study.equal_updates:
        along = (("train.num_epochs", tuple(epochs * value // study.values[0] for value in study.values)),)
    parameter = Parameter(study.key, study.values, along)
    found = sweep.sweep(
        config, parameter, seeds, workdir, protocol=study.protocol, shown=study.figures, scores=study.scores
    )
    stem = Path(directory) / f"{name}_{config.name}"
    output.write_json(stem.with_suffix(".json"), found)
    output.write_atomically(stem.with_suffix(".png"), lambda path: plot.draw(found, path))
    output.write_atomically(stem.with_suffix(".md"), lambda path: path.write_text(page(found, name), "utf-8"))
    return found


def page(found: dict, name: str) -> str:
    """The study as Markdown."""
    study, title = STUDIES[name], name.replace("_", " ")
    stem = f"{name}_{found['config']['name']}"
    model, train = found["config"]["model"], found["config"]["train"]
    epochs = f"{train['num_epochs']} epochs"
    if study.equal_updates:
        epochs += f" with the value {study.values[0]}, with the others in proportion"
    lines = [
        f"# Method B: {title}, {found['config']['name']}", "", f"![{title}]({stem}.png)", "", tables.caption(found), "",
        f"{len(found['seeds'])} seeds, {model['hidden_dim']} hidden units, {epochs}.", "",
        f"**Reported** by the paper, on another dataset: {study.reported}.", "", "**Measured:**", "",
        *table(against(found, study)), "",
        "Spread: greatest less least mean over values, and how far the seeds of one value lie apart in the mean. Where "
        "the first is not larger no value is called best.", "",
        "## All figures: means over seeds, least and greatest in brackets", "",
        *table(tables.main_rows(found)), "", f"How it was run: {tables.how(found)}.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def against(found: dict, study: Study) -> list[list[str]]:
    """For each figure, and each level that was scored: means, where it is best, and where the paper finds it best."""
    shown = [tables.show(value) for value in study.values]
    rows = [["figure", *shown, "spread of values / of seeds", "measured: best at", "reported: best at", ""]]
    for score in study.scores:
        key = found["method"] if score == study.scores[0] else f"{found['method']}: {score}"
        of = "" if score == study.scores[0] else f", {tables.score_title(found, score)}"
        for figure in study.figures:
            facts = [entry["detectors"][key] for entry in found["values"]]
            mean, most, least = (
                np.array([f[part][figure] for f in facts], float) for part in ("mean", "max", "min")
            )
            reported = study.best.get(figure, ())
            row = [tables.TITLES[figure] + of, *("-" if np.isnan(m) else f"{m:.3f}" for m in mean)]
            if np.isnan(mean).any():
                rows.append([*row, "-", "-", _named(reported), "not measured"])
                continue
            by_value, by_seed = np.ptp(mean), (most - least).mean()
            best = (study.values[int(mean.argmax())],) if by_value > by_seed else ()
            verdict = "no visible trend" if not best else "same" if set(best) <= set(reported) else "differs"
            verdict = verdict if reported or not best else ""
            rows.append([*row, f"{by_value:.3f} / {by_seed:.3f}", _named(best), _named(reported), verdict])
    return rows


def _named(values: tuple) -> str:
    return " or ".join(tables.show(value) for value in values) or "-"


if __name__ == "__main__":
    CONFIG = command.define_config_flag()
    STUDY = flags.DEFINE_enum("study", None, list(STUDIES), "Which one.", required=True)
    WORKDIR = flags.DEFINE_string("workdir", None, "Where cells are kept; default runs/study_<study>_<config.name>.")
    OUTPUT = flags.DEFINE_string("output", "docs/studies", "Where the study's files go.")
    SEEDS = flags.DEFINE_integer("seeds", 5, "Trainings with each value.", lower_bound=1)
    HIDDEN = flags.DEFINE_integer("hidden", 16, "Hidden units.", lower_bound=1)
    NUM_EPOCHS = flags.DEFINE_integer("epochs", EPOCHS, "Of every training.", lower_bound=1)

    def main():
        config = CONFIG.value
        place = Path(WORKDIR.value or f"runs/study_{STUDY.value}_{config.name}")
        with command.stopped_by_signals(f"finished cells are kept in {place}; the same command goes on there"):
            found = run(config, STUDY.value, place, Path(OUTPUT.value), SEEDS.value, HIDDEN.value, NUM_EPOCHS.value)
        print(page(found, STUDY.value))

    command.run(main)
