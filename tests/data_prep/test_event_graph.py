import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_prep import event_graph, identity
from data_prep.event_graph import COOCCURRENCE, DEPENDENCY, EVENT, INVOCATION, LOG, METRIC, OWNERSHIP
from data_prep.scaling import CHANNELS
from ssad_jax.prepared import NODE_KINDS
from tests.data_prep.small import event, fit_vocabulary, log, metric, observe, span

NS = 1_000_000_000
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def vocabulary():
    spans = [
        span("t", 1, None, "gateway", "GET /", 0, 100, kind="SERVER"),
        span("t", 2, 1, "gateway", "call order", 10, 90, kind="CLIENT"),
        span("t", 3, 2, "order", "POST /orders", 30, 80, kind="SERVER"),
        span("t", 4, 3, "order", "SELECT", 40, 45, kind="CLIENT", peer_service_name="db"),
    ]
    rows = {
        "logs": [log(0, "order", "saved"), log(0, "gateway", "in")],
        "metrics": [metric(second, "order", "cpu", second) for second in range(60)] + [metric(0, "db", "cpu", 1)],
    }
    obs = observe(spans=spans, events=[event(2, "order", "restart")], **rows)
    return fit_vocabulary(obs, {"saved": 0, "in": 1})[1]


@pytest.fixture(scope="module")
def nodes(vocabulary):
    return event_graph.make_nodes(vocabulary, ["saved <num>", "in"])


NAMES = [
    "db", "gateway", "order", "<unknown>",
    "gateway: in", "gateway: <other>", "order: saved <num>", "order: <other>", "<unknown>: <other>",
    "db: cpu", "order: cpu",
    "gateway -> order", "order -> db",
    "order: restart",
]  # fmt: skip


def test_nodes(nodes):
    assert nodes.names == NAMES
    assert nodes.kind.tolist() == [0] * 4 + [LOG] * 5 + [METRIC] * 2 + [DEPENDENCY] * 2 + [EVENT]
    assert nodes.unit.tolist() == [0, 1, 2, 3, 1, 1, 2, 2, 3, 0, 2, 2, 0, 2]
    assert nodes.caller.tolist() == [-1] * 11 + [1, 2, -1]
    assert [nodes.first(kind) for kind in range(5)] == [0, 4, 9, 11, 13]


def test_edges_and_their_activity(vocabulary, nodes):
    topology = [(2, 0, "runs_on"), (0, 2, "runs_on"), (1, 2, "invokes")]
    edges = event_graph.make_edges(nodes, vocabulary, [(0, 2)], topology)
    table = [(NAMES[a], NAMES[b], int(kind)) for (a, b), kind in zip(edges.pairs, edges.kind, strict=True)]
    assert sorted(table) == sorted([
        ("gateway", "gateway: in", OWNERSHIP), ("gateway", "gateway: <other>", OWNERSHIP),
        ("order", "order: saved <num>", OWNERSHIP), ("order", "order: <other>", OWNERSHIP),
        ("<unknown>", "<unknown>: <other>", OWNERSHIP), ("db", "db: cpu", OWNERSHIP),
        ("order", "order: cpu", OWNERSHIP), ("order", "order: restart", OWNERSHIP),
        ("db", "order", OWNERSHIP), ("gateway", "order", INVOCATION),  # both directions are made when padded
        ("gateway", "gateway -> order", INVOCATION), ("gateway -> order", "order", INVOCATION),
        ("order", "order -> db", INVOCATION), ("order -> db", "db", INVOCATION),
        ("gateway: in", "order: saved <num>", COOCCURRENCE),
    ])  # fmt: skip
    calls = np.array([[0, 0], [2, 0], [1, 1]], np.float32)
    logs = np.array([[1, 0, 0, 0, 0], [1, 0, 3, 0, 0], [0, 9, 3, 0, 0]], np.float32)
    active = event_graph.active_edges(edges, {"calls": calls, "logs": logs})
    assert active.shape == (3, 15)
    absent = [{table[c] for c in np.flatnonzero(~row)} for row in active]
    called = {("gateway", "gateway -> order", INVOCATION), ("gateway -> order", "order", INVOCATION)}
    stored = {("order", "order -> db", INVOCATION), ("order -> db", "db", INVOCATION)}
    together = {("gateway: in", "order: saved <num>", COOCCURRENCE)}
    assert absent == [called | stored | together, stored, together]


def test_cooccurrence_by_hand():
    seen = np.zeros((400, 4))
    seen[::40, 0] = seen[::40, 1] = seen[::40, 2] = 1  # ten ticks together; by chance a quarter of one
    seen[:, 3] = 5  # in every tick: coincides with all, says nothing
    first, ticks = event_graph.coincidences(seen[:100])
    second, more = event_graph.coincidences(seen[100:])
    together, ticks = first + second, ticks + more
    assert ticks == 400 and together[0].tolist() == [10, 10, 10, 10] and together[3, 3] == 400
    # 10 against 0.25: 9.75 standard deviations of at least one; nodes 1 and 2 are of one unit.
    assert event_graph.cooccurring(together, ticks, np.array([0, 1, 1, 2])) == [(0, 1), (0, 2)]
    assert event_graph.cooccurring(together, ticks, np.zeros(4, int)) == []
    assert event_graph.cooccurring(np.zeros((1, 1)), 0, np.array([0])) == []


def test_attributes_hold_context_and_signal_of_each_node():
    signal = {kind: np.full((2, 1, len(channels)), i + 1.0) for i, (kind, channels) in enumerate(CHANNELS.items())}
    context = {kind: np.full((2, 1, 1), -i - 1.0) for i, kind in enumerate(CHANNELS)}
    out = event_graph.node_attributes(signal, context, 8)
    assert out.shape == (2, 8, 32) and out.dtype == np.float32
    for i, channels in enumerate(CHANNELS.values()):
        assert (out[:, i, 0] == -i - 1).all() and (out[:, i, 1:16] == 0).all()
        assert (out[:, i, 16 : 16 + len(channels)] == i + 1).all() and (out[:, i, 16 + len(channels) :] == 0).all()
    assert (out[:, 5:] == 0).all()


@pytest.mark.parametrize(
    ("mask_units", "together"),
    [
        ("node", []),
        ("siblings", [{"gateway: in", "gateway: <other>"}, {"order: saved <num>", "order: <other>"}]),
        ("owner", [{"db", "db: cpu", "order -> db"}, {"gateway", "gateway: in", "gateway: <other>"},
                   {"<unknown>", "<unknown>: <other>"},
                   {n for n in NAMES if n.startswith("order") and n != "order -> db"} | {"gateway -> order"}]),
    ],
)  # fmt: skip
def test_system(vocabulary, nodes, mask_units, together):
    system = event_graph.make_system(nodes, vocabulary, 16, mask_units, NS)
    assert system.node_mask.tolist() == [True] * 14 + [False] * 2
    assert system.service_names == ("<unknown>", "db", "gateway", "order")
    assert [system.service_names[s] for s in system.service[:14]] == [
        "db", "gateway", "order", "<unknown>", "gateway", "gateway", "order", "order", "<unknown>", "db", "order",
        "order", "db", "order",
    ]  # fmt: skip
    assert system.caller.tolist() == [-1] * 11 + [2, 3] + [-1] * 3 and system.service[14:].tolist() == [-1, -1]
    groups = {}
    for name, unit, number in zip(NAMES, system.mask_unit, system.unit_hash, strict=False):
        groups.setdefault((int(unit), int(number)), set()).add(name)
    assert sorted(map(sorted, (g for g in groups.values() if len(g) > 1))) == sorted(map(sorted, together))
    assert len({unit for unit, _ in groups}) == len(groups)
    assert not system.signal_mask[14:].any() and not system.evidence[14:].any() and (system.mask_unit[14:] == -1).all()
    assert not (system.evidence & ~system.signal_mask).any()


def test_channels_that_exist_and_channels_that_are_evidence(vocabulary, nodes):
    system = event_graph.make_system(nodes, vocabulary, 16, "node", NS)
    index = {name: i for i, name in enumerate(NAMES)}

    def channels(of, name, kind):
        return [CHANNELS[kind][i] for i in np.flatnonzero(of[index[name]])]

    assert channels(system.signal_mask, "db", "service") == []  # nothing of its own is ever seen
    assert channels(system.signal_mask, "order", "service") == [
        "errors", "alerts", "self time, mean", "self time, maximum", "operation 1", "other operations",
    ]  # fmt: skip
    assert channels(system.evidence, "order", "service") == ["errors", "self time, mean"]
    assert channels(system.evidence, "gateway -> order", "dependency") == ["errors", "net latency, mean"]
    assert channels(system.signal_mask, "order -> db", "dependency") == ["calls", "errors", "duration, mean"]
    assert channels(system.evidence, "order -> db", "dependency") == ["errors"]  # how long it took is of all below it
    assert channels(system.evidence, "order: cpu", "metric") == ["level"]
    assert channels(system.evidence, "db: cpu", "metric") == []  # a single reading is no scale


def test_durations_tell_suspects_apart_where_no_client_span_tells_more(vocabulary, nodes):
    system = event_graph.make_system(nodes, vocabulary, 16, "node", NS)
    more = np.argwhere(system.witness & ~system.evidence)
    assert [(NAMES[node], CHANNELS["dependency"][channel]) for node, channel in more] == [
        ("order -> db", "duration, mean")
    ]
    assert not (system.evidence & ~system.witness).any()


def test_only_a_rise_of_errors_and_latencies_deviates(vocabulary, nodes):
    system = event_graph.make_system(nodes, vocabulary, 16, "node", NS)
    rising = {
        (NAMES[node], CHANNELS[NODE_KINDS[system.kind[node]]][channel]) for node, channel in np.argwhere(system.rising)
    }
    assert rising == {
        ("gateway", "errors"), ("gateway", "self time, mean"), ("order", "errors"), ("order", "self time, mean"),
        ("gateway -> order", "errors"), ("gateway -> order", "net latency, mean"),
        ("gateway -> order", "duration, mean"), ("order -> db", "errors"), ("order -> db", "duration, mean"),
    }  # fmt: skip
    assert not (system.rising & ~system.signal_mask).any()


def test_identity_does_not_depend_on_the_order_of_nodes():
    names, owners = ["orderService", "cpu", "票务 42", "-"], ["order", "order", "票务", "x"]
    kinds, positions = np.array([0, 2, 0, 0]), np.arange(32).reshape(4, 8) / 32
    one = identity.identities(names, owners, kinds, positions)
    order = [2, 0, 3, 1]
    two = identity.identities([names[i] for i in order], [owners[i] for i in order], kinds[order], positions[order])
    assert one.shape == (4, 96) and one.dtype == np.float32
    np.testing.assert_array_equal(one[order], two)


def test_names_with_common_words_are_near_and_any_script_counts():
    vectors = identity.hashed_text(["orderService", "order service", "ORDER_7", "票务", "停止", "--"], 48)
    assert identity.tokens("getOrder-v2 票务") == ["get", "order", "v", "2", "票务"]
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert vectors[0] @ vectors[2] > 0.3 and abs(vectors[3] @ vectors[4]) < 0.6
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 1, 1, 1, 0], atol=1e-6)


def test_identity_is_the_same_in_another_process():
    program = "from data_prep import identity as i; print(i.stable_hash('票'), i.hashed_text(['a svc'], 3).tolist())"
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert out.stdout.strip() == f"{identity.stable_hash('票')} {identity.hashed_text(['a svc'], 3).tolist()}"


def test_laplacian_positions():
    assert (identity.laplacian_positions(3, []) == 0).all() and (identity.laplacian_positions(3, [(1, 1)]) == 0).all()
    pair = identity.laplacian_positions(3, [(0, 2)])
    assert (pair[1] == 0).all() and pair[0, 0] == -pair[2, 0] != 0 and (pair[:, 1:] == 0).all()
    # A tree without symmetries; the second vector of the normalised Laplacian, up to its sign.
    pairs = [(0, 1), (1, 2), (2, 3), (1, 4), (4, 5), (5, 6)]
    got = identity.laplacian_positions(7, pairs)
    adjacency = np.zeros((7, 7))
    for i, j in pairs:
        adjacency[i, j] = adjacency[j, i] = 1
    root = np.diag(adjacency.sum(1) ** -0.5)
    laplacian = np.eye(7) - root @ adjacency @ root
    for k in range(6):
        ratio = (laplacian @ got[:, k]) @ got[:, k] / (got[:, k] @ got[:, k])
        assert ratio == pytest.approx(np.linalg.eigvalsh(laplacian)[k + 1], abs=1e-4)
        cubes = (got[:, k].astype(float) ** 3).sum()
        assert cubes > 1e-6 or got[np.abs(got[:, k]) > 1e-6, k][0] > 0
    order = np.array([3, 0, 6, 2, 5, 1, 4])  # node i becomes order[i]
    moved = identity.laplacian_positions(7, [(order[i], order[j]) for i, j in pairs])
    np.testing.assert_allclose(moved[order], got, atol=1e-4)
