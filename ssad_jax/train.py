"""Training: one compiled call an epoch, checkpoints in the background, exact resume.

K networks are trained at once, each on all training examples but those of its calibration group (K = 1 where a share is
held out). State is {'params', 'opt', 'step', 'stream'}, each with the networks on a leading axis. What an epoch does
depends on the state, the prepared dataset and (seed, epoch, step) alone, so that a run which was interrupted and
resumed ends with the same bits (on one device) as one that was not.
"""

import math
import os
import signal
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from data_prep.command import Stopped
from data_prep.errors import Failure, InputError
from ssad_jax import batching, checkpoint, methods, parallel
from ssad_jax import workdir as workdirs
from ssad_jax.backends import choices
from ssad_jax.knowledge import load as load_knowledge
from ssad_jax.methods.own import check as check_own
from ssad_jax.prepared import Prepared
from ssad_jax.run_log import RunLog

UNTRAINED_SEED = 1_000_003  # added to the seed: not the networks that training started from


def make_optimizer(config) -> optax.GradientTransformation:
    """AdamW after clipping the global norm of the gradient; what is not learned does not decay (`Method`)."""
    options = config.optimizer
    return optax.chain(
        optax.clip_by_global_norm(options.clip_norm),
        optax.adamw(options.learning_rate, weight_decay=options.weight_decay, mask=_learned),
    )


def _learned(params):
    return {name: jax.tree.map(lambda _, name=name: name != "fixed", tree) for name, tree in params.items()}


def make_gradient(loss):
    """The per-device gradient of one network, summed over devices.

    (params, stream, step, dataset, index [B / devices]) -> (gradients, terms). Keys come from (stream, step, example),
    never from the device; `stream` [2] uint32 is the network's own (seed, number).

    Args:
        loss: `Method.loss`: (params, batch, keys, gather) -> local sums, local counts, diagnostics (sum, count).

    The objective is the sum over terms of (global sum / global count). Its division by the global count happens in
    the local loss, so that the gradients of all devices add up to the gradient of the whole batch however rows and
    masks are spread over devices.
    """

    def gradient(params, stream, step, dataset, index):
        with jax.named_scope("input"):
            batch = batching.make_batch(dataset["windows"], dataset["sequences"][jnp.maximum(index, 0)], index)
        key = jax.random.fold_in(_key(stream), step)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)

        def objective(params):
            sums, counts, diagnostics = loss(_held(params), batch, keys, parallel.gather)
            shares = [s / jnp.maximum(parallel.sum_devices(counts[name]), 1) for name, s in sums.items()]
            terms = {f"loss/{name}": (s, counts[name]) for name, s in sums.items()}
            return sum(shares), {**terms, **diagnostics}

        gradients, terms = jax.grad(objective, has_aux=True)(parallel.per_device(params))
        terms = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), terms)
        return parallel.sum_devices((gradients, terms))

    return gradient


def _held(params):
    """`params`, of which nothing moves what is fixed."""
    return params | {name: lax.stop_gradient(tree) for name, tree in params.items() if name == "fixed"}


def make_observation(observe):
    """The per-device mean over an epoch's batches of what one network gives: (params, dataset, order) -> means, count.

    Args:
        observe: `Method.observe`: (params, batch) -> local sums, local count.
    """

    def observation(params, dataset, order):
        def of_batch(index):
            batch = batching.make_batch(dataset["windows"], dataset["sequences"][jnp.maximum(index, 0)], index)
            return parallel.sum_devices(observe(params, batch))

        sums, count = jax.tree.map(lambda x: x.sum(0), lax.map(of_batch, order))
        return jax.tree.map(lambda x: x / jnp.maximum(count, 1), sums), count

    return observation


def make_epoch(method, optimizer: optax.GradientTransformation, together: bool | None = None):
    """The per-device epoch: (state, dataset, order [K, steps, B / devices]) -> (state, records [K, steps]).

    A record is {name: (sum, count)} of the loss terms and diagnostics, and the norm of the gradient.

    Args:
        method: with `loss`, `observe`, `absorb`.
        together: see `map_networks`.
    """
    return map_networks(epoch_of_one(method, optimizer), together)


def epoch_of_one(method, optimizer: optax.GradientTransformation):
    """`make_epoch` of a single network, without the leading axis."""
    gradient = make_gradient(method.loss)
    observation = method.observe and make_observation(method.observe)

    def epoch(state, dataset, order):
        if observation:
            means, count = observation(state["params"], dataset, order)
            after = method.absorb(state["params"], means, state["step"])
            after = jax.tree.map(lambda new, old: jnp.where(count > 0, new, old), after, state["params"])
            state = {**state, "params": after}  # a chunk may hold no example of this network

        def step(state, index):
            gradients, terms = gradient(state["params"], state["stream"], state["step"], dataset, index)
            with jax.named_scope("optimiser"):
                updates, opt = optimizer.update(gradients, state["opt"], state["params"])
                params = optax.apply_updates(state["params"], updates)
            real = parallel.sum_devices((index >= 0).sum()) > 0  # an empty batch changes nothing
            norm = (jnp.where(real, optax.tree.norm(gradients), 0), jnp.float32(real))
            after = {**state, "params": params, "opt": opt, "step": state["step"] + 1}
            after = jax.tree.map(lambda new, old: jnp.where(real, new, old), after, state)
            return after, {**terms, "gradient_norm": norm}

        return lax.scan(step, state, order)

    return epoch


def map_networks(epoch, together: bool | None = None):
    """An epoch of one network -> of K, which share the dataset.

    Args:
        together: the K networks advance together (vmap) instead of one after another within the compiled program. By
            default together on accelerators, whose units one small network leaves idle; on a CPU that is slower. One
            network alone is never mapped: XLA gives a vmapped scatter's rows a layout feature by feature on GPUs, where
            additions to one row then lie far apart.
    """
    if together is None:
        together = choices().networks_together

    def of_all(state, dataset, order):
        if together and len(order) > 1:
            return jax.vmap(epoch, in_axes=(0, None, 0))(state, dataset, order)
        return lax.map(lambda own: epoch(own[0], dataset, own[1]), (state, order))

    return of_all


def init_state(init, optimizer: optax.GradientTransformation, streams: np.ndarray) -> dict:
    """Parameters, optimiser state and step 0 of the networks `streams` [K, 2] uint32 (seed, number)."""

    def of_one(stream):
        params = init(_key(stream))
        return {"params": params, "opt": optimizer.init(params), "step": jnp.zeros((), jnp.int32), "stream": stream}

    return lax.map(of_one, jnp.asarray(streams))


def untrained(config, init, seed: int):
    """Parameters [K, ...] of networks that no run with this seed starts from."""
    return init_params(init, streams(seed + UNTRAINED_SEED, num_networks(config)))


def init_params(init, streams: np.ndarray):
    """Fresh parameters of the networks `streams`, on a leading axis."""
    return jax.jit(lambda: lax.map(lambda stream: init(_key(stream)), jnp.asarray(streams)))()


def num_networks(config) -> int:
    """One, or one for each calibration group that takes turns."""
    return max(1, config.data.calibration_folds)


def streams(seed: int, count: int) -> np.ndarray:
    """[K, 2] uint32: what the networks of a run draw from."""
    return np.stack([np.full(count, seed), np.arange(count)], axis=1).astype(np.uint32)


def _key(stream):
    return jax.random.fold_in(jax.random.key(stream[0], impl="threefry2x32"), stream[1])


def train(config, prepared: Prepared, workdir, method=None, devices=None) -> dict:
    """Train until `config.train.num_epochs` epochs are done, going on from the workdir's newest checkpoint.

    Args:
        method: overrides the one that `config.method` names (a tuple with `init` and `loss`).
        devices: all devices of all processes by default.

    Returns:
        The state, on the devices.

    Raises:
        InputError: the workdir belongs to another run, or config and devices do not fit one another.
        Failure: the disk is full, or the loss or a parameter is not finite; the newest checkpoint is kept (and named).
        Stopped: SIGTERM or SIGUSR1 came; the state of the last complete epoch is saved.
    """
    mesh = parallel.make_mesh(devices)
    parallel.check_batch_size(config.data.batch_size, mesh)
    if config.seed < 0:
        raise InputError(f"config.seed={config.seed} must not be negative")
    workdirs.check(workdir, config, prepared.manifest["dataset_hash"])
    with workdirs.using(workdir) as workdir:
        return _train(config, prepared, workdir, method, mesh)


def _train(config, prepared: Prepared, workdir: Path, method, mesh) -> dict:
    enable_compilation_cache(config)
    knowledge = find_knowledge(config, prepared)
    method = method or make_method(config, prepared, knowledge)
    optimizer = make_optimizer(config)
    rules = {"names": list(knowledge.names), "keys": np.asarray(knowledge.keys)} if knowledge else {}
    own_streams = streams(config.seed, num_networks(config))
    state, done = _start(config, lambda: init_state(method.init, optimizer, own_streams), rules, workdir)
    first_step = int(state["step"].max())
    context = checkpoint.Context(config, prepared.system, prepared.manifest, rules)
    if parallel.is_main():
        workdirs.write_config(workdir, config, prepared.manifest["dataset_hash"])
    state = parallel.replicate(state, mesh)
    feed = Feed(prepared, config, mesh, own_streams, method.needs)
    run_epoch = parallel.MappedEpoch(make_epoch(method, optimizer), mesh, config.parallel.mapping)
    log = RunLog(workdir, config.train.num_epochs, done, first_step, parallel.is_main())
    with (
        StopSignals() as signals,
        checkpoint.Writer(workdir / "checkpoints", config.train.keep_checkpoints, context) as writer,
        log,
    ):
        log.say(feed.describe(mesh, done, config.train.num_epochs))
        for epoch in range(done, config.train.num_epochs):
            started = time.perf_counter()
            records = []
            for dataset, order, prefetch in feed.visits(epoch):
                state, record = run_epoch(state, dataset, order)
                prefetch()  # the next chunk moves while this one is computed
                records.append(parallel.fetch(record))
            steps = parallel.fetch(state["step"])
            step = int(steps.max())
            metrics = summarise(records)
            if not math.isfinite(metrics["loss"]) or not math.isfinite(metrics["gradient_norm"]):
                writer.wait()
                raise Failure(_not_finite(records, steps, epoch, workdir))
            metrics["learning_rate"] = config.optimizer.learning_rate
            metrics["windows_per_second"] = feed.num_windows / (time.perf_counter() - started)
            log.record(epoch + 1, step, metrics)
            stop = parallel.any_process(signals.received)
            last = epoch + 1 == config.train.num_epochs
            if stop or last or (epoch + 1) % config.train.checkpoint_every == 0:
                if not finite(parallel.fetch(state["params"])):  # the last update alone: no loss has seen it
                    writer.wait()
                    raise Failure(f"a parameter is not finite at step {step}; {_last_good(workdir)}")
                writer.save(step, epoch + 1, state)
            if stop:
                writer.wait()
                raise Stopped(f"step {step} (epoch {epoch + 1}) is saved in {workdir}; the same command goes on there")
        writer.wait()
        if parallel.any_process(signals.received):  # while the last epoch was being saved
            raise Stopped(f"training is done and saved in {workdir}; the same command goes on with what is left")
    return state


def fit(config, prepared: Prepared, seeds, method, devices=None):
    """Parameters [seeds, K, ...] of networks trained in memory, all in one compiled program an epoch.

    For comparisons: without workdir, checkpoints and log. `config.seed` is not used; each seed's networks are those of
    a run with that seed where the dataset is resident. Where it is streamed, all seeds visit its chunks in the first
    seed's order (examples within a chunk in their own).

    Raises:
        Failure: a parameter is not finite in the end.
    """
    mesh = parallel.make_mesh(devices)
    parallel.check_batch_size(config.data.batch_size, mesh)
    count = num_networks(config)
    own = np.concatenate([streams(seed, count) for seed in seeds])
    optimizer = make_optimizer(config)
    state = jax.device_get(jax.jit(lambda: init_state(method.init, optimizer, own))())
    run_epoch = parallel.MappedEpoch(make_epoch(method, optimizer), mesh, config.parallel.mapping)
    params = fit_from(state, run_epoch, Feed(prepared, config, mesh, own, method.needs), config.train.num_epochs, mesh)
    if not finite(params):
        raise Failure("training diverged: a parameter is not finite; lower config.optimizer.learning_rate")
    return jax.tree.map(lambda p: p.reshape(len(seeds), count, *p.shape[1:]), params)


def fit_from(state, run_epoch, feed: "Feed", num_epochs: int, mesh):
    """Host parameters [K, ...] after so many epochs from a host state."""
    state = parallel.replicate(state, mesh)
    for epoch in range(num_epochs):
        for dataset, order, prefetch in feed.visits(epoch):
            state, _ = run_epoch(state, dataset, order)
            prefetch()
    return parallel.fetch(state["params"])


def finite(params) -> bool:
    """Whether all of the host parameters are finite."""
    return all(np.isfinite(p).all() for p in jax.tree.leaves(params))


def make_method(config, prepared: Prepared, knowledge):
    """The method that the config names, for a dataset's system.

    Raises:
        InputError: one of the user's own does not give what it should.
    """
    method = methods.get(config.method).create(config, prepared.system, knowledge)
    if methods.is_own(config.method):
        check_own(method, config.method, prepared)
    return method


def find_knowledge(config, prepared: Prepared):
    """The knowledge file turned into prototype keys for this system; None for a method that has no use of it."""
    if config.method not in methods.WITH_KNOWLEDGE:
        return None
    known, system = config.knowledge, prepared.system
    return load_knowledge(
        known.path, system.service_names, system.service_position, config.model.num_prototypes, known.variant
    )


def _start(config, fresh, rules: dict, workdir: Path) -> tuple[dict, int]:
    """Host state and completed epochs: of the newest whole checkpoint, or fresh."""
    directory = workdir / "checkpoints"
    abstract = jax.eval_shape(fresh)
    found = checkpoint.newest(directory, lambda context: abstract)
    if found is None:
        return jax.device_get(jax.jit(fresh)()), 0
    before = found.context.knowledge
    if rules and (
        list(before.get("names", ())) != rules["names"] or not np.array_equal(before.get("keys", ()), rules["keys"])
    ):
        raise InputError(
            f"{config.knowledge.path or 'knowledge.path'} has other rules than the run in {workdir} began with; "
            "restore the file or name another --workdir"
        )
    if not finite(found.tree["params"]):
        raise InputError(
            f"{directory / str(found.step)} holds parameters that are not finite; delete it, so that the one before is "
            "used, or name another --workdir"
        )
    return found.tree, found.epoch


class Feed:
    """The prepared training windows on the devices: all of them, or chunk by chunk with one chunk ahead."""

    def __init__(self, prepared: Prepared, config, mesh, streams: np.ndarray, needs: batching.Needs):
        if not len(prepared.fit_sequences):
            raise InputError(
                "the prepared dataset has no training sequences; give more data, or a smaller data.sequence_length or "
                "data.window_length"
            )
        prepared = batching.examples_for(prepared, needs)
        self._prepared, self._mesh, self._streams, self._needs = prepared, mesh, streams, needs
        self._batch_size = config.data.batch_size
        self._chunks = batching.plan_chunks(prepared, self._batch_size, config.train.resident_megabytes, needs)
        self._loaded = {}
        self._group = batching.example_groups(prepared)
        visits = (self._group[:, None] != streams[:, 1].astype(int)).sum(1)
        # That an epoch visits, repeats counted.
        self.num_windows = int(((prepared.fit_sequences >= 0).sum(1) * visits).sum())

    def visits(self, epoch: int):
        """Yields (dataset on the devices, order [K, steps, B] numpy, prefetch) in the epoch's order.

        Call `prefetch` after the computation on `dataset` is under way.
        """
        own, following = (
            batching.epoch_order(self._chunks, self._group, self._streams, e, self._batch_size)
            for e in (epoch, epoch + 1)
        )
        for (number, order), (later, _) in zip(own, own[1:] + following[:1], strict=True):
            dataset = self._take(number)
            if later != number:
                self._loaded = {}
            yield dataset, order, lambda later=later: self._take(later)

    def _take(self, number: int) -> dict:
        if number not in self._loaded:
            arrays = batching.load_chunk(self._prepared, self._chunks[number], self._needs)
            self._loaded[number] = parallel.replicate(arrays, self._mesh)
        return self._loaded[number]

    def describe(self, mesh, done: int, num_epochs: int) -> str:
        examples, chunks = len(self._prepared.fit_sequences), len(self._chunks)
        size = sum(c.padded for c in self._chunks) * batching.window_bytes(self._prepared, self._needs) / 2**20
        place = "resident" if chunks == 1 else f"streamed in {chunks} chunks"
        return (
            f"{examples} examples ({self.num_windows} windows, {size:.0f} MiB, {place}), batch {self._batch_size} "
            f"on {mesh.size} {mesh.devices.flat[0].platform} device(s), {len(self._streams)} network(s); epochs "
            f"{done} of {num_epochs} done"
        )


def summarise(records: list[dict]) -> dict[str, float]:
    """Averages of an epoch, from its visits' records {name: (sums [K, steps], counts [K, steps])}.

    Sums and counts are added before they are divided: a padded last batch weighs what it holds. `loss` is the sum of
    the loss terms.
    """
    averages = {}
    for name in records[0]:
        total, count = (sum(float(np.sum(r[name][i], dtype=np.float64)) for r in records) for i in (0, 1))
        averages[name] = total / max(count, 1.0)
    loss = sum(value for name, value in averages.items() if name.startswith("loss/"))
    return {"loss": loss, **averages}


def _not_finite(records, steps: np.ndarray, epoch: int, workdir: Path) -> str:
    """What is not finite, and since which step of its network; `steps` [K] at the end of the epoch."""
    names = [n for n in records[0] if n.startswith("loss/") or n == "gradient_norm"]
    bad = {n: ~np.isfinite(np.concatenate([r[n][0] for r in records], axis=1)) for n in names}  # [K, batches]
    counts = np.concatenate([r["gradient_norm"][1] for r in records], axis=1) > 0  # an empty batch is no step
    number = steps[:, None] - counts.sum(1, keepdims=True) + np.cumsum(counts, axis=1)
    first = min(int(number[b].min()) for b in bad.values() if b.any())
    culprits = ", ".join(n for n, b in bad.items() if (b & (number == first)).any())
    return f"{culprits} is not finite at step {first} (epoch {epoch + 1}); {_last_good(workdir)}"


def _last_good(workdir: Path) -> str:
    saved = checkpoint.steps(workdir / "checkpoints")
    return f"the last good checkpoint is {workdir / 'checkpoints' / str(saved[-1])}" if saved else "none is saved yet"


class StopSignals:
    """Notes SIGTERM and SIGUSR1 instead of dying, so that the run can save at the end of the epoch."""

    def __init__(self):
        self.received = False
        self._previous = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids handlers
            for number in (signal.SIGTERM, signal.SIGUSR1):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number, frame):
        self.received = True

    def __exit__(self, kind, value, trace):
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def enable_compilation_cache(config) -> None:
    """Keep compiled programs on disk, in JAX_COMPILATION_CACHE_DIR or ~/.cache/ssad_jax/xla."""
    if config.train.compilation_cache:
        default = Path.home() / ".cache" / "ssad_jax" / "xla"
        jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(default))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
