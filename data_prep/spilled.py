"""Telemetry tables that need not fit into memory: their rows become observations on disk, shard by shard.

`spans`, `logs`, `metrics` and `events` are spilled as they are read: spans by trace and metrics by series, so that a
trace or a series is whole wherever it is looked at, however long it lasts; logs and events by time. Of spans and logs a
sample is looked at first, for clocks that differ (`clock_skew`). Duplicates are found, and rows observed, partition by
partition. What is observed then lies in cells of CELL_SECONDS, one Parquet file a table and cell, in the order that the
whole table would have. The other tables are small and stay in memory.
"""

import dataclasses
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from pathlib import Path

import polars as pl

from data_prep import clock_skew, observations, raw_files, spill
from data_prep.executors import ordered, replacing
from data_prep.fingerprint import stat
from data_prep.observations import TIME
from data_prep.sources.part import Part
from data_prep.tables import SCHEMAS, TELEMETRY, Account, Tables, combine, extent_of, merged

CELL_SECONDS = 600
_CELL_NS = CELL_SECONDS * 1_000_000_000
_PARTITION_BYTES = 64 << 20  # of raw files, for each partition of traces and of series
_SAMPLED_ROWS = 200_000  # spans, and log lines, that differences of clocks are estimated on, about
_SAMPLE_SEED = 1  # another one, or a partition's traces would all be in the sample or all not
_SEED = 0  # of hashes: shards of one dataset, prepared by several processes, must agree
_EXPANSION = {".gz": 10, ".parquet": 8}  # of a file against its size as text, about


@dataclasses.dataclass(frozen=True)
class Options:
    """How rows become observations; see `observations.observe`."""

    node_level: str
    metric_patterns: tuple[str, ...]
    baseline_minutes: float


@dataclasses.dataclass(frozen=True)
class Seen:
    """What is known of the rows of one partition, or of several together."""

    rows: int
    duplicates: int
    extent: tuple[int, int] | None
    units: pl.DataFrame  # distinct (unit, service_name)
    instances: pl.Series  # distinct
    bodies: pl.Series  # distinct masked log bodies

    @staticmethod
    def together(parts: list["Seen"]) -> "Seen":
        empty = Seen(0, 0, None, observations.one_of_a_name([]), _strings("service_instance_id"), _strings("masked"))
        parts = [empty, *parts]
        return Seen(
            sum(part.rows for part in parts), sum(part.duplicates for part in parts),
            merged(part.extent for part in parts), pl.concat([part.units for part in parts]).unique(),
            pl.concat([part.instances for part in parts]).unique(), pl.concat([part.bodies for part in parts]).unique(),
        )  # fmt: skip


def _strings(name: str) -> pl.Series:
    return pl.Series(name, [], pl.String)


def num_partitions(raw_dir: str | Path) -> int:
    """Of traces and of series, for raw files of this size."""
    size = sum(stat(path).st_size * _EXPANSION.get(path.suffix, 1) for path in raw_files.under(raw_dir))
    return -(-size // _PARTITION_BYTES) or 1


def spill_part(
    part: Part, directory: Path, node_level: str, num: int, executor: Executor | None, numbers=None
) -> dict[int, Account]:
    """Appends what `part` reads to the rows under `directory`; returns the accounts of its tasks by their numbers.

    Args: num: partitions of traces and of series; numbers: of the tasks to do, None: all.
    """
    series = pl.concat_str(observations.unit(node_level), "metric_name", separator="\0")
    rows = spill.Spill(directory, {
        "spans": pl.col("trace_id").hash(_SEED) % num, "metrics": series.hash(_SEED) % num,
        "logs": pl.col("time_unix_nano") // _CELL_NS, "events": pl.col("time_unix_nano") // _CELL_NS,
    })  # fmt: skip
    accounts = {}
    for number, frame, account in part.rows(executor, numbers):
        accounts.setdefault(number, Account()).add(account)
        rows.append(part.table, frame)
    rows.flush(part.table)
    return accounts


class SpilledTables(Tables):
    """As `Tables`, but `frames` has only the small ones.

    Args:
        directory: where observations are written, as `<table>/<cell>.parquet`.
        scratch: for rows on their way; of no use afterwards.
        executor: runs what is done to partitions.
        options: how rows become observations.
        correct_clock_skew: whether times of spans and logs are put on a common clock; what differs is reported anyway.
        spilled: part -> the directories that hold its rows already, and the accounts of its tasks (see
            `shard_jobs`); None: they are read and spilled here, in `num` partitions of traces and of series.
    """

    def __init__(
        self, directory: Path, scratch: Path, executor: Executor, options: Options, num: int = 1,
        spilled: Callable[[Part], tuple[list[Path], dict[int, Account]]] | None = None,
        correct_clock_skew: bool = False,
    ):  # fmt: skip
        super().__init__()
        self._directory, self._scratch, self._executor, self._options = directory, scratch, executor, options
        self._num, self._spilled = num, spilled or self._spill
        self._seen: dict[str, Seen] = {}
        self._correct, self._sample, self._share = correct_clock_skew, None, 1
        self.clock_skew: list[dict] = []  # as `clock_skew.Skew.record` has them

    def read(self, part: Part, executor: Executor | None = None) -> None:
        if part.table not in TELEMETRY:
            super().read(part, executor)
        elif part.tasks:
            directories, accounts = self._spilled(part)
            account = Account()
            for number in sorted(accounts):
                account.add(accounts[number])
            if account.read or not part.optional:
                self._observe(part, directories, account)

    def extent(self, names: Iterable[str] = TELEMETRY) -> tuple[int, int] | None:
        return merged(self._seen[name].extent for name in names if name in self._seen)

    def instances(self, names: Iterable[str]) -> pl.Series:
        found = [self._seen[name].instances for name in names if name in self._seen]
        return pl.concat([_strings("service_instance_id"), *found]).unique()

    def units(self) -> pl.DataFrame:
        """Every unit seen anywhere, with its service, as `observations.observe` has them."""
        return observations.one_of_a_name([seen.units for seen in self._seen.values()])

    def bodies(self) -> pl.Series:
        """The distinct masked log bodies, in order."""
        return self._seen["logs"].bodies.sort() if "logs" in self._seen else _strings("masked")

    def check(self) -> None:
        super().check()
        for name, seen in self._seen.items():
            self.accounts[name].check()
            if self.accounts[name].kept != seen.rows:
                raise RuntimeError(f"table {name} has {seen.rows} rows, its account {self.accounts[name].kept}")

    def _spill(self, part: Part) -> tuple[list[Path], dict[int, Account]]:
        directory = self._scratch / "rows"
        return [directory], spill_part(part, directory, self._options.node_level, self._num, self._executor)

    def _offsets(self, part: Part, directories: list[Path], rows: int) -> dict[str, int]:
        """What is to be taken away from the times of instances, ns; reports what differs.

        Seen on a sample of whole traces that does not depend on partitions, and on the log lines of such traces.
        """
        name = part.table
        if name == "logs" and self._sample is not None:
            share = self._share * (-(-rows // (self._share * _SAMPLED_ROWS)) or 1)
        elif name == "spans":
            share = self._share = -(-rows // _SAMPLED_ROWS) or 1
        else:
            return {}
        task = _Sampled(name, tuple(directories), share)
        found = list(ordered(self._executor, task, spill.partitions(directories, name)))
        if not found:
            return {}
        frame, _ = combine(found, name)
        frame = part.whole(frame) if part.whole else frame
        skews = clock_skew.of_spans(frame) if name == "spans" else clock_skew.of_logs(frame, self._sample)
        self.clock_skew += [skew.record(self._correct) for skew in skews]
        self.warnings += clock_skew.warnings(skews, self._correct)
        offsets = clock_skew.corrections(skews) if self._correct else {}
        if name == "spans":
            self._sample = clock_skew.corrected(frame, offsets)
        return offsets

    def _observe(self, part: Part, directories: list[Path], account: Account) -> None:
        name, seen = part.table, Seen.together([])
        offsets = self._offsets(part, directories, account.kept)
        resorted = _BY_KEY.get(name, (name,) if offsets else ())
        cells = spill.Spill(self._scratch / "observed", dict.fromkeys(resorted, pl.col(TIME) // _CELL_NS))
        task = _Observe(name, tuple(directories), self._directory, self._options, part.whole, offsets)
        for found, observed in ordered(self._executor, task, spill.partitions(directories, name)):
            seen = Seen.together([seen, found])
            for table, frame in observed.items():
                cells.append(table, frame)
        for table in resorted:
            cells.flush(table)
            task = _Sort(table, cells.directory, self._directory)
            for _ in ordered(self._executor, task, spill.partitions([cells.directory], table)):
                pass
        account.duplicates += seen.duplicates
        account.kept -= seen.duplicates
        account.check_usable(name)
        self.accounts[name], self._seen[name] = account, seen


# What is observed of rows that are partitioned by a key, and has to be sorted into cells of time.
_BY_KEY = {"spans": ("spans", "calls"), "metrics": ("metrics",)}


@dataclasses.dataclass(frozen=True)
class _Sampled:
    """The rows of every `share`-th trace in one partition; of logs without what they say. Runs in a worker."""

    table: str
    directories: tuple[Path, ...]
    share: int

    def __call__(self, partition: int) -> pl.DataFrame:
        columns = SCHEMAS[self.table].columns
        frames = [pl.DataFrame(schema=columns)]
        for frame in spill.read(self.directories, self.table, partition):
            rows = frame.filter(pl.col("trace_id").hash(_SAMPLE_SEED) % self.share == 0)
            if self.table == "logs":
                rows = rows.filter(pl.col("span_id").is_not_null()).with_columns(body=pl.lit(""))
            frames.append(rows)
        return pl.concat(frames)


@dataclasses.dataclass(frozen=True)
class _Observe:
    """One partition of a table: duplicates found, rows observed. Runs in a worker."""

    table: str
    directories: tuple[Path, ...]
    target: Path
    options: Options
    whole: Callable[[pl.DataFrame], pl.DataFrame] | None
    offsets: dict[str, int]  # of the clocks of instances

    def __call__(self, partition: int) -> tuple[Seen, dict[str, pl.DataFrame]]:
        name, options = self.table, self.options
        frame, duplicates = combine(spill.read(self.directories, name, partition), name)
        frame = clock_skew.corrected(self.whole(frame) if self.whole else frame, self.offsets)
        observed = observations.observe_table(name, frame, **dataclasses.asdict(options))
        units = observations.units(name, frame, observed, options.node_level)
        bodies = observed["logs"]["masked"].unique() if name == "logs" else _strings("masked")
        instances = frame["service_instance_id"].unique()
        seen = Seen(frame.height, duplicates, extent_of(frame, name), units, instances, bodies)
        if name in _BY_KEY or self.offsets:
            return seen, observed
        _write(observed[name], self.target / name, partition)
        return seen, {}


@dataclasses.dataclass(frozen=True)
class _Sort:
    """The observations of one cell in the order of the whole table. Runs in a worker."""

    table: str
    source: Path
    target: Path

    def __call__(self, cell: int) -> None:
        frame = pl.concat(spill.read([self.source], self.table, cell))
        _write(frame.sort(observations.ORDER.get(self.table, frame.columns)), self.target / self.table, cell)


def _write(frame: pl.DataFrame, directory: Path, cell: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with replacing(directory / f"{cell}.parquet") as path:
        frame.write_parquet(path, compression="lz4")


def cells(directory: Path, table: str, start: int | None = None, end: int | None = None) -> list[Path]:
    """The files of a table that may hold observations of [start, end) ns, in order of time; of all time if None."""
    if start is None:
        found = (directory / table).glob("[!.]*.parquet")
        return sorted(found, key=lambda path: int(path.stem))
    numbers = range(start // _CELL_NS, -(-end // _CELL_NS))
    return [path for path in (directory / table / f"{n}.parquet" for n in numbers) if path.exists()]


def scan(directory: Path, table: str, start: int, end: int) -> pl.LazyFrame:
    """The observations of [start, end) ns, in order."""
    files = cells(directory, table, start, end)
    frame = pl.scan_parquet(files) if files else pl.LazyFrame(schema=observations.SCHEMAS[table])
    return frame.filter((pl.col(TIME) >= start) & (pl.col(TIME) < end))


def silence(directory: Path, intervals: Iterable[tuple[int, int]]) -> tuple[float, float, tuple[int, int]]:
    """How many hours of `intervals` (ns) have no observation, how many there are, and the longest stretch without.

    In whole cells: shorter silences are not seen.
    """
    seen = {int(path.stem) for table in ("spans", "logs", "metrics") for path in cells(directory, table)}
    silent, longest = 0, (0, 0)
    for start, end in intervals:
        at = start
        for busy in [*sorted(n for n in seen if start // _CELL_NS <= n <= end // _CELL_NS), None]:
            until = end if busy is None else max(busy * _CELL_NS, start)
            if until - at >= _CELL_NS:
                silent += until - at
                longest = max(longest, (at, until), key=lambda ends: ends[1] - ends[0])
            at = until if busy is None else min((busy + 1) * _CELL_NS, end)
    hour = 3600 * 1_000_000_000
    return silent / hour, sum(end - start for start, end in intervals) / hour, longest
