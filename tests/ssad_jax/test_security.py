"""Data are parsed, never executed; what they can still do is bounded. README, "What is trusted"."""

import ast
import gzip
import hashlib
import json
import logging
import os
import pickle
import re
import shutil
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from data_prep import command, csv_rows, fitted, templates
from data_prep.errors import InputError
from data_prep.sources import jaeger, json_files, osprofiler, prometheus, spring_boot
from data_prep.visible import visible
from ssad_jax import checkpoint, evaluation_log, knowledge, prepared, settings
from ssad_jax.config import default_config
from ssad_jax.scoring.fitted import Fitted
from tests.data_prep.test_prepare import prepare_rows, telemetry
from tests.ssad_jax import test_checkpoint
from tests.ssad_jax.test_evaluate import run
from tests.ssad_jax.test_report import check, evaluated, renamed
from tests.synthetic import make_prepared, save

ROOT = Path(__file__).parents[2]
SOURCES = [path for part in ("data_prep", "ssad_jax") for path in sorted((ROOT / part).rglob("*.py"))]
MARK = Path(tempfile.mkdtemp(prefix="ssad_jax-bomb-"), "mark")
context = test_checkpoint.context  # a fixture


class Bomb:
    """Whoever unpickles it leaves a mark."""

    def __reduce__(self):
        return os.mkdir, (str(MARK),)


@pytest.fixture(autouse=True)
def unmarked():
    """Fails where a bomb was unpickled."""
    yield
    assert not MARK.exists()


def test_the_bomb_works():
    pickle.loads(pickle.dumps(Bomb()))
    MARK.rmdir()  # which there is


def calls(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_nothing_unpickles_evaluates_or_unpacks():
    """Process pools pickle what this program itself sends; the sources read no pickle, no code and no archive."""
    assert len(SOURCES) > 100
    for path in SOURCES:
        check_source(path, ast.parse(path.read_text(encoding="utf-8")))


def check_source(path, tree):
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    roots = {name.split(".")[0] for name in imported}
    assert not roots & {"pickle", "cloudpickle", "dill", "marshal", "shelve", "jsonpickle", "joblib", "tarfile"}
    for call in calls(tree):
        name = ast.unparse(call.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert name not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.unsafe_load")
        assert not name.endswith(("extractall", "unpack_archive")) and keywords.get("shell") != "True"
        assert keywords.get("allow_pickle", "False") == "False"
        assert name != "yaml.load" or ast.unparse(call.args[1]) == "_PlainLoader"
        if "simulate" not in path.parts:  # which writes raw files of its own
            assert not name.endswith(("write_csv", "to_csv", "csv.writer", "DictWriter"))  # nor formulas for sheets


def test_templates_are_kept_without_drains_own_persistence():
    found = templates.Templates(["a b <num>", "a c <num>"])
    assert found._miner.persistence_handler is None and all(isinstance(text, str) for text in found.texts)


def relisted(directory):
    """The manifest with the sizes and hashes that the files have now, as an author of such files would write it."""
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    for name, facts in manifest["files"].items():
        content = (directory / name).read_bytes()
        facts |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    path.write_text(json.dumps(manifest))


ARRAYS = [f"{group}/{name}.npy" for group, names in prepared.ARRAYS.items() for name in names]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    directory = tmp_path_factory.mktemp("dataset") / "data"
    save(make_prepared(), directory)
    return directory


@pytest.fixture
def copy(dataset, tmp_path):
    return Path(shutil.copytree(dataset, tmp_path / "data"))


@pytest.mark.parametrize("form", ["object array", "pickle", "archive"])
def test_a_pickle_in_the_place_of_an_array_is_refused(form, copy):
    whole = {name: (copy / name).read_bytes() for name in ("manifest.json", *ARRAYS)}
    for name in [*ARRAYS, "ticks/signals.npy", "ticks/start_unix_nano.npy", "faults.parquet"]:
        path = copy / name
        kept = path.read_bytes()
        if form == "pickle":
            path.write_bytes(pickle.dumps(Bomb()))
        else:
            with open(path, "wb") as file:
                bomb = np.array([Bomb()], object)
                np.save(file, bomb, allow_pickle=True) if form == "object array" else np.savez(file, a=bomb)
        relisted(copy)
        with pytest.raises(InputError, match=f"{re.escape(path.name)}|ticks"):
            prepared.load(copy)
        path.write_bytes(kept)
        (copy / "manifest.json").write_bytes(whole["manifest.json"])
    assert prepared.load(copy).windows.num_windows


def test_an_array_that_claims_to_be_huge_takes_no_memory(copy):
    for name in ("windows/nodes.npy", "windows/label.npy", "system/kind.npy", "ticks/start_unix_nano.npy"):
        kept = (copy / name).read_bytes()
        with open(copy / name, "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (1 << 45,)})
        relisted(copy)
        with pytest.raises(InputError, match="damaged"):
            prepared.load(copy)
        (copy / name).write_bytes(kept)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "windows/../../outside", "system/link.npy"])
def test_a_manifest_lists_no_file_outside_its_directory(name, copy):
    (copy.parent / "outside").write_text("secret")
    (copy / "system" / "link.npy").symlink_to(copy.parent / "outside")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": 6, "sha256": ""}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="which lies outside"):
        prepared.load(copy)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"schema_version": 5, "files": [], "node_names": [], "service_names": [], "channels": {}}',
             '{"schema_version": 5, "files": {"a": 1}, "node_names": [], "service_names": [], "channels": {}}'],
)  # fmt: skip
def test_a_manifest_of_another_form_is_refused(text, copy):
    (copy / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="manifest.json is damaged"):
        prepared.load(copy)


def test_a_pickle_in_the_place_of_any_file_of_a_checkpoint_is_refused(tmp_path, context, capsys):
    test_checkpoint.write(tmp_path / "good", context, (1,))
    files = [p.relative_to(tmp_path / "good") for p in sorted((tmp_path / "good").rglob("*")) if p.is_file()]
    assert len(files) > 5
    refused = 0
    for name in files:
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        (tmp_path / "bad" / name).write_bytes(pickle.dumps(Bomb()))
        try:
            found = checkpoint.restore(tmp_path / "bad")
        except InputError as error:
            assert "bad" in str(error)
            refused += 1
        else:  # a file that nothing reads
            np.testing.assert_array_equal(found.tree["params.dense.1.w"], np.ones(3, np.float32))
    assert refused >= 5
    capsys.readouterr()


def test_a_checkpoint_does_not_choose_an_array_from_nothing(tmp_path, context, monkeypatch):
    """Arrays without elements stand in the document: they cannot have any there."""
    empty = checkpoint._empty
    monkeypatch.setattr(checkpoint, "_empty", lambda arrays: empty(arrays) | {"huge": ([1 << 40, 1 << 20], "<f4")})
    test_checkpoint.write(tmp_path, context, (1,))
    with pytest.raises(InputError, match="no checkpoint in .* can be read"):
        checkpoint.restore(tmp_path)


def test_what_was_fitted_is_read_as_plain_arrays(tmp_path):
    run(make_prepared(segments=8), tmp_path)
    path = tmp_path / "evaluation" / "calibration.npz"
    with np.load(path) as file:
        arrays = dict(file)
    assert Fitted.load(path).step == 7
    np.savez_compressed(path, **arrays, zeros=np.zeros(1 << 24))  # 128 MiB in 0.1
    with pytest.raises(InputError, match="compressed, as this program writes none"):
        Fitted.load(path)
    np.savez(path, **arrays | {"centre": np.array([Bomb()], object)}, allow_pickle=True)
    with pytest.raises(InputError, match="calibration.npz cannot be read"):
        Fitted.load(path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match="calibration.npz cannot be read"):
        Fitted.load(path)


def test_what_was_fitted_in_preparing_is_read_as_plain_arrays(tmp_path):
    rows = {"logs": telemetry(until=300)["logs"]}
    where = prepare_rows(tmp_path, rows, segment_seconds=30.0).directory
    path, names = where / "fitted" / "arrays.npz", json.loads((where / "fitted" / "names.json").read_text())
    assert fitted.load(where).bodies == names["bodies"]  # texts: drain's own persistence would have to be unpickled
    with np.load(path) as file:
        arrays = dict(file)
    first = next(iter(arrays))
    np.savez_compressed(path, **arrays, zeros=np.zeros(1 << 20))
    with pytest.raises(InputError, match="compressed, as this program writes none"):
        fitted.load(where)
    np.savez(path, **arrays | {first: np.array([Bomb()], object)}, allow_pickle=True)
    with pytest.raises(InputError, match="fitted is damaged"):
        fitted.load(where)


def bomb_of(path, begin=b"", count=160, unit=b" "):
    """A gzip file of `count` times 64 MiB (10 GB in 10 MB), made of members that follow one another."""
    member = gzip.compress(unit * ((64 << 20) // len(unit)))
    path.write_bytes(gzip.compress(begin) + member * count)
    return path


def peak_of(function) -> int:
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("reader", ["jaeger", "prometheus", "osprofiler"])
@pytest.mark.parametrize("on_bad_rows", ["quarantine", "error"])
def test_gzip_json_that_expands_without_end_is_refused(reader, on_bad_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "MOST_UNPACKED", 16 << 20)
    path = bomb_of(tmp_path / "a.json.gz", b'{"data": [')
    assert path.stat().st_size < 12e6
    read = {
        "jaeger": lambda: jaeger.read(path, 0, 1, on_bad_rows),
        "prometheus": lambda: prometheus.read(path, 0, 1, (".*",), on_bad_rows),
        "osprofiler": lambda: osprofiler.read_traces(str(tmp_path), [path.name], on_bad_rows),
    }[reader]

    def refused():
        with pytest.raises(InputError, match=r"a\.json\.gz holds more than 16 MiB of text; divide it, or unpack it"):
            read()

    assert peak_of(refused) < 80 << 20


def test_gzip_json_up_to_the_limit_is_read(tmp_path, monkeypatch):
    text = b"[1, 2]" + b" " * 1000
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(text))
    monkeypatch.setattr(json_files, "MOST_UNPACKED", len(text))
    assert json_files.decode(tmp_path / "a.json.gz", list[int]) == [1, 2]


def test_a_gzip_table_whose_row_has_no_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_rows, "LARGEST_RECORD", 16 << 20)
    path = bomb_of(tmp_path / "logs.csv.gz", b"a,b\n1,2\n")
    with pytest.raises(InputError, match="no row ends within 16 MiB"):
        csv_rows.read(path)
    (field,) = csv_rows.first_record(bomb_of(tmp_path / "head.csv.gz", count=1, unit=b"x"))
    assert len(field) == csv_rows._BLOCK  # of 64 MiB: a header is not read on


@pytest.mark.parametrize("unit", [b" ", b"at a.b.C(D.java:1)\n"])
def test_log_lines_and_records_without_end_are_read_block_by_block(unit, tmp_path, monkeypatch):
    monkeypatch.setattr(spring_boot, "_BLOCK", 1 << 16)
    head = b"2022-07-08 16:02:46.267  INFO 1 --- [io-16112-exec-4] a.B   : hello\n"
    path = tmp_path / "LOGS.txt.gz"
    path.write_bytes(gzip.compress(head + unit * ((8 << 20) // len(unit))))
    blocks = [sum(map(len, lines)) for _, lines in spring_boot._blocks(path, by_line=False)]
    assert sum(blocks) > 7 << 20 and max(blocks) < 4 << 16


LAUGHS = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10 if i else ['lol'] * 10)}]\n" for i in range(10))
RULE = "rules:\n- {name: a, kind: normal, components: [], signals: {}, description: d}\n"


@pytest.mark.parametrize(
    "text, words",
    [
        (LAUGHS + RULE, "aliases .* are not read"),
        ("&m\nrules: [*m]\n", "aliases .* are not read"),
        ("rules: !!python/object/apply:os.putenv [MARK, '1']\n", "could not determine a constructor"),
        ("rules: " + "[" * 50_000, "recursion"),
        ("rules: " + "9" * 5_000, "limit"),
        ("rules: 2020-02-31\n", "day"),
        (RULE + "#" * (256 << 10), "more than 256 KiB"),
        ("rules: \0\n", "special characters"),
        (b"\xff\xfe\xff", "utf-8"),
    ],
    ids=["billion laughs", "recursive", "python", "deep", "long number", "no date", "large", "nul", "no text"],
)  # fmt: skip
def test_knowledge_files_that_are_more_than_text_are_refused(text, words, tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=f"(?i)rules.yaml .*{words}"):
        knowledge.load(path, (), np.zeros((0, 8)), 4)


def test_data_do_not_choose_which_file_evaluations_are_written_to(tmp_path):
    """A checkpoint brings its config: the file that evaluations append to is no shell profile."""
    config = default_config("x")
    for name in (".bashrc", "authorized_keys", "log.jsonl/../.profile", "a.py"):
        config.evaluation_log = str(tmp_path / name)
        with pytest.raises(InputError, match="must end with .jsonl"):
            evaluation_log.append(config, {"dataset_hash": "x"}, "evaluate", "$(id)", "d", {"num_windows": 1})
        with pytest.raises(InputError, match="must end with .jsonl"):
            settings.check(config)
    assert not list(tmp_path.iterdir())


ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\b\x00 \u202efdp.exe\u2066 \u200b\ufeff"


def test_text_shows_what_would_not_be_seen():
    assert visible("a\x1b[31mb\u202ec") == "a\\u001b[31mb\\u202ec"
    assert visible("é\n\t訂單 \U000e0041") == "é\n\t訂單 \\U000e0041"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069\ufeff]", visible(ESCAPES))


def test_errors_and_logs_send_no_commands_to_the_terminal(capsys):
    with pytest.raises(SystemExit) as ended:
        command._fail(InputError(f"{ESCAPES}.csv\nlacks column 'a'"))
    assert ended.value.code == command.EXIT_BAD_INPUT
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and "\\u001b]0;owned\\u0007" in shown
    assert "\x1b" not in shown and "\u202e" not in shown
    record = logging.LogRecord("a", logging.WARNING, "f", 1, "%s names %r", (f"k{ESCAPES}", "b"), None)
    assert command._shown(record) and record.getMessage() == f"k{visible(ESCAPES)} names 'b'"


def test_a_damaged_checkpoint_is_told_of_in_plain_text(tmp_path, context, capsys):
    directory = tmp_path / "a\x1b[31m"
    test_checkpoint.write(directory, context, (1, 2))
    test_checkpoint.flip(test_checkpoint.largest(directory / "2"))
    assert checkpoint.restore(directory).step == 1
    assert "damaged" in (shown := capsys.readouterr().err) and "\x1b" not in shown


HOSTILE = (
    "</style><style>*{display:none}</style>'\"><svg onload=alert(1)><a href=javascript:alert(1)>"
    "url(//evil.example) --> ]]> &lt;b&gt; {% include 'x' %} =HYPERLINK(\"//e\") \x1b[31m\u202etxt.exe\u2066"
)


def test_hostile_telemetry_is_text_in_the_report(tmp_path):
    """As a service, a template, a fault type, a log line, a source, a prototype and a setting."""
    page = evaluated(renamed(tmp_path / "data", HOSTILE), tmp_path / "work", names=(HOSTILE,)).page
    parsed = check(page.replace("url(//", ""))  # which stands there as text
    seen = visible(HOSTILE.replace("\x1b[31m", ""))[:60]
    assert parsed.text.count(seen) > 5
    assert [tag for tag, attrs in parsed.tags if tag == "style"] == ["style"]  # ours alone
    styles = "".join(parsed.attributes("style"))
    assert "evil" not in styles and "display" not in re.sub(r"display: inline-block", "", styles)
    assert all(link.startswith("#") for link in parsed.attributes("href") if not link.startswith("data:image/png"))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)


def test_what_a_checkpoint_says_is_text_in_the_report(tmp_path):
    usual = evaluated(make_prepared(segments=8), tmp_path)
    results = usual.arguments[0]
    strange = {"trained_on_this_dataset": False, "trained_dataset_hash": HOSTILE,
               "config": results["config"] | {HOSTILE: HOSTILE, "name": HOSTILE}}  # fmt: skip
    page = usual.again(results=results | strange)
    check(page.replace("url(//", ""))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)


def test_parquet_is_read_slice_by_slice(tmp_path):
    """A million equal rows take some kilobytes; a reader holds no more than a slice of them at once."""
    from data_prep import tables

    rows = pl.DataFrame({"start_time_unix_nano": pl.Series([1], dtype=pl.Int64).repeat_by(1_000_000).explode()})
    rows = rows.with_columns(end_time_unix_nano="start_time_unix_nano")
    rows.write_parquet(tmp_path / "gaps.parquet", compression="zstd")
    assert (tmp_path / "gaps.parquet").stat().st_size < 100_000
    firsts = tables.slices(tmp_path / "gaps.parquet")
    assert len(firsts) == 4
    ((_, account),) = tables.read_slice(tmp_path / "gaps.parquet", "gaps", "quarantine", firsts[1])
    assert account.read == tables._SLICE and "os" in sys.modules
