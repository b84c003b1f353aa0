"""The real Train Ticket archive from raw files to event graphs; SSAD_REAL_DATA names the directory that holds it."""

import json
import os
import tarfile
from importlib import util
from pathlib import Path

import numpy as np
import pytest

from data_prep.prepare import prepare
from ssad_jax import prepared

ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get("SSAD_REAL_DATA", "/nonexistent")) / "train_ticket"
ARCHIVE = REAL / "nezha_train_ticket.tar.xz"
pytestmark = pytest.mark.skipif(not ARCHIVE.is_file(), reason="SSAD_REAL_DATA does not name the real telemetry")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("train_ticket")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(path / "raw", filter="data")
    (top,) = {directory.parent for directory in (path / "raw").rglob("rca_data")}
    spec = util.spec_from_file_location("train_ticket", ROOT / "configs/train_ticket.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config("knowledge")
    config.data.update({
        "raw_dir": str(top), "prepared_dir": str(path / "prepared"), "num_workers": 1,
        "faults_path": str(REAL / "faults.csv"), "segments_path": str(REAL / "observed_segments.csv"),
    })  # fmt: skip
    prepare(config)
    return prepared.load(path / "prepared")


def test_size(data):
    counts = data.manifest["counts"]
    assert 320 <= counts["nodes"] <= 350 and counts["node_budget"] <= 384 and counts["edge_budget"] <= 2048
    kinds = np.bincount(data.system.kind[data.system.node_mask], minlength=5)
    assert 28 <= kinds[0] <= 32 and 190 <= kinds[1] <= 240 and 25 <= kinds[2] <= 30 and 50 <= kinds[3] <= 60
    assert counts["recordings"] == 2 and counts["faults"] == 45 == data.faults.height
    assert 280 <= counts["fit_windows"] <= 320 and counts["calibration_windows"] >= 250  # one begins every tick
    assert 1200 <= counts["test_windows"] == (data.windows.part == 2).sum() <= 1300


def test_every_row_is_accounted_for(data):
    rows = data.manifest["rows"]
    assert {"spans", "logs", "metrics", "faults"} <= rows.keys()
    for account in rows.values():
        assert account["read"] == account["kept"] + account["duplicates"] + sum(account["set_aside"].values())
    assert rows["logs"]["kept"] > 200_000 and rows["spans"]["kept"] > 100_000
    assert "raw" not in json.dumps({name: account["examples"] for name, account in rows.items()})


def test_windows_lie_in_observed_segments_and_parts_are_apart(data):
    windows = data.windows
    segments = data.manifest["segments"]
    for g, segment in enumerate(segments):
        own = windows.segment == g
        assert (windows.start_unix_nano[own] >= segment["start_unix_nano"]).all()
        assert (windows.end_unix_nano[own] <= segment["end_unix_nano"]).all()
    trained = (windows.part == 0) | (windows.part == 1)
    for fault in data.faults.iter_rows(named=True):
        begin, end = fault["onset_uncertain_from_unix_nano"], fault["end_time_unix_nano"]
        assert not (trained & (windows.end_unix_nano > begin) & (windows.start_unix_nano < end)).any()
    assert set(windows.label[windows.part == 2]) == {-1, 0, 1} and not windows.label[trained].any()


def test_log_counts_are_expected_from_operations(data):
    """Mean squared error of the closed-form expectation over calibration windows, as a share of the variance."""
    windows = data.windows.nodes[data.calibration_runs[data.calibration_runs >= 0]]
    logs = (data.system.kind == 1) & data.system.node_mask
    signal, context = windows[:, logs, 16], windows[:, logs, 0]
    assert np.mean((signal - context) ** 2) / np.mean(signal**2) < 0.35
