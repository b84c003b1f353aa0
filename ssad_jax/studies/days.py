"""One simulated day without faults: simulated, prepared, scored; what the study of false alarms needs of it is kept.

The system is fitted on every second segment of the first 65% of the day and on nothing else. The other segments of
that time and the last 35% were seen by no fit: their windows' scores are what thresholds are made from and judged on.
"""

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from data_prep import sources
from data_prep.prepare import prepare
from data_prep.simulate import simulate
from ssad_jax import prepared
from ssad_jax.floors.linear import closed_form
from ssad_jax.scoring import output
from ssad_jax.studies.common import trained

TRAIN_SHARE, CALIBRATION_SHARE = 0.65, 0.5
CONCURRENCY = {"boot": 1, "image": 1, "network": 1}
LOAD = 0.3
DRIFTS = ("none", "latency")
SLOWER = 2.0  # times their duration that spans take longer by the end of a day with latency drift
SEED = 7000  # of the first day: no seed that anything was chosen on


class Day(NamedTuple):
    """Windows of one day that nothing was fitted on, in time order."""

    start_tick: np.ndarray  # [M]
    segment: np.ndarray  # [M]
    part: np.ndarray  # [M] 1 calibration, 2 test
    score: np.ndarray  # [M]


def find_day(workdir: Path, config, number: int, drift: str, detector: str, hours: float) -> Day:
    """A day from `workdir`, computed where it is not there yet.

    Args:
        config: of an OpenStack; drift: one of DRIFTS; detector: `closed_form` or `knowledge_ssl`.
        hours: simulated time, over which the load makes one whole wave.
    """
    path = Path(workdir) / f"{detector}-{drift}-{number:02d}.npz"
    if not path.is_file():
        own = config.copy_and_resolve_references()
        own.data.update({
            "source": "tables", "raw_dir": str(_tables(Path(workdir), config, number, drift, hours)), "num_workers": 1,
            "train_share": TRAIN_SHARE, "calibration_share": CALIBRATION_SHARE, "calibration_folds": 0,
            "prepared_dir": str(Path(workdir) / f"prepared-{number:02d}-{drift}"),
        })  # fmt: skip
        if not prepared.exists(own.data.prepared_dir):
            prepare(own)
        day = _score(prepared.load(own.data.prepared_dir), own, detector, Path(workdir) / f"run-{number:02d}-{drift}")
        output.write_arrays(path, day._asdict())
    with np.load(path, allow_pickle=False) as arrays:
        return Day(**{name: arrays[name] for name in Day._fields})


def forget(workdir: Path, number: int) -> None:
    """Remove the telemetry and the prepared datasets of a day; its scores stay."""
    for path in Path(workdir).glob(f"*-{number:02d}-*"):
        if path.is_dir():
            shutil.rmtree(path)


def slower(spans: pl.DataFrame, by: float) -> pl.DataFrame:
    """Spans that take longer and longer: nothing at their first, `by` of their duration at their last."""
    start, end = pl.col("start_time_unix_nano"), pl.col("end_time_unix_nano")
    passed = (start - start.min()) / (start.max() - start.min())
    return spans.with_columns(end_time_unix_nano=(start + (end - start) * (1 + by * passed)).cast(pl.Int64))


def _tables(workdir: Path, config, number: int, drift: str, hours: float) -> Path:
    """Telemetry tables of a day: simulated, read as OpenStack's files are, and changed where it is to drift."""
    directory = workdir / f"tables-{number:02d}-{drift}"
    if not directory.exists():
        raw = workdir / f"raw-{number:02d}-files"
        shutil.rmtree(raw, ignore_errors=True)
        simulate(
            raw, hours=hours, seed=SEED + number, faults_per_hour=0.0, concurrency=CONCURRENCY, day_hours=hours,
            load=LOAD,
        )  # fmt: skip
        options = config.data.copy_and_resolve_references()
        options.update({"source": "openstack", "raw_dir": str(raw)})
        frames = sources.read(options).frames
        shutil.rmtree(raw)
        for name in DRIFTS:
            changed = frames | ({"spans": slower(frames["spans"], SLOWER)} if name == "latency" else {})
            partial = workdir / f"partial-{number:02d}-{name}"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            for table, frame in changed.items():
                frame.write_parquet(partial / f"{table}.parquet")
            target = workdir / f"tables-{number:02d}-{name}"
            if not target.exists():  # a run that was killed here has left some
                partial.rename(target)
    return directory


def _score(data, config, detector: str, run_dir: Path) -> Day:
    if detector == "closed_form":
        scored = closed_form(data, config.score)
    else:
        scored = trained(data, config, run_dir)
    ids = np.concatenate([scored.held_out_terms.window, scored.terms.window])
    part = np.repeat([1, 2], [len(scored.held_out_terms.window), len(scored.terms.window)])
    score = np.concatenate([scored.held_out.calibrated, scored.scores.calibrated])
    order = np.argsort(data.windows.start_tick[ids], kind="stable")
    windows = data.windows
    return Day(windows.start_tick[ids][order], windows.segment[ids][order], part[order], score[order])
