"""A long table that lies in many small files -> one Parquet file, the same as if the table had been written at once."""

from pathlib import Path

import polars as pl

_ROWS = 122_880  # of a row group, about: what polars itself aims at


def write(frame: pl.LazyFrame, path: Path) -> None:
    """Writes `frame` to `path`, a row group at a time: of equal size, so many that it comes nearest to `_ROWS`.

    polars would make row groups of the pieces in which rows come, and the bytes would depend on these. So the groups
    are written as files beside `path` first.
    """
    rows = frame.select(pl.len()).collect().item()
    fewest = max(rows // _ROWS, 1)
    count = min((fewest, fewest + 1), key=lambda count: abs(rows / count - _ROWS))
    if count == 1:
        frame.sink_parquet(path, compression="zstd", row_group_size=max(rows, 1))
        return
    groups, at = [path.with_name(f".{path.stem}-{i}.parquet") for i in range(count)], 0
    for i, group in enumerate(groups):
        size = rows // count + (i < rows % count)
        frame.slice(at, size).sink_parquet(group, compression="lz4", row_group_size=size)
        at += size
    pl.scan_parquet(groups).sink_parquet(path, compression="zstd")
    for group in groups:
        group.unlink()
