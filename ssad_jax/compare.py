"""Compare detectors under one protocol: both methods, parts of A, the linear recipe, floors, PyOD; the same windows.

    python -m ssad_jax.compare --config=configs/smoke.py [--detectors=knowledge_ssl,linear,knn] [--protocol=folds]

Trains and evaluates what `--detectors` names with `--seeds` seeds on every split of the protocol and writes
comparison.json and comparison.md. Finished cells (split x detector x seed) stay in the workdir: the same command goes
on where it was interrupted, and computes again what a changed setting or dataset changes.
"""

import sys
from pathlib import Path

from absl import flags

from data_prep import command
from data_prep.errors import InputError
from ssad_jax import settings

CONFIG = command.define_config_flag()
# evaluate.py defines a flag of the same name for its own command line; one program may import both.
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where cells and tables go; default runs/<config.name>_compare.", allow_override=True
)
DETECTORS = flags.DEFINE_string("detectors", "all", "Names separated by commas, or all.")
PROTOCOL = flags.DEFINE_enum(
    "protocol", "both", ["chronological", "folds", "both"], "folds: test windows of all five folds, pooled."
)
SEEDS = flags.DEFINE_integer("seeds", 5, "Seeds of each detector that depends on one (ablations: three at most).")


def compare(config, detectors: str, protocol: str, num_seeds: int, workdir: Path) -> dict:
    """Compute what is missing, measure everything and write the tables.

    Args:
        detectors, protocol, num_seeds: as the flags of these names.

    Returns:
        What comparison.json holds.

    Raises:
        InputError: a detector or setting that cannot be used, or data that cannot be prepared.
    """
    from ssad_jax import workdir as workdirs  # with what it brings: not needed for --help and bad flags
    from ssad_jax.checkpoint import config_to_dict
    from ssad_jax.comparison import families, tables
    from ssad_jax.comparison.compute import Store
    from ssad_jax.comparison.splits import PROTOCOLS
    from ssad_jax.scoring import output

    chosen, notes = families.select(detectors, config)
    for note in notes:
        _say(note)
    workdir = workdirs.make(workdir)
    store = Store(workdir, _say)
    parts = {
        title: _one_protocol(config, title, chosen, num_seeds, store)
        for title in (PROTOCOLS if protocol == "both" else (protocol,))
    }
    if store.other_program:
        notes.append(f"{store.other_program} cells are of another version of the program; delete cells/ to renew them")
        _say(notes[-1])
    results = {
        "config": config_to_dict(config),
        "git_revision": workdirs.git_revision(),
        "cells_computed": store.computed,
        "cells_of_another_program": store.other_program,
        "notes": notes,
        "protocols": parts,
    }
    output.write_json(workdir / "comparison.json", results)
    output.write_atomically(workdir / "comparison.md", lambda path: path.write_text(tables.markdown(results), "utf-8"))
    print(tables.plain(results))
    print(f"tables: {workdir / 'comparison.md'}")
    return results


def _one_protocol(config, title: str, chosen: list, num_seeds: int, store) -> dict:
    """Everything that comparison.json says of a protocol."""
    from ssad_jax import evaluation_log
    from ssad_jax.comparison import families, figures, splits
    from ssad_jax.comparison.compute import ONLY

    parts = [splits.find_split(config, name) for name in splits.PROTOCOLS[title]]
    test, caches = splits.pool(parts), [{} for _ in parts]
    measured, adjusted = {}, {}
    for family in chosen:
        seeds = family.seeds(config.seed, num_seeds)
        for part, cache in zip(parts, caches, strict=True):
            store.ensure(family, part, seeds, cache)
        cells = {seed: {p.name: store.get(family, p, seed).detectors for p in parts} for seed in seeds}
        first = cells[seeds[0]][parts[0].name]
        facts = [[store.get(family, p, seed).facts for p in parts] for seed in seeds]
        main = next(name for name in (ONLY, config.score.variant, "calibrated") if name in first)
        others = [name for name in first if name != main] if family.name == family.method else []
        for seen in (main, *others):
            name = family.name if seen == main else f"{family.name}: {seen}"
            per_seed = {seed: splits.pool_detector(name, [cells[seed][p.name][seen] for p in parts]) for seed in seeds}
            measured[name] = figures.measure(family, test, per_seed, config.score.bootstrap, facts)
            if name in (families.MAIN, "random"):
                adjusted[name] = figures.point_adjustment(test, per_seed)
            for row in measured[name].rows:
                own = family.config(config)
                own.seed = row["seed"]
                evaluation_log.append(own, splits.manifest(parts), "compare", title, name, row, once=True)
    return figures.compare_protocol(parts, test, measured) | {"point_adjustment": adjusted}


def _say(message: str) -> None:
    print(f"compare: {message}", file=sys.stderr, flush=True)


def main() -> None:
    config = CONFIG.value
    settings.check(config)
    if SEEDS.value < 1:
        raise InputError(f"--seeds={SEEDS.value} is too few; use 1 or more")
    workdir = Path(WORKDIR.value or f"runs/{config.name}_compare")
    with command.stopped_by_signals(f"finished cells are kept in {workdir}; the same command goes on there"):
        from ssad_jax import workdir as workdirs

        with workdirs.using(workdir):
            compare(config, DETECTORS.value, PROTOCOL.value, SEEDS.value, workdir)


if __name__ == "__main__":
    command.run(main)
