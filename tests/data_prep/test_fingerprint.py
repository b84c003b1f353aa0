"""Two raw directories are told apart by the names and sizes of their files."""

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


def test_what_the_program_writes_among_the_raw_files_does_not_count(tmp_path):
    (tmp_path / "logs.csv").write_text("abc")
    before = raw_fingerprint(tmp_path)
    for place in ("prepared/manifest.json", "runs/checkpoints/1/x", ".prepared.partial-1/nodes.npy"):
        (tmp_path / place).parent.mkdir(parents=True)
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
