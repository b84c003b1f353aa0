"""The cells of a sweep measured: what sweep.json holds."""

import dataclasses
import json
import os
from pathlib import Path

import jax
import numpy as np

from ssad_jax import evaluation_log
from ssad_jax import workdir as workdirs
from ssad_jax.checkpoint import config_to_dict
from ssad_jax.comparison import figures, splits
from ssad_jax.comparison.compute import ONLY, Store
from ssad_jax.comparison.families import CLOSED_FORM, UNTRAINED, Family
from ssad_jax.sensitivity.compute import Variant
from ssad_jax.sensitivity.parameter import Parameter
from ssad_jax.sensitivity.speed import Form


def collect(
    config, parameter: Parameter, found: list[Variant], seeds: list[int], store: Store, form, protocol: str,
    shown: tuple[str, ...], scores: tuple[str, ...],
) -> dict:  # fmt: skip
    """Figures of every value and seed and of what they are held against, with intervals; looks are logged.

    Args:
        form: `Form` of the trainings, as a dict where it was read back; None: of no shared program.
        protocol: of the splits that were found.
        shown: figures to draw.
        scores: to measure, of those that a cell of the method has; the first is the one that is compared. None: the
            `score.variant` of each value's config.
    """
    notes, measured = [], {}
    if store.other_program:
        notes.append(f"{store.other_program} cells are of another version of the program; delete cells/ to renew them")
    device = jax.devices()[0]
    return {
        "config": config_to_dict(config),
        "git_revision": workdirs.git_revision(),
        "device": {"kind": device.device_kind, "count": jax.device_count(), "cores": os.cpu_count()},
        "parameter": parameter.key,
        "needs": parameter.needs,
        "protocol": protocol,
        "method": config.method,
        "score": (scores or (config.score.variant,))[0],
        "scores": list(scores),
        "shown": list(shown),
        "seeds": seeds,
        "references": [UNTRAINED[config.method], CLOSED_FORM],
        "form": dataclasses.asdict(form) | {"text": form.describe()} if isinstance(form, Form) else form,
        "cells_computed": store.computed,
        "notes": notes,
        "values": [_entry(variant, seeds, scores, store, measured) for variant in found],
    }


def last_form(workdir: Path) -> dict | None:
    """How the trainings of a finished sweep were run, which is only drawn up again."""
    try:
        return json.loads((workdir / "sweep.json").read_text())["form"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _entry(variant: Variant, seeds: list[int], scores: tuple[str, ...], store: Store, measured: dict) -> dict:
    """Everything that sweep.json says of a value. `measured` keeps references that several values have in common."""
    parts = list(variant.splits)
    test, config = splits.pool(parts), parts[0].config

    def of(family: Family, seeds: list[int], score: str):
        pooled = {}
        for seed in seeds:
            cells = [store.get(family, part, seed).detectors for part in parts]
            pooled[seed] = splits.pool_detector(score, [cell[ONLY if ONLY in cell else score] for cell in cells])
        whole = {seed: d for seed, d in pooled.items() if np.isfinite(d.score).all()}
        return figures.measure(family, test, whole, config.score.bootstrap), sorted(set(pooled) - set(whole))

    first, *more = scores or (config.score.variant,)
    main, diverged = of(variant.family, seeds, first)
    rows = {config.method: main} | {
        f"{config.method}: {score}": of(variant.family, [s for s in seeds if s not in diverged], score)[0]
        for score in more
    }
    for family in variant.references:
        if family not in measured:
            measured[family] = of(family, family.seeds(seeds[0], len(seeds)), first)[0]
        rows[family.name] = measured[family]
    for row in main.rows:
        own = config.copy_and_resolve_references()
        own.seed = row["seed"]
        protocol = parts[0].name if len(parts) == 1 else "folds"
        evaluation_log.append(own, splits.manifest(parts), "sweep", protocol, config.method, row, once=True)
    held_against = {family.name: rows[family.name] for family in variant.references}
    facts = figures.compare_protocol(parts, test, rows)
    facts["paired"] = {f"minus {name}": figures.paired(main, other) for name, other in held_against.items()}
    normal = [np.concatenate([np.unique(p.prepared.fit_sequences), p.held_out]) for p in parts]
    starts = [p.prepared.windows.start_unix_nano[ids[ids >= 0]] for p, ids in zip(parts, normal, strict=True)]
    return {
        "value": variant.value, "settings": dict(variant.family.overrides), "prepared_dir": config.data.prepared_dir,
        "normal_windows": len(np.unique(np.concatenate(starts))), "diverged": diverged, **facts,
    }  # fmt: skip
