"""Trains networks that differ in one number, of one compiled program: together, or one after another."""

import time
from collections.abc import Callable

import jax
import numpy as np

from ssad_jax import parallel, train
from ssad_jax.prepared import Prepared
from ssad_jax.sensitivity.parameter import Parameter


class Networks:
    """Trainings, each (value of the parameter, seed), with the K networks of calibration groups.

    A network's value is part of its state, so that the program is the same for all values. Method and optimiser are
    built while the program is traced, from a config that holds the traced value.

    Args:
        create: config -> Method.
        devices: all by default.
    """

    def __init__(self, config, prepared: Prepared, parameter: Parameter, create: Callable, devices=None):
        self._config, self._prepared, self._count = config, prepared, train.num_networks(config)
        self._mesh = parallel.make_mesh(devices)
        parallel.check_batch_size(config.data.batch_size, self._mesh)

        def epoch(state, dataset, order):
            own = parameter.applied(config, state["value"])
            return train.epoch_of_one(create(own), train.make_optimizer(own))(state, dataset, order)

        def program(together):
            networks = train.map_networks(epoch, together or None)  # alone: as every other training
            return parallel.MappedEpoch(networks, self._mesh, config.parallel.mapping)

        method = create(config)
        init, self._needs = method.init, method.needs  # parameters and moments begin as they do for any value
        self._init = jax.jit(lambda streams: train.init_state(init, train.make_optimizer(config), streams))
        self._programs = {together: program(together) for together in (True, False)}

    def fit(self, trainings: list[tuple[float, int]], together: bool) -> list:
        """Host parameters [K, ...] of each training, which need not be finite.

        Args:
            together: all trainings advance at once. Otherwise they are taken one after another, each as by itself.
        """
        if not together and len(trainings) > 1:
            return [params for one in trainings for params in self.fit([one], together)]
        state, feed = self._begin(trainings)
        params = train.fit_from(state, self._programs[together], feed, self._config.train.num_epochs, self._mesh)
        at = [slice(i * self._count, (i + 1) * self._count) for i in range(len(trainings))]
        return [jax.tree.map(lambda p, own=own: p[own], params) for own in at]

    def steps(self) -> int:
        """Of a network, in a whole training."""
        _, feed = self._begin([(0.0, 0)])
        return self._config.train.num_epochs * sum(order.shape[1] for _, order, _ in feed.visits(0))

    def stopwatch(self, trainings, together: bool, steps: int) -> Callable[[], float]:
        """A function that takes the next so many steps: seconds for one step of one network. It has been compiled."""
        state, feed = self._begin(trainings)
        dataset, order, _ = next(feed.visits(0))
        order = np.ascontiguousarray(order[:, :steps])
        state = parallel.replicate(state, self._mesh)

        def advance() -> float:
            nonlocal state
            started = time.perf_counter()
            state, _ = jax.block_until_ready(self._programs[together](state, dataset, order))
            return (time.perf_counter() - started) / (order.shape[0] * order.shape[1])

        advance()
        return advance

    def _begin(self, trainings):
        streams = np.concatenate([train.streams(seed, self._count) for _, seed in trainings])
        values = np.repeat(np.array([value for value, _ in trainings], np.float32), self._count)
        state = jax.device_get(self._init(streams)) | {"value": values}
        return state, train.Feed(self._prepared, self._config, self._mesh, streams, self._needs)
