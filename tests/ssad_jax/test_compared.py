"""What holds for each compared system, whatever it judges: one small simulated dataset, one short training each."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

from configs import smoke
from ssad_jax import batching, datasets, methods, parallel, train
from ssad_jax.config import use_method
from ssad_jax.methods import COMPARED
from ssad_jax.prepared import IDENTITY_DIM, SIGNAL_DIM, Prepared
from ssad_jax.scoring.terms import score_runs, scorer

OWN = "docs.own_detector"
NAMES = (OWN, *COMPARED)
EXAMPLES, STEPS = 8, 50  # all examples are a batch: a step is an epoch
SILENT = 3  # of the last test windows nothing is heard
TABLES = ("logs", "spans", "calls")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compared")


@pytest.fixture(scope="module")
def data(folder):
    """Half an hour of simulated OpenStack; of the last test windows nothing is heard."""
    config = smoke.get_config()
    config.data.prepared_dir = str(folder / "prepared")
    prepared = datasets.find_prepared(config, parallel)
    windows, test = prepared.windows, prepared.test_runs[prepared.test_runs >= 0]
    last = test[np.argsort(windows.start_unix_nano[test])][-SILENT:]
    nodes = np.array(windows.nodes)
    nodes[last] = 0
    since = int(windows.start_unix_nano[last].min())
    shutil.copytree(prepared.directory / "tables", folder / "silent" / "tables")
    for table in TABLES:
        path = folder / "silent" / "tables" / f"{table}.parquet"
        pl.read_parquet(path).filter(pl.col("time_unix_nano") < since).write_parquet(path)
    fit = prepared.fit_sequences[prepared.fit_sequences >= 0]
    some = np.unique(fit)[:: len(np.unique(fit)) // EXAMPLES][:EXAMPLES]
    return dataclasses.replace(
        prepared, windows=dataclasses.replace(windows, nodes=nodes), fit_sequences=some[:, None].astype(np.int32),
        directory=folder / "silent", manifest=prepared.manifest | {"dataset_hash": "silent"},
    )  # fmt: skip


def varied(data: Prepared, folder, order: bool) -> Prepared:
    """The same windows with more slots of nodes and edges, and nodes in another order if `order`."""
    system, windows, more = data.system, data.windows, 8
    size, real = len(system.kind), len(system.node_names)
    slots = np.arange(size)
    if order:
        slots[:real] = np.random.default_rng(0).permutation(real)
    empty = {
        "identity": np.zeros((more, IDENTITY_DIM), np.float32), "kind": np.zeros(more, np.int8),
        **{n: np.zeros((more, SIGNAL_DIM), bool) for n in ("signal_mask", "evidence", "witness", "rising")},
        "node_mask": np.zeros(more, bool), "unit_hash": np.zeros(more, np.uint32), "lag": np.zeros(more, np.int32),
        **{n: np.full(more, -1, np.int32) for n in ("mask_unit", "service", "caller")},
    }  # fmt: skip
    arrays = {n: np.concatenate([getattr(system, n)[slots], padding]) for n, padding in empty.items()}
    place = np.argsort(slots)  # of the old numbers
    place[size - 1] = size + more - 1  # padding edges point at the last slot
    count = len(windows.nodes)
    ends = {
        n: np.concatenate([place[getattr(windows, n)], np.full((count, 2 * more), size + more - 1)], 1).astype(np.int32)
        for n in ("senders", "receivers")
    }
    kinds = np.concatenate([windows.edge_kind, np.zeros((count, 2 * more), np.int8)], 1)
    nodes = np.concatenate([windows.nodes[:, slots], np.zeros((count, more, windows.nodes.shape[2]), np.float32)], 1)
    ticks = np.asarray(data.ticks.signals)[:, slots]
    ticks = np.concatenate([ticks, np.zeros((len(ticks), more, SIGNAL_DIM), ticks.dtype)], 1)
    directory = folder / f"varied{order}"
    if not directory.exists():
        shutil.copytree(data.directory, directory)
        path = directory / "tables" / "logs.parquet"
        logs = pl.read_parquet(path)
        node = logs["node"].to_numpy()
        logs.with_columns(node=pl.Series(np.where(node >= 0, place[node], node)).cast(pl.Int32)).write_parquet(path)
    names = tuple(system.node_names[i] for i in slots[:real])
    return dataclasses.replace(
        data, directory=directory, manifest=data.manifest | {"dataset_hash": directory.name},
        system=dataclasses.replace(system, **arrays, node_names=names),
        windows=dataclasses.replace(windows, nodes=nodes, **ends, edge_kind=kinds),
        ticks=dataclasses.replace(data.ticks, signals=ticks),
    )  # fmt: skip


def make_config(name):
    config = smoke.get_config()
    use_method(config, name)
    config.data.batch_size = EXAMPLES
    for sizes in config.compared.values():  # half of the time here is compilation
        sizes.update({key: 1 for key in sizes if key.endswith("layers")})
    config.optimizer.learning_rate = max(config.optimizer.learning_rate, 1e-3)  # that of most; 50 steps are few
    config.train.update({"num_epochs": STEPS, "checkpoint_every": STEPS - 2, "keep_checkpoints": 2})
    return config


class Subject:
    """One system, trained once on the dataset."""

    def __init__(self, name: str, data: Prepared, workdir):
        self.name, self.data, self.workdir = name, data, workdir
        self.method = self.create(data)

    def create(self, data: Prepared):
        return methods.get(self.name).create(make_config(self.name), data.system, None)

    def run(self, workdir, devices=1, epochs=STEPS):
        """Parameters of the one network after training, and the loss of each step."""
        config = make_config(self.name)
        config.train.num_epochs = epochs
        state = train.train(config, self.data, workdir, self.method, jax.devices()[:devices])
        records = (workdir / "metrics.jsonl").read_text().splitlines()
        return parallel.fetch(state["params"]), [json.loads(line)["loss"] for line in records]

    @functools.cached_property
    def trained(self):
        return self.run(self.workdir)

    @property
    def params(self):
        return jax.tree.map(lambda p: jnp.asarray(p[0]), self.trained[0])

    @functools.cached_property
    def terms(self):
        """Of all test windows, by the trained and by an untrained network that was told the same centre and scales."""
        fresh = jax.tree.map(lambda p: p[0], train.untrained(make_config(self.name), self.method.init, 0))
        fresh |= {name: fixed for name, fixed in self.params.items() if name == "fixed"}
        score = scorer(self.method)
        runs = self.data.test_runs  # all at once: one program
        return [score_runs(score, params, self.data, runs, len(runs)) for params in (self.params, fresh)]


@pytest.fixture(scope="module", params=NAMES)
def subject(request, data, folder):
    yield Subject(request.param, data, folder / request.param)
    jax.clear_caches()


def test_the_loss_falls_by_a_third_within_50_steps(subject):
    _, losses = subject.trained
    assert len(losses) == STEPS
    assert losses[0] - np.min(losses[-5:]) > 0.3 * abs(losses[0])


def test_scores_are_not_constant_and_training_changes_them(subject):
    """Where something smaller is judged neighbours share the line or trace that is their worst, but not their mean."""
    terms, untrained = subject.terms
    known = np.isfinite(terms.own[:, 0])
    score, mean = terms.own[known, 0], terms.own[known, 2 if subject.method.needs.inputs else 0]
    assert len(np.unique(mean)) > 100 and len(np.unique(score)) > 10 and score.std() > 1e-6
    assert np.median(np.abs(score - untrained.own[known, 0])) > 0.05 * score.std()


def test_windows_without_a_score_hold_nothing_to_judge_and_silence_stops_nothing(subject, data):
    terms, _ = subject.terms
    assert not np.isinf(terms.own).any() and np.isfinite(terms.residual).all()
    inputs = subject.method.needs.inputs
    given = inputs(data, terms.window).windows if inputs else {}
    nothing = (given["unit"] < 0).all(-1) if "unit" in given else np.zeros(len(terms.window), bool)
    assert not (np.isnan(terms.own).any(1) & ~nothing).any()
    assert nothing.sum() >= SILENT or "unit" not in given


def test_padding_and_the_order_of_nodes_change_nothing(subject, data, folder):
    """More slots of nodes and edges, more windows in a batch; the detector of one's own knows nodes by their order."""
    other = varied(data, folder, order=subject.name != OWN)
    moved, params, (terms, _) = subject.create(other), subject.params, subject.terms
    runs = np.concatenate([data.test_runs, np.full_like(data.test_runs[:1], -1)])
    found = score_runs(scorer(moved), params, other, runs, len(runs))
    np.testing.assert_array_equal(found.window, terms.window)
    scale = np.nanstd(terms.own, axis=0)
    spread = terms.residual.std() if terms.residual.size else 1.0
    np.testing.assert_allclose(found.own / scale, terms.own / scale, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.residual, terms.residual, rtol=1e-3, atol=1e-3 * spread)

    def loss(method, data, rows):
        windows = batching.resident(data, np.maximum(rows[:, 0], 0), method.needs)
        own = np.where(rows >= 0, np.arange(len(rows))[:, None], -1)
        index = np.where(rows[:, 0] >= 0, np.arange(len(rows)), -1)
        batch = batching.make_batch(jax.tree.map(jnp.asarray, windows), jnp.asarray(own), jnp.asarray(index))
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), i))(batch.index)
        return jax.jit(lambda p: method.loss(p, batch, keys, lambda x: x)[:2])(params)

    rows = data.fit_sequences[:6]
    sums, counts = loss(subject.method, data, rows)
    more_sums, more_counts = loss(moved, other, np.concatenate([rows, [[-1]] * 2]))
    for term in sums:
        np.testing.assert_allclose(more_counts[term], counts[term], rtol=1e-5)
        np.testing.assert_allclose(more_sums[term], sums[term], rtol=1e-3)


def test_four_devices_learn_what_one_learns(subject, tmp_path):
    _, losses = subject.run(tmp_path / "four", devices=4, epochs=2)
    np.testing.assert_allclose(losses, subject.trained[1][:2], rtol=2e-3)


def test_a_resumed_training_ends_with_the_same_bits(subject, tmp_path):
    params, losses = subject.trained
    shutil.copytree(subject.workdir, tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / str(STEPS))
    again, resumed = subject.run(tmp_path / "resumed")
    assert resumed == losses
    jax.tree.map(np.testing.assert_array_equal, again, params)
