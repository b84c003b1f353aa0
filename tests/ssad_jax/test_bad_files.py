"""Damaged and foreign files in the place of what this program or a person has written: one sentence, or as if none."""

import dataclasses
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest

from data_prep.errors import InputError
from ssad_jax import checkpoint, knowledge, prepared, workdir
from ssad_jax.comparison import cells
from ssad_jax.config import default_config
from ssad_jax.scoring.assess import Detector
from ssad_jax.scoring.fitted import Fitted
from ssad_jax.sensitivity import results
from tests.synthetic import make_prepared, save

DEEP = "[" * 100_000
NOT_JSON = [b"", b"{", b"\0" * 9, b"\xff\xfe{\0}\0", b"[]", b"7", b'"text"', b"null", b"{}", DEEP.encode()]
RULE = "{name: a, kind: network, components: [a], signals: {logs: [x]}, description: d}"


def rules(rule=RULE):
    return f"rules:\n  - {rule}\n"


# --- knowledge -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no list called 'rules'"),
        ("[" * 5000, "is not valid YAML"),
        (rules("&a [*a]"), "is not valid YAML"),
        ("rules: &a [*a]", "is not valid YAML"),
        ("a: &a [x,x]\nb: &b [*a,*a]\nrules: [*b, *b]", "is not valid YAML"),
        ("rules: [[]]", "rule 1: is not a mapping"),
        (rules(RULE.replace("description: d", "description: 2001-99-99")), "is not valid YAML"),  # no such day
        (rules(RULE.replace("description: d", "description: " + "9" * 5000)), "is not valid YAML"),  # no such int
        (rules(RULE.replace("description: d", "description: !!int ''")), "is not valid YAML"),
        (rules(RULE.replace("description: d", "description: !!float x")), "is not valid YAML"),
        (rules(RULE.replace("description: d", "description: !!timestamp x")), "is not valid YAML"),
        (rules(RULE.replace("description: d", "? [a] : b")), "is not valid YAML"),
        (rules(RULE.replace("description: d", "description: !!python/object/apply:os.getcwd []")), "is not valid YAML"),
        (rules(RULE.replace("[x]", "[1]")), "must be a list of texts"),
        (rules(RULE.replace("[x]", '["a\0b"]')), "is not valid YAML"),
        (rules() + "#" * knowledge.MOST_BYTES, "has more than 256 KiB"),
    ],
)  # fmt: skip
def test_rules_that_cannot_be_read_are_refused(tmp_path, text, message):
    (tmp_path / "rules.yaml").write_text(text)
    with pytest.raises(InputError, match=rf"rules\.yaml.*{message}"):
        knowledge.read_rules(tmp_path / "rules.yaml")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le", "utf-32"])
def test_rules_in_another_encoding_are_refused(tmp_path, encoding):
    (tmp_path / "rules.yaml").write_text(rules().replace("name: a", "name: ä"), encoding=encoding)
    with pytest.raises(InputError, match=r"rules\.yaml is not valid YAML"):
        knowledge.read_rules(tmp_path / "rules.yaml")


def test_rules_with_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    (tmp_path / "rules.yaml").write_text(rules().replace("\n", "\r\n"), encoding="utf-8-sig", newline="")
    assert [rule["name"] for rule in knowledge.read_rules(tmp_path / "rules.yaml")] == ["a"]


def test_a_directory_or_nothing_in_the_place_of_rules(tmp_path):
    for path, message in ((tmp_path, "Is a directory"), (tmp_path / "no", "No such file or directory")):
        with pytest.raises(InputError, match=f"cannot be read .{message}.; set config.knowledge.path"):
            knowledge.read_rules(path)


# --- prepared datasets -----------------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path):
    save(make_prepared(segments=4, windows_per_segment=4), tmp_path / "set")
    return tmp_path / "set"


@pytest.mark.parametrize("content", NOT_JSON, ids=range(len(NOT_JSON)))
def test_a_manifest_that_is_none(dataset, content):
    (dataset / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match=r"manifest\.json is damaged .*; delete .* and prepare the data again"):
        prepared.load(dataset)


@pytest.mark.parametrize(
    "changed",
    [
        {"files": []}, {"files": {"a": 1}}, {"files": {"a": {"bytes": "9", "sha256": "x"}}}, {"files": {"a": {}}},
        {"node_names": 7}, {"node_names": [1]}, {"service_names": None}, {"channels": []}, {"channels": {"log": "x"}},
    ],
)  # fmt: skip
def test_a_manifest_whose_parts_are_of_other_types(dataset, changed):
    manifest = json.loads((dataset / "manifest.json").read_text())
    (dataset / "manifest.json").write_text(json.dumps(manifest | changed))
    with pytest.raises(InputError, match=r"manifest\.json is damaged \(Expected|manifest\.json is damaged \(Object"):
        prepared.load(dataset)


def test_a_manifest_that_may_not_be_read(dataset, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("io.open", forbidden)
    with pytest.raises(InputError, match=r"manifest\.json is damaged .*Permission denied"):
        prepared.load(dataset)


def as_written(dataset, name, data: bytes):
    """Puts `data` in the place of a file, as if it had been prepared so."""
    (dataset / name).write_bytes(data)
    manifest = json.loads((dataset / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(data), "sha256": prepared._sha256(dataset / name)}
    (dataset / "manifest.json").write_text(json.dumps(manifest))


HEADER = b"\x93NUMPY\x01\x00v\x00"


@pytest.mark.parametrize("name", ["windows/nodes.npy", "windows/label.npy", "sequences/test_runs.npy"])
@pytest.mark.parametrize(
    "data",
    [
        b"",  # EOFError
        b"PK\x03\x04",
        HEADER + b"{'descr': '<f4', 'fortran_order': False, 'shape': (16, 16, R0".ljust(118),  # a TokenError
        HEADER + b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000, 1000), }".ljust(117) + b"\n",
        HEADER + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n",
        HEADER + b"(" * 118,
    ],
)
def test_an_array_that_is_none(dataset, name, data):
    as_written(dataset, name, data)
    with pytest.raises(InputError, match=rf"{name} is damaged .*prepare again"):
        prepared.load(dataset)


@pytest.mark.parametrize("change", [lambda a: a[:-1], lambda a: a[None], lambda a: a[..., None], lambda a: a.flat[0]])
@pytest.mark.parametrize("name", ["nodes", "label", "start_tick", "senders"])
def test_arrays_that_do_not_fit_one_another(dataset, name, change):
    path = dataset / "windows" / f"{name}.npy"
    array = change(np.load(path))
    np.save(path, array)
    as_written(dataset, f"windows/{name}.npy", path.read_bytes())
    name = r"\w+" if name == "start_tick" else name  # the others are measured by it
    with pytest.raises(InputError, match=rf"array {name} is .*, expected .*; prepare the data again"):
        prepared.load(dataset)


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [*NOT_JSON, b'{"config": 7, "dataset_hash": "x"}', b'{"config": [[1, "2"]], "dataset_hash": "x"}',
     b'{"config": {}, "dataset_hash": 7}'],
)  # fmt: skip
def test_a_config_of_a_workdir_that_is_none(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json is damaged .*; delete .* or name another --workdir"):
        workdir.check(tmp_path, default_config("x"), "hash")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory, data = tmp_path_factory.mktemp("run") / "checkpoints", make_prepared(segments=4)
    context = checkpoint.Context(default_config("x"), data.system, data.manifest, {})
    with checkpoint.Writer(directory, 2, context) as writer:
        writer.save(7, 1, {"params": np.zeros(3, np.float32)})
    return directory


@pytest.mark.parametrize("content", NOT_JSON, ids=range(len(NOT_JSON)))
def test_a_document_of_a_checkpoint_that_is_none(trained, content, monkeypatch, capsys):
    read = checkpoint._read_item
    document = json.loads(content) if content in (b"[]", b"7", b'"text"', b"null", b"{}") else None

    def damaged(path, *arguments):
        if path.name != "document":
            return read(path, *arguments)
        return document if document is not None else json.loads(content)

    monkeypatch.setattr(checkpoint, "_read_item", damaged)
    with pytest.raises(InputError, match="no checkpoint in .* can be read; train again: python -m"):
        checkpoint.restore(trained)
    assert "checkpoints/7 is damaged (" in capsys.readouterr().err


def test_a_file_among_the_checkpoints_is_no_checkpoint(tmp_path):
    (tmp_path / "12").write_text("")
    (tmp_path / "13").symlink_to("nowhere")
    with pytest.raises(InputError, match="holds no checkpoint"):
        checkpoint.restore(tmp_path)


@pytest.mark.parametrize("content", [*NOT_JSON, b"PK\x03\x04", b"PK\x05\x06" + b"\0" * 18], ids=str)
def test_a_calibration_that_is_none(tmp_path, content):
    (tmp_path / "calibration.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"calibration\.npz cannot be read .*; evaluate again"):
        Fitted.load(tmp_path / "calibration.npz")
    np.savez(tmp_path / "calibration.npz", facts=np.array(content.decode("latin-1")))
    with pytest.raises(InputError, match=r"calibration\.npz cannot be read"):
        Fitted.load(tmp_path / "calibration.npz")


# --- comparison, sweep: what cannot be read is computed anew ---------------------------------------------------------

DATA = make_prepared(segments=4, windows_per_segment=4)
SPLIT = SimpleNamespace(prepared=DATA, test=np.arange(4))


@pytest.fixture
def cell(tmp_path):
    detector = Detector("x", np.arange(4.0), 1.0, "quantile", np.zeros(4, bool), [["service-0"], [], [], []])
    cells.save(tmp_path / "cell.npz", SPLIT, cells.Cell({"x": detector}, {"seconds": 1.0}))
    return tmp_path / "cell.npz"


@pytest.mark.parametrize(
    "header",
    [*NOT_JSON, b'{"detectors": [7], "facts": {}}', b'{"detectors": [{"name": "x"}], "facts": {}}',
     b'{"detectors": [{"name": "x", "threshold": 1, "method": "q"}], "services": [], "facts": {}}',
     b'{"detectors": []}', b'{"detectors": [], "facts": 7}'],
)  # fmt: skip
def test_a_damaged_cell_is_none(cell, header):
    """Found by the fuzzer: `facts` were looked up outside of what may fail."""
    assert cells.load(cell, SPLIT).detectors["x"].suspects == [["service-0"], [], [], []]
    with np.load(cell) as file:
        arrays = dict(file)
    np.savez(cell, **arrays | {"header": np.frombuffer(header, np.uint8)})
    assert cells.load(cell, SPLIT) is None


@pytest.mark.parametrize("at", range(0, 3000, 150))
def test_a_cell_with_a_flipped_byte_is_whole_or_none(cell, at):
    data = bytearray(cell.read_bytes())
    data[at % len(data)] ^= 0xFF
    cell.write_bytes(data)
    found = cells.load(cell, SPLIT)
    assert found is None or dataclasses.is_dataclass(found.detectors["x"]) or "x" in found.detectors
    cell.write_bytes(data[: at % len(data)])
    assert cells.load(cell, SPLIT) is None


@pytest.mark.parametrize("content", NOT_JSON, ids=range(len(NOT_JSON)))
def test_a_damaged_sweep_has_no_form(tmp_path, content):
    (tmp_path / "sweep.json").write_bytes(content)
    assert results.last_form(tmp_path) is None
    os.unlink(tmp_path / "sweep.json")
    assert results.last_form(tmp_path) is None
