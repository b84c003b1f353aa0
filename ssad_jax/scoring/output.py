"""What evaluation leaves on disk. Every file is written under a temporary name and renamed when complete."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from data_prep import disk
from ssad_jax.scoring.assess import Detector, TestWindows
from ssad_jax.scoring.calibration import Calibration, Scores, kind_names


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary path)`, then give the file its name; a failure leaves what was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial-{os.getpid()}{path.suffix}")
    try:
        write(partial)
        disk.sync(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: dict) -> None:
    """Strict JSON: numbers that are not finite become null."""
    text = json.dumps(_plain(value), indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda p: p.write_text(text))


def write_json_lines(path: Path, values: list[dict]) -> None:
    """One strict JSON object a line; whatever texts hold, a line stays a line."""
    text = "".join(json.dumps(_plain(value), allow_nan=False) + "\n" for value in values)
    write_atomically(path, lambda p: p.write_text(text))


def _plain(value):
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def scores_frame(
    test: TestWindows, detector: Detector, scores: Scores, calibration: Calibration, prototype: list[str]
) -> pl.DataFrame:
    """`scores.parquet`: the contract's columns, then both variants and each node kind alone, one row a test window."""
    label = [None if v < 0 else bool(v) for v in test.label]
    columns = {
        "window_start_unix_nano": pl.Series(test.start_unix_nano, dtype=pl.Int64),
        "window_end_unix_nano": pl.Series(test.end_unix_nano, dtype=pl.Int64),
        "score": pl.Series(detector.score, dtype=pl.Float64),
        "score_reconstruction": pl.Series(scores.reconstruction, dtype=pl.Float64),
        "score_temporal": pl.Series(scores.temporal, dtype=pl.Float64),
        "score_prior": pl.Series(scores.prior, dtype=pl.Float64),
        "is_alert": pl.Series(detector.alert, dtype=pl.Boolean),
        "label": pl.Series(label, dtype=pl.Boolean),
        "fault_type": pl.Series(test.fault_type, dtype=pl.String),
        "suspects": pl.Series(detector.suspects or [[] for _ in label], dtype=pl.List(pl.String)),
        "prototype": pl.Series(prototype, dtype=pl.String),
        "score_calibrated": pl.Series(scores.calibrated, dtype=pl.Float64),
        "score_paper": pl.Series(scores.paper, dtype=pl.Float64),
        "p_value": pl.Series(detector.p_value, dtype=pl.Float64),
    }
    for i, kind in enumerate(kind_names(calibration)):
        columns[f"score_kind_{kind}"] = pl.Series(scores.kind[:, i], dtype=pl.Float64)
    return pl.DataFrame(columns)


def write_frame(path: Path, frame: pl.DataFrame) -> None:
    write_atomically(path, frame.write_parquet)


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    def write(partial: Path) -> None:
        with open(partial, "wb") as file:
            np.savez(file, **arrays)

    write_atomically(path, write)


TABLE = (
    ("AUROC", "auroc"),
    ("AUPRC", "auprc"),
    ("TPR@5%FPR", "tpr_at_5_percent_fpr"),
    ("F1", "f1"),
    ("recall", "recall"),
    ("precision", "precision"),
    ("FPR", "fpr"),
    ("event recall", "event_recall"),
    ("delay s", "delay_seconds_median"),
    ("HR@1", "hit_rate_at_1"),
)


def table_rows(results: dict) -> list[tuple[str, dict]]:
    """(name, figures) of what the results table shows: both variants, then the floors."""
    rows = [(f"{results['method']} ({name})", block) for name, block in results["variants"].items()]
    return rows + [(f"floor: {name}", block) for name, block in results["floors"].items()]


def format_figure(key: str, value) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if key.startswith("delay") else f"{value:.3f}"


def results_table(results: dict) -> str:
    """The table of results as plain text."""
    rows = [("", *(title for title, _ in TABLE))]
    rows += [(n, *(format_figure(k, b.get(k)) for _, k in TABLE)) for n, b in table_rows(results)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
             for row in rows]  # fmt: skip
    lines.insert(1, "-" * len(lines[0]))
    if results["prevalence"] is None:
        lines.append("no labelled test window: scores are written, figures need faults")
    else:
        lines.append(
            f"{results['num_windows']} labelled test windows, prevalence {results['prevalence']:.3f}, "
            f"{results['num_faults']} faults; alerts above the {results['threshold_method']}"
        )
    return "\n".join(lines)
