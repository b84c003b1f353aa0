"""New telemetry scored with a trained workdir gets the scores of batch evaluation."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from data_prep import tables
from data_prep.prepare import prepare
from ssad_jax import evaluate, prepared, train
from tests.data_prep.small import SECOND, T0
from tests.data_prep.test_prepare import LENGTH, make_config, telemetry, write

ROOT = Path(__file__).parents[2]
NEW = 300  # seconds after T0: the first test segment


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An evaluated workdir, its dataset, and a directory with the telemetry of the test part alone."""
    path = tmp_path_factory.mktemp("live")
    config = make_config(write(path / "raw", telemetry()), path / "out")
    config.data.batch_size = 4
    config.model.update({"hidden_dim": 8, "num_prototypes": 2})
    config.train.num_epochs, config.train.compilation_cache = 1, False
    config.score.bootstrap = 20
    prepare(config)
    data = prepared.load(path / "out")
    train.train(config, data, path / "work")
    evaluate.evaluate(path / "work")
    (path / "new").mkdir()
    for file in (path / "raw").iterdir():
        frame = pl.read_parquet(file)
        time = tables.SCHEMAS[file.stem].times[0]
        frame.filter(pl.col(time) >= T0 + NEW * SECOND).write_parquet(path / "new" / file.name)
    return path, data


def command(*arguments, stdout=subprocess.PIPE):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-m", "ssad_jax.live", *map(str, arguments)], cwd=ROOT, env=environment, stdout=stdout,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_new_telemetry_gets_the_scores_of_batch_evaluation(run):
    path, data = run
    done = command(f"--workdir={path / 'work'}", f"--raw_dir={path / 'new'}")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    starts = [line["window_start_unix_nano"] for line in lines]
    assert starts == list(
        range(T0 + NEW * SECOND, T0 + (LENGTH - 15) * SECOND + 1, 5 * SECOND)
    )  # in whole seconds of observed time
    batch = pl.read_parquet(path / "work" / "evaluation" / "scores.parquet")
    first = data.manifest["segments"][int(data.windows.segment[data.test_runs[0][0]])]  # later ones have a history here
    batch = batch.filter(pl.col("window_end_unix_nano") <= first["end_unix_nano"])
    ours = lines[: batch.height]
    assert [line["window_start_unix_nano"] for line in ours] == batch["window_start_unix_nano"].to_list()
    np.testing.assert_allclose([line["score"] for line in ours], batch["score"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose([line["p_value"] for line in ours], batch["p_value"], atol=1e-6)
    assert [line["is_alert"] for line in ours] == batch["is_alert"].to_list()
    assert f"{len(lines)} windows" in done.stderr
    assert "observed: 2023-11-14 22:18:20 to 2023-11-14 22:21:" in done.stderr
    assert "spans: 1,080 rows, 1,074 in windows' time, after the last tick 6\n" in done.stderr


def test_what_cannot_be_scored_ends_with_one_sentence(run, tmp_path):
    path, _ = run
    done = command(f"--workdir={path / 'work'}", f"--raw_dir={tmp_path / 'nowhere'}")
    assert done.returncode == 2 and "is no directory" in done.stderr and "Traceback" not in done.stderr
    done = command(f"--workdir={tmp_path}", f"--raw_dir={path / 'new'}")
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_what_is_left_out_in_reading_is_told(run, tmp_path):
    path, _ = run
    new = tmp_path / "new"
    new.mkdir()
    for file in (path / "new").iterdir():
        frame = pl.read_parquet(file)
        if file.stem == "spans":
            frame = pl.concat([frame, frame[:2], frame[:3].with_columns(end_time_unix_nano=pl.lit(T0))])
        frame.write_parquet(new / file.name)
    done = command(f"--workdir={path / 'work'}", f"--raw_dir={new}")
    assert done.returncode == 0, done.stderr
    assert "spans: 1,085 rows read, 1,080 kept, duplicates 2, negative duration 3 (the first: " in done.stderr
    assert "logs: 720 rows, " in done.stderr and "logs: 720 rows read" not in done.stderr


@pytest.mark.parametrize("flag", ["--step_seconds=nan", "--lateness_seconds=inf", "--trace_seconds=1e12"])
def test_times_that_are_none_are_refused(run, flag):
    path, _ = run
    done = command(f"--workdir={path / 'work'}", f"--raw_dir={path / 'new'}", flag)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {flag.split('=')[0]}="), done.stderr


def test_nobody_reads_the_scores(run):
    path, _ = run
    read, write = os.pipe()
    os.close(read)
    done = command(f"--workdir={path / 'work'}", f"--raw_dir={path / 'new'}", stdout=write)
    os.close(write)
    assert done.returncode == 1 and "error: stdout takes no more scores (Broken pipe)" in done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_more_windows_than_can_be_meant_are_refused(run, tmp_path):
    path, _ = run
    frame = pl.read_parquet(path / "new" / "logs.parquet")
    (tmp_path / "new").mkdir()
    old = frame[:1].with_columns(pl.col("time_unix_nano") - 10 * 366 * 86_400 * SECOND)
    pl.concat([old, frame]).write_parquet(tmp_path / "new" / "logs.parquet")
    done = command(f"--workdir={path / 'work'}", f"--raw_dir={tmp_path / 'new'}")
    assert done.returncode == 2 and "windows, more than 16777216; remove rows of a wrong time" in done.stderr
