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
from ssad_jax.comparison.families import CLOSED_FORM, MAIN, Family
from ssad_jax.sensitivity.compute import Variant
from ssad_jax.sensitivity.parameter import Parameter
from ssad_jax.sensitivity.speed import Form


def collect(config, parameter: Parameter, found: list[Variant], seeds: list[int], store: Store, form) -> dict:
    """Figures of every value and seed and of what they are held against, with intervals; looks are logged.

    Args: form: `Form` of the trainings, as a dict where it was read back; None: of no shared program.
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
        "protocol": config.data.protocol,
        "score": config.score.variant,
        "seeds": seeds,
        "references": ["untrained", CLOSED_FORM],
        "form": dataclasses.asdict(form) | {"text": form.describe()} if isinstance(form, Form) else form,
        "cells_computed": store.computed,
        "notes": notes,
        "values": [_entry(variant, seeds, store, measured) for variant in found],
    }


def last_form(workdir: Path) -> dict | None:
    """How the trainings of a finished sweep were run, which is only drawn up again."""
    try:
        return json.loads((workdir / "sweep.json").read_text())["form"]
    except (OSError, ValueError, KeyError):
        return None


def _entry(variant: Variant, seeds: list[int], store: Store, measured: dict) -> dict:
    """Everything that sweep.json says of a value. `measured` keeps references that several values have in common."""
    split = variant.split
    test, config = splits.pool([split]), split.config

    def of(family: Family, seeds: list[int]):
        cells = {seed: store.get(family, split, seed).detectors for seed in seeds}
        names = {seed: ONLY if ONLY in cell else config.score.variant for seed, cell in cells.items()}
        detectors = {seed: cell[names[seed]] for seed, cell in cells.items()}
        whole = {seed: d for seed, d in detectors.items() if np.isfinite(d.score).all()}
        return figures.measure(family, test, whole, config.score.bootstrap), sorted(set(detectors) - set(whole))

    main, diverged = of(variant.family, seeds)
    rows = {MAIN: main}
    for family in variant.references:
        if family not in measured:
            measured[family] = of(family, family.seeds(seeds[0], len(seeds)))[0]
        rows[family.name] = measured[family]
    for row in main.rows:
        own = config.copy_and_resolve_references()
        own.seed = row["seed"]
        evaluation_log.append(own, split.prepared.manifest, "sweep", split.name, MAIN, row, once=True)
    facts = figures.compare_protocol([split], test, rows)
    facts["paired"] = {f"minus {name}": figures.paired(main, other) for name, other in rows.items() if name != MAIN}
    return {"value": variant.value, "prepared_dir": config.data.prepared_dir, "diverged": diverged, **facts}
