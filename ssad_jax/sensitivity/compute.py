"""Computes the cells of a sweep that are not on disk yet: of each (value, seed), and of what they are held against."""

import dataclasses
import time
from urllib.parse import quote

import jax
import numpy as np

from ssad_jax import methods, train
from ssad_jax.comparison import fit, splits
from ssad_jax.comparison.compute import Store, scored_detectors
from ssad_jax.comparison.families import CLOSED_FORM, UNTRAINED, Family
from ssad_jax.comparison.splits import Split
from ssad_jax.config import flatten
from ssad_jax.scoring.assess import Detector
from ssad_jax.scoring.detectors import score_dataset
from ssad_jax.scoring.terms import scorer
from ssad_jax.sensitivity.networks import Networks
from ssad_jax.sensitivity.parameter import Parameter
from ssad_jax.sensitivity.speed import Form, choose, out_of_memory


@dataclasses.dataclass(frozen=True)
class Variant:
    """The method with one value of the parameter, and what it is held against."""

    value: object
    family: Family
    splits: tuple[Split, ...]  # of the protocol; their configs have the value
    references: tuple[Family, ...]


def variants(config, parameter: Parameter, protocol: str) -> list[Variant]:
    """One for each value, with its datasets, which are prepared where there are none.

    Args:
        protocol: a key of `splits.PROTOCOLS`, or the name of one split.
    """
    out, loaded, traced = [], {}, parameter.needs == "traced"
    for value in parameter.values:
        own, parts = parameter.applied(config, value), []
        for name in splits.PROTOCOLS.get(protocol, (protocol,)):
            here = splits.split_config(own, name)
            place = here.data.prepared_dir
            if place not in loaded:
                loaded[place] = splits.find_split(own, name)
            parts.append(dataclasses.replace(loaded[place], config=here))
        change = parameter.changes(value)
        # A number of the training step changes neither the untrained network nor the expectations: one for all.
        held_against = ((parameter.key, flatten(config.to_dict())[parameter.key]),) if traced else change
        references = (
            Family(UNTRAINED[config.method], "untrained", held_against),
            Family(CLOSED_FORM, "recipe", held_against, deterministic=True),
        )
        family = Family(f"{parameter.key}={quote(str(value), safe='')}", "trained", change)
        out.append(Variant(value, family, tuple(parts), references))
    return out


def fill(store: Store, parameter: Parameter, found: list[Variant], seeds: list[int], asked: str, say) -> Form | None:
    """Compute what is missing.

    Args:
        asked: the flag `--together`.

    Returns:
        How trainings that can share a program were run; None where there was none to run.

    Raises:
        Failure: training diverged, where another value is another program.
    """
    form = None
    for part in range(len(found[0].splits)):
        if parameter.needs == "traced":
            form = _traced(store, parameter, found, part, seeds, asked, say) or form
        elif parameter.needs == "score":
            _rescored(store, found, part, seeds)
        done = set()
        for variant in found:
            cache, split = {}, variant.splits[part]
            if parameter.needs in ("static", "data"):
                store.ensure(variant.family, split, seeds, cache)
            for family in variant.references:
                if family not in done:  # several values may have it in common
                    store.ensure(family, split, family.seeds(seeds[0], len(seeds)), cache)
                    done.add(family)
        if len(found[0].splits) > 1:
            jax.clear_caches()  # each split's programs would stay: 0.1 GB apiece
    return form


def _traced(store: Store, parameter: Parameter, found: list[Variant], part: int, seeds, asked, say) -> Form | None:
    missing = [(v, seed) for v in found for seed in store.missing(v.family, v.splits[part], seeds)]
    if not missing:
        return None
    split = found[0].splits[part]
    config, data = split.config, split.prepared
    train.enable_compilation_cache(config)
    knowledge = train.find_knowledge(config, data)

    def create(own):
        return methods.get(own.method).create(own, data.system, knowledge)

    networks = Networks(config, data, parameter, create)
    trainings = [(v.value, seed) for v, seed in missing]
    form = choose(asked, networks, trainings)
    say(form.describe())
    score = scorer(create(config))

    def keep(variant: Variant, seed: int, params, seconds: float) -> None:
        started = time.perf_counter()
        if train.finite(params):
            scored = score_dataset(score, params, data, variant.splits[part].config.score)
            detectors = scored_detectors(variant.splits[part], scored)
        else:
            say(f"{variant.family.name} seed {seed}: diverged")
            detectors = diverged(variant.splits[part])
        facts = {"seconds": seconds + time.perf_counter() - started}
        store.keep(variant.family, variant.splits[part], seed, detectors, facts)

    if form.together:
        started = time.perf_counter()
        try:
            fitted = networks.fit(trainings, together=True)
        except jax.errors.JaxRuntimeError as error:
            if not out_of_memory(error):
                raise
            form = dataclasses.replace(form, together=False, why="together they do not fit into the device's memory")
            say(form.describe())
        else:
            seconds = (time.perf_counter() - started) / len(missing)
            for (variant, seed), params in zip(missing, fitted, strict=True):
                keep(variant, seed, params, seconds)
            return form
    for (variant, seed), training in zip(missing, trainings, strict=True):
        started = time.perf_counter()
        (params,) = networks.fit([training], together=False)
        keep(variant, seed, params, time.perf_counter() - started)
    return form


def _rescored(store: Store, found: list[Variant], part: int, seeds) -> None:
    """One training a seed, scored in every way that is missing."""
    missing = {seed: [v for v in found if store.missing(v.family, v.splits[part], [seed])] for seed in seeds}
    wanted = [seed for seed in seeds if missing[seed]]
    split = found[0].splits[part]
    method = fit.make_method(split.config, split)
    score = scorer(method)
    started = time.perf_counter()
    for seed, params in fit.fit(split.config, split, wanted, method):
        for variant in missing[seed]:
            own = variant.splits[part]
            scored = score_dataset(score, params, split.prepared, own.config.score)
            seconds, started = time.perf_counter() - started, time.perf_counter()
            store.keep(variant.family, own, seed, scored_detectors(own, scored), {"seconds": seconds})


def diverged(split: Split) -> dict[str, Detector]:
    """What a training that left the finite numbers says of the windows: nothing."""
    nothing = np.full(len(split.test), np.nan)
    return {
        name: Detector(name, nothing, float("nan"), "diverged", np.zeros(len(nothing), bool))
        for name in ("calibrated", "paper")
    }
