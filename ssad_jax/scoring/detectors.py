"""A method on a prepared dataset: calibrated scores, and the detectors (thresholds, suspects) made of them."""

import dataclasses

import jax
import numpy as np

from ssad_jax.floors import FLOORS
from ssad_jax.floors.cross_fit import Windows
from ssad_jax.prepared import Prepared
from ssad_jax.scoring.assess import Detector
from ssad_jax.scoring.attribution import service_blame, suspects
from ssad_jax.scoring.calibration import Calibration, Scores, apply_calibration, fit_calibration, kind_names
from ssad_jax.scoring.conformal import Overlap, overlap
from ssad_jax.scoring.distances import read_distances
from ssad_jax.scoring.states import Readings, read_states
from ssad_jax.scoring.terms import (
    Columns,
    Terms,
    averaged,
    columns,
    joined,
    score_runs,
    service_columns,
    some_fit_runs,
)
from ssad_jax.scoring.thresholds import Threshold, alerts, decide
from ssad_jax.scoring.window_scores import as_scores, no_columns, read_scores


@dataclasses.dataclass(frozen=True)
class Scored:
    """Everything that a method's parameters say of a prepared dataset."""

    place: Columns
    calibration: Calibration
    held_out_terms: Terms  # of normal calibration windows
    held_out: Scores  # theirs, leave one run out
    terms: Terms  # of the test windows, in time order
    scores: Scores
    readings: tuple[Readings, ...] = ()  # of each network's states, for new windows
    score_names: tuple[str, ...] = ()  # of a method's own scores (`Terms.own`)
    unjudged: int = 0  # test windows in which a method with scores of its own had nothing to judge
    fit_seconds: float = 0.0  # of what a recipe fitted, which trains no network


def score_dataset(score, params, prepared: Prepared, score_config, own: bool = True) -> Scored:
    """Score the calibration and the test runs with all networks and calibrate.

    A calibration window is scored by the network that was not fitted on its group, a test window by all of them, whose
    terms are averaged.

    Args:
        score: as in `terms.score_runs`.
        params: of K networks, on a leading axis.
        own: the networks were trained on this dataset. Otherwise none has seen its groups, and all score everything.

    Raises:
        InputError: there are no calibration windows.
    """
    place = service_columns(prepared.system) if score.by_distance or score.score_names else columns(prepared.system)
    calibration_runs, test_runs = _same_length(prepared.calibration_runs, prepared.test_runs)
    networks = [jax.tree.map(lambda p, k=k: p[k], params) for k in range(len(jax.tree.leaves(params)[0]))]

    # Where groups take turns every training window is a held-out one; else scales are fitted on fit windows as well.
    fit_runs = some_fit_runs(prepared) if len(networks) == 1 else prepared.fit_sequences[:0]

    def by(network, runs):
        return score_runs(score, network, prepared, runs, score_config.batch_runs)

    def judge(k, network):
        """(calibration, test) terms of one network, and the readings of its states, or windows it cannot judge.

        Its normal states are those of all calibration windows, also of groups that it was fitted on.
        """
        held_out, test = by(network, calibration_runs), by(network, test_runs)
        run = prepared.windows.segment[held_out.window]
        if score.score_names:
            mine = prepared.windows.group[held_out.window] == k
            unjudged = int(np.isnan(test.own[:, 0]).sum())
            return *read_scores(held_out.take(mine) if own else held_out, test), unjudged
        if score.by_distance:
            fit = by(network, fit_runs)
            held_out, test = read_distances(fit, held_out, run, test, score_config.neighbours)
            return held_out.take(prepared.windows.group[held_out.window] == k) if own else held_out, test, ()
        held_out, test, readings = read_states(held_out, run, test, warm_up_windows(prepared), score_config)
        return held_out.take(prepared.windows.group[held_out.window] == k) if own else held_out, test, readings

    held_out, test, readings = zip(*(judge(k, network) for k, network in enumerate(networks)), strict=True)
    together = joined(held_out) if own else averaged(held_out)
    if score.score_names:
        return own_scores(prepared, place, together, averaged(test), score.score_names, score_config, max(readings))
    if score.by_distance:  # what distances are from has none of its own; they need no history
        return calibrate(prepared, place, together.take(slice(0)), together, averaged(test), score_config, warm_up=0)
    scored = calibrate(prepared, place, by(networks[0], fit_runs), together, averaged(test), score_config)
    return dataclasses.replace(scored, readings=readings)


def own_scores(
    prepared: Prepared, place: Columns, held_out: Terms, test: Terms, names: tuple[str, ...], settings, unjudged: int
) -> Scored:
    """Own scores of windows (`Terms.own`, called `names`) as they are; what is said of services (`Terms.residual`) is
    calibrated like residuals, for suspects.

    Raises:
        InputError: there are no calibration windows.
    """
    place = place if held_out.residual.shape[1] else no_columns()
    scored = calibrate(prepared, place, held_out.take(slice(0)), held_out, test, settings, warm_up=0)
    calibration = dataclasses.replace(scored.calibration, kinds=scored.calibration.kinds[:0])
    low, high = as_scores(scored.held_out, scored.held_out_terms), as_scores(scored.scores, scored.terms)
    return dataclasses.replace(
        scored, calibration=calibration, held_out=low, scores=high, score_names=names, unjudged=unjudged
    )


def warm_up_windows(prepared: Prepared) -> int:
    """Windows of a run before its state has seen one window length of history."""
    return -(-prepared.manifest["window_length"] // prepared.manifest["stride"])


def calibrate(
    prepared: Prepared, place: Columns, fit: Terms, held_out: Terms, test: Terms, score_config,
    warm_up: int | None = None,
) -> Scored:  # fmt: skip
    """Calibrate on held-out windows, score test windows.

    Args:
        fit: windows that were fitted on, for scales alone.
        warm_up: as in `fit_calibration`; `warm_up_windows` by default.
    """
    warm_up = warm_up_windows(prepared) if warm_up is None else warm_up
    held_out, test = (
        terms.take(np.argsort(prepared.windows.start_unix_nano[terms.window], kind="stable"))
        for terms in (held_out, test)
    )
    num_nodes = len(prepared.system.kind)
    run = prepared.windows.segment[held_out.window]
    before, test_before = (_before(prepared, terms.window) for terms in (held_out, test))
    calibration, held_out_scores = fit_calibration(
        place, fit, held_out, before, run, num_nodes, warm_up, score_config
    )
    scores = apply_calibration(calibration, place, test, test_before, num_nodes)
    return Scored(place, calibration, held_out, held_out_scores, test, scores)


def _before(prepared: Prepared, window: np.ndarray) -> np.ndarray:
    """[M] for each window the place in `window` of the last one of its segment that shares no tick with it; -1 none."""
    length, stride = prepared.manifest["window_length"], prepared.manifest["stride"]
    apart = -(-length // stride) * stride
    keys = zip(prepared.windows.segment[window].tolist(), prepared.windows.start_tick[window].tolist(), strict=True)
    at = {key: i for i, key in enumerate(keys)}
    return np.array([at.get((segment, tick - apart), -1) for segment, tick in at], int)


def _same_length(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pad the shorter runs where that costs little: one shape, one compilation."""
    short, long = sorted((first.shape[1], second.shape[1]))
    if not len(first) or not len(second) or long > 1.5 * short:
        return first, second
    padded = [np.pad(a, ((0, 0), (0, long - a.shape[1])), constant_values=-1) for a in (first, second)]
    return padded[0], padded[1]


def make_detector(
    name, held_out: np.ndarray, test: np.ndarray, score_config, layout: Overlap | None, names=None
) -> Detector:
    """A detector that alerts above the threshold of its own held-out scores.

    Args:
        held_out, test: scores in time order.
        layout: how the held-out windows lie in time; None: no two share a tick.
        names: suspects of each test window.
    """
    decided = decide(held_out, test, score_config, layout)
    threshold = decided.threshold
    return Detector(name, test, threshold.value, threshold.method, decided.alert, names, decided.p_value, held_out)


def with_threshold(name, test: np.ndarray, threshold: Threshold, names=None) -> Detector:
    return Detector(name, test, threshold.value, threshold.method, alerts(test, threshold), names)


def overlap_of(prepared: Prepared, scored: Scored) -> Overlap:
    """How the calibration windows lie in time."""
    start, facts = prepared.windows.start_tick[scored.held_out_terms.window], prepared.manifest
    return overlap(start, facts["window_length"], facts["stride"])


def suspect_lists(prepared: Prepared, scored: Scored) -> list[list[str]] | None:
    """The suspects of each test window; None where the method names none."""
    if not len(scored.place.node) and scored.score_names:
        return None
    blame = service_blame(prepared.system, scored.calibration, scored.scores.node_error)
    return suspects(prepared.system, blame)


def score_pairs(scored: Scored) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """'variants', 'terms' and 'kinds' -> name -> (held-out scores, test scores)."""
    low, high = scored.held_out, scored.scores
    pairs = {"variants": {name: (getattr(low, name), getattr(high, name)) for name in ("calibrated", "paper")}}
    if scored.score_names:
        both = scored.held_out_terms.own, scored.terms.own
        pairs["terms"] = {name: tuple(own[:, i] for own in both) for i, name in enumerate(scored.score_names) if i}
        return pairs | {"kinds": {}}
    terms = ("reconstruction", "temporal", "prior")
    pairs["terms"] = {name: (getattr(low, name), getattr(high, name)) for name in terms}
    kinds = enumerate(kind_names(scored.calibration))
    return pairs | {"kinds": {name: (low.kind[:, i], high.kind[:, i]) for i, name in kinds}}


def method_detectors(prepared: Prepared, scored: Scored, score_config) -> dict[str, dict[str, Detector]]:
    """'variants', 'terms' and 'kinds' -> name -> detector; the variants name suspects."""
    names, layout = suspect_lists(prepared, scored), overlap_of(prepared, scored)
    return {
        group: {
            name: make_detector(name, *pair, score_config, layout, names if group == "variants" else None)
            for name, pair in pairs.items()
        }
        for group, pairs in score_pairs(scored).items()
    }


def floor_detectors(prepared: Prepared, scored: Scored, score_config, seed: int) -> dict[str, Detector]:
    """Each floor fitted on fit windows, with its threshold from the same held-out windows, on the same test windows."""
    if not (prepared.windows.part == 0).any():
        return {}
    windows = Windows(prepared, scored.held_out_terms.window, scored.terms.window)
    layout, out = overlap_of(prepared, scored), {}
    for name, fit_floor in FLOORS.items():
        held_out, test = windows.scores(fit_floor, seed)
        if name == "all_positive":
            out[name] = with_threshold(name, test, Threshold(0.0, "always"))
        else:
            out[name] = make_detector(name, held_out, test, score_config, layout)
    return out
