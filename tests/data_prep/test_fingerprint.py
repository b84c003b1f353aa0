"""Two raw directories are told apart by the names and sizes of their files."""

from data_prep.fingerprint import raw_fingerprint


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
