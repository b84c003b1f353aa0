"""Computes cells: each family on each split, with each seed, unless that is on disk already."""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

import ssad_jax
from ssad_jax import train
from ssad_jax.backends import choices
from ssad_jax.compared.service_anomaly import score_service_anomaly
from ssad_jax.comparison import cells
from ssad_jax.comparison.families import CLOSED_FORM, RECIPE, SERVICE_ANOMALY, Family, families
from ssad_jax.comparison.fit import fit, make_method
from ssad_jax.comparison.splits import Split
from ssad_jax.floors import FLOORS
from ssad_jax.floors.cross_fit import Windows
from ssad_jax.floors.linear import closed_form, score_linear
from ssad_jax.floors.pyod import PYOD
from ssad_jax.scoring.assess import Detector
from ssad_jax.scoring.conformal import overlap
from ssad_jax.scoring.detectors import (
    Scored,
    make_detector,
    score_dataset,
    score_pairs,
    suspect_lists,
    with_threshold,
)
from ssad_jax.scoring.terms import scorer
from ssad_jax.scoring.thresholds import Threshold
from ssad_jax.scoring.window_scores import on_held_out_scale

ONLY = "score"  # the one detector of a closed family


def compute(
    family: Family, split: Split, seeds: list[int], cache: dict
) -> Iterator[tuple[int, dict[str, Detector], dict]]:
    """The detectors of a family on a split, seed by seed, with facts: what training and scoring took.

    Args:
        cache: of the split, for what several families read.

    Raises:
        InputError, Failure: from training; see `fit`.
    """
    config, data = family.config(split.config), split.prepared
    if family.kind in ("trained", "untrained"):
        method = make_method(config, split)
        score = scorer(method)
        fresh = ((seed, train.untrained(config, method.init, seed)) for seed in seeds)
        together = family.kind == "trained" and choices().networks_together
        begin = time.perf_counter()
        for i, (seed, params) in enumerate(fresh if family.kind == "untrained" else fit(config, split, seeds, method)):
            if not together:
                train_seconds = time.perf_counter() - begin
            elif i == 0:  # all seeds are trained by now
                train_seconds = (time.perf_counter() - begin) / len(seeds)
            begin = time.perf_counter()
            scored = score_dataset(score, params, data, config.score)
            seconds = time.perf_counter() - begin
            yield seed, scored_detectors(split, scored), _facts(split, train_seconds, seconds, scored.unjudged)
            begin = time.perf_counter()
        jax.clear_caches()  # each training's programs would stay: 0.1 GB apiece
    elif family.kind == "recipe":
        begin = time.perf_counter()
        if family.name == CLOSED_FORM:
            scored = closed_form(data, config.score)
        elif family.name == SERVICE_ANOMALY:
            scored = score_service_anomaly(data, config.score)
        else:
            scored = score_linear(data, config.score, processor=family.name != RECIPE)
        seconds = time.perf_counter() - begin - scored.fit_seconds
        facts = _facts(split, scored.fit_seconds, seconds, scored.unjudged)
        detectors = scored_detectors(split, scored)
        for seed in seeds:
            yield seed, {ONLY: dataclasses.replace(detectors["calibrated"], name=ONLY)}, facts
    else:
        if "windows" not in cache:
            begin = time.perf_counter()
            cache["windows"] = Windows(data, split.held_out, split.test)
            cache["read_seconds"] = time.perf_counter() - begin
        for seed in seeds:
            begin = time.perf_counter()
            detector, fit_seconds = _floor(family, split, cache["windows"], seed)
            seconds = cache["read_seconds"] + time.perf_counter() - begin - fit_seconds
            yield seed, {ONLY: detector}, _facts(split, fit_seconds, seconds, 0)


def _facts(split: Split, train_seconds: float, score_seconds: float, unjudged: int) -> dict:
    """What a detector cost; compilation and the reading of windows count, by each of the K networks in turn."""
    windows = len(split.held_out) + len(split.test)
    return {
        "train_seconds": train_seconds, "windows_per_second": windows / score_seconds, "unjudged_windows": unjudged
    }  # fmt: skip


def _floor(family: Family, split: Split, windows: Windows, seed: int) -> tuple[Detector, float]:
    """The detector, and the seconds that fitting took."""
    seconds = [0.0]

    def fit_floor(*arguments):
        begin = time.perf_counter()
        fitted = (FLOORS | PYOD)[family.name](*arguments)
        seconds[0] += time.perf_counter() - begin
        return fitted

    held_out, test = windows.scores(fit_floor, seed)
    if family.name == "all_positive":
        return with_threshold(ONLY, test, Threshold(0.0, "always")), seconds[0]
    detector = make_detector(ONLY, *on_held_out_scale(held_out, test), split.config.score, _overlap(split))
    return detector, seconds[0]


def combined(split: Split, parts: list[Detector]) -> Detector:
    """What several calibrated scores say together: their sum. Suspects are the first one's.

    On injected faults the culprit comes first for .89 of the faults with method A, for .80 with method B.
    """
    held_out, test = (np.sum([getattr(p, name) for p in parts], axis=0) for name in ("held_out", "score"))
    return make_detector(ONLY, held_out, test, split.config.score, _overlap(split), parts[0].suspects)


def _overlap(split: Split):
    start, facts = split.prepared.windows.start_tick[split.held_out], split.prepared.manifest
    return overlap(start, facts["window_length"], facts["stride"])


def scored_detectors(split: Split, scored: Scored) -> dict[str, Detector]:
    """Both score variants (with suspects), each term and each kind of node alone, on the split's windows."""
    for ids, own in ((split.held_out, scored.held_out_terms.window), (split.test, scored.terms.window)):
        if not np.array_equal(ids, own):
            raise AssertionError("a method scores other windows than the other detectors")
    names = suspect_lists(split.prepared, scored)
    groups = score_pairs(scored)
    groups["variants"]["paper"] = on_held_out_scale(*groups["variants"]["paper"])
    if scored.score_names:
        del groups["variants"]["paper"]  # it is the same
    pairs = groups["variants"] | groups["terms"] | {f"kind {k}": pair for k, pair in groups["kinds"].items()}
    layout, settings = _overlap(split), split.config.score
    return {
        name: make_detector(name, held_out, test, settings, layout, names if name in ("calibrated", "paper") else None)
        for name, (held_out, test) in pairs.items()
    }


class Store:
    """The cells of a comparison: what is on disk, and what is still to be computed."""

    def __init__(self, workdir: Path, say):
        self._workdir, self._say, self._program = Path(workdir), say, cells.program(ssad_jax)
        self.computed, self.other_program = 0, 0

    def ensure(self, family: Family, split: Split, seeds: list[int], cache: dict) -> None:
        """Compute the cells that are not there yet."""
        for part in (families()[name] for name in family.parts):
            if any(self.get(part, split, seed) is None for seed in seeds):
                self.ensure(part, split, seeds, cache)
        started = time.perf_counter()
        for seed, detectors, facts in compute(family, split, self.missing(family, split, seeds), cache):
            seconds, started = time.perf_counter() - started, time.perf_counter()
            self.keep(family, split, seed, detectors, facts | {"seconds": seconds})

    def missing(self, family: Family, split: Split, seeds: list[int]) -> list[int]:
        """The seeds without a cell; cells of another version of the program are counted."""
        out = []
        for seed in seeds if not family.parts else []:
            found = self.get(family, split, seed)
            if found is None:
                out.append(seed)
            else:
                self.other_program += found.facts["program"] != self._program
        return out

    def keep(self, family: Family, split: Split, seed: int, detectors: dict[str, Detector], facts: dict) -> None:
        """Write a cell that took `facts["seconds"]`."""
        facts = facts | {"program": self._program, "device": jax.devices()[0].device_kind}
        cells.save(cells.path_of(self._workdir, split, family, seed), split, cells.Cell(detectors, facts))
        self.computed += 1
        self._say(f"{split.name} {family.name} seed {seed}: {facts['seconds']:.1f} s")

    def get(self, family: Family, split: Split, seed: int) -> cells.Cell | None:
        """The cell, if it is there; of a combined family, made of those of its parts."""
        if family.parts:
            found = [self.get(families()[name], split, seed) for name in family.parts]
            if None in found:
                return None
            return cells.Cell({ONLY: combined(split, [cell.detectors["calibrated"] for cell in found])}, {})
        return cells.load(cells.path_of(self._workdir, split, family, seed), split)
