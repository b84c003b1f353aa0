"""The linear recipe on a system of numbers with a planted fault."""

import dataclasses

import numpy as np
import pytest

from ssad_jax.config import default_config
from ssad_jax.floors.linear import score_linear
from ssad_jax.prepared import CONTEXT_DIM, NODE_KINDS
from ssad_jax.scoring.detectors import suspect_lists
from tests.synthetic import make_prepared

SETTINGS = default_config("test").score
LOG, METRIC, DEPENDENCY = (NODE_KINDS.index(kind) for kind in ("log", "metric", "dependency"))


def make(folds=0):
    """Log lines of service-2 are missing in faulty windows; service-0 has memory where others have cpu."""
    data = make_prepared(segments=16, folds=folds)
    names = tuple("service-0/memory" if n == "service-0/cpu" else n for n in data.system.node_names)
    channels = data.system.channels | {"dependency": ["calls", "net latency, mean"]}
    system = dataclasses.replace(data.system, node_names=names, channels=channels)
    nodes, faulty = data.windows.nodes.copy(), data.windows.label == 1
    for line in (names.index("service-2/template 0"), names.index("service-2/template 1")):
        nodes[faulty, line, CONTEXT_DIM] -= 12.0  # there were 6 too many
    nodes[:, np.array(data.system.kind) == METRIC, 0] = 0.5  # what explains the metrics
    return dataclasses.replace(data, system=system, windows=dataclasses.replace(data.windows, nodes=nodes))


@pytest.fixture(scope="module")
def data():
    return make()


@pytest.mark.parametrize("folds", [0, 3])
def test_missing_log_lines_are_found_and_their_service_is_named(folds):
    data = make(folds)
    scored = score_linear(data, SETTINGS)
    faulty = data.windows.label[scored.terms.window] == 1
    assert faulty.any() and scored.scores.reconstruction[faulty].min() > scored.scores.reconstruction[~faulty].max()
    assert {tuple(names[:1]) for names, bad in zip(suspect_lists(data, scored), faulty, strict=True) if bad} == {
        ("service-2",)
    }
    assert (scored.scores.temporal == 0).all() and (scored.scores.prior == 0).all()
    np.testing.assert_array_equal(score_linear(data, SETTINGS).scores.calibrated, scored.scores.calibrated)
    assert sorted(scored.held_out_terms.window) == np.sort(data.calibration_runs, axis=None).tolist()


@pytest.mark.parametrize("processor", [False, True])
def test_it_looks_at_log_counts_net_latencies_and_with_processor_at_cpu(data, processor):
    place = score_linear(data, SETTINGS, processor).place
    seen = {
        (data.system.node_names[node], data.system.channels[NODE_KINDS[kind]][channel])
        for node, channel, kind in zip(place.node, place.channel, place.kind, strict=True)
    }
    expected = {(f"service-{s}/template {i}", "count") for s in range(3) for i in range(2)}
    expected |= {(f"service-{s} -> service-{s + 1}", "net latency, mean") for s in range(2)}
    expected |= {(f"service-{s}/cpu", "level") for s in (1, 2)} if processor else set()
    assert seen == expected and len(place.node) == len(expected)


def test_a_residual_is_what_the_expectation_leaves(data):
    scored = score_linear(data, SETTINGS, processor=True)
    nodes, place = data.windows.nodes, scored.place
    for terms in (scored.held_out_terms, scored.terms):
        signal, context = nodes[terms.window, :, CONTEXT_DIM:], nodes[terms.window, :, :CONTEXT_DIM]
        for c, (node, channel, kind) in enumerate(zip(place.node, place.channel, place.kind, strict=True)):
            left = {LOG: context[:, node, 0], DEPENDENCY: 0.0, METRIC: 0.5}[int(kind)]
            np.testing.assert_array_equal(terms.residual[:, c], signal[:, node, channel] - left)
    own = scored.held_out_terms.residual
    np.testing.assert_allclose(scored.calibration.centre, own.mean(0), atol=1e-6)
    floor = SETTINGS.scale_floor * np.where(place.kind == METRIC, 1.0, 2.0)
    np.testing.assert_allclose(scored.calibration.scale, np.maximum(own.std(0), floor), rtol=1e-5)
