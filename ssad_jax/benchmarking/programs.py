"""The programs that are timed: training and scoring as `ssad_jax.train` and `ssad_jax.scoring` run them."""

import contextlib
import tempfile
import time

import jax

from ssad_jax import methods, parallel, train
from ssad_jax.backends import instead
from ssad_jax.benchmarking import cost
from ssad_jax.prepared import Prepared
from ssad_jax.scoring.detectors import score_dataset
from ssad_jax.scoring.fitted import Fitted
from ssad_jax.scoring.terms import score_runs, scorer
from ssad_jax.streaming import Scorer, Window, latencies


class Training:
    """The training loop of `train.train` without files: every call of `epoch` trains one more."""

    def __init__(self, config, prepared: Prepared, devices=None):
        mesh = parallel.make_mesh(devices)
        parallel.check_batch_size(config.data.batch_size, mesh)
        method = methods.get(config.method).create(config, prepared.system, train.find_knowledge(config, prepared))
        own = train.streams(config.seed, train.num_networks(config))
        optimizer = train.make_optimizer(config)
        state = jax.device_get(jax.jit(lambda: train.init_state(method.init, optimizer, own))())
        self._state = parallel.replicate(state, mesh)
        self._feed = train.Feed(prepared, config, mesh, own, method.needs)
        self._run = parallel.MappedEpoch(train.make_epoch(method, optimizer), mesh, config.parallel.mapping)
        self._number = 0
        self.method, self.num_windows = method, self._feed.num_windows

    def epoch(self) -> float:
        """Seconds of the next epoch, input included."""
        begin = time.perf_counter()
        for dataset, order, prefetch in self._feed.visits(self._number):
            self._state, records = self._run(self._state, dataset, order)
            prefetch()
        jax.block_until_ready((self._state, records))
        self._number += 1
        return time.perf_counter() - begin

    def params(self):
        """Parameters of the first network, on the host."""
        return jax.tree.map(lambda p: p[0], parallel.fetch(self._state["params"]))

    def compile_step(self):
        """One step by itself, compiled as the epoch is.

        Returns:
            The compiled program, and a function that runs one step.
        """
        dataset, order, _ = next(self._feed.visits(0))
        order = order[:, :1]

        def run():
            self._state, records = self._run(self._state, dataset, order)
            return records

        return self._run.compile(self._state, dataset, order), run


def cost_of_window(config, prepared: Prepared) -> tuple[float, float]:
    """FLOP and bytes accessed of a window in a training step, by XLA's counts for one network on one device.

    They take a loop's body once, so that the program that is counted has none. Bytes are what each fused operation
    reads and writes, in memory or in a cache.
    """
    alone = config.copy_and_resolve_references()
    alone.data.calibration_folds = 0
    with instead(rows_trained=1 << 30, gru_unroll=prepared.fit_sequences.shape[1], networks_together=False):
        compiled, _ = Training(alone, prepared, jax.local_devices()[:1]).compile_step()
    windows = config.data.batch_size * prepared.fit_sequences.shape[1]
    return tuple(count / windows for count in cost.flop_and_bytes(compiled))


class Scoring:
    """The test runs through `score_runs`, as evaluation does it, with one network."""

    def __init__(self, config, prepared: Prepared, method, params):
        self._score = scorer(method)
        self._arguments = params, prepared, prepared.test_runs, config.score.batch_runs
        self.num_windows = int((prepared.test_runs >= 0).sum())

    def run(self) -> float:
        """Seconds to score all test runs, with the way to the device and back."""
        begin = time.perf_counter()
        score_runs(self._score, *self._arguments)
        return time.perf_counter() - begin


class Streaming:
    """The test runs pushed window by window through a `streaming.Scorer` with one network, calibrated on the rest."""

    def __init__(self, config, prepared: Prepared, method, params):
        together = jax.tree.map(lambda p: p[None], params)
        settings = config.score.copy_and_resolve_references()
        settings.threshold = "quantile"
        scored = score_dataset(scorer(method), together, prepared, settings, own=False)
        fitted = Fitted.of(prepared, scored, settings, step=0)
        manifest = prepared.manifest
        self._scorer = Scorer(
            method, together, prepared.system, fitted, manifest["window_length"], manifest["stride"]
        )
        self._windows = [Window.of(prepared, int(w)) for w in prepared.test_runs[0] if w >= 0]

    def seconds(self, pushes: int) -> list[float]:
        """From window to score, suspects included."""
        found = []
        while len(found) < pushes:
            found += latencies(self._scorer, self._windows[: pushes - len(found)]).tolist()
        return found


def compile_seconds(config, prepared: Prepared) -> tuple[float, float]:
    """Seconds of the first epoch less those of the second: without, and with a filled compilation cache.

    Call it in `empty_cache`.
    """
    cold = _first_less_second(config, prepared)
    jax.clear_caches()
    return cold, _first_less_second(config, prepared)


def _first_less_second(config, prepared) -> float:
    training = Training(config, prepared)
    first, second = training.epoch(), training.epoch()
    return max(first - second, 0.0)


@contextlib.contextmanager
def empty_cache():
    """A compilation cache of its own for a while, empty at first: what was compiled in it is not compiled again."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    with tempfile.TemporaryDirectory(prefix="ssad_jax-xla-") as folder:
        jax.config.update(names[0], folder)
        jax.config.update(names[1], 0.0)
        jax.clear_caches()
        _reset_cache()
        try:
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            _reset_cache()


def _reset_cache() -> None:
    """jax opens its cache once; make it look at the configuration again."""
    from jax.experimental.compilation_cache import compilation_cache

    compilation_cache.reset_cache()
