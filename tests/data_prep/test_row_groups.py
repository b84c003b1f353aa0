import numpy as np
import polars as pl
import pytest

from data_prep import row_groups


@pytest.mark.parametrize("rows", [0, 1, 1000, 163_841, 295_000])
def test_bytes_are_those_of_a_table_written_at_once(rows, tmp_path):
    rng = np.random.default_rng(0)
    table = pl.DataFrame({"time": np.arange(rows), "text": [f"body {i}" for i in rng.integers(0, 9000, rows)]},
                         schema={"time": pl.Int64, "text": pl.String})  # fmt: skip
    table.write_parquet(tmp_path / "once.parquet", compression="zstd")
    for size in (70_001, 400_000):
        pieces = []
        for at in range(0, rows, size):
            pieces.append(tmp_path / f"piece{at}.parquet")
            table[at : at + size].write_parquet(pieces[-1])
        frame = pl.scan_parquet(pieces) if pieces else pl.LazyFrame(schema=table.schema)
        (tmp_path / "out").mkdir(exist_ok=True)
        row_groups.write(frame, tmp_path / "out/pieces.parquet")
        assert (tmp_path / "out/pieces.parquet").read_bytes() == (tmp_path / "once.parquet").read_bytes()
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["pieces.parquet"]
