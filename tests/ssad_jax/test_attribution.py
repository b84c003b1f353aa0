"""Whom a deviation is blamed on."""

import dataclasses

import numpy as np

from ssad_jax.scoring.attribution import service_blame, suspects, top_deviations
from ssad_jax.scoring.calibration import Calibration
from ssad_jax.scoring.terms import columns
from tests.synthetic import make_prepared

SYSTEM = make_prepared(segments=4, windows_per_segment=4).system
NAMES = list(SYSTEM.node_names)
KINDS = np.array([0, 1, 2, 3])


def calibration():
    """A kind's usual worst node is 1, of logs 2; suspects are told apart by the node_ fields alone."""
    count = len(columns(SYSTEM).node)
    return Calibration(
        centre=np.zeros(count, np.float32), scale=np.ones(count, np.float32), kinds=KINDS,
        kind_median=np.full(4, np.nan), kind_spread=np.full(4, np.nan),
        node_median=np.array([1.0, 2.0, 1.0, 1.0, 0.0]), node_spread=np.array([1.0, 2.0, 1.0, 1.0, np.inf]),
        term_median=np.zeros(2), term_spread=np.ones(2), warm_up=np.array(0), weights=np.ones(3),
    )  # fmt: skip


def errors(**by_name):
    out = np.zeros((1, len(SYSTEM.kind)), np.float32)
    for name, value in by_name.items():
        out[0, NAMES.index(name.replace("__", " -> ").replace("_", "-"))] = value
    return out


def blame(error):
    return service_blame(SYSTEM, calibration(), error)


def test_a_dependency_with_nothing_else_mostly_blames_the_callee():
    out = blame(errors(service_0__service_1=5.0))
    np.testing.assert_allclose(out, [[0.8, 3.2, 0.0]], rtol=1e-6)  # (5 - 1) / 1, divided as 0.5^2 to 1^2
    assert suspects(SYSTEM, out) == [["service-1", "service-0"]]


def test_a_dependency_is_divided_by_what_else_speaks_of_its_ends():
    out = blame(errors(service_0__service_1=5.0, service_0=3.0))
    # Of the caller speaks its own 2 as well: (0.5 + 2)^2 to 1^2; its own and its share of the call add up as squares.
    np.testing.assert_allclose(out, [[np.hypot(4 * 6.25 / 7.25, 2), 4 / 7.25, 0.0]], rtol=1e-6)
    # Two calls of one service speak for one another: (1 + 4)^2 to 0.5^2, and of the middle one (0.5 + 4)^2 to 1^2.
    out = blame(errors(service_0__service_1=5.0, service_1__service_2=5.0))
    np.testing.assert_allclose(out, [[4 * 0.25 / 25.25, 4 * 25 / 25.25, 4 / 21.25]], rtol=1e-6)
    assert suspects(SYSTEM, out) == [["service-1", "service-2", "service-0"]]


def test_one_of_many_calls_speaks_of_its_other_end():
    # A hub that calls three services and is called by none: nodes 0 .. 3 are services, 4 .. 6 its calls.
    calls = {"caller": [-1] * 4 + [0] * 3, "service": [0, 1, 2, 3, 1, 2, 3], "kind": [0] * 4 + [3] * 3}
    system = dataclasses.replace(
        SYSTEM, **{k: np.array(v) for k, v in calls.items()}, node_mask=np.ones(7, bool),
        witness=np.ones((7, 16), bool), service_names=("hub", "a", "b", "c"),
    )  # fmt: skip
    error = np.full((2, 7), 1.0, np.float32)  # a usual node of its kind
    error[0, 4] = 5.0
    error[1, 4:] = 5.0
    out = service_blame(system, calibration(), error)
    # The hub's other two calls are usual: 1^2 to 0.5^2. Where all three are late: 1^2 to (0.5 + 4)^2.
    np.testing.assert_allclose(out[0], [0.8, 3.2, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(out[1], [4 * 20.25 / 21.25, *[4 / 21.25] * 3], rtol=1e-6)


def test_a_call_of_a_service_to_itself_is_its_own():
    system = dataclasses.replace(SYSTEM, caller=np.where(SYSTEM.caller >= 0, SYSTEM.service, SYSTEM.caller))
    error = errors(service_0__service_1=5.0)
    np.testing.assert_allclose(service_blame(system, calibration(), error), [[0.0, 4.0, 0.0]])


def test_kinds_compare_on_their_calibrated_scales_and_the_worst_node_of_each_counts():
    error = errors(service_0=4.0, service_2=2.0)
    error[0, NAMES.index("service-1/template 1")] = 7.0  # (7 - 2) / 2 = 2.5, below (4 - 1) / 1 = 3
    error[0, NAMES.index("service-1/template 0")] = 3.0
    out = blame(error)
    np.testing.assert_allclose(out, [[3.0, 2.5, 1.0]])
    assert suspects(SYSTEM, out) == [["service-0", "service-1", "service-2"]]
    error[0, NAMES.index("service-1")] = 3.0  # another kind that says so: sqrt(2.5^2 + 2^2)
    np.testing.assert_allclose(blame(error), [[3.0, np.sqrt(10.25), 1.0]], rtol=1e-6)


def test_services_without_deviation_are_left_out_and_ties_go_by_name():
    assert suspects(SYSTEM, blame(errors(service_0=0.9))) == [[]]
    assert suspects(SYSTEM, np.array([[1.0, 0.0, 1.0], [0.0, 2.0, 3.0]])) == [
        ["service-0", "service-2"], ["service-2", "service-1"]]  # fmt: skip


def test_top_deviations_name_observed_and_expected_once_a_node():
    place = columns(SYSTEM)
    residual = np.zeros(len(place.node), np.float32)
    observed = np.full(len(place.node), 1.5, np.float32)
    edge = np.flatnonzero(place.node == NAMES.index("service-0 -> service-1"))
    residual[edge] = [-6.0, 3.0]
    residual[np.flatnonzero(place.node == NAMES.index("service-2/cpu"))] = 4.0
    found = top_deviations(SYSTEM, place, calibration(), residual, observed, most=2)
    first, second = found
    assert (first.name, first.kind, first.channel) == ("service-0 -> service-1", "dependency", "calls")
    assert (first.observed, first.expected, first.error) == (1.5, 7.5, 6.0)
    assert (second.name, second.channel, second.expected) == ("service-2/cpu", "level", -2.5)
