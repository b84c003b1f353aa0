"""The prepared dataset: the only file that knows its format on disk. Imports no jax.

A directory of plain arrays and tables::

    manifest.json            source, counts, split, vocabularies, hashes and sizes of every other file
    timings.json             how long preparing took (outside the hashes: it differs from run to run)
    system/*.npy             static facts of the N node slots (`System`)
    windows/*.npy            the padded event graphs of the W windows (`Windows`)
    sequences/*.npy          which windows follow one another (training sequences, scoring runs)
    faults.parquet           labels
    ticks/, tables/          per-tick signals, templated logs and spans, for other methods and explanations
    fitted/                  what was fitted on normal time, for new telemetry (`data_prep.fitted`)

It is written under a temporary name and renamed when complete, so that a killed run leaves nothing that
looks finished.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import socket
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import polars as pl

from data_prep import disk, lock
from data_prep.errors import InputError

SCHEMA_VERSION = 5
IDENTITY_DIM, CONTEXT_DIM, SIGNAL_DIM = 96, 16, 16  # together 128, the paper's input dimension (Table 2)
NODE_KINDS = ("service", "log", "metric", "dependency", "event")
EDGE_KINDS = ("invocation", "ownership", "cooccurrence")
CHECKED = ("system/", "windows/", "sequences/", "faults.parquet")  # compared with their hashes when loaded
LARGE = {"windows/nodes.npy"}  # but for this one: reading it all would cost more than the rest together
BLOCK = 64 << 20  # bytes of ticks read at a time
UNHASHED = {"manifest.json", "timings.json"}


@dataclasses.dataclass(frozen=True)
class System:
    """What is the same in every window; N node slots, of which the last is always padding."""

    identity: np.ndarray  # [N, 96] float32: hashed names, kind, place in the dependency graph
    kind: np.ndarray  # [N] int8, index into NODE_KINDS
    node_mask: np.ndarray  # [N] bool, false at padding
    signal_mask: np.ndarray  # [N, 16] bool: which signal channels the node has
    evidence: np.ndarray  # [N, 16] bool: channels whose deviation speaks of a fault (not volume: load is no fault)
    witness: np.ndarray  # [N, 16] bool: evidence, and channels that only tell suspects apart
    rising: np.ndarray  # [N, 16] bool: channels of which only a rise is a deviation (latencies, errors)
    mask_unit: np.ndarray  # [N] int32: nodes of one unit are masked together; -1 at padding
    unit_hash: np.ndarray  # [N] uint32: stable hash of the unit's name, whatever the order of nodes
    service: np.ndarray  # [N] int32, index into service_names: whom a deviation of the node speaks of; -1 none
    caller: np.ndarray  # [N] int32: of a dependency, the calling service; else -1
    lag: np.ndarray  # [N] int32: of a dependency, ticks from a call to where the callee begins; else 0
    service_position: np.ndarray  # [services, 8] float32: Laplacian position in the dependency graph
    node_names: tuple[str, ...]  # real nodes only
    service_names: tuple[str, ...]
    channels: dict[str, list[str]]  # node kind -> names of its signal channels


@dataclasses.dataclass(frozen=True)
class Windows:
    """W windows as event graphs padded to N nodes and E directed edges."""

    nodes: np.ndarray  # [W, N, 32] float32: context 16, then signal 16
    senders: np.ndarray  # [W, E] int32; each edge in both directions; padding edges point at node N - 1
    receivers: np.ndarray  # [W, E] int32
    edge_kind: np.ndarray  # [W, E] int8, index into EDGE_KINDS
    n_edge: np.ndarray  # [W] int32, real edges; they come first
    start_unix_nano: np.ndarray  # [W] int64
    end_unix_nano: np.ndarray  # [W] int64
    start_tick: np.ndarray  # [W] int32: windows i, j overlap iff |start_tick_i - start_tick_j| < window_length
    segment: np.ndarray  # [W] int32
    part: np.ndarray  # [W] int8: 0 fit, 1 calibration, 2 test, -1 unused
    group: np.ndarray  # [W] int8: calibration group: what judges group k is not fitted on it; -1 not calibrated on
    label: np.ndarray  # [W] int8: 1 faulty, 0 normal, -1 null
    fault: np.ndarray  # [W] int32: row of `faults`, -1 none

    @property
    def num_windows(self) -> int:
        return len(self.start_tick)


class Window(NamedTuple):
    """One window as `Windows` holds it, padded to N nodes and E edges."""

    nodes: np.ndarray  # [N, 32] float32: context 16, then signal 16
    senders: np.ndarray  # [E] int32
    receivers: np.ndarray  # [E] int32
    edge_kind: np.ndarray  # [E] int8
    n_edge: int  # real edges; they come first
    start_tick: int
    start_unix_nano: int = 0
    end_unix_nano: int = 0

    @classmethod
    def of(cls, data: "Prepared", row: int) -> "Window":
        """Window `row` of a prepared dataset."""
        return cls(*(getattr(data.windows, name)[row] for name in cls._fields))


@dataclasses.dataclass(frozen=True)
class Ticks:
    """The signals of each node tick by tick, in time order; T ticks are those of all segments."""

    signals: np.ndarray  # [T, N, 16] float16, scaled as the windows' signals are, for their share of a window
    first: np.ndarray  # [W] int64: row of each window's first tick

    def of(self, windows: np.ndarray, length: int, node: np.ndarray, channel: np.ndarray) -> np.ndarray:
        """[w, length, C] float16: the ticks of windows [w], of the signals (node, channel) [C]."""
        rows = self.first[windows][:, None] + np.arange(length)
        needed, place = np.unique(rows, return_inverse=True)
        size = max(1, BLOCK // self.signals[:1].nbytes)
        blocks = [needed[i : i + size] for i in range(0, len(needed), size)]
        picked = [self.signals[block][:, node, channel] for block in blocks]  # the whole rows of a block at a time
        picked = np.concatenate(picked) if picked else np.zeros((0, len(node)), np.float16)
        return picked[place.reshape(rows.shape)]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A loaded dataset."""

    system: System
    windows: Windows
    fit_sequences: np.ndarray  # [Q, S] int32: ids of consecutive windows; -1 masked
    calibration_runs: np.ndarray  # [R, L] int32: maximal runs of consecutive normal windows of a group; -1 at the end
    test_runs: np.ndarray  # [R, L] int32: all windows of each test segment
    faults: pl.DataFrame
    manifest: dict
    directory: Path | None
    ticks: Ticks | None = None


ARRAYS = {
    "system": [f.name for f in dataclasses.fields(System)
               if f.name not in ("node_names", "service_names", "channels")],
    "windows": [f.name for f in dataclasses.fields(Windows)],
    "sequences": ["fit_sequences", "calibration_runs", "test_runs"],
}  # fmt: skip


def exists(directory) -> bool:
    """Whether a finished dataset lies in `directory`."""
    return (Path(directory) / "manifest.json").is_file()


def load(directory) -> Prepared:
    """Read a prepared dataset; `windows.nodes` stays on disk (memory-mapped).

    Raises:
        InputError: nothing finished is there, it was written by another version, or a file is damaged.
    """
    directory = Path(directory)
    if not exists(directory):
        raise InputError(
            f"{directory} holds no prepared dataset (no manifest.json); run `python -m data_prep.main` with this config"
        )
    manifest = _read_manifest(directory / "manifest.json")
    for name, facts in manifest["files"].items():
        path = _inside(directory, name)
        if not path.is_file() or path.stat().st_size != facts["bytes"]:
            raise InputError(f"{path} is missing or truncated; delete {directory} and prepare the data again")
        if name.startswith(CHECKED) and name not in LARGE and _sha256(path) != facts["sha256"]:
            raise InputError(f"{path} is not as it was written; delete {directory} and prepare the data again")
    arrays = {}
    for group, names in ARRAYS.items():
        for name in names:
            try:
                # Mapped first: then no header can ask for more memory than the file has bytes.
                mapped = np.lib.format.open_memmap(directory / group / f"{name}.npy", mode="r")
                arrays[name] = mapped if name == "nodes" else np.array(mapped)
            except Exception as error:  # damage shows as many kinds of error, depending on the byte
                raise InputError(
                    f"{directory / group / name}.npy is damaged ({error}); delete {directory} and prepare again"
                ) from None
    system = System(
        **{k: arrays[k] for k in ARRAYS["system"]},
        node_names=tuple(manifest["node_names"]),
        service_names=tuple(manifest["service_names"]),
        channels=manifest["channels"],
    )
    _check_shapes(arrays, system, directory)
    windows = Windows(**{k: arrays[k] for k in ARRAYS["windows"]})
    sequences = {k: arrays[k] for k in ARRAYS["sequences"]}
    try:
        faults = pl.read_parquet(directory / "faults.parquet")
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        reason = "".join(str(error).splitlines()[:1])
        raise InputError(
            f"{directory / 'faults.parquet'} is damaged ({reason}); delete {directory} and prepare again"
        ) from None
    ticks = _load_ticks(directory, windows)
    return Prepared(system, windows, **sequences, faults=faults, manifest=manifest, directory=directory, ticks=ticks)


def _inside(directory: Path, name: str) -> Path:
    """The file of a dataset that its manifest lists. Raises InputError where it would lie elsewhere."""
    path = directory / name
    if not path.resolve().is_relative_to(directory.resolve()):
        raise InputError(f"{directory / 'manifest.json'} lists {name!r}, which lies outside; prepare the data again")
    return path


def _check_shapes(arrays: dict[str, np.ndarray], system: System, directory: Path) -> None:
    """Whether the arrays fit one another, so that numbers of nodes, windows and services lead to some.

    Raises:
        InputError: names the first that does not.
    """
    windows, nodes = arrays["start_tick"].size, arrays["kind"].size
    edges, positions = (np.atleast_1d(arrays[name]).shape[-1] for name in ("senders", "service_position"))
    services = len(system.service_names)
    shapes = {name: (nodes,) for name in ARRAYS["system"]} | {name: (windows,) for name in ARRAYS["windows"]}
    shapes |= {name: (nodes, SIGNAL_DIM) for name in ("signal_mask", "evidence", "witness", "rising")}
    shapes |= {name: (windows, edges) for name in ("senders", "receivers", "edge_kind")}
    shapes |= {
        "identity": (nodes, IDENTITY_DIM), "service_position": (services, positions),
        "nodes": (windows, nodes, CONTEXT_DIM + SIGNAL_DIM),
    }  # fmt: skip
    below = {
        "kind": len(NODE_KINDS), "service": services, "caller": services, "senders": nodes, "receivers": nodes,
        "edge_kind": len(EDGE_KINDS), "n_edge": edges + 1, **dict.fromkeys(ARRAYS["sequences"], windows),
    }  # fmt: skip
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf" or array.shape != shapes.get(name, array.shape):
            reason = f"is {array.dtype} {array.shape}, expected {shapes.get(name, 'numbers')}"
        elif name in below and array.size and not -1 <= int(array.min()) <= int(array.max()) < below[name]:
            reason = f"leads to number {array.max()} of {below[name]}"
        else:
            continue
        raise InputError(f"{directory}: array {name} {reason}; prepare the data again")


def _load_ticks(directory: Path, windows: Windows) -> Ticks | None:
    """The per-tick signals, which stay on disk; None where a dataset was made without."""
    if not (directory / "ticks").is_dir():
        return None
    try:
        signals = np.lib.format.open_memmap(directory / "ticks" / "signals.npy", mode="r")
        start = np.array(np.lib.format.open_memmap(directory / "ticks" / "start_unix_nano.npy", mode="r"))
        first = np.searchsorted(start, windows.start_unix_nano)
        if len(start) != len(signals) or not np.array_equal(start[first], windows.start_unix_nano):
            raise ValueError("windows begin at other times than ticks")
    except Exception as error:
        raise InputError(
            f"{directory / 'ticks'} is damaged ({error}); delete {directory} and prepare the data again"
        ) from None
    return Ticks(signals, first)


class _File(msgspec.Struct):
    bytes: int
    sha256: str


class _Manifest(msgspec.Struct):
    """What loading needs of a manifest."""

    files: dict[str, _File]
    node_names: list[str]
    service_names: list[str]
    channels: dict[str, list[str]]


def _read_manifest(path: Path) -> dict:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["schema_version"]
        if version == SCHEMA_VERSION:
            msgspec.convert(manifest, _Manifest)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); delete {path.parent} and prepare the data again") from None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}; "
            f"delete {path.parent} and prepare the data again"
        )
    return manifest


class Writer:
    """Writes a dataset under a temporary name; `finish` makes it visible. Use as a context manager.

    Files that are not arrays (tables, per-tick signals) are written by their producers into `path`. One process at a
    time may write a dataset. What a killed one of this machine has left of it is removed first; a dataset that it was
    about to replace is given its name back.

    Raises, on entering, InputError: the directory holds something else, cannot be written, or is in use. On leaving,
    Failure in the place of an error that says that the disk is full.
    """

    def __init__(self, directory):
        self.directory = Path(directory).absolute()  # "." has no name that a sibling could be named after
        self._stem = f".{self.directory.name}.partial-{socket.gethostname()}-"
        self.path = self.directory.with_name(f"{self._stem}{os.getpid()}")
        self._old = self.directory.with_name(f".{self.directory.name}.old")
        self._stack = contextlib.ExitStack()

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            self._enter(stack)
            self._stack = stack.pop_all()
        return self

    def _enter(self, stack: contextlib.ExitStack) -> None:
        if self.directory.exists() and not self.directory.is_dir():
            raise InputError(f"{self.directory} is a file; name another prepared_dir")
        if self.directory.exists() and not exists(self.directory) and any(self.directory.iterdir()):
            raise InputError(
                f"{self.directory} exists, is not empty and holds no prepared dataset; name another prepared_dir"
            )
        try:
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            lock_file = self.directory.with_name(f".{self.directory.name}.lock")
            locked = stack.enter_context(lock.held(lock_file, self.directory, "name another prepared_dir"))
            self._remove_abandoned(locked)
            self.path.mkdir()
            stack.enter_context(disk.needed(self.directory, "prepares again"))
        except OSError as error:
            raise InputError(
                f"{self.directory} cannot be written ({error.strerror}); name another prepared_dir"
            ) from None

    def __exit__(self, kind, value, trace):
        shutil.rmtree(self.path, ignore_errors=True)
        return self._stack.__exit__(kind, value, trace)

    def _remove_abandoned(self, locked: bool) -> None:
        """Remove unfinished directories of this dataset that this machine's processes have left.

        Their names hold machine and process: of another machine's processes nothing is known here. Without a lock
        those stay whose process runs.
        """
        if self._old.exists() and not self.directory.exists():  # killed between the two renames
            os.rename(self._old, self.directory)
        shutil.rmtree(self._old, ignore_errors=True)
        for left in self.directory.parent.iterdir():
            number = left.name.removeprefix(self._stem)
            if left.name.startswith(self._stem) and number.isdecimal():
                if locked or int(number) == os.getpid() or not _runs(int(number)):
                    shutil.rmtree(left, ignore_errors=True)

    def finish(self, prepared: Prepared, timings: dict) -> None:
        """Write the arrays, the labels and the manifest, and give the directory its name."""
        for group, names in ARRAYS.items():
            (self.path / group).mkdir(exist_ok=True)
            source = {"system": prepared.system, "windows": prepared.windows}.get(group, prepared)
            for name in names:
                path, array = self.path / group / f"{name}.npy", getattr(source, name)
                if not _maps(array, path):  # else it lies there already
                    np.save(path, array, allow_pickle=False)
        prepared.faults.write_parquet(self.path / "faults.parquet")
        files = {}
        for file in sorted(p for p in self.path.rglob("*") if p.is_file()):
            name = file.relative_to(self.path).as_posix()
            if name not in UNHASHED:
                files[name] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
        manifest = {
            "schema_version": SCHEMA_VERSION,
            **prepared.manifest,
            "node_names": list(prepared.system.node_names),
            "service_names": list(prepared.system.service_names),
            "channels": prepared.system.channels,
            "dataset_hash": hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest(),
            "files": files,
        }
        (self.path / "timings.json").write_text(json.dumps(timings, indent=1) + "\n")
        (self.path / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        disk.sync(self.path)
        if self.directory.exists():
            os.rename(self.directory, self._old)
        os.rename(self.path, self.directory)
        shutil.rmtree(self._old, ignore_errors=True)


def _maps(array: np.ndarray, path: Path) -> bool:
    """Whether the array is the file at `path` itself, by whatever links either is reached."""
    return isinstance(array, np.memmap) and path.exists() and os.path.samefile(array.filename, path)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's, or no number of a process
        return True
    return True


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
