import dataclasses
import json
import os
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_prep.command import Stopped
from data_prep.errors import Failure, InputError
from ssad_jax import batching, checkpoint, parallel, train
from tests.ssad_jax import toy
from tests.synthetic import make_prepared


@pytest.fixture(scope="module")
def prepared():
    return make_prepared()


@pytest.fixture(scope="module")
def turns():
    """Five segments of five examples each, in three groups: two networks have a batch less than the third."""
    return make_prepared(segments=7, folds=3)


def run(config, prepared, workdir, method=toy.METHOD, devices=1):
    return parallel.fetch(train.train(config, prepared, workdir, method, jax.devices()[:devices]))


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["toy", "knowledge_ssl", "cross_service"])
def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, prepared, name):
    method = toy.METHOD if name == "toy" else None
    config = toy.small_config()
    config.method = config.method if name == "toy" else name
    whole = run(config, prepared, tmp_path / "whole", method)
    config.train.num_epochs = 2
    run(config, prepared, tmp_path / "parts", method)
    config.train.num_epochs = 4
    same(run(config, prepared, tmp_path / "parts", method), whole)
    untimed = [[{k: v for k, v in r.items() if k != "windows_per_second"} for r in records(tmp_path / w)]
               for w in ("whole", "parts")]  # fmt: skip
    assert untimed[0] == untimed[1] and [r["epoch"] for r in untimed[0]] == [1, 2, 3, 4]
    if name != "toy":
        assert untimed[0][-1]["loss"] < untimed[0][0]["loss"]


def turning_config(folds=3):
    config = toy.small_config()
    config.data.calibration_folds = folds
    return config


def stream_of(tree, k):
    return jax.tree.map(lambda x: x[k], tree)


def near(a, b, rtol, atol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def test_a_run_of_several_networks_resumes_bit_for_bit(tmp_path, turns):
    config = turning_config()
    whole = run(config, turns, tmp_path / "whole")
    config.train.num_epochs = 2
    run(config, turns, tmp_path / "parts")
    config.train.num_epochs = 4
    same(run(config, turns, tmp_path / "parts"), whole)
    assert whole["params"]["w"].shape[0] == 3 and whole["stream"].tolist() == [[0, 0], [0, 1], [0, 2]]
    steps = [4 * -(-int((batching.example_groups(turns) != k).sum()) // 8) for k in range(3)]
    assert whole["step"].tolist() == steps and len(set(steps)) > 1
    losses, step = ([r[name] for r in records(tmp_path / "whole")] for name in ("loss", "step"))
    assert losses[-1] < losses[0] and step == [max(steps) // 4 * e for e in (1, 2, 3, 4)]


def start(streams):
    """A fresh state of these networks on the host, and the optimizer."""
    optimizer = train.make_optimizer(toy.small_config())
    return jax.device_get(train.init_state(toy.init, optimizer, np.asarray(streams, np.uint32))), optimizer


def epoch_on_one_device(loss, optimizer, state, dataset, order, together=False):
    mesh = parallel.make_mesh(jax.devices()[:1])
    mapped = parallel.MappedEpoch(train.make_epoch(toy.Toy(None, loss), optimizer, together), mesh, "pmap")
    return parallel.fetch(mapped(parallel.replicate(state, mesh), parallel.replicate(dataset, mesh), order))


def dataset_and_order(data, streams, batch=8):
    chunks = batching.plan_chunks(data, batch, 1000)
    [(_, order)] = batching.epoch_order(chunks, batching.example_groups(data), np.asarray(streams), 0, batch)
    return batching.load_chunk(data, chunks[0]), order


def test_a_network_is_what_it_would_be_alone_on_the_examples_outside_its_group(turns):
    config, group = turning_config(), batching.example_groups(turns)
    config.train.num_epochs = 2
    together = train.fit(config, turns, [0], toy.METHOD, jax.devices()[:1])
    for k in range(3):
        # Other telemetry of group k: it must not matter, not even in the rows that fill a batch.
        nodes = np.where((turns.windows.group == k)[:, None, None], 3 - turns.windows.nodes, turns.windows.nodes)
        rest = dataclasses.replace(turns, windows=dataclasses.replace(turns.windows, nodes=nodes))
        chunks = batching.plan_chunks(rest, 8, 1000)
        dataset = batching.load_chunk(rest, chunks[0])
        state, optimizer = start([[0, k]])
        for epoch in range(2):
            [(_, order)] = batching.epoch_order(chunks, group, state["stream"], epoch, 8)
            state, _ = epoch_on_one_device(toy.METHOD.loss, optimizer, state, dataset, order)
        same(jax.tree.map(lambda p, k=k: p[0, k], together), stream_of(state["params"], 0))
    assert not np.array_equal(together["w"][0, 0], together["w"][0, 1])


def test_every_network_draws_from_a_stream_of_its_own(turns):
    """These four visit the same examples in the same order, or those of another seed."""
    streams = [[0, 7], [0, 8], [1, 7], [0, 7]]
    state, optimizer = start(streams)
    same(jax.device_get(train.init_params(toy.init, np.asarray(streams, np.uint32))), state["params"])
    dataset, order = dataset_and_order(turns, [[0, 7]] * 4)
    assert (order == order[0]).all()
    equal = jax.tree.map(lambda p: np.stack([p[3]] * 4), state["params"])
    after, _ = epoch_on_one_device(toy.METHOD.loss, optimizer, state | {"params": equal}, dataset, order)
    for params in (state["params"]["w"], after["params"]["w"]):  # begun, and trained from equal beginnings
        assert [np.array_equal(params[0], params[k]) for k in range(4)] == [True, False, False, True]


def test_networks_that_advance_together_are_those_that_advance_in_turn(turns):
    streams = train.streams(0, 3)
    state, optimizer = start(streams)
    dataset, order = dataset_and_order(turns, streams)
    assert (order < 0).all(2).any()  # one of them ends with an empty batch
    (vmapped, one), (mapped, two) = (
        epoch_on_one_device(toy.METHOD.loss, optimizer, state, dataset, order, together) for together in (True, False)
    )
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (mapped["params"], state["params"])), strict=True))
    near(vmapped["params"], mapped["params"], 1e-4, 1e-6)
    same(vmapped["step"], mapped["step"])
    same(vmapped["stream"], mapped["stream"])
    near(one, two, 1e-4, 1e-5)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((mapped, two)))


@pytest.mark.parametrize("together", [False, True])
def test_an_empty_batch_changes_nothing(turns, together):
    streams = train.streams(0, 2)
    state, optimizer = start(streams)
    dataset, order = dataset_and_order(turns, streams)
    empty = np.full_like(order, -1)
    after, record = epoch_on_one_device(toy.METHOD.loss, optimizer, state, dataset, empty, together)
    same(after, state)
    assert all((record[name][1] == 0).all() for name in ("loss/square", "loss/contrast", "gradient_norm"))
    assert train.summarise([record])["gradient_norm"] == 0
    # Between full ones as well.
    spread = np.concatenate([order[:, :2], empty[:, :1], order[:, 2:]], axis=1)
    (one, _), (two, _) = (
        epoch_on_one_device(toy.METHOD.loss, optimizer, state, dataset, o, together) for o in (order, spread)
    )
    same(one, two)
    assert one["step"].tolist() == [int((o >= 0).any(1).sum()) for o in order]


def test_training_in_memory_is_a_run_of_each_seed(tmp_path, turns):
    config = turning_config()
    found = train.fit(config, turns, [5, 2], toy.METHOD, jax.devices()[:1])
    assert found["w"].shape[:2] == (2, 3)
    for i, seed in enumerate((5, 2)):
        config.seed = seed
        state = run(config, turns, tmp_path / str(seed))
        near(stream_of(found, i), state["params"], 1e-6, 0)
    assert not np.array_equal(found["w"][0], found["w"][1])


def test_training_in_memory_that_diverges_says_so(turns):
    config = turning_config()
    config.optimizer.learning_rate = 1e38
    with pytest.raises(Failure, match="training diverged.*learning_rate"):
        train.fit(config, turns, [0], toy.METHOD, jax.devices()[:1])


def test_a_run_that_is_done_does_nothing(tmp_path, prepared):
    config = toy.small_config()
    first = run(config, prepared, tmp_path)
    same(run(config, prepared, tmp_path), first)
    assert len(records(tmp_path)) == 4


def test_records_after_the_last_checkpoint_are_written_anew(tmp_path, prepared):
    config = toy.small_config()
    config.train.num_epochs = 2
    run(config, prepared, tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 9, "epoch": 3, "loss": 0.0}) + '\n{"step": 1')
    config.train.num_epochs = 4
    run(config, prepared, tmp_path)
    assert [r["step"] for r in records(tmp_path)] == [3, 6, 9, 12]
    assert records(tmp_path)[2]["loss"] > 0


def test_streamed_run_trains_and_resumes(tmp_path, prepared):
    config = toy.small_config()
    config.train.resident_megabytes = 1
    many = make_prepared(segments=24, budget=48, edge_budget=400)
    chunks = batching.plan_chunks(many, config.data.batch_size, 1)
    assert len(chunks) > 2
    whole = run(config, many, tmp_path / "whole")
    config.train.num_epochs = 2
    run(config, many, tmp_path / "parts")
    config.train.num_epochs = 4
    same(run(config, many, tmp_path / "parts"), whole)
    assert whole["step"].tolist() == [4 * -(-len(many.fit_sequences) // 8)]


def test_padded_last_batch_changes_nothing(tmp_path, prepared):
    """One batch of 3 examples, padded to 4 or to 8 rows: the same step."""
    few = dataclasses.replace(prepared, fit_sequences=prepared.fit_sequences[:3])
    config = toy.small_config()
    config.train.num_epochs = 1
    states = []
    for batch_size in (4, 8):
        config.data.batch_size = batch_size
        states.append(run(config, few, tmp_path / str(batch_size)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *states)


def test_non_finite_loss_stops_the_run_and_names_the_last_good_checkpoint(tmp_path, prepared):
    config = toy.small_config()
    config.train.num_epochs = 1
    run(config, prepared, tmp_path)
    chunks, group = batching.plan_chunks(prepared, 8, 1000), batching.example_groups(prepared)
    [(_, order)] = batching.epoch_order(chunks, group, train.streams(config.seed, 1), 1, 8)
    config.train.num_epochs = 2
    with pytest.raises(Failure) as error:  # 3 steps an epoch
        run(config, prepared, tmp_path, toy.poisoned(int(order[0, 1, 0])))
    message = str(error.value)
    assert "loss/square" in message and "not finite at step 5 (epoch 2)" in message
    assert message.endswith(str(tmp_path / "checkpoints" / "3"))
    assert checkpoint.steps(tmp_path / "checkpoints") == [3]


def test_empty_batches_of_a_streamed_epoch_are_no_steps(tmp_path):
    """Two chunks; the first network has no second batch in either, the other's last batch is not finite."""
    real = [np.array([[1, 0], [1, 1]], np.float32), np.array([[1, 0], [1, 1]], np.float32)]
    fine = np.ones((2, 2), np.float32)
    broken = np.array([[1, 1], [1, np.nan]], np.float32)
    pairs = zip((fine, broken), real, strict=True)
    records = [{"loss/square": (sums, n), "gradient_norm": (fine, n)} for sums, n in pairs]
    message = train._not_finite(records, np.array([12, 24]), 5, tmp_path)
    assert message == "loss/square is not finite at step 24 (epoch 6); none is saved yet"
    message = train._not_finite(records[::-1], np.array([12, 24]), 5, tmp_path)
    assert message.startswith("loss/square is not finite at step 22 (epoch 6)")
    one = [{"loss/square": (broken[1:, ::-1], real[0][:1]), "gradient_norm": (fine[1:], real[0][:1])}]
    assert "at step 11 " in train._not_finite(one, np.array([11]), 0, tmp_path)  # followed by an empty batch


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_saves_and_the_resumed_run_is_exact(tmp_path, prepared, number):
    config = toy.small_config()
    config.train.num_epochs = 12
    config.train.checkpoint_every = 100
    whole = run(config, prepared, tmp_path / "whole")
    workdir = tmp_path / "stopped"

    def send():
        while not (workdir / "metrics.jsonl").exists() or not records(workdir):
            time.sleep(0.001)
        os.kill(os.getpid(), number)

    config.train.num_epochs = 100_000  # far more than fit in before the signal
    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(Stopped, match="is saved in"):
        run(config, prepared, workdir)
    sender.join()
    [saved] = checkpoint.steps(workdir / "checkpoints")
    config.train.num_epochs = max(12, saved // 3)
    resumed = run(config, prepared, workdir)
    if config.train.num_epochs > 12:  # the signal came late
        whole = run(config, prepared, tmp_path / "whole")
    same(resumed, whole)


def test_workdir_of_another_run_is_refused(tmp_path, prepared):
    config = toy.small_config()
    config.train.num_epochs = 1
    run(config, prepared, tmp_path)
    config.model.hidden_dim = 17
    config.optimizer.learning_rate = 0.1
    with pytest.raises(InputError, match=r"model.hidden_dim \(16 there, 17 now\), optimizer.learning_rate"):
        run(config, prepared, tmp_path)
    config = toy.small_config()
    config.train.checkpoint_every = 7  # may change
    config.score.quantile = 0.9
    run(config, prepared, tmp_path)
    with pytest.raises(InputError, match="another dataset"):
        run(config, make_prepared(seed=1), tmp_path)


def test_bad_config_and_empty_data_are_refused(tmp_path, prepared):
    config = toy.small_config()
    config.data.batch_size = 6
    with pytest.raises(InputError, match="multiple of the 4 devices"):
        run(config, prepared, tmp_path, devices=4)
    config.data.batch_size = 8
    empty = dataclasses.replace(prepared, fit_sequences=prepared.fit_sequences[:0])
    with pytest.raises(InputError, match="no training sequences"):
        run(config, empty, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        run(config, prepared, tmp_path / "file")


def test_config_json_tells_how_the_run_was_made(tmp_path, prepared):
    config = toy.small_config()
    config.train.num_epochs = 1
    run(config, prepared, tmp_path)
    found = json.loads((tmp_path / "config.json").read_text())
    assert found["config"]["data"]["batch_size"] == 8 and found["dataset_hash"] == "synthetic-0"
    assert found["versions"]["jax"] == jax.__version__ and len(found["devices"]) == 4
    assert list(tmp_path.glob("events.out.tfevents.*"))


def centred(every_epoch: bool):
    """The toy with a centre that is not learned: the mean of its windows, before the first epoch or before each."""

    def init(key):
        return {**toy.init(key), "fixed": {"centre": jnp.full(32, 100.0), "seen": jnp.zeros(())}}

    def loss(params, batch, keys, gather):
        sums, counts, diagnostics = toy.loss(params, batch, keys, gather)
        x = batch.graphs.nodes.mean(axis=2) - params["fixed"]["centre"][None, None]
        pull = jnp.where(batch.window_mask, jnp.square(x @ params["w"]).sum(-1), 0).sum()
        return {**sums, "pull": pull}, {**counts, "pull": batch.window_mask.sum()}, diagnostics

    def observe(params, batch):
        x = jnp.where(batch.window_mask[..., None], batch.graphs.nodes.mean(axis=2), 0)
        return x.sum((0, 1)), batch.window_mask.sum()

    def absorb(params, means, step):
        now = {"centre": means, "seen": params["fixed"]["seen"] + 1}
        keep = jnp.asarray(not every_epoch) & (step > 0)
        return {**params, "fixed": jax.tree.map(lambda new, old: jnp.where(keep, old, new), now, params["fixed"])}

    return toy.Toy(init, loss, observe=observe, absorb=absorb)


@pytest.mark.parametrize(("every_epoch", "times"), [(False, 1), (True, 4)])
def test_what_is_observed_is_the_mean_over_training_windows_and_is_neither_learned_nor_decayed(
    prepared, every_epoch, times
):
    config = toy.small_config()
    config.optimizer.weight_decay = 0.5
    method = centred(every_epoch)
    one, four = (train.fit(config, prepared, [0], method, jax.devices()[:n]) for n in (1, 4))
    sequences = prepared.fit_sequences
    windows = prepared.windows.nodes[sequences[sequences >= 0]].mean(1)  # as often as examples hold them
    np.testing.assert_allclose(one["fixed"]["centre"][0, 0], windows.mean(0), rtol=1e-4, atol=1e-5)
    assert one["fixed"]["seen"][0, 0] == times
    for name in ("w", "v"):
        np.testing.assert_allclose(one[name], four[name], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one["fixed"]["centre"], four["fixed"]["centre"], rtol=1e-5, atol=1e-6)


def test_a_chunk_without_an_example_of_a_network_leaves_what_it_observed(prepared):
    """As where a chunk of a streamed dataset holds segments of the network's own group alone."""
    config, method, mesh = toy.small_config(), centred(True), parallel.make_mesh(jax.devices()[:1])
    optimizer, own = train.make_optimizer(config), train.streams(0, 1)
    feed = train.Feed(prepared, config, mesh, own, method.needs)
    run_epoch = parallel.MappedEpoch(train.make_epoch(method, optimizer), mesh, config.parallel.mapping)
    state = parallel.replicate(jax.device_get(train.init_state(method.init, optimizer, own)), mesh)
    dataset, order, _ = next(feed.visits(0))
    before = parallel.fetch(run_epoch(state, dataset, order)[0])
    after = parallel.fetch(run_epoch(parallel.replicate(before, mesh), dataset, np.full_like(order, -1))[0])
    same(after, before)
