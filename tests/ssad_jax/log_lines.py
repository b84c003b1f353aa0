"""A small prepared dataset with log lines: four kinds of requests, each with six templates of its own.

The lines of 5 s are of one kind of request, in any order. From tick 30 of the last segment on, lines are of any kind,
and their words are those of any line.
"""

import dataclasses

import numpy as np
import polars as pl

from ssad_jax.prepared import NODE_KINDS, Prepared
from tests.synthetic import NS, STRIDE, WINDOW_LENGTH, make_prepared

SEGMENTS, WINDOWS = 16, 16
BLOCK, LINES = 5, 16  # ticks, and lines in them
GROUP = 6
BROKEN_FROM = 30  # tick of the last segment
NAMES = ("Ann", "Bob", "Cid", "Dan", "Eve", "Fay", "Gus", "Hal")


def prepared_with_logs(directory) -> Prepared:
    """Written to `directory`: tables/logs.parquet; the last window of the dataset has nothing but broken lines."""
    made = make_prepared(SEGMENTS, WINDOWS, logs_per_service=8, budget=40, edge_budget=80)
    system, windows, rng = made.system, made.windows, np.random.default_rng(0)
    nodes = np.flatnonzero(system.node_mask & (system.kind == NODE_KINDS.index("log")))
    words = np.array([f"{a}{b}" for a in ("load", "save", "read", "send") for b in ("Order", "Seat", "Food", "Mail")])
    said = {node: rng.choice(words, 5, replace=False) for node in nodes}
    rows = []
    for segment in range(SEGMENTS):
        start = int(windows.start_unix_nano[windows.segment == segment].min())
        for tick in range(0, (WINDOWS - 1) * STRIDE + WINDOW_LENGTH, BLOCK):
            broken = segment == SEGMENTS - 1 and tick >= BROKEN_FROM
            kind = rng.integers(len(nodes) // GROUP)
            pool = nodes if broken else nodes[kind * GROUP : (kind + 1) * GROUP]
            for offset in np.sort(rng.integers(0, BLOCK * NS, LINES)):
                node = int(rng.choice(pool))
                text = rng.choice(words, 5) if broken else said[node]
                rows.append((start + tick * NS + int(offset), node, f"{rng.choice(NAMES)}: {' '.join(text)} 17"))
    time, node, body = (list(column) for column in zip(*rows, strict=True))
    unit = [system.service_names[system.service[n]] for n in node]
    logs = {"time_unix_nano": time, "unit": unit, "template": [0] * len(rows), "node": node, "body": body}
    (directory / "tables").mkdir(parents=True)
    pl.DataFrame(logs, schema_overrides={"template": pl.Int32, "node": pl.Int32}).sort("time_unix_nano").write_parquet(
        directory / "tables" / "logs.parquet"
    )
    manifest = {**made.manifest, "dataset_hash": str(directory)}
    return dataclasses.replace(made, directory=directory, manifest=manifest)


def wrong_and_right(made: Prepared) -> tuple[np.ndarray, np.ndarray]:
    """Windows of broken lines alone, and windows without any."""
    start = made.windows.start_unix_nano
    tick = (start - start[made.windows.segment == SEGMENTS - 1].min()) // NS
    return np.flatnonzero(tick >= BROKEN_FROM), np.flatnonzero(tick + WINDOW_LENGTH <= BROKEN_FROM)


def with_logs(made: Prepared, directory, change) -> Prepared:
    """The dataset with another table of log lines: `change` of the one it has."""
    (directory / "tables").mkdir(parents=True)
    change(pl.read_parquet(made.directory / "tables" / "logs.parquet")).write_parquet(
        directory / "tables" / "logs.parquet"
    )
    return dataclasses.replace(made, directory=directory, manifest={**made.manifest, "dataset_hash": str(directory)})
