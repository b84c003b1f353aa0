"""ServiceAnomaly: relations and the call graph by hand, and planted faults of both kinds."""

import dataclasses

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from data_prep.errors import InputError
from ssad_jax.compared import service_anomaly
from ssad_jax.compared.service_anomaly import (
    LEAST_LIMIT,
    explain,
    fit_on,
    fit_relations,
    judge,
    measures,
    read_calls,
    residuals,
    score_service_anomaly,
)
from ssad_jax.config import default_config
from ssad_jax.prepared import CONTEXT_DIM, NODE_KINDS
from ssad_jax.scoring.detectors import suspect_lists
from tests.synthetic import make_prepared

SETTINGS = default_config("test").score


def make(folder, folds=0, extra=()):
    """Each window begins with two calls; in faulty windows the processor of service-1 does what no load explains.

    Args:
        extra: rows of windows that also hold a call of service-0 to service-2.
    """
    data = make_prepared(segments=24, folds=folds)
    names = tuple(name.replace("/", ": ") for name in data.system.node_names)
    nodes = data.windows.nodes.copy()
    faulty = data.windows.label == 1
    nodes[faulty, names.index("service-1: cpu"), CONTEXT_DIM] += 5.0
    begin = data.windows.start_unix_nano
    calls = [(int(t), f"service-{i}", f"service-{i + 1}", "get") for t in begin for i in (0, 1)]
    calls += [(int(begin[row]), "service-0", "service-2", "seldom") for row in extra]
    (folder / "tables").mkdir(parents=True)
    pl.DataFrame(calls, ["time_unix_nano", "caller", "callee", "operation"], orient="row").write_parquet(
        folder / "tables" / "calls.parquet"
    )
    windows = dataclasses.replace(data.windows, nodes=nodes, end_unix_nano=begin + 1)  # no window holds another's calls
    system = dataclasses.replace(data.system, node_names=names)
    return dataclasses.replace(data, system=system, windows=windows, directory=folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make(tmp_path_factory.mktemp("anomaly"))


def every(count):
    return ~np.eye(count, dtype=bool)


def test_a_relation_has_the_lowest_degree_that_explains_enough():
    x = np.linspace(-2, 2, 200)
    noise = 0.01 * np.random.default_rng(0).normal(size=200)
    found = fit_relations(np.stack([x, 2 * x + 1 + noise, x**2 + noise, 5 * (x**3 - 3 * x)], axis=1), every(4))
    of = {(a, b): c for a, b, c in zip(found.x, found.y, found.coefficients, strict=True)}
    np.testing.assert_allclose(of[0, 1], [1, 2, 0, 0], atol=0.01)
    np.testing.assert_allclose(of[0, 2], [0, 0, 1, 0], atol=0.01)
    np.testing.assert_allclose(of[0, 3], [0, -15, 0, 5], atol=0.01)
    assert (2, 0) not in of and (2, 1) not in of  # x^2 does not tell the sign of x


def test_what_gives_no_relation():
    rng = np.random.default_rng(0)
    x, many = rng.normal(size=(200, 1)), every(2)
    constant, noise = np.ones((200, 1)), rng.normal(size=(200, 1))
    seldom = np.where(np.arange(200)[:, None] < 49, x, np.nan)
    often = np.where(np.arange(200)[:, None] < 50, x, np.nan)
    counts = [len(fit_relations(np.hstack([x, other]), many).x) for other in (constant, noise, seldom, often, x)]
    assert counts == [0, 0, 0, 2, 2]
    assert len(fit_relations(np.hstack([x, x]), np.zeros((2, 2), bool)).x) == 0  # not of one unit
    assert len(fit_relations(np.zeros((200, 0)), np.zeros((0, 0), bool)).x) == 0


def test_the_limit_is_the_quantile_of_the_residuals_or_the_least_one():
    x = np.linspace(-1, 1, 101)
    exact = fit_relations(np.stack([x, 3 * x], axis=1), every(2))
    assert (exact.limit == LEAST_LIMIT).all()
    values = np.stack([x, x + 0.2 * np.sin(40 * x)], axis=1)
    found = fit_relations(values, every(2))
    np.testing.assert_allclose(found.limit, np.quantile(residuals(found, values), 0.99, axis=0))


def test_beyond_what_was_seen_a_line_goes_on_a_curve_stays_at_its_end_and_gaps_say_nothing():
    x = np.linspace(-1, 1, 61)
    line = fit_relations(np.stack([x, x], axis=1), every(2))
    found = residuals(line, np.array([[3.0, 3.0], [np.nan, 1.0]]))
    np.testing.assert_allclose(found, [[0, 0], [np.nan, np.nan]], atol=1e-5)
    curve = fit_relations(np.stack([x, x**2], axis=1), every(2))
    np.testing.assert_allclose(residuals(curve, np.array([[3.0, 9.0]])), [[8]], atol=1e-5)


def test_relations_are_looked_for_within_units_and_the_calls_that_they_take_part_in(data):
    place = measures(data.system)
    i, j, k = (place.names.index(f"service-{n}: cpu: level") for n in range(3))
    call = place.names.index("service-0 -> service-1: calls")
    assert place.related[i, call] and place.related[call, j] and not place.related[call, k] and not place.related[i, j]
    assert not any("template" in name for name in place.names)


def test_terms_by_hand(data):
    place, calls = measures(data.system), read_calls(data)
    fitted = fit_on(data, place, calls, np.flatnonzero(data.windows.part == 0))
    assert calls.names == ["service-0 -> service-1: get", "service-1 -> service-2: get"]
    there = calls.there.copy()
    there[0] = [True, False]
    own, service = judge(fitted, place, calls._replace(there=there), data, np.array([0]))
    np.testing.assert_allclose(own[0, 3], 1 / 2)  # one of two calls lacks
    np.testing.assert_allclose(own[0, 0], own[0, 1:].mean(), rtol=1e-6)
    whole = judge(fitted, place, calls, data, np.array([0]))[1]
    np.testing.assert_allclose(service[0] - whole[0], [0, 1 / 6, 1 / 3], atol=1e-6)  # 0 of 1, 1 of 2, 1 of 1


@pytest.mark.parametrize("folds", [0, 3])
def test_a_broken_relation_is_found_its_service_and_itself_are_named(tmp_path, folds):
    data = make(tmp_path / "data", folds)
    scored = score_service_anomaly(data, SETTINGS)
    faulty = data.windows.label[scored.terms.window] == 1
    assert roc_auc_score(faulty, scored.scores.calibrated) > 0.95
    assert len(np.unique(scored.scores.calibrated)) > 50 and scored.unjudged == 0
    first = [names[0] for names, bad in zip(suspect_lists(data, scored), faulty, strict=True) if bad]
    assert np.mean([name == "service-1" for name in first]) > 0.8
    fitted = fit_on(data, measures(data.system), read_calls(data), np.flatnonzero(data.windows.part == 0))
    said = explain(data, fitted, int(scored.terms.window[faulty][0]))
    assert said and all("service-1: cpu: level" in text for text in said[:1])


def test_calls_that_are_new_and_that_lack_are_found_and_named(tmp_path):
    test = make_prepared(segments=24).test_runs[:, 0]
    data = make(tmp_path / "data", extra=test)
    scored = score_service_anomaly(data, SETTINGS)
    new = np.isin(scored.terms.window, test)
    assert scored.terms.own[new, 3].min() > scored.terms.own[~new, 3].max()
    fitted = fit_on(data, measures(data.system), read_calls(data), np.flatnonzero(data.windows.part == 0))
    assert "new call service-0 -> service-2: seldom" in explain(data, fitted, int(test[0]))


def test_windows_of_a_group_are_judged_by_what_was_fitted_without_it(tmp_path):
    plain = make_prepared(segments=24, folds=3)
    own = np.flatnonzero(plain.windows.group == 1)
    data = make(tmp_path / "data", folds=3, extra=own)
    scored = score_service_anomaly(data, SETTINGS)
    mine = np.isin(scored.held_out_terms.window, own)
    assert mine.any() and (scored.held_out_terms.own[mine, 3] > scored.held_out_terms.own[~mine, 3].max()).all()


def test_a_system_of_which_nothing_is_known_has_nothing_to_judge(data):
    place, calls = measures(data.system), read_calls(data)
    fitted = fit_on(data, place, calls, np.zeros(0, int))
    own, service = judge(fitted, place, calls, data, np.arange(3))
    assert np.isnan(own).all() and not service.any()


def test_the_order_of_nodes_changes_nothing(data):
    system, windows = data.system, data.windows
    real = len(system.node_names)
    slots = np.concatenate([np.random.default_rng(1).permutation(real), np.arange(real, len(system.kind))])
    arrays = {f.name: getattr(system, f.name) for f in dataclasses.fields(system)}
    moved = {k: v[slots] for k, v in arrays.items() if isinstance(v, np.ndarray) and len(v) == len(slots)}
    moved["node_names"] = tuple(system.node_names[i] for i in slots[:real])
    other = dataclasses.replace(
        data, system=dataclasses.replace(system, **moved),
        windows=dataclasses.replace(windows, nodes=windows.nodes[:, slots]),
    )  # fmt: skip
    one, two = (score_service_anomaly(some, SETTINGS).scores.calibrated for some in (data, other))
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)


def test_a_unit_has_six_metrics_at_most_by_name(data):
    metric = NODE_KINDS.index("metric")
    names = list(data.system.node_names)
    kind = data.system.kind.copy()
    for i in range(9):  # the first nine nodes as metrics of one host
        names[i], kind[i] = f"host: m{8 - i}", metric
    mask = np.zeros_like(data.system.signal_mask)
    mask[:9, 0] = True
    place = measures(dataclasses.replace(data.system, node_names=tuple(names), kind=kind, signal_mask=mask))
    assert sorted(place.names) == [f"host: m{i}: level" for i in range(service_anomaly.MOST_METRICS)]


def test_a_dataset_without_a_table_of_calls_is_refused():
    with pytest.raises(InputError, match="table of calls"):
        score_service_anomaly(make_prepared(), SETTINGS)
