"""Where the maps over shards run: a pool of processes on this machine, or Dask on this and others.

Every function that is mapped is idempotent (what it writes gets its name when it is whole), so that a task may run
twice where a worker is lost, and the result does not depend on who ran it.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from pathlib import Path

from data_prep.errors import InputError

TASK_RETRIES = 3  # of a Dask task whose worker was lost
_PATIENCE = "30s"  # for a scheduler to answer
_ENVIRONMENT = {"POLARS_MAX_THREADS": "1"}  # the workers are the parallelism


def executor(config_data) -> contextlib.AbstractContextManager[Executor]:
    """A context with the executor that `config_data.executor` names, and `num_workers` processes of it.

    Raises:
        InputError: Dask is asked for and is not installed, or the scheduler cannot be reached.
    """
    num_workers = config_data.num_workers or os.cpu_count() or 1
    if config_data.executor == "dask":
        return _dask(num_workers, config_data.dask_scheduler)
    return _processes(num_workers)


def ordered(pool: Executor, function: Callable, *columns: Iterable) -> Iterator:
    """`map(function, *columns)` by an executor, in order. Only a few results exist at a time: memory stays flat."""
    window, waiting = getattr(pool, "window", 8), deque()
    try:
        for arguments in zip(*columns):  # noqa: B905 (repeated arguments have no end)
            if len(waiting) >= window:
                yield waiting.popleft().result()
            waiting.append(pool.submit(function, *arguments))
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its name when the block ends well."""
    partial = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class _Serial(Executor):
    """This process itself."""

    window = 1

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@contextlib.contextmanager
def _processes(num_workers: int):
    if num_workers == 1:
        yield _Serial()
        return
    spawn = multiprocessing.get_context("spawn")
    with _environment(), ProcessPoolExecutor(num_workers, spawn, initializer=_live_with_parent) as pool:
        pool.window = 2 * num_workers
        yield pool


def _live_with_parent() -> None:
    """In a worker: ends when the main process does, however that ends; SIGUSR1 to all is for the main one to judge."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


@contextlib.contextmanager
def _environment():
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextlib.contextmanager
def _dask(num_workers: int, scheduler: str):
    """`scheduler`: tcp://host:port, the path of a scheduler file, or empty for a cluster of this machine's own."""
    try:
        import distributed
    except ImportError:
        raise InputError(
            'data.executor=dask needs Dask: pip install "ssad-jax[dask]", or set data.executor=processes'
        ) from None
    for name in ("distributed", "tornado"):  # a lost worker is an ordinary event, told by the scheduler's own log
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", module="distributed")  # of large arguments: a vocabulary has some megabytes
        if scheduler:
            cluster = {"scheduler_file": scheduler} if "://" not in scheduler else {"address": scheduler}
            if "://" not in scheduler and not Path(scheduler).is_file():
                raise InputError(f"data.dask_scheduler={scheduler!r} is no file and no address such as tcp://host:8786")
        else:
            stack.enter_context(_environment())
            cluster = {"address": stack.enter_context(distributed.LocalCluster(
                n_workers=num_workers, threads_per_worker=1, processes=True, dashboard_address=None,
                silence_logs=logging.CRITICAL, env=_ENVIRONMENT,
            ))}  # fmt: skip
        try:
            client = stack.enter_context(distributed.Client(**cluster, timeout=_PATIENCE, set_as_default=False))
        except (OSError, ValueError) as error:
            raise InputError(f"data.dask_scheduler={scheduler!r} cannot be reached ({error}); start it first") from None
        pool = stack.enter_context(client.get_executor(pure=False, retries=TASK_RETRIES))
        pool.window = 2 * max(num_workers if not scheduler else 0, len(client.scheduler_info()["workers"]), 4)
        yield pool
