"""Cells on disk: what one family says of one split with one seed. An interrupted comparison goes on from them.

A cell's file name ends with a hash of everything that its scores depend on but the program itself: settings, dataset,
rules, seed, the file of a detector of one's own. A changed setting therefore never finds an old cell. The program's
fingerprint stands inside.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssad_jax import methods
from ssad_jax.comparison.families import Family
from ssad_jax.comparison.splits import Split
from ssad_jax.evaluation_log import config_hash
from ssad_jax.scoring.assess import Detector
from ssad_jax.scoring.output import write_arrays

VERSION = 2
LATER = ("alerts", "score.variant")  # what is made of scores afterwards
TRAINING = (
    "method", "data", "simulate", "model", "loss", "views", "knowledge", "optimizer", "train", "parallel", "compared",
)  # fmt: skip
OUTSIDE = (  # no score comes from these
    "report", "studies", "comparison/figures.py", "comparison/tables.py", "compare.py", "vus.py", "resampling.py",
    "metrics.py", "evaluate.py", "evaluation_log.py", "main.py", "scoring/alarms.py", "scoring/explain.py",
    "scoring/raw.py", "scoring/fitted.py", "sweep.py", "sensitivity/results.py", "sensitivity/tables.py",
    "sensitivity/plot.py", "benchmark.py", "benchmarking", "streaming.py", "trained.py", "compared/__init__.py",
)  # fmt: skip


class Cell(NamedTuple):
    """Scores of a split's test windows."""

    detectors: dict[str, Detector]
    facts: dict  # program, seconds, device


def path_of(workdir: Path, split: Split, family: Family, seed: int) -> Path:
    digest = cell_hash(split, family, seed)
    return Path(workdir, "cells", split.name.replace(":", ""), family.name, f"seed{seed}-{digest[:16]}.npz")


def cell_hash(split: Split, family: Family, seed: int) -> str:
    """Of everything that the family's scores of the split depend on, but the program."""
    config = family.config(split.config)
    trained = family.kind in ("trained", "untrained")
    rules = Path(config.knowledge.path).read_bytes() if trained and config.knowledge.path else b""
    facts = [
        VERSION, family.kind, family.name, 0 if family.deterministic else seed,
        config_hash(config, LATER if trained else LATER + TRAINING), split.prepared.manifest["dataset_hash"],
        hashlib.sha256(rules).hexdigest(),
    ]  # fmt: skip
    if trained and methods.is_own(config.method):
        facts.append(hashlib.sha256(Path(methods.get(config.method).__file__).read_bytes()).hexdigest())
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def program(*packages) -> str:
    """Fingerprint of the source files of packages that scores come from."""
    digest = hashlib.sha256()
    for root in (Path(package.__file__).parent for package in packages):
        for path in sorted(root.rglob("*.py")):
            name = path.relative_to(root).as_posix()
            if not name.startswith(OUTSIDE):
                digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def save(path: Path, split: Split, cell: Cell) -> None:
    """Write a cell; a killed program leaves none that looks finished."""
    arrays, header = {}, []
    services = list(split.prepared.system.service_names)
    number = {name: i for i, name in enumerate(services)}
    for i, (name, detector) in enumerate(cell.detectors.items()):
        arrays[f"score_{i}"], arrays[f"alert_{i}"] = detector.score, detector.alert
        if detector.held_out is not None:
            arrays[f"held_out_{i}"] = detector.held_out
        if detector.suspects is not None:
            width = max(map(len, detector.suspects), default=0)
            rows = [[number[s] for s in names] + [-1] * (width - len(names)) for names in detector.suspects]
            arrays[f"suspects_{i}"] = np.array(rows, np.int16).reshape(len(rows), width)
        header.append({"name": name, "threshold": detector.threshold, "method": detector.threshold_method})
    text = json.dumps({"detectors": header, "services": services, "facts": cell.facts})
    arrays["header"] = np.frombuffer(text.encode(), np.uint8)
    arrays["window_start_unix_nano"] = split.prepared.windows.start_unix_nano[split.test]
    arrays["window_end_unix_nano"] = split.prepared.windows.end_unix_nano[split.test]
    write_arrays(path, arrays)


def load(path: Path, split: Split) -> Cell | None:
    """A finished cell of the split's windows; None where there is none, or a damaged one."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            header = json.loads(arrays["header"].tobytes())
            starts = arrays["window_start_unix_nano"]
            detectors = {}
            for i, facts in enumerate(header["detectors"]):
                suspects = None
                if f"suspects_{i}" in arrays:
                    rows = arrays[f"suspects_{i}"].tolist()
                    suspects = [[header["services"][s] for s in row if s >= 0] for row in rows]
                detectors[facts["name"]] = Detector(
                    facts["name"], arrays[f"score_{i}"], facts["threshold"], facts["method"], arrays[f"alert_{i}"],
                    suspects, held_out=arrays[f"held_out_{i}"] if f"held_out_{i}" in arrays else None,
                )  # fmt: skip
        cell = Cell(detectors, dict(header["facts"]))
    except Exception:  # damage shows as many kinds of error, depending on the byte
        return None
    return cell if np.array_equal(starts, split.prepared.windows.start_unix_nano[split.test]) else None
