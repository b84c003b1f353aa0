"""Two raw directories are told apart by the names and sizes of their files."""

import os

import pytest

from data_prep import raw_files, spilled
from data_prep.errors import InputError
from data_prep.fingerprint import label_fingerprints, raw_fingerprint
from ssad_jax.config import default_config


def test_it_depends_on_names_and_sizes_alone(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for directory, text in ((one, "abc"), (two, "xyz")):
        (directory / "sub").mkdir(parents=True)
        (directory / "sub" / "logs.csv").write_text(text)
    assert raw_fingerprint(one) == raw_fingerprint(two)
    (two / "sub" / "logs.csv").write_text("longer")
    assert raw_fingerprint(one) != raw_fingerprint(two)
    (two / "sub" / "logs.csv").write_text("xyz")
    (two / "sub" / "logs.csv").rename(two / "sub" / "log.csv")
    assert raw_fingerprint(one) != raw_fingerprint(two)


def test_names_may_be_any_bytes(tmp_path):
    open(os.fsencode(tmp_path) + b"/caf\xe9\n.jsonl", "w").close()
    before = raw_fingerprint(tmp_path)
    open(os.fsencode(tmp_path) + b"/caf\xe8.jsonl", "w").close()
    assert raw_fingerprint(tmp_path) != before


def test_a_broken_link_is_named(tmp_path):
    (tmp_path / "logs.csv").symlink_to("nowhere")
    for function in (raw_fingerprint, spilled.num_partitions):
        with pytest.raises(InputError, match=r"logs\.csv cannot be read .*; mend or remove it"):
            function(tmp_path)


def test_times_of_change_count_where_they_are_asked_for(tmp_path):
    file = tmp_path / "logs.csv"
    file.write_text("abc")
    before = raw_fingerprint(tmp_path), raw_fingerprint(tmp_path, times=True)
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1000))
    assert raw_fingerprint(tmp_path) == before[0] and raw_fingerprint(tmp_path, times=True) != before[1]


def test_what_the_program_writes_among_the_raw_files_does_not_count(tmp_path):
    (tmp_path / "logs.csv").write_text("abc")
    before = raw_fingerprint(tmp_path)
    for place in ("prepared/manifest.json", "prepared/windows/x.npy", "prepared/system/y.npy", "runs/config.json",
                  "runs/checkpoints/1/x", ".prepared.partial-1/nodes.npy"):  # fmt: skip
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text("x")
    assert raw_fingerprint(tmp_path) == before


def test_labels_are_told_apart_by_their_content(tmp_path):
    data = default_config("x").data
    data.raw_dir = str(tmp_path)
    assert set(label_fingerprints(data).values()) == {""}
    (tmp_path / "faults.csv").write_text("1")
    first = label_fingerprints(data)
    (tmp_path / "faults.csv").write_text("2")
    assert label_fingerprints(data) != first


def test_a_file_that_is_only_named_as_those_of_this_program_counts(tmp_path):
    for name in ("export/manifest.json", "export/b.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found = {path.relative_to(tmp_path).as_posix() for path in raw_files.under(tmp_path)}
    assert found == {"export/manifest.json", "export/b.json"}
