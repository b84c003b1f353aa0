"""Checkpoints: the training state and all that scoring needs beside it. The only file that knows Orbax.

On disk a checkpoint is flat: arrays by their path in the tree, and one JSON document. It depends neither on
the classes of the tree nor on the devices it was saved from.
"""

import dataclasses
import json
import logging
import shutil
import sys
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from ml_collections import ConfigDict

from data_prep.command import Stopped
from data_prep.errors import InputError
from data_prep.visible import visible
from ssad_jax.prepared import ARRAYS, System


def _worth_showing(record: logging.LogRecord) -> bool:
    return "orbax" not in Path(record.pathname).parts or record.levelno >= logging.WARNING and not record.exc_info


# Orbax tells dozens of lines about each save through the logger that this program's own messages go through. An error
# of its threads it raises as well, from the next `save` or `wait`.
absl_logging.get_absl_logger().addFilter(_worth_showing)


@dataclasses.dataclass(frozen=True)
class Context:
    """What scoring needs beside the parameters."""

    config: ConfigDict  # of the training run
    system: System  # node identities, kinds and masks that the parameters were fitted on
    manifest: dict  # of the prepared dataset, without the list of its files; has 'dataset_hash'
    knowledge: dict  # 'names': list[str] of the prototypes, 'keys': [P, d] float32; empty without a knowledge file


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A restored checkpoint; the tree's leaves are numpy arrays."""

    step: int
    epoch: int  # epochs completed
    tree: Any
    context: Context


class Writer:
    """Saves in the background and keeps the newest `keep`; close it (or leave the `with` block) to finish."""

    def __init__(self, directory, keep: int, context: Context):
        self._manager = ocp.CheckpointManager(
            Path(directory).absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, create=True, cleanup_tmp_directories=True, enable_async_checkpointing=True
            ),
        )
        self._arrays, self._document = _pack_context(context)

    def save(self, step: int, epoch: int, tree) -> None:
        """Start saving `tree` (replicated or host arrays); returns when the arrays are copied to the host."""
        arrays = {name: _to_host(leaf) for name, leaf in _flatten(tree).items()}
        items = {"state": arrays, "context": self._arrays}
        document = {
            **self._document,
            "step": step,
            "epoch": epoch,
            "checksums": {item: _checksum(own) for item, own in items.items()},
            "empty": {item: _empty(own) for item, own in items.items()},
        }
        document["checksum"] = _document_checksum(document)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_filled(arrays)),
                context=ocp.args.StandardSave(_filled(self._arrays)),
                document=ocp.args.JsonSave(document),
            ),
            force=True,
        )

    def wait(self) -> None:
        """Return when everything saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        # Of several processes another one may be gone, for which a save under way would wait.
        if jax.process_count() == 1 or value is None or isinstance(value, Stopped):
            self.close()


def steps(directory) -> list[int]:
    """The steps that finished checkpoints exist for, ascending."""
    directory = Path(directory)
    if not directory.is_dir():
        return []
    found = [p for p in directory.iterdir() if p.is_dir() and p.name.isdecimal()]
    return sorted(int(p.name) for p in found if ocp.utils.is_checkpoint_finalized(p.absolute()))


def restore(directory, abstract=None, step: int | None = None) -> Checkpoint:
    """Read checkpoint `step`, or the newest that is whole.

    Args:
        abstract: a function Context -> tree of arrays or shapes that tells which leaves to read and in which tree
            to return them (for the parameters alone: {'params': shapes}); None: leaves stay in a flat dict by path.

    Raises:
        InputError: there is none (of this step), none is whole, or it holds another model.
    """
    available = steps(directory)
    if not available:
        raise InputError(f"{directory} holds no checkpoint; train first: python -m ssad_jax.main --mode=train")
    if step is not None and step not in available:
        raise InputError(f"{directory} holds no checkpoint of step {step}; there are {available}")
    for candidate in [step] if step is not None else reversed(available):
        if (found := _read_if_whole(Path(directory), candidate, abstract)) is not None:
            return found
    raise InputError(f"no checkpoint in {directory} can be read; train again: python -m ssad_jax.main --mode=train")


def newest(directory, abstract=None) -> Checkpoint | None:
    """The newest checkpoint that is whole, to go on from; None: there is none, training begins anew.

    Damaged ones are moved out of the way, to `<directory>/../damaged/`, so that their steps can be saved again.
    `abstract`: as in `restore`.

    Raises:
        InputError: it holds another model.
    """
    directory = Path(directory)
    available = steps(directory)
    for candidate in reversed(available):
        if (found := _read_if_whole(directory, candidate, abstract)) is not None:
            return found
        if jax.process_index() == 0:
            damaged = directory.parent / "damaged"
            damaged.mkdir(exist_ok=True)
            shutil.rmtree(damaged / str(candidate), ignore_errors=True)
            shutil.move(directory / str(candidate), damaged / str(candidate))
    if available:
        print(f"warning: no checkpoint in {directory} can be read; training begins anew", file=sys.stderr)
    return None


def _read_if_whole(directory: Path, step: int, abstract) -> Checkpoint | None:
    try:
        return _read(directory.absolute() / str(step), abstract)
    except InputError:
        raise
    except Exception as error:  # damage shows as many kinds of error, depending on the byte
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        print(visible(f"warning: checkpoint {directory}/{step} is damaged ({reason}); left out"), file=sys.stderr)
        return None


def _read(path: Path, abstract) -> Checkpoint:
    document = _read_item(path / "document", ocp.JsonCheckpointHandler, ocp.args.JsonRestore())
    if document.pop("checksum") != _document_checksum(document):
        raise ValueError("its document does not match its checksum")
    arrays = {}
    for item, empty in document["empty"].items():
        found = _read_item(path / item, ocp.StandardCheckpointHandler, ocp.args.StandardRestore())
        arrays[item] = {name: np.asarray(value) for name, value in found.items()}
        if any(0 not in shape for shape, _ in empty.values()):
            raise ValueError(f"arrays of {item} that should be empty are not")
        arrays[item].update({name: np.zeros(shape, dtype) for name, (shape, dtype) in empty.items()})
        if _checksum(arrays[item]) != document["checksums"][item]:
            raise ValueError(f"the arrays of {item} do not match their checksum")
    context = _unpack_context(arrays["context"], document)
    tree = arrays["state"] if abstract is None else _unflatten(abstract(context), arrays["state"], path)
    return Checkpoint(document["step"], document["epoch"], tree, context)


def _read_item(path: Path, handler_type, args) -> dict:
    me = jax.process_index()
    # Each process reads by itself: no barrier that the others would have to reach too.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"read{me}"
    )
    with ocp.Checkpointer(handler_type(multiprocessing_options=alone), multiprocessing_options=alone) as reader:
        return reader.restore(path, args=args)


def _filled(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: a for name, a in arrays.items() if a.size}


def _empty(arrays: dict[str, np.ndarray]) -> dict[str, tuple]:
    """Shapes and types of arrays without elements, which Orbax cannot store."""
    return {name: (list(a.shape), a.dtype.str) for name, a in arrays.items() if not a.size}


def _flatten(tree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _unflatten(abstract, state: dict[str, np.ndarray], path: Path):
    names = _flatten(abstract)
    for name, leaf in names.items():
        if name not in state or state[name].shape != tuple(leaf.shape):
            found = f"shape {state[name].shape}" if name in state else "nothing"
            raise InputError(f"{path} holds another model: {found} for {name}, expected {tuple(leaf.shape)}")
    leaves = [state[name].astype(leaf.dtype) for name, leaf in names.items()]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _to_host(leaf) -> np.ndarray:
    return np.asarray(leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf)


def _checksum(arrays: dict[str, np.ndarray]) -> int:
    total = 0
    for name in sorted(arrays):
        total = zlib.crc32(np.ascontiguousarray(arrays[name]).tobytes(), zlib.crc32(name.encode(), total))
    return total


def _document_checksum(document: dict) -> int:
    return zlib.crc32(json.dumps(document, sort_keys=True).encode())


def config_to_dict(config: ConfigDict) -> dict:
    """The config as plain JSON values."""
    return json.loads(json.dumps(config.to_dict()))


def config_from_dict(values: dict) -> ConfigDict:
    """Inverse of `config_to_dict` (JSON's lists were tuples); locked."""

    def restored(value):
        if isinstance(value, dict):
            return {k: restored(v) for k, v in value.items()}
        return tuple(map(restored, value)) if isinstance(value, list) else value

    return ConfigDict(restored(values)).lock()


def _pack_context(context: Context) -> tuple[dict[str, np.ndarray], dict]:
    arrays = {f"system.{name}": getattr(context.system, name) for name in ARRAYS["system"]}
    knowledge = dict(context.knowledge)
    if knowledge:
        arrays["knowledge.keys"] = np.asarray(knowledge["keys"])
    document = {
        "config": config_to_dict(context.config),
        "manifest": {k: v for k, v in context.manifest.items() if k != "files"},
        "node_names": list(context.system.node_names),
        "service_names": list(context.system.service_names),
        "channels": context.system.channels,
        "knowledge_names": list(knowledge.get("names", [])),
    }
    return arrays, document


def _unpack_context(arrays: dict[str, np.ndarray], document: dict) -> Context:
    system = System(
        **{name: np.asarray(arrays[f"system.{name}"]) for name in ARRAYS["system"]},
        node_names=tuple(document["node_names"]),
        service_names=tuple(document["service_names"]),
        channels=document["channels"],
    )
    knowledge = {}
    if "knowledge.keys" in arrays:
        knowledge = {"names": document["knowledge_names"], "keys": np.asarray(arrays["knowledge.keys"])}
    return Context(config_from_dict(document["config"]), system, document["manifest"], knowledge)
