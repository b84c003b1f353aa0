"""Logs that Spring Boot writes, those of all services merged into one file -> logs.

`2022-07-08 16:02:46.267  INFO 1 --- [io-16112-exec-4] i.j.internal.reporters.LoggingReporter   : Span reported: ..`

Lines that do not begin with a date (stack traces) belong to a line that does, their head, and are joined to it. In a
file that is turned round record by record they follow it; in one that is turned round line by line they stand above it,
the last first. Which it is, the frames of stack traces tell (`at ..`, `... 12 more`), with which a record ends: they
stand right above the next head, or else right below it. Without any, they are taken to follow.

A line does not say whose it is. Two things are inferred, and nothing else:
1. `Span reported: trace:span:parent:flags - operation` is the service's that the span belongs to in the traces.
2. `[io-16112-exec-4]` is a thread that serves port 16112. If all spans reported from threads of one port belong to one
   service, so does every other line from them.
The rest is the service `unknown`: a logger may be that of a library which several services use.
"""

import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from data_prep import tables
from data_prep.errors import InputError

UNKNOWN = "unknown"
_IDS = ("_trace", "_span")
_BLOCK = 8 << 20  # characters of lines that are looked at together
_BEGIN = r"^\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d"
_HEAD = (
    r"^(?P<time>\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d[.,]\d+)\s+(?P<level>[A-Z]+)\s+\d+\s+---\s+"
    r"\[(?P<thread>[^\]]*)\]\s+(?P<logger>\S+)\s*:\s?(?P<message>.*)$"
)
_FRAME = r"^\s*(?:at [\w.$/<>]+\(|\.\.\. \d+ (?:more|common frames))"
_REPORTED = r"^Span reported: (?P<trace>[0-9a-fA-F]+):(?P<span>[0-9a-fA-F]+):[0-9a-fA-F]+:[0-9a-fA-F]+ - "
_PORT = r"-(\d+)-exec-\d+$"  # a thread's name is cut on the left to 15 characters; without the dash so may the port be
_QUARTER = 900  # seconds: offsets of time zones are whole quarters of an hour


def read(
    path: Path, spans: pl.DataFrame, offset_hours: float, on_bad_rows: str
) -> Iterator[tuple[pl.DataFrame, tables.Account]]:
    """The checked records of a file (.txt, .txt.gz) and their account, block by block.

    A row is a record: a head and the lines joined to it. Lines without a head, and heads of another form, are set
    aside. How the services were found is counted as `repaired`.

    Args:
        spans: the traces of the same time, as table `spans`.
        offset_hours: of the local time of the file from UTC.

    Raises:
        InputError: the file cannot be read, or the spans that it reports show that `offset_hours` is wrong.
    """
    spans = spans.sort(spans.columns).select(
        *_without_zeros("trace_id", "span_id"), "trace_id", "span_id", service="service_name", end="end_time_unix_nano"
    ).unique(_IDS, keep="first", maintain_order=True)  # fmt: skip
    by_line, services = _learn(path, spans, offset_hours)
    for number, lines in _blocks(path, by_line):
        records, orphans = _records(lines, number, by_line)
        heads = _heads(records, spans, offset_hours)
        torn = heads.filter(pl.col("message").is_null())[tables.ROW].to_list()
        of_port = pl.col("port").replace_strict(services, default=None, return_dtype=pl.String)
        heads = heads.filter(pl.col("message").is_not_null()).with_columns(of_port=of_port)
        service = pl.coalesce("service", "of_port", pl.lit(UNKNOWN))
        frame = heads.select(
            tables.ROW,
            time_unix_nano="time",
            service_name=service,
            service_instance_id=service,  # pods are not told apart
            severity_text="level",
            body=pl.concat_str(pl.format("{}: {}", "logger", "message"), "rest", separator="\n", ignore_nulls=True),
            trace_id=pl.coalesce("trace_id", "trace"),
            span_id=pl.coalesce("span_id", "span"),
        )
        part = tables.count_torn(tables.check(frame, "logs", str(path), on_bad_rows), torn, str(path), on_bad_rows)
        account = part[1]
        account.read += len(orphans)
        account.aside("no_head", len(orphans), str(path), orphans[0] if orphans else 0, on_bad_rows)
        account.repair("service_by_span", heads["service"].count())
        account.repair("service_by_port", heads.filter(pl.col("service").is_null())["of_port"].count())
        account.repair("service_unknown", int((frame["service_name"] == UNKNOWN).sum()))
        yield part


def _learn(path: Path, spans: pl.DataFrame, offset_hours: float) -> tuple[bool, dict[str, str]]:
    """Whether the file is turned round line by line, and the service of each port that is only one service's."""
    ends, begins = 0, 0  # frames right above a head, and right below one
    reported = []
    for number, lines in _blocks(path, by_line=False):
        line = pl.Series(lines, dtype=pl.String)
        head, frame = line.str.contains(_BEGIN), line.str.contains(_FRAME)
        ends += (frame.shift(1) & head).sum()
        begins += (frame.shift(-1) & head).sum()
        heads = _heads(_records(lines, number, by_line=False)[0], spans, offset_hours)
        reported.append(heads.filter(pl.col("service").is_not_null()).select("time", "end", "service", "port"))
    if not reported:
        raise InputError(f"{path} is empty; remove it or copy it again")
    found = pl.concat(reported)
    _check_offset(found, path, offset_hours)
    of_port = found.drop_nulls("port").group_by("port").agg(pl.col("service").unique())
    services = {port: names[0] for port, names in of_port.iter_rows() if len(names) == 1}
    return begins > ends, services


def _check_offset(reported: pl.DataFrame, path: Path, offset_hours: float) -> None:
    """A span is reported when it ends."""
    late = (reported["time"] - reported["end"]).median()
    quarters = round((late or 0) / 1e9 / _QUARTER)
    if quarters:
        raise InputError(
            f"{path}: with config.data.utc_offset_hours={offset_hours:g} its lines are {quarters / 4:+g} h from the "
            f"spans that they report; set config.data.utc_offset_hours={offset_hours + quarters / 4:g}"
        )


def _blocks(path: Path, by_line: bool) -> Iterator[tuple[int, list[str]]]:
    """(number of the first line, lines), cut where no record is divided, if it is no longer than a block.

    Raises InputError for a file that cannot be read.
    """
    begin, number, held = re.compile(_BEGIN), 1, []
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8-sig", errors="replace", newline="\n") as file:
            while more := list(_lines(file, _BLOCK)):
                lines = held + [line.rstrip("\r\n") for line in more]
                last = next((at for at in range(len(lines) - 1, -1, -1) if begin.match(lines[at])), None)
                cut = 0 if last is None else last + by_line  # the last record may go on behind its head
                cut = cut or len(lines)  # unless it is longer than a block
                yield number, lines[:cut]
                number, held = number + cut, lines[cut:]
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}); copy it again") from error
    if held:
        yield number, held


def _lines(file, size: int) -> Iterator[str]:
    """The next lines, of some `size` characters together; a longer line counts as several."""
    while size > 0 and (line := file.readline(_BLOCK)):
        yield line
        size -= len(line)


def _records(lines: list[str], number: int, by_line: bool) -> tuple[pl.DataFrame, list[int]]:
    """One row a record: number of the head's line, the head, the rest in its true order; and lines without a head."""
    frame = pl.DataFrame({"line": lines}, schema={"line": pl.String}).with_row_index(tables.ROW, offset=number)
    begins = pl.col("line").str.contains(_BEGIN)
    heads_so_far = begins.cum_sum().cast(pl.Int64)
    frame = frame.filter(pl.col("line").str.strip_chars() != "").with_columns(begins=begins, record=heads_so_far)
    if by_line:
        frame = frame.with_columns(pl.col("record") - pl.col("begins")).reverse()
    has_head = pl.col("begins").any().over("record")
    orphans = frame.filter(~has_head)[tables.ROW].sort().to_list()
    head, rest = pl.col("line").filter("begins").first(), pl.col("line").filter(~pl.col("begins"))
    records = frame.filter(has_head).group_by("record", maintain_order=True).agg(
        pl.col(tables.ROW).filter("begins").first(), head.alias("head"), rest.alias("rest")
    )
    rest = pl.when(pl.col("rest").list.len() > 0).then(pl.col("rest").list.join("\n"))
    return records.select(tables.ROW, "head", rest).sort(tables.ROW), orphans


def _heads(records: pl.DataFrame, spans: pl.DataFrame, offset_hours: float) -> pl.DataFrame:
    """`records` with what their heads say, and the span that each reports; null where they say nothing of it."""
    said = records.with_columns(pl.col("head").str.extract_groups(_HEAD)).unnest("head")
    clock = pl.col("time").str.replace("T", " ", literal=True).str.replace(",", ".", literal=True)
    local = clock.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="ns", strict=False).dt.timestamp("ns")
    said = said.with_columns(
        time=local - round(offset_hours * 3600) * 1_000_000_000,
        port=pl.col("thread").str.extract(_PORT),
        reported=pl.col("message").str.extract_groups(_REPORTED),
    ).unnest("reported")
    return said.with_columns(_without_zeros("trace", "span")).join(spans, on=_IDS, how="left", maintain_order="left")


def _without_zeros(trace: str, span: str) -> list[pl.Expr]:
    """The ids as columns _IDS: Jaeger fills ids up with zeros, the clients that report spans do not."""
    return [pl.col(c).str.strip_chars_start("0").alias(name) for c, name in zip((trace, span), _IDS, strict=True)]
