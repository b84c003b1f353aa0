"""The telemetry tables: their schema, reading, checks and the account of every row.

A row is kept, dropped as a duplicate, or set aside for a named reason, and `read = kept + duplicates + set aside`
always closes. Every frame that leaves this module has exactly the columns of its schema (an optional column that
was absent is null) and is sorted by time, then by its other columns, so that equal input gives equal frames in
whatever order it was read.
"""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import polars as pl

from data_prep import csv_rows, raw_files
from data_prep.errors import InputError

FILE, ROW = "_file", csv_rows.ROW  # where a row came from; columns that sources may add before `check`
TELEMETRY = ("spans", "logs", "metrics", "events")
_SLICE = 1 << 18  # rows of a Parquet file that are read at a time
# Times outside are a wrong unit (seconds, milliseconds) or an unset clock.
EARLIEST, LATEST = 946_684_800_000_000_000, 4_102_444_800_000_000_000  # the years 2000 and 2100
_LARGEST = 1e100  # value of a metric, either sign: squares and sums of what lies beyond are no numbers any more
_REPLACEMENT = "\ufffd"  # stands where bytes were no UTF-8
# Expected in healthy telemetry, so never an error: a gauge without a value, an access log without a text, a query that
# found nothing, a series that only sums up others, a pod that the settings leave out.
BENIGN = frozenset({"no_value", "empty_payload", "empty_answer", "container_sum", "other_pod"})


def int64(nanoseconds: int | None) -> int | None:
    """A time that a column can hold; one that is far out of range stays out of range."""
    return nanoseconds and max(-(2**63), min(nanoseconds, 2**63 - 1))


def from_seconds(seconds: float) -> int:
    """Unix seconds in nanoseconds, to the microsecond: more digits would be noise of the float."""
    return int64(round(max(-1e12, min(seconds, 1e12)) * 1e6) * 1000)


@dataclasses.dataclass(frozen=True)
class Schema:
    """Columns of one table. `key`: rows that agree in it are duplicates; None: rows that agree in every column."""

    required: dict[str, pl.DataType]
    optional: dict[str, pl.DataType] = dataclasses.field(default_factory=dict)
    nullable: frozenset[str] = frozenset()
    allowed: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    key: tuple[str, ...] | None = None

    @property
    def columns(self) -> dict[str, pl.DataType]:
        return {**self.required, **self.optional}

    @property
    def times(self) -> list[str]:
        return [name for name in self.columns if name.endswith("_unix_nano")]


SCHEMAS = {
    "spans": Schema(
        {
            "start_time_unix_nano": pl.Int64(),
            "end_time_unix_nano": pl.Int64(),
            "trace_id": pl.String(),
            "span_id": pl.String(),
            "parent_span_id": pl.String(),
            "service_name": pl.String(),
            "service_instance_id": pl.String(),
            "span_name": pl.String(),
            "status_code": pl.String(),
        },
        {"kind": pl.String(), "peer_service_name": pl.String()},
        nullable=frozenset({"parent_span_id"}),
        allowed={
            "status_code": ("OK", "ERROR", "UNSET"),
            "kind": ("CLIENT", "SERVER", "INTERNAL", "PRODUCER", "CONSUMER"),
        },
        key=("trace_id", "span_id"),
    ),
    "logs": Schema(
        {
            "time_unix_nano": pl.Int64(),
            "service_name": pl.String(),
            "service_instance_id": pl.String(),
            "severity_text": pl.String(),
            "body": pl.String(),
        },
        {"trace_id": pl.String(), "span_id": pl.String()},
        nullable=frozenset({"severity_text"}),
    ),
    "metrics": Schema(
        {
            "time_unix_nano": pl.Int64(),
            "service_name": pl.String(),
            "service_instance_id": pl.String(),
            "metric_name": pl.String(),
            "value": pl.Float64(),
        },
        # attributes: what tells series of one metric of one instance apart that are to be added up
        {"is_counter": pl.Boolean(), "attributes": pl.String()},
    ),
    "events": Schema(
        {
            "time_unix_nano": pl.Int64(),
            "service_name": pl.String(),
            "service_instance_id": pl.String(),
            "event_name": pl.String(),
            "body": pl.String(),
        },
        nullable=frozenset({"body"}),
    ),
    "topology": Schema(
        {"source": pl.String(), "target": pl.String(), "relation": pl.String()},
        allowed={"relation": ("invokes", "runs_on", "depends_on")},
    ),
    "faults": Schema(
        {
            "start_time_unix_nano": pl.Int64(),
            "end_time_unix_nano": pl.Int64(),
            "service_name": pl.String(),
            "fault_type": pl.String(),
        },
        {"onset_uncertain_from_unix_nano": pl.Int64()},
    ),
    "gaps": Schema({"start_time_unix_nano": pl.Int64(), "end_time_unix_nano": pl.Int64()}),
}
_FILES = frozenset(f"{name}.{suffix}" for name in SCHEMAS for suffix in ("parquet", "csv"))
_NEARLY = re.compile(rf"({'|'.join(SCHEMAS)})([^a-z].*)?\.(csv|parquet|tsv|jsonl?|txt)(\.[a-z0-9]+)?$", re.I)


@dataclasses.dataclass
class Account:
    """What became of the rows of one table. `examples`: the first (file, row) of each reason; `repaired`: kept rows
    that had to be mended, by what was mended."""

    read: int = 0
    kept: int = 0
    duplicates: int = 0
    set_aside: dict[str, int] = dataclasses.field(default_factory=dict)
    examples: dict[str, tuple[str, int]] = dataclasses.field(default_factory=dict)
    repaired: dict[str, int] = dataclasses.field(default_factory=dict)

    def aside(self, reason: str, count: int, file: str, row: int, on_bad_rows: str) -> None:
        """Counts `count` rows as set aside, the first of them at (file, row); raises InputError if they may not be."""
        if not count:
            return
        if on_bad_rows == "error" and reason not in BENIGN:
            raise InputError(
                f"{file}, row {row}: {reason.replace('_', ' ')} ({count} such rows); mend the file or set "
                "config.data.on_bad_rows=quarantine to leave such rows out"
            )
        self.set_aside[reason] = self.set_aside.get(reason, 0) + count
        self.examples.setdefault(reason, (file, row))

    def repair(self, what: str, count: int) -> None:
        if count:
            self.repaired[what] = self.repaired.get(what, 0) + count

    def add(self, other: "Account") -> None:
        """Adds the account of further rows; they come after these, so examples found already stay."""
        self.read += other.read
        self.kept += other.kept
        self.duplicates += other.duplicates
        for reason, count in other.set_aside.items():
            self.set_aside[reason] = self.set_aside.get(reason, 0) + count
            self.examples.setdefault(reason, other.examples[reason])
        for what, count in other.repaired.items():
            self.repair(what, count)

    def relative_to(self, directory: Path | str) -> None:
        """Names the files of the examples relative to `directory`, so that accounts do not tell where it lay."""
        prefix = f"{Path(directory)}/"
        self.examples = {reason: (file.removeprefix(prefix), row) for reason, (file, row) in self.examples.items()}

    def check_usable(self, name: str) -> None:
        """Raises InputError if rows of table `name` were read but none is left."""
        if self.read and not self.kept:
            reason, (file, row) = next(iter(self.examples.items()))
            raise InputError(
                f"table {name}: none of {self.read} rows can be used; the first, {file} row {row}: "
                f"{reason.replace('_', ' ')}"
            )

    def check(self) -> None:
        """Raises RuntimeError if a row is unaccounted for, which is a fault of the reader, not of the data."""
        if self.read != self.kept + self.duplicates + sum(self.set_aside.values()):
            raise RuntimeError(f"rows do not add up: {self}")


@dataclasses.dataclass
class Tables:
    """The telemetry of one system. A modality that was not recorded has no frame; warnings are for people."""

    frames: dict[str, pl.DataFrame] = dataclasses.field(default_factory=dict)
    accounts: dict[str, Account] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)

    def add(self, name: str, parts: Iterable[tuple[pl.DataFrame, Account]]) -> None:
        """Makes table `name` of checked parts: one frame, sorted, without duplicates. Without parts, no table.

        Raises InputError if rows were read but none can be used.
        """
        parts = list(parts)
        if not parts:
            return
        account = Account()
        for _, part in parts:
            account.add(part)
        frame, duplicates = combine([frame for frame, _ in parts], name)
        account.duplicates += duplicates
        account.kept -= duplicates
        account.check_usable(name)
        self.frames[name], self.accounts[name] = frame, account

    def read(self, part, executor=None) -> None:
        """Makes a table of what a `sources.Part` reads. Raises InputError as `add` does."""
        found = [(frame, account) for _, frame, account in part.rows(executor)]
        if part.optional and not any(account.read for _, account in found):
            return
        self.add(part.table, found)
        if part.whole and part.table in self.frames:
            self.frames[part.table] = part.whole(self.frames[part.table])

    def extent(self, names: Iterable[str] = TELEMETRY) -> tuple[int, int] | None:
        """First and last time of the named tables' rows, nanoseconds; None where there are none."""
        extents = [extent_of(self.frames[name], name) for name in names if name in self.frames]
        return merged(extents)

    def instances(self, names: Iterable[str]) -> pl.Series:
        """The distinct service instances that the named tables speak of."""
        found = [self.frames[name]["service_instance_id"].unique() for name in names if name in self.frames]
        return pl.concat([pl.Series("service_instance_id", [], pl.String), *found]).unique()

    def relative_to(self, directory: Path | str) -> None:
        for account in self.accounts.values():
            account.relative_to(directory)

    def check(self) -> None:
        """Raises RuntimeError where an account does not close or does not fit its frame."""
        for name, frame in self.frames.items():
            self.accounts[name].check()
            if self.accounts[name].kept != frame.height:
                raise RuntimeError(f"table {name} has {frame.height} rows, its account {self.accounts[name].kept}")


def check(
    frame: pl.DataFrame, name: str, file: str, on_bad_rows: str = "quarantine", text: bool = False
) -> tuple[pl.DataFrame, Account]:
    """The usable rows of `frame` in the columns of table `name`, and their account (duplicates not yet looked for).

    `text`: the values are strings still to be parsed (CSV), so a value of a wrong type is a bad row; otherwise a
    column of a wrong type is an InputError. `_file` and `_row`, where present, say where each row came from;
    otherwise `file` and the row's position, counted from 1, do.
    """
    schema = SCHEMAS[name]
    present = {column: dtype for column, dtype in schema.columns.items() if column in frame.columns}
    _check_columns(frame, name, file, text)
    if FILE not in frame.columns:
        frame = frame.with_columns(pl.lit(file).alias(FILE))
    if ROW not in frame.columns:
        frame = frame.with_row_index(ROW, offset=1)
    unparsed = [c for c, dtype in present.items() if frame.schema[c] not in (dtype, pl.Null)]
    values = {column: _parse(column, frame.schema[column], dtype) for column, dtype in present.items()}
    parsed = frame.select(
        FILE,
        ROW,
        *values.values(),
        *(pl.lit(None, dtype=dtype).alias(c) for c, dtype in schema.columns.items() if c not in present),
        *((pl.col(c).is_not_null() & values[c].is_null()).alias(f"invalid_{c}") for c in unparsed),
    )
    bad_values = [(f"invalid_{c}", pl.col(f"invalid_{c}")) for c in unparsed] + list(_bad_values(schema, name))
    marked = parsed.with_columns(
        pl.coalesce(pl.lit(None, pl.String), *(pl.when(bad).then(pl.lit(r)) for r, bad in bad_values)).alias("_reason")
    )
    account = Account(read=frame.height)
    bad = marked.filter(pl.col("_reason").is_not_null()).group_by("_reason", maintain_order=True).agg(
        pl.len(), pl.col(FILE).first(), pl.col(ROW).first()
    )
    for reason, count, where, row in bad.iter_rows():
        account.aside(reason, count, where, row, on_bad_rows)
    kept = marked.filter(pl.col("_reason").is_null()).select(list(schema.columns))
    account.kept = kept.height
    texts = [column for column, dtype in schema.columns.items() if dtype == pl.String]
    replaced = pl.any_horizontal(pl.col(texts).str.contains(_REPLACEMENT, literal=True).fill_null(False))
    account.repair("not_utf8", kept.select(replaced.sum()).item())
    return (_without_own_parents(kept, account) if name == "spans" else kept), account


def _without_own_parents(spans: pl.DataFrame, account: Account) -> pl.DataFrame:
    """A span that names itself as its parent has none: otherwise it would be a child of its own."""
    own = spans["parent_span_id"] == spans["span_id"]
    account.repair("own_parent", own.sum())
    return spans.with_columns(pl.when(~own).then("parent_span_id")) if own.any() else spans


def combine(frames: list[pl.DataFrame], name: str) -> tuple[pl.DataFrame, int]:
    """One sorted frame of checked ones, and how many duplicates it lost. Of duplicates the first in order stays.

    Columns of few distinct strings are sorted by their place in the alphabet: half the time, less memory.
    """
    frame = pl.concat(frames)
    columns = SCHEMAS[name].columns
    coded = frame.select(list(columns)).with_columns(
        frame[column].cast(pl.Enum(values.sort()))
        for column, dtype in columns.items()
        if dtype == pl.String and len(values := frame[column].drop_nulls().unique()) < frame.height / 20
    )
    unique = coded.sort(list(columns)).unique(SCHEMAS[name].key, keep="first", maintain_order=True)
    return unique.cast(columns).rechunk(), frame.height - unique.height


def validate(
    frame: pl.DataFrame, name: str, file: str, on_bad_rows: str = "quarantine", text: bool = False
) -> tuple[pl.DataFrame, Account]:
    """`check` and `combine` of a single frame: the table and its closed account."""
    tables = Tables()
    tables.add(name, [check(frame, name, file, on_bad_rows, text)])
    return tables.frames[name], tables.accounts[name]


def files(directory: Path | str) -> dict[str, Path]:
    """The file of each table that `directory` holds. Raises InputError if it holds no telemetry, or a table twice."""
    found = named(directory)
    if not found.keys() & set(TELEMETRY):
        raise InputError(
            f"{directory} holds no telemetry; it needs at least one of {', '.join(TELEMETRY)} as .parquet or .csv"
        )
    return found


def named(directory: Path | str) -> dict[str, Path]:
    """The files of `directory` that are called `<table>.parquet` or `<table>.csv`, if any, by table.

    Raises InputError if it holds a table twice.
    """
    directory, found = Path(directory), {}
    for name in SCHEMAS:
        paths = [path for path in (directory / f"{name}.parquet", directory / f"{name}.csv") if os.path.lexists(path)]
        if len(paths) > 1:
            raise InputError(f"{directory} holds both {paths[0].name} and {paths[1].name}; remove one of them")
        if paths:
            found[name] = raw_files.regular(paths[0]) if paths[0].exists() else paths[0]
    return found


def nearly_named(directory: Path | str) -> list[str]:
    """Names of files of `directory` that begin like a table's, such as `logs.csv.gz`, `Logs.CSV` or `logs-2.csv`, and
    are none: what they hold is not read."""
    return [
        path.name for path in raw_files.inside(Path(directory))
        if _NEARLY.match(path.name) and path.is_file() and path.name not in _FILES
    ]  # fmt: skip


def read_tables(directory: Path | str, on_bad_rows: str = "quarantine") -> Tables:
    """The tables that `directory` holds. Raises InputError as `files` and `read_table` do."""
    tables = Tables()
    for name, path in files(directory).items():
        tables.add(name, [read_table(path, name, on_bad_rows)])
    return tables


def slices(path: Path) -> list[int | None]:
    """Where the slices of a table file begin that `read_slice` reads; None: it is read from begin to end."""
    if path.suffix != ".parquet":
        return [None]
    with _whole_parquet(path):
        return list(range(0, max(_scan(path).select(pl.len()).collect().item(), 1), _SLICE))


def read_slice(path: Path, name: str, on_bad_rows: str, first: int | None) -> Iterator[tuple[pl.DataFrame, Account]]:
    """The checked rows of a Parquet file from row `first` on (at most `_SLICE`), or of a CSV file, block by block.

    Raises InputError if the file cannot be read.
    """
    if first is None:
        for rows, torn in csv_rows.blocks(path, multiline=True):
            rows = rows.drop(FILE, strict=False)  # a column of this name is the file's own
            yield count_torn(check(rows, name, str(path), on_bad_rows, text=True), torn, str(path), on_bad_rows)
        return
    with _whole_parquet(path):
        scan = _scan(path)
        columns = [column for column in scan.collect_schema() if column in SCHEMAS[name].columns]
        rows = scan.select(columns).slice(first, _SLICE).collect()
    yield check(rows.with_row_index(ROW, offset=first + 1), name, str(path), on_bad_rows)


def read_table(
    path: Path, name: str, on_bad_rows: str = "quarantine", firsts: list[int | None] | None = None
) -> tuple[pl.DataFrame, Account]:
    """The checked rows of one Parquet or CSV file (or of its slices `firsts`) and their account.

    Raises InputError if it cannot be read.
    """
    firsts = slices(path) if firsts is None else firsts
    parts = [part for first in firsts for part in read_slice(path, name, on_bad_rows, first)]
    account = Account()
    for _, part in parts:
        account.add(part)
    return pl.concat([frame for frame, _ in parts]), account


@contextlib.contextmanager
def _whole_parquet(path: Path) -> Iterator[None]:
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        reason = "".join(str(error).splitlines()[:1])
        raise InputError(f"{path} is not a whole Parquet file ({reason}); write or copy it again") from error


def _scan(path: Path) -> pl.LazyFrame:
    """Of one file, whatever its name: no pattern, no directory of files."""
    if path.is_dir():
        raise IsADirectoryError("it is a directory")
    return pl.scan_parquet(path, glob=False, hive_partitioning=False)


def count_torn(
    part: tuple[pl.DataFrame, Account], torn: list[int], file: str, on_bad_rows: str
) -> tuple[pl.DataFrame, Account]:
    """`part` with the torn rows of its file in its account."""
    part[1].read += len(torn)
    part[1].aside("torn_row", len(torn), file, torn[0] if torn else 0, on_bad_rows)
    return part


def write_tables(tables: Tables, directory: Path | str) -> None:
    """Writes each table as Parquet (zstd). Equal tables give equal bytes: nothing in the files tells when or where."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    for name, frame in tables.frames.items():
        frame.rechunk().write_parquet(
            Path(directory) / f"{name}.parquet", compression="zstd", compression_level=3, row_group_size=1 << 18
        )


def extent_of(frame: pl.DataFrame, name: str) -> tuple[int, int] | None:
    """First and last time of the rows of a telemetry table, nanoseconds; None where it has none."""
    times = [column for column in SCHEMAS[name].required if column.endswith("_unix_nano")]
    return (frame[times[0]].min(), frame[times[-1]].max()) if frame.height else None


def merged(extents: Iterable[tuple[int, int] | None]) -> tuple[int, int] | None:
    """The extent of several together."""
    known = [extent for extent in extents if extent is not None]
    return (min(first for first, _ in known), max(last for _, last in known)) if known else None


def _check_columns(frame: pl.DataFrame, name: str, file: str, text: bool) -> None:
    schema = SCHEMAS[name]
    missing = [column for column in schema.required if column not in frame.columns]
    if missing:
        raise InputError(
            f"{file} lacks column {missing[0]!r} of table {name}; it needs {', '.join(schema.required)}"
        )
    for column, dtype in schema.columns.items():
        if column in frame.columns and not _convertible(frame.schema[column], dtype, text):
            raise InputError(
                f"{file}: column {column!r} is {frame.schema[column]}, not {dtype}; convert it"
                + (" to integer nanoseconds since 1970, UTC" if column.endswith("_unix_nano") else "")
            )


def _convertible(actual: pl.DataType, wanted: pl.DataType, text: bool) -> bool:
    """Whether the column can be converted without losing anything; a column of nulls fits every type."""
    if actual in (wanted, pl.Null) or (text and actual == pl.String):
        return True
    if wanted == pl.Int64:
        return actual.is_integer()
    if wanted == pl.Float64:
        return actual.is_numeric()
    return wanted == pl.String and actual in (pl.Categorical, pl.Enum)


def _parse(column: str, actual: pl.DataType, wanted: pl.DataType) -> pl.Expr:
    if wanted == pl.Boolean and actual == pl.String:
        flag = pl.col(column).str.to_lowercase()
        return pl.when(flag.is_in(["true", "1"])).then(True).when(flag.is_in(["false", "0"])).then(False).alias(column)
    return pl.col(column).cast(wanted, strict=False)


def _bad_values(schema: Schema, name: str) -> Iterator[tuple[str, pl.Expr]]:
    """(reason, rows that are bad for it), the most basic reason first: a row is counted under its first reason."""
    if name == "metrics":
        yield "no_value", ~pl.col("value").is_finite().fill_null(False)
        yield "value_out_of_range", pl.col("value").abs() > _LARGEST
    for column in schema.required:
        if column not in schema.nullable:
            yield f"null_{column}", pl.col(column).is_null()
    for column in schema.times:
        yield "time_out_of_range", ~pl.col(column).is_between(EARLIEST, LATEST)
    if "end_time_unix_nano" in schema.required:
        yield "negative_duration", pl.col("end_time_unix_nano") < pl.col("start_time_unix_nano")
    for column, values in schema.allowed.items():
        yield f"invalid_{column}", ~pl.col(column).is_in(values)
