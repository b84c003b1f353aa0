"""Rows on disk, appended part by part and read back partition by partition: what does not fit into memory.

One file a table and partition, a row of frames as Arrow streams, each behind its length. One process appends.
"""

import io
from collections.abc import Iterable
from pathlib import Path

import polars as pl

_BUFFER = 8 << 20  # bytes of rows that wait to be appended together
_LENGTH = 8  # bytes of the length before each frame


class Spill:
    """Tables under one directory.

    Args:
        directory: made when something is appended.
        partitions: table -> expression of the (integer) partition that a row belongs to.
    """

    def __init__(self, directory: Path, partitions: dict[str, pl.Expr]):
        self.directory, self._partitions = Path(directory), partitions
        self._waiting: dict[str, list[pl.DataFrame]] = {}

    def append(self, name: str, frame: pl.DataFrame) -> None:
        if frame.height:
            waiting = self._waiting.setdefault(name, [])
            waiting.append(frame)
            if sum(frame.estimated_size() for frame in waiting) > _BUFFER:
                self.flush(name)

    def flush(self, name: str) -> None:
        """Write what waits of a table; call it before the table is read."""
        waiting = self._waiting.pop(name, [])
        if not waiting:
            return
        (self.directory / name).mkdir(parents=True, exist_ok=True)
        frame = pl.concat(waiting).with_columns(self._partitions[name].alias("_partition"))
        for (partition,), rows in frame.partition_by("_partition", as_dict=True, maintain_order=True).items():
            data = io.BytesIO()
            rows.drop("_partition").write_ipc_stream(data, compression="lz4")
            with open(self.directory / name / f"{partition}.rows", "ab") as file:
                file.write(data.tell().to_bytes(_LENGTH, "little"))
                file.write(data.getbuffer())


def partitions(directories: Iterable[Path], name: str) -> list[int]:
    """Partitions of a table that have rows in one of the directories, in order."""
    files = (file for directory in directories for file in (directory / name).glob("*.rows"))
    return sorted({int(file.stem) for file in files})


def read(directories: Iterable[Path], name: str, partition: int) -> list[pl.DataFrame]:
    """The frames of one partition, in the order of the directories and of appending."""
    frames = []
    for directory in directories:
        path = directory / name / f"{partition}.rows"
        if path.exists():
            with open(path, "rb") as file:
                while length := file.read(_LENGTH):
                    frames.append(pl.read_ipc_stream(io.BytesIO(file.read(int.from_bytes(length, "little")))))
    return frames
