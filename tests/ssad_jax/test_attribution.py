"""Whom a deviation is blamed on."""

import numpy as np

from ssad_jax.scoring.attribution import service_blame, suspects, top_deviations
from ssad_jax.scoring.calibration import Calibration
from ssad_jax.scoring.terms import columns
from tests.synthetic import make_prepared

SYSTEM = make_prepared(segments=4, windows_per_segment=4).system
NAMES = list(SYSTEM.node_names)
KINDS = np.array([0, 1, 2, 3])


def calibration(median=(1.0, 2.0, 1.0, 1.0), spread=(1.0, 2.0, 1.0, 1.0)):
    return Calibration(
        scale=np.ones(len(columns(SYSTEM).node), np.float32), kinds=KINDS, kind_median=np.array(median),
        kind_spread=np.array(spread), term_median=np.zeros(2), term_spread=np.ones(2),
        warm_up=np.array(0), weights=np.ones(3),
    )  # fmt: skip


def errors(**by_name):
    out = np.zeros((1, len(SYSTEM.kind)), np.float32)
    for name, value in by_name.items():
        out[0, NAMES.index(name.replace("__", " -> ").replace("_", "-"))] = value
    return out


def blame(error):
    return service_blame(SYSTEM, calibration(), error)


def test_a_dependency_blames_the_callee_fully_and_the_caller_by_half():
    out = blame(errors(service_0__service_1=5.0))
    np.testing.assert_allclose(out, [[2.0, 4.0, 0.0]])  # (5 - 1) / 1 and half of it
    assert suspects(SYSTEM, out) == [["service-1", "service-0"]]


def test_kinds_compare_on_their_calibrated_scales_and_the_worst_node_counts():
    error = errors(service_0=4.0, service_2=2.0)
    error[0, NAMES.index("service-1/template 1")] = 7.0  # (7 - 2) / 2 = 2.5, below (4 - 1) / 1 = 3
    error[0, NAMES.index("service-1/template 0")] = 3.0
    out = blame(error)
    np.testing.assert_allclose(out, [[3.0, 2.5, 1.0]])
    assert suspects(SYSTEM, out) == [["service-0", "service-1", "service-2"]]


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
