"""What this program reads of what it or a person has written: knowledge, datasets, checkpoints, calibrations, cells."""

import contextlib
import functools
import hashlib
import io
import json
from types import SimpleNamespace
from unittest import mock

import numpy as np

from ssad_jax import checkpoint, knowledge, prepared, workdir
from ssad_jax.comparison import cells
from ssad_jax.config import default_config
from ssad_jax.prepared import NODE_KINDS
from ssad_jax.scoring.assess import Detector
from ssad_jax.scoring.calibration import Calibration
from ssad_jax.scoring.fitted import Fitted
from ssad_jax.scoring.states import Forecast, Readings, Silent, Whitening
from ssad_jax.scoring.thresholds import Rule, Threshold
from ssad_jax.sensitivity import results
from tests.fuzz.target import SCRATCH, Target, placed
from tests.synthetic import make_prepared, save


def _knowledge(data: bytes) -> None:
    found = knowledge.load(placed(data, "rules.yaml"), _SERVICES, np.zeros((2, 8), np.float32), 8)
    assert found.keys.shape == (8, knowledge.KEY_DIM) and np.isfinite(found.keys).all()


def _manifest(data: bytes) -> None:
    prepared._read_manifest(placed(data, "manifest.json"))


@functools.cache
def _dataset():
    save(_SMALL, SCRATCH / "set")
    return SCRATCH / "set", json.loads((SCRATCH / "set/manifest.json").read_text())


def _prepared(data: bytes) -> None:
    directory, _ = _dataset()
    (directory / "manifest.json").write_bytes(data)
    prepared.load(directory)


def _prepared_array(data: bytes) -> None:
    """An array that its hash fits."""
    directory, manifest = _dataset()
    name = "windows/label.npy" if b"'|i1'" in data[:128] else "windows/nodes.npy"
    before = (directory / name).read_bytes()
    facts = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (directory / name).write_bytes(data)
    (directory / "manifest.json").write_text(json.dumps(manifest | {"files": manifest["files"] | {name: facts}}))
    try:
        found = prepared.load(directory)
        assert found.windows.nodes.shape == _SMALL.windows.nodes.shape and found.windows.num_windows == len(
            found.windows.label
        )
    finally:
        (directory / name).write_bytes(before)


@functools.cache
def _checkpoint():
    """A checkpoint, its document as bytes, and its arrays."""
    directory, context = SCRATCH / "checkpoints", checkpoint.Context(_CONFIG, _SMALL.system, _SMALL.manifest, {})
    with checkpoint.Writer(directory, 1, context) as writer:
        writer.save(7, 1, {"params": np.zeros(3, np.float32)})
    read, items = checkpoint._read_item, {}
    with mock.patch.object(checkpoint, "_read_item", lambda p, *a: items.setdefault(p.name, read(p, *a))):
        checkpoint.restore(directory)
    return directory, items


def _checkpoint_document(data: bytes) -> None:
    """A document that its checksum fits, where it is one at all. Orbax itself is left out: it reads the same arrays."""
    directory, items = _checkpoint()

    def read(path, *_):
        if path.name != "document":
            return items[path.name]
        document = json.loads(data)
        if isinstance(document, dict):
            document.pop("checksum", None)
            document["checksum"] = checkpoint._document_checksum(document)
        return document

    with mock.patch.object(checkpoint, "_read_item", read), contextlib.redirect_stderr(io.StringIO()):
        checkpoint.restore(directory)


def _config_json(data: bytes) -> None:
    workdir.check(placed(data, "config.json").parent, _CONFIG, "synthetic-0")


def _fitted(data: bytes) -> None:
    Fitted.load(placed(data, "calibration.npz"))


def _fitted_facts(data: bytes) -> None:
    """The texts of a calibration whose arrays are whole."""
    arrays = _FITTED_ARRAYS | {"facts": np.array(data.decode("utf-8", "surrogateescape"))}
    Fitted.load(placed(_npz(arrays), "calibration.npz"))


def _cell(data: bytes) -> None:
    cells.load(placed(data, "cell.npz"), _SPLIT)


def _cell_header(data: bytes) -> None:
    cells.load(placed(_npz(_CELL_ARRAYS | {"header": np.frombuffer(data, np.uint8)}), "cell.npz"), _SPLIT)


def _sweep(data: bytes) -> None:
    results.last_form(placed(data, "sweep.json").parent)


def _npz(arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _arrays(path) -> dict:
    with np.load(path) as file:
        return dict(file)


def _some_fitted() -> Fitted:
    whitening = Whitening(np.zeros(2), np.ones(2), np.eye(2))
    fields = {name: np.zeros(2) for name in Calibration.__dataclass_fields__}
    calibration = Calibration(**fields | {"kinds": np.arange(2), "warm_up": np.array(3), "weights": np.ones(3)})
    readings = Readings(Forecast(np.zeros(2), np.zeros(2), np.eye(2), whitening), Silent())
    return Fitted(calibration, (readings,), Rule(Threshold(1.0, "x"), np.zeros(3), 2), {}, 7, "hash")


_SMALL = make_prepared(segments=4, windows_per_segment=4)
_CONFIG, _SERVICES = default_config("x"), ["nova-api", "rabbitmq"]
_RULES = b"""system: OpenStack
rules:
  - name: message-queue-outage
    kind: dependency
    components: [rabbitmq, "nova-*"]
    signals: {logs: [AMQP server unreachable], metrics: [], traces: [rpc latency]}
    description: One or two sentences.
"""
_MANIFEST = json.dumps(
    {"schema_version": prepared.SCHEMA_VERSION, "files": {"system/kind.npy": {"bytes": 9, "sha256": "x"}},
     "node_names": ["a"], "service_names": ["a"], "channels": {kind: ["x"] for kind in NODE_KINDS}}
).encode()  # fmt: skip
_SPLIT = SimpleNamespace(prepared=SimpleNamespace(windows=_SMALL.windows, system=_SMALL.system), test=np.arange(4))
_DETECTOR = Detector("x", np.arange(4.0), 1.0, "quantile", np.zeros(4, bool), [["service-0"], [], [], []])


def _npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


_some_fitted().save(placed(b"", "calibration.npz"))
_FITTED_FILE, _FITTED_ARRAYS = (SCRATCH / "calibration.npz").read_bytes(), _arrays(SCRATCH / "calibration.npz")
cells.save(placed(b"", "cell.npz"), _SPLIT, cells.Cell({"x": _DETECTOR}, {"seconds": 1.0}))
_CELL_FILE, _CELL_ARRAYS = (SCRATCH / "cell.npz").read_bytes(), _arrays(SCRATCH / "cell.npz")
_WHOLE = json.dumps(_dataset()[1]).encode()
_CONFIG_JSON = json.dumps({"config": checkpoint.config_to_dict(_CONFIG), "dataset_hash": "synthetic-0"}).encode()

TARGETS = (
    Target("knowledge", "a YAML file of rules", _knowledge, (_RULES,), "text"),
    Target("manifest", "the manifest of a prepared dataset", _manifest, (_MANIFEST,), "json"),
    Target("prepared", "the same, with the dataset's files", _prepared, (_WHOLE,), "json"),
    Target("prepared_array", "an array of a prepared dataset", _prepared_array,
           (_npy(_SMALL.windows.label), _npy(_SMALL.windows.nodes[:, :, :1])[:9000])),
    Target("checkpoint", "the document of a checkpoint", _checkpoint_document,
           (json.dumps(_checkpoint()[1]["document"]).encode(),), "json"),
    Target("config_json", "config.json of a working directory", _config_json, (_CONFIG_JSON,), "json"),
    Target("fitted", "calibration.npz", _fitted, (_FITTED_FILE,)),
    Target("fitted_facts", "the texts of calibration.npz", _fitted_facts,
           (str(_FITTED_ARRAYS["facts"]).encode(),), "json"),
    Target("cell", "a cell of a comparison", _cell, (_CELL_FILE,)),
    Target("cell_header", "the texts of a cell", _cell_header, (_CELL_ARRAYS["header"].tobytes(),), "json"),
    Target("sweep", "sweep.json", _sweep, (b'{"form": {"vmapped": true}}',), "json"),
)  # fmt: skip
