"""The splits of a protocol: prepared datasets, and their test windows pooled into one evaluation."""

import dataclasses
import hashlib

import numpy as np

from data_prep.errors import InputError
from data_prep.split import FOLDS
from ssad_jax import datasets, parallel
from ssad_jax.prepared import Prepared
from ssad_jax.scoring.assess import Detector, TestWindows, test_windows

PROTOCOLS = {"chronological": ("chronological",), "folds": tuple(f"fold:{k}" for k in range(FOLDS))}


@dataclasses.dataclass(frozen=True)
class Split:
    """One division of the data into fit, calibration and test windows."""

    name: str  # chronological | fold:K
    config: object  # with this protocol and its own prepared_dir
    prepared: Prepared
    held_out: np.ndarray  # [H] rows of prepared.windows that calibrate, in time order
    test: np.ndarray  # [M] rows of prepared.windows that are evaluated, in time order


def split_config(config, name: str):
    """A copy of the config for a split; `prepared_dir` is its own for the config's protocol, else has a suffix."""
    own = config.copy_and_resolve_references()
    if name != config.data.protocol:
        own.data.prepared_dir = f"{config.data.prepared_dir.rstrip('/')}_{name.replace(':', '')}"
    own.data.protocol = name
    return own


def find_split(config, name: str) -> Split:
    """Load a split, and prepare it first where that has not been done.

    Raises:
        InputError: the data cannot be prepared, or the directory holds data that were prepared otherwise.
    """
    own = split_config(config, name)
    return make_split(name, own, datasets.find_prepared(own, parallel))


def make_split(name: str, config, prepared: Prepared) -> Split:
    held_out, test = (_in_time(prepared, runs) for runs in (prepared.calibration_runs, prepared.test_runs))
    if not len(held_out):
        raise InputError(f"{prepared.directory} has no calibration windows: no threshold can be set on it")
    return Split(name, config, prepared, held_out, test)


def _in_time(prepared: Prepared, runs: np.ndarray) -> np.ndarray:
    ids = np.unique(runs[runs >= 0])
    return ids[np.argsort(prepared.windows.start_unix_nano[ids], kind="stable")]


def manifest(splits: list[Split]) -> dict:
    """What the evaluation log asks of a dataset, for all splits of a protocol."""
    hashes = [split.prepared.manifest["dataset_hash"] for split in splits]
    joined = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    return {"dataset_hash": joined} | {key: splits[0].prepared.manifest.get(key) for key in ("simulated", "injected")}


def pool(splits: list[Split]) -> TestWindows:
    """The test windows of all splits, one split after the other, as one evaluation.

    Raises:
        InputError: the splits were not made of the same labels, or a window is tested twice.
    """
    parts, offset = [], 0
    for split in splits:
        if not split.prepared.faults.equals(splits[0].prepared.faults):
            raise InputError(
                f"{split.prepared.directory} and {splits[0].prepared.directory} hold different faults; delete both and "
                "prepare them again"
            )
        part = test_windows(split.prepared.windows, split.prepared.faults, split.test)
        parts.append(dataclasses.replace(part, segment=part.segment + offset))
        offset += int(split.prepared.windows.segment.max(initial=0)) + 1
    names = ("window", "start_unix_nano", "end_unix_nano", "segment", "label", "fault")
    columns = {name: np.concatenate([getattr(p, name) for p in parts]) for name in names}
    starts = columns["start_unix_nano"]
    if len(np.unique(starts)) < len(starts):
        raise InputError("the splits test some windows twice; delete their prepared directories and prepare them again")
    return TestWindows(**columns, faults=splits[0].prepared.faults)


def pool_detector(name: str, parts: list[Detector]) -> Detector:
    """A detector's scores on all splits, in the order of `pool`; each split has its own threshold."""
    suspects = None
    if all(p.suspects is not None for p in parts):
        suspects = [names for p in parts for names in p.suspects]
    thresholds = [p.threshold for p in parts]
    same = len(parts) == 1
    return Detector(
        name, np.concatenate([p.score for p in parts]), thresholds[0] if same else float("nan"),
        parts[0].threshold_method if same else "each split's own: " + parts[0].threshold_method,
        np.concatenate([p.alert for p in parts]), suspects,
    )  # fmt: skip
