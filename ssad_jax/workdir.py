"""The working directory of a run: its `config.json`, and the check that a resumed run is still the same run."""

import contextlib
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import msgspec
from ml_collections import ConfigDict

from data_prep import disk, lock
from data_prep.errors import InputError
from ssad_jax.checkpoint import config_to_dict
from ssad_jax.config import flatten

PACKAGES = ("ssad_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "jraph", "numpy", "polars")

# May change between the runs of one workdir: how long and how often, where things lie, how scores are computed
# from a trained model, and the mapping (both give the same numbers). The dataset's hash guards the data.
FREE_KEYS = (
    "name", "evaluation_log", "train.num_epochs", "train.checkpoint_every", "train.keep_checkpoints",
    "train.compilation_cache",
    "data.raw_dir", "data.prepared_dir", "data.faults_path", "data.segments_path", "data.num_workers",
    "data.executor", "data.dask_scheduler", "parallel.mapping", "score", "alerts",
)  # fmt: skip
# What lies in a workdir, and whether it is a directory.
_PLACES = {"checkpoints": True, "evaluation": True, "metrics.jsonl": False, "report.html": False, ".lock": False}


class _Run(msgspec.Struct):
    """What is compared of a `config.json`."""

    config: dict[str, Any]
    dataset_hash: str


def differing_keys(old: dict, new: dict) -> list[str]:
    """Keys whose values differ and that a resumed run must not change."""
    old, new = flatten(old), flatten(new)
    missing = object()
    return [
        key
        for key in sorted({*old, *new})
        if old.get(key, missing) != new.get(key, missing)
        and not any(key == free or key.startswith(free + ".") for free in FREE_KEYS)
    ]


def check(workdir, config: ConfigDict, dataset_hash: str) -> None:
    """Raises InputError where the workdir holds a run of another config or on another dataset."""
    path = Path(workdir) / "config.json"
    if Path(workdir).exists() and not Path(workdir).is_dir():
        raise InputError(f"{workdir} is a file; name another --workdir")
    if not path.is_file():
        return
    try:
        found = msgspec.convert(json.loads(path.read_text(encoding="utf-8")), _Run)
        old, old_hash = found.config, found.dataset_hash
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); delete {workdir} or name another --workdir") from None
    new = config_to_dict(config)
    if keys := differing_keys(old, new):
        old, new = flatten(old), flatten(new)
        shown = ", ".join(f"{key} ({old.get(key)!r} there, {new.get(key)!r} now)" for key in keys)
        raise InputError(f"{workdir} holds a run of another config: {shown}; name another --workdir or delete it")
    if old_hash != dataset_hash:
        raise InputError(
            f"{workdir} holds a run on another dataset (hash {old_hash[:12]} there, {dataset_hash[:12]} now); "
            "name another --workdir or delete it"
        )


def write_config(workdir, config: ConfigDict, dataset_hash: str) -> None:
    """Write `config.json`: resolved config, versions, devices, dataset hash, git revision."""
    document = {
        "config": config_to_dict(config),
        "dataset_hash": dataset_hash,
        "versions": {"python": sys.version.split()[0], **{name: _version(name) for name in PACKAGES}},
        "devices": [str(device.device_kind) for device in jax.devices()],
        "processes": jax.process_count(),
        "git_revision": git_revision(),
    }
    path = Path(workdir) / "config.json"
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    partial.write_text(json.dumps(document, indent=1) + "\n")
    disk.sync(partial)
    os.replace(partial, path)


def make(workdir, flag: str = "workdir") -> Path:
    """Create the directory; InputError where that is not possible, or nothing can be written into it."""
    probe = Path(workdir, f".probe-{os.getpid()}")
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)  # another machine's process may have this one's number
    except OSError as error:
        raise InputError(f"{workdir} cannot be written ({error.strerror}); name another --{flag}") from None
    for name, is_directory in _PLACES.items():
        place = Path(workdir, name)
        if place.exists() and place.is_dir() != is_directory:
            raise InputError(
                f"{place} is {'no directory' if is_directory else 'a directory'}; remove it or name another --{flag}"
            )
    return Path(workdir)


@contextlib.contextmanager
def using(workdir, then: str = "goes on there") -> Iterator[Path]:
    """Makes the directory and keeps other processes from writing into it; among the processes of one run for the first.

    Args:
        then: what the same command will do if the disk is full now.

    Raises:
        InputError: nothing can be written into it, or another run uses it.
        Failure: the disk became full.
    """
    workdir = make(workdir)
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            locked = stack.enter_context(lock.held(workdir / ".lock", workdir, "name another --workdir"))
            for left in (*workdir.glob(".*.partial-*"), *workdir.glob("*/.*.partial-*")):  # by killed processes
                if locked:
                    left.unlink(missing_ok=True)
        stack.enter_context(disk.needed(workdir, then))
        yield workdir


def git_revision() -> str | None:
    """The commit of this source tree, with '+changes' where tracked files differ from it; None outside git."""
    root = Path(__file__).parent

    def git(*arguments):
        return subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, timeout=10, check=True)

    try:
        revision = git("rev-parse", "HEAD").stdout.strip()
        return revision + ("+changes" if git("status", "--porcelain", "-uno").stdout.strip() else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
