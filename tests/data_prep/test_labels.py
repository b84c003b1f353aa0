"""Labels and observed segments are found where the config names them, or by their usual names at the raw files."""

from data_prep.sources import labels
from ssad_jax.config import default_config


def settings(raw, **values):
    data = default_config("x").data
    data.source, data.raw_dir = "nezha", str(raw)
    data.update(values)
    return data


def test_a_named_file_comes_first(tmp_path):
    (tmp_path / "faults.csv").write_text("")
    assert labels.find(settings(tmp_path, faults_path="mine.csv"), "faults_path") == "mine.csv"


def test_the_usual_name_in_the_raw_directory_or_beside_it(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    assert labels.find(settings(raw), "segments_path") == ""
    beside = tmp_path / "observed_segments.csv"
    beside.write_text("")
    assert labels.find(settings(raw), "segments_path") == str(beside)
    (raw / "observed_segments.csv").write_text("")
    assert labels.find(settings(raw), "segments_path") == str(raw / "observed_segments.csv")


def test_other_sources_have_their_own(tmp_path):
    (tmp_path / "faults.csv").write_text("")
    assert labels.find(settings(tmp_path, source="tables"), "faults_path") == ""
    assert labels.find(settings(tmp_path, source="openstack"), "faults_path") == ""
