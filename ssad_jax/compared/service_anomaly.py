"""ServiceAnomaly (Panahandeh et al., Journal of Systems and Software 2024) in closed form: relations and a call graph.

The paper's: the call trees of normal time are merged into a context-propagation graph; functions, linear or not, relate
the profiling metrics of each of its nodes; a graph of new time is compared with it, and the relation that broke is the
explanation. No network is trained.

Adapted: the graph is the set of calls (caller, callee, operation); functions are polynomials of degree 1, 2 or 3, the
lowest one that explains 70% of the variance; what they relate are at most six metrics a unit (by name) and what traces
measure of it (operations, self time, calls, latencies), window by window, in the units of the prepared signals. The
score is the mean of three shares: relations beyond the 0.99 quantile of their own residuals, how far beyond, calls that
are new or lack. Fidelity: medium (family of functions, weights).
"""

import dataclasses
import time
from typing import NamedTuple

import numpy as np
import polars as pl

from data_prep.errors import InputError
from ssad_jax.compared.units import in_windows
from ssad_jax.prepared import CONTEXT_DIM, NODE_KINDS, Prepared, System
from ssad_jax.scoring.calibration import require_windows
from ssad_jax.scoring.detectors import Scored, own_scores
from ssad_jax.scoring.terms import Terms, service_columns
from ssad_jax.scoring.window_scores import read_scores

EXPLAINED = 0.7  # of the variance, by a relation that is kept
DEGREES = (1, 2, 3)
QUANTILE = 0.99  # of a relation's residuals in normal time
LEAST_LIMIT = 0.05  # of a residual, in units of the scaled signal: some relations are exact
LEAST_SAMPLES = 50  # windows a relation; ticks would be more, but most of them hold no call at all
MOST_METRICS = 6  # of a unit, by name
CLIP = 3.0  # limits; a residual beyond counts as so many
FREQUENT = 0.95  # share of the fit windows that have a call whose lack is counted
SCORE_NAMES = ("score", "broken relations", "residual ratio", "call graph")
LATENCIES = ("time", "latency", "duration")  # exactly 0 where no call was timed
IGNORED = ("maximum", "rise")  # heavy tails, and the same reading twice


class Measures(NamedTuple):
    """The C measurements that relations are looked for between."""

    node: np.ndarray  # [C] int
    channel: np.ndarray  # [C] int
    names: list[str]
    related: np.ndarray  # [C, C] bool: of one unit, or of a call that it makes or answers


class Relations(NamedTuple):
    """P relations y = f(x)."""

    x: np.ndarray  # [P] int, measurement
    y: np.ndarray  # [P] int, measurement
    coefficients: np.ndarray  # [P, 4] of 1, x, x^2, x^3
    low: np.ndarray  # [P] least x in normal time; below it a curve says what it says there, a line goes on
    high: np.ndarray  # [P]
    limit: np.ndarray  # [P] > 0: QUANTILE of the residuals
    explained: np.ndarray  # [P] R^2


class Calls(NamedTuple):
    """Which of the K calls (caller, callee, operation) each window holds."""

    names: list[str]  # [K]
    services: np.ndarray  # [K, U] bool: whom a call speaks of, both of its ends
    there: np.ndarray  # [W, K] bool


class Fitted(NamedTuple):
    """What normal windows look like."""

    relations: Relations
    known: np.ndarray  # [K] bool: calls of the context-propagation graph
    frequent: np.ndarray  # [K] bool


def score_service_anomaly(prepared: Prepared, score_config) -> Scored:
    """Score a dataset; deterministic. Windows of a calibration group are judged by what was fitted without it.

    Raises:
        InputError: there are no calibration windows, or no table of calls.
    """
    windows, place, calls = prepared.windows, measures(prepared.system), read_calls(prepared)
    held_out, test = (_rows(runs) for runs in (prepared.calibration_runs, prepared.test_runs))
    fit = np.flatnonzero(windows.part == 0)
    fit_seconds = 0.0

    def fitted_on(rows):
        nonlocal fit_seconds
        begin = time.perf_counter()
        fitted = fit_on(prepared, place, calls, rows)
        fit_seconds += time.perf_counter() - begin
        return fitted

    def terms(fitted, rows):
        own, service = judge(fitted, place, calls, prepared, rows)
        nothing = np.zeros(len(rows), np.float32)
        return Terms(rows, np.zeros(len(rows), int), service, nothing, nothing, nothing, nothing.astype(int), own=own)

    whole = terms(fitted_on(fit), np.concatenate([test, held_out]))
    test, held_out = whole.take(slice(len(test))), whole.take(slice(len(test), None))
    require_windows(held_out)
    for group in np.unique(windows.group[held_out.window]):
        if (windows.group[fit] == group).any():
            mine = np.flatnonzero(windows.group[held_out.window] == group)
            others = fitted_on(fit[windows.group[fit] != group])
            part = terms(others, held_out.window[mine])
            held_out.own[mine], held_out.residual[mine] = part.own, part.residual
    unjudged = int(np.isnan(test.own[:, 0]).sum())
    held_out, test = read_scores(held_out, test)
    columns = service_columns(prepared.system)
    scored = own_scores(prepared, columns, held_out, test, SCORE_NAMES, score_config, unjudged)
    return dataclasses.replace(scored, fit_seconds=fit_seconds)


def explain(prepared: Prepared, fitted: Fitted, row: int, most: int = 5) -> list[str]:
    """What is broken in window `row` by name, worst first: relations beyond their limits, new and missing calls.

    At most `most` relations, and as many calls.
    """
    place, calls, (relations, known, frequent) = measures(prepared.system), read_calls(prepared), fitted
    ratio = residual_ratios(relations, place, observe(prepared, place, np.array([row])))[0]
    worst = np.argsort(-np.nan_to_num(ratio), kind="stable")[:most]
    said = [
        f"{place.names[relations.y[p]]} does not follow {place.names[relations.x[p]]}: {ratio[p]:.1f} times the normal "
        f"deviation (R² {relations.explained[p]:.2f})"
        for p in worst
        if ratio[p] > 1
    ]
    there = calls.there[row]
    changed = [f"new call {calls.names[k]}" for k in np.flatnonzero(there & ~known)]
    changed += [f"no call {calls.names[k]}" for k in np.flatnonzero(frequent & ~there)]
    return said + changed[:most]


def measures(system: System) -> Measures:
    """Metrics and what traces measure, of services, instances, hosts and calls."""
    kinds = {kind: NODE_KINDS.index(kind) for kind in ("service", "metric", "dependency")}
    metrics, found, units = {}, [], []
    for node, name in enumerate(system.node_names):
        kind = system.kind[node]
        if kind not in kinds.values():
            continue
        own = name.split(" -> ") if kind == kinds["dependency"] else [name.split(": ")[0]]
        if kind == kinds["metric"]:
            metrics.setdefault(own[0], []).append((name, node))
        for channel in np.flatnonzero(system.signal_mask[node]):
            title = system.channels[NODE_KINDS[kind]][channel]
            if not any(word in title for word in IGNORED):
                found.append((node, channel, f"{name}: {title}"))
                units.append(own)
    kept = {node for own in metrics.values() for _, node in sorted(own)[:MOST_METRICS]}
    use = [i for i, (node, _, _) in enumerate(found) if system.kind[node] != kinds["metric"] or node in kept]
    numbers = {name: i for i, name in enumerate(sorted({name for own in units for name in own}))}
    member = np.zeros((len(use), len(numbers)), bool)
    for row, i in enumerate(use):
        member[row, [numbers[name] for name in units[i]]] = True
    related = (member.astype(np.float32) @ member.T.astype(np.float32) > 0) & ~np.eye(len(use), dtype=bool)
    node, channel = (np.array([found[i][column] for i in use], int) for column in (0, 1))
    return Measures(node, channel, [found[i][2] for i in use], related)


def observe(prepared: Prepared, place: Measures, rows: np.ndarray) -> np.ndarray:
    """[M, C] f64: the measurements of windows `rows`; nan where nothing was timed."""
    blocks = [rows[i : i + 256] for i in range(0, len(rows), 256)]  # the windows lie on disk
    values = [np.asarray(prepared.windows.nodes[b])[:, place.node, CONTEXT_DIM + place.channel] for b in blocks]
    values = np.concatenate(values).astype(np.float64) if values else np.zeros((0, len(place.node)))
    timed = np.array([any(word in name.rpartition(": ")[2] for word in LATENCIES) for name in place.names], bool)
    return np.where((values == 0) & timed, np.nan, values)


def fit_relations(values: np.ndarray, related: np.ndarray) -> Relations:
    """The relations that hold in windows [M, C] between related measurements [C, C]."""
    parts = [_from_one(values, x, np.flatnonzero(related[x])) for x in range(values.shape[1])]
    if not parts:
        parts = [_from_one(np.zeros((0, 1)), 0, np.zeros(0, int))]
    return Relations(*map(np.concatenate, zip(*parts, strict=True)))


def _from_one(values: np.ndarray, x: int, ys: np.ndarray) -> Relations:
    """The relations y = f(x) from measurement `x` to those of `ys`."""
    given, wanted = values[:, x], values[:, ys]
    use = np.isfinite(given)[:, None] & np.isfinite(wanted)  # [M, Y]
    count = np.maximum(use.sum(0), 1)
    target = np.where(use, wanted, 0.0)
    variance = np.where(use, np.square(target - target.sum(0) / count), 0).sum(0) / count
    basis = np.nan_to_num(given)[:, None] ** np.arange(max(DEGREES) + 1)  # [M, 4]
    coefficients, explained = np.zeros((len(ys), basis.shape[1])), np.zeros(len(ys))
    low, high = (pick(np.where(use, given[:, None], -sign * np.inf), axis=0, initial=-sign * np.inf)
                 for pick, sign in ((np.min, -1), (np.max, 1)))  # fmt: skip
    able = (use.sum(0) >= LEAST_SAMPLES) & (variance > 1e-6) & (high - low > 1e-3)
    for degree in DEGREES:
        own = basis[:, : degree + 1]
        gram = np.einsum("my,mp,mq->ypq", use.astype(float), own, own, optimize=True)
        solved = np.linalg.solve(gram + 1e-6 * np.eye(degree + 1), np.einsum("my,mp->yp", target, own)[..., None])
        solved = solved[..., 0]
        left = np.where(use, np.square(target - own @ solved.T), 0).sum(0) / count
        share = 1 - left / np.maximum(variance, 1e-12)
        better = able & (explained < EXPLAINED) & (share >= EXPLAINED)
        coefficients[better, : degree + 1], explained[better] = solved[better], share[better]
    kept = np.flatnonzero(explained >= EXPLAINED)
    found = Relations(
        np.full(len(kept), x), ys[kept], coefficients[kept], low[kept], high[kept], np.ones(len(kept)), explained[kept]
    )
    residual = residuals(found, values)
    limit = np.nanquantile(residual, QUANTILE, axis=0) if len(kept) else np.zeros(0)
    return found._replace(limit=np.maximum(limit, LEAST_LIMIT))


def residuals(relations: Relations, values: np.ndarray) -> np.ndarray:
    """[M, P]: how far y is from f(x) in windows [M, C]; nan where either was not measured."""
    given = values[:, relations.x]
    curved = relations.coefficients[:, 2:].any(1)
    given = np.where(curved, np.clip(given, relations.low, relations.high), given)
    expected = np.zeros_like(given)
    for coefficient in relations.coefficients.T[::-1]:
        expected = expected * given + coefficient
    return np.abs(values[:, relations.y] - expected)


def residual_ratios(relations: Relations, place: Measures, values: np.ndarray) -> np.ndarray:
    """[M, P]: residuals in units of their limits; nan where a measurement lacks."""
    return residuals(relations, values) / relations.limit


def read_calls(prepared: Prepared) -> Calls:
    """The calls in each window, from the table of calls.

    Raises:
        InputError: the dataset has no such table.
    """
    path = prepared.directory and prepared.directory / "tables" / "calls.parquet"
    if path is None or not path.is_file():
        raise InputError("service_anomaly_adapted reads the table of calls, and the dataset has none; prepare it again")
    table = pl.read_parquet(path, columns=["time_unix_nano", "caller", "callee", "operation"]).sort("time_unix_nano")
    ends = table.select(pl.col("caller", "callee", "operation").fill_null("?")).with_row_index("row")
    kinds = ends.group_by("caller", "callee", "operation").agg("row").sort("caller", "callee", "operation")
    number = np.zeros(len(table), int)
    for k, rows in enumerate(kinds["row"]):
        number[rows.to_numpy()] = k
    window, row = in_windows(prepared, table["time_unix_nano"].to_numpy())
    there = np.zeros((prepared.windows.num_windows, len(kinds)), bool)
    there[window, number[row]] = True
    owner = dict(zip(prepared.system.node_names, prepared.system.service.tolist(), strict=False))
    services = np.zeros((len(kinds), len(prepared.system.service_names)), bool)
    for column in ("caller", "callee"):
        own = np.array([owner.get(name, -1) for name in kinds[column]], int)
        services[own >= 0, own[own >= 0]] = True
    names = [f"{a} -> {b}: {operation}" for a, b, operation in kinds.drop("row").iter_rows()]
    return Calls(names, services, there)


def fit_on(prepared: Prepared, place: Measures, calls: Calls, rows: np.ndarray) -> Fitted:
    """What holds in the normal windows `rows`."""
    relations = fit_relations(observe(prepared, place, rows), place.related)
    share = calls.there[rows].mean(0) if len(rows) else np.zeros(calls.there.shape[1])
    return Fitted(relations, share > 0, share >= FREQUENT)


def judge(fitted: Fitted, place: Measures, calls: Calls, prepared: Prepared, rows: np.ndarray):
    """Scores of the windows `rows`.

    Returns:
        [M, 4] f32 as SCORE_NAMES has them, nan where there was nothing to judge; [M, U] f32 the same of each service
        (0 there), restricted to relations that end in it and calls that it makes or answers.
    """
    relations, known, frequent = fitted
    ratio = residual_ratios(relations, place, observe(prepared, place, rows))
    of_service = prepared.system.service[place.node[relations.y]][:, None] == np.arange(calls.services.shape[1])
    there = calls.there[rows]
    changed = (there & ~known) | (frequent & ~there)

    def shares(by_relation, by_call):
        """The three terms of groups of relations [P, G] and calls [K, G]: [M, G] each, and whether there is any."""
        by_relation, by_call = by_relation.astype(np.float32), by_call.astype(np.float32)
        seen = np.isfinite(ratio).astype(np.float32) @ by_relation
        broken = (ratio > 1).astype(np.float32) @ by_relation
        size = np.nan_to_num(np.minimum(ratio, CLIP) / CLIP).astype(np.float32) @ by_relation
        graph = known.astype(np.float32) @ by_call
        terms = (
            broken / np.maximum(seen, 1), size / np.maximum(seen, 1),
            np.minimum(changed.astype(np.float32) @ by_call / np.maximum(graph, 1), 1),
        )  # fmt: skip
        return terms, (seen > 0) | (graph > 0)

    terms, any_ = shares(np.ones((len(relations.x), 1)), np.ones((len(known), 1)))
    own = np.concatenate([sum(terms) / 3, *terms], axis=1)
    parts, of_any = shares(of_service, calls.services)
    service = np.where(of_any, sum(parts) / 3, 0)
    return np.where(any_, own, np.nan).astype(np.float32), service.astype(np.float32)


def _rows(runs: np.ndarray) -> np.ndarray:
    """The windows of runs, each once."""
    return np.unique(runs[runs >= 0])
