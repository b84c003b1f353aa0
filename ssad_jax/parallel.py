"""Devices: the mesh, one epoch mapped over it by pmap or shard_map, and agreement between processes.

The mapped function sees its own slice of every batch and the whole state and dataset; it sums across devices
itself (`sum_devices`), in the same way under both mappings, which therefore give the same bits. Arrays that every
device holds whole are "replicated".
"""

import contextlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax import lax
from jax._src import distributed  # its client: what is public waits without hearing signals
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data_prep import command
from data_prep.errors import Failure, InputError

AXIS = "data"
HEARTBEAT_SECONDS = 30  # without a sign of life after which a process of the run is taken for dead
_LOST = re.compile(  # in errors of collectives and of the coordination service
    "(Connection (reset|closed|refused)|Socket closed|UNAVAILABLE|[Hh]eartbeat|NCCL|Gloo|[Bb]arrier)"
    "[^\n]{0,120}"
)
REPLICATED, SPLIT_ROWS = PartitionSpec(), PartitionSpec(None, None, AXIS)


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """Joins the other processes of this run, if there are any.

    Where one of several fails, or notices that another one is gone, it tells so and ends at once: everything that
    Python and jax do at a program's end would wait for the others. What all processes meet alike is raised.
    """
    initialize_processes()
    try:
        yield
    except (InputError, command.Stopped):
        raise
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        if words := _LOST.search(str(error)):
            error = Failure(
                f"another process of this run has ended or cannot be reached ({words[0]}); start all of them again, "
                "training goes on from the newest checkpoint"
            )
        if isinstance(error, Failure):
            print(f"error: {error}", file=sys.stderr)
        else:
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(command.exit_code(error))


def initialize_processes(environ=os.environ) -> None:
    """Join the other processes of this run, if the launcher says that there are any; before the first device use.

    `SSAD_COORDINATOR` (host:port), `SSAD_NUM_PROCESSES` and `SSAD_PROCESS_ID` describe the run in full;
    `SSAD_DISTRIBUTED=auto` leaves it to jax, which knows SLURM, Cloud TPU and some others.
    """
    names = ("SSAD_COORDINATOR", "SSAD_NUM_PROCESSES", "SSAD_PROCESS_ID")
    given = [name for name in names if environ.get(name)]
    if environ.get("SSAD_DISTRIBUTED") == "auto":
        _initialize()
    elif given:
        if len(given) < 3:
            missing = ", ".join(sorted(set(names) - set(given)))
            raise InputError(f"{', '.join(given)} is set but {missing} is not; set all three or none")
        try:
            count, number = int(environ[names[1]]), int(environ[names[2]])
        except ValueError as error:
            raise InputError(f"{names[1]} and {names[2]} must be whole numbers ({error})") from None
        _initialize(environ[names[0]], count, number)


def _initialize(*arguments) -> None:
    jax.distributed.initialize(
        *arguments, heartbeat_timeout_seconds=HEARTBEAT_SECONDS, shutdown_timeout_seconds=HEARTBEAT_SECONDS
    )
    for number in (signal.SIGTERM, signal.SIGUSR1):  # jax has put a handler of its own in their place
        if (handler := signal.getsignal(number)) is not None:
            signal.signal(number, handler)


def make_mesh(devices=None) -> Mesh:
    """All devices of all processes (or the given ones) on one axis."""
    return Mesh(np.array(jax.devices() if devices is None else devices), (AXIS,))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises InputError where a batch cannot be cut into equal slices."""
    if batch_size < 1 or batch_size % mesh.size:
        raise InputError(
            f"config.data.batch_size={batch_size} must be a positive multiple of the {mesh.size} devices; "
            f"try {max(1, round(batch_size / mesh.size)) * mesh.size}"
        )


def _place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    # Every process holds the whole host array: each takes its own part, nothing is sent or compared.
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def replicate(tree, mesh: Mesh):
    """Host arrays (the same in every process) -> arrays that every device of the mesh holds whole."""
    sharding = NamedSharding(mesh, REPLICATED)
    return jax.tree.map(lambda a: _place(a, sharding), tree)


def fetch(tree):
    """Replicated arrays -> numpy; each process reads its own copy."""
    return jax.tree.map(lambda a: np.asarray(a.addressable_data(0)), tree)


class MappedEpoch:
    """`epoch(state, dataset, order) -> (state, metrics)` on every device of a mesh at once.

    Called with replicated state (donated), replicated dataset, and the whole order [K, steps, B] int32 as a numpy
    array; each device gets its own B / devices rows of every batch.
    """

    def __init__(self, epoch, mesh: Mesh, mapping: str):
        """
        Args:
            epoch: the per-device function; its results must be equal on all devices (summed by `sum_devices`).
            mapping: 'pmap' or 'shard_map'.

        Raises:
            InputError: the mapping is not known.
        """
        if mapping == "shard_map":
            specs = (REPLICATED, REPLICATED, SPLIT_ROWS)
            mapped = jax.shard_map(epoch, mesh=mesh, in_specs=specs, out_specs=REPLICATED, check_vma=False)
            self._mapped = jax.jit(mapped, donate_argnums=0)
            sharding = NamedSharding(mesh, SPLIT_ROWS)
            self._split = lambda order: _place(order, sharding)
        elif mapping == "pmap":
            devices = list(mesh.devices.flat)
            # pmap does not check out_axes=None: a sum across devices that is left out would go unnoticed here.
            # shard_map's numbers, to which the tests hold these, would differ.
            self._mapped = jax.pmap(
                epoch, AXIS, in_axes=(None, None, 2), out_axes=None, donate_argnums=0, devices=devices
            )
            own = [i for i, device in enumerate(devices) if device.process_index == jax.process_index()]
            self._split = lambda order: _slices(order, len(devices))[:, :, own]
        else:
            raise InputError(f"config.parallel.mapping={mapping!r} is not known; use pmap or shard_map")

    def __call__(self, state, dataset, order: np.ndarray):
        return self._mapped(state, dataset, self._split(order))

    def compile(self, state, dataset, order: np.ndarray):
        """The compiled program for arguments of these shapes, to look at."""
        return self._mapped.lower(state, dataset, self._split(order)).compile()


def _slices(order: np.ndarray, parts: int) -> np.ndarray:
    """[K, steps, B] -> [K, steps, parts, B / parts]."""
    return order.reshape(*order.shape[:2], parts, -1)


def sum_devices(tree):
    """The sum over devices, on each of them."""
    return lax.psum(tree, AXIS)


def gather(x: jax.Array) -> jax.Array:
    """The slices [b, ...] of all devices as one [B, ...], in batch order; differentiable."""
    return lax.all_gather(x, AXIS, tiled=True)


def per_device(tree):
    """Mark replicated values as each device's own: their gradients are then of the local loss under both mappings.

    Without it shard_map would sum the gradients of replicated parameters over devices once more.
    """
    return jax.tree.map(lambda x: lax.pcast(x, AXIS, to="varying"), tree)


def is_main() -> bool:
    """Whether this process writes the files."""
    return jax.process_index() == 0


def in_main(step: str, work: Callable[[], object]) -> None:
    """The first process does `work` and the others wait for it, however long that takes; they hear signals meanwhile.

    Args:
        step: a name that is used once in a run.

    Raises:
        What `work` raises, in the first process; InputError, Stopped or Failure accordingly in the others.
    """
    client = distributed.global_state.client
    if is_main():
        try:
            work()
            code = 0
        except BaseException as error:
            code = command.exit_code(error)
            raise
        finally:
            if client is not None:
                client.key_value_set(step, str(code))
    elif code := int(_published(client, step)):
        kind = {command.EXIT_BAD_INPUT: InputError, command.EXIT_STOPPED: command.Stopped}.get(code, Failure)
        raise kind("the first process of this run has ended; its own message says why")


def _published(client, key: str) -> str:
    while True:
        try:
            return client.blocking_key_value_get(key, 1000)  # milliseconds: Python looks after signals in between
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def any_process(flag: bool) -> bool:
    """Whether `flag` is true in some process; every process must call it at the same point."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())
