"""Clocks that differ, found from what must lie within something else.

A server span lies within the client span that called it: if the server's clock is ahead of the client's by x, then
server end - client end <= x <= server start - client start, and if both ways take equally long, x is the middle (as in
NTP). A log line that names its span lies within it: time - span end <= x <= time - span start.

Each pair so gives an interval. The offset lies where most intervals overlap, at the median of their middles; single
pairs that are not what they seem (a call that nobody waits for, a line written after the end) do not matter. Clocks
differ only if most pairs contradict equal ones: differences below the time that a call is on its way are not seen, and
do no harm.
"""

import dataclasses
import heapq
from collections.abc import Iterable

import numpy as np
import polars as pl

MIN_PAIRS = 20
MIN_OFFSET_NS = 1_000_000
WARNED_NS = 100_000_000  # a tenth of the usual tick; what differs by less hardly ever counts elsewhere
SURE = 0.8  # share of the pairs that one offset must explain to be corrected: a clock that drifts has no one offset
_CONTRADICTED = 0.5  # equal clocks explain less than this share of what the best offset does
_NAMED = 5  # clocks that a warning names
_MS = 1e6
_START, _END, _INSTANCE = "start_time_unix_nano", "end_time_unix_nano", "service_instance_id"
_CLIENT, _SERVER, _LOW, _HIGH = "client", "server", "low", "high"


@dataclasses.dataclass(frozen=True)
class Offset:
    """By how much a clock is ahead, ns: the estimate, and the bounds within which all agreeing pairs allow it.

    `agreeing`, `unmoved`: shares of the pairs that the offset, and none, explains.
    """

    ns: int
    low: int
    high: int
    pairs: int
    agreeing: float
    unmoved: float

    @property
    def differs(self) -> bool:
        return abs(self.ns) >= MIN_OFFSET_NS and self.unmoved < _CONTRADICTED * self.agreeing

    @property
    def sure(self) -> bool:
        return self.agreeing >= SURE

    def without(self) -> "Offset":
        """The same evidence for equal clocks."""
        return dataclasses.replace(self, ns=0, low=0, high=0)

    def plus(self, other: "Offset") -> "Offset":
        return dataclasses.replace(self, ns=self.ns + other.ns, low=self.low + other.low, high=self.high + other.high)

    def negative(self) -> "Offset":
        return dataclasses.replace(self, ns=-self.ns, low=-self.high, high=-self.low)


@dataclasses.dataclass(frozen=True)
class Skew:
    """The clock of an instance's spans or logs against `reference`: "" is the clock that most instances share."""

    table: str
    instance: str
    reference: str
    offset: Offset

    def record(self, corrected: bool) -> dict:
        """For the manifest."""
        own = self.offset
        return {
            "table": self.table, "instance": self.instance, "reference": self.reference, "offset_ms": own.ns / _MS,
            "low_ms": own.low / _MS, "high_ms": own.high / _MS, "pairs": own.pairs,
            "agreeing": round(own.agreeing, 3), "sure": own.sure, "corrected": corrected and own.sure,
        }  # fmt: skip


def call_pairs(spans: pl.DataFrame) -> pl.DataFrame:
    """(client, server, low, high) of each client span of one instance with the server span of another, ns.

    A client span with several such children waited for nobody knows which, and is left out.
    """
    served = spans.filter(pl.col("kind") == "SERVER").select(
        "trace_id", pl.col("parent_span_id").alias("span_id"), pl.col(_INSTANCE).alias(_SERVER),
        pl.col(_START).alias("from"), pl.col(_END).alias("to"),
    )  # fmt: skip
    served = served.filter(pl.len().over("trace_id", "span_id") == 1)
    pairs = spans.filter(pl.col("kind") == "CLIENT").join(served, on=["trace_id", "span_id"])
    return pairs.filter(pl.col(_INSTANCE) != pl.col(_SERVER)).select(
        pl.col(_INSTANCE).alias(_CLIENT), _SERVER,
        (pl.col("to") - pl.col(_END)).alias(_LOW), (pl.col("from") - pl.col(_START)).alias(_HIGH),
    )  # fmt: skip


def log_pairs(logs: pl.DataFrame, spans: pl.DataFrame) -> pl.DataFrame:
    """(service_instance_id, low, high) of each log line whose span is known, ns."""
    return logs.join(spans.select("trace_id", "span_id", _START, _END), on=["trace_id", "span_id"]).select(
        _INSTANCE, (pl.col("time_unix_nano") - pl.col(_END)).alias(_LOW),
        (pl.col("time_unix_nano") - pl.col(_START)).alias(_HIGH),
    )  # fmt: skip


def estimate(low: np.ndarray, high: np.ndarray) -> Offset | None:
    """The offset that most of the intervals [low, high] (ns) allow; None for fewer than MIN_PAIRS of them.

    What has low > high, such as a callee that takes longer than its call, allows no offset.
    """
    total, possible = len(low), low <= high
    if total < MIN_PAIRS or not possible.any():
        return None
    low, high = low[possible], high[possible]
    ends = np.concatenate([low, high])
    opens = np.repeat([0, 1], len(low))  # at one point, those that begin count before those that end
    order = np.lexsort([opens, ends])
    depth = np.cumsum(1 - 2 * opens[order])
    deepest = int(depth.argmax())
    first, last = (int(ends[order[i]]) for i in (deepest, deepest + 1))
    middle = int(np.median(low + (high - low) / 2))
    unmoved = ((low <= 0) & (high >= 0)).sum()
    agreeing = float(depth[deepest]) / total
    return Offset(min(max(middle, first), last), first, last, total, agreeing, float(unmoved) / total)


def of_spans(spans: pl.DataFrame) -> list[Skew]:
    """The instances whose spans are on another clock than most, in order of names.

    Pairs of instances whose clocks differ by no one offset are named with the client as the reference.
    """
    edges, unsure = [], []
    for (client, server), pairs in _groups(call_pairs(spans), _CLIENT, _SERVER):
        found = estimate(pairs[_LOW].to_numpy(), pairs[_HIGH].to_numpy())
        if found is None:
            continue
        if found.differs and not found.sure:
            unsure.append(Skew("spans", server, client, found))
        else:
            edges.append((client, server, found if found.differs else found.without()))
    settled = [Skew("spans", name, "", offset) for name, offset in sorted(_against_the_usual(edges).items())]
    return settled + sorted(unsure, key=lambda skew: (skew.instance, skew.reference))


def of_logs(logs: pl.DataFrame, spans: pl.DataFrame) -> list[Skew]:
    """The instances whose log lines are on another clock than the spans that they were written in."""
    found = (
        Skew("logs", instance, "its spans", offset)
        for (instance,), pairs in _groups(log_pairs(logs, spans), _INSTANCE)
        if (offset := estimate(pairs[_LOW].to_numpy(), pairs[_HIGH].to_numpy())) and offset.differs
    )
    return list(found)


def corrections(skews: Iterable[Skew]) -> dict[str, int]:
    """What to take away from the times of an instance, ns."""
    return {skew.instance: skew.offset.ns for skew in skews if skew.offset.sure}


def corrected_offsets(records: Iterable[dict]) -> dict[str, dict[str, int]]:
    """Table -> `corrections`, of what the manifest says was corrected."""
    out: dict[str, dict[str, int]] = {}
    for record in records:
        if record["corrected"]:
            out.setdefault(record["table"], {})[record["instance"]] = round(record["offset_ms"] * _MS)
    return out


def corrected(frame: pl.DataFrame, offsets: dict[str, int]) -> pl.DataFrame:
    """`frame` (of spans or logs) with the times of a common clock."""
    if not offsets:
        return frame
    ahead = pl.col(_INSTANCE).replace_strict(offsets, default=0, return_dtype=pl.Int64)
    return frame.with_columns(pl.col(name) - ahead for name in frame.columns if name.endswith("_unix_nano"))


def warnings(skews: list[Skew], corrected: bool) -> list[str]:
    """Of what differs by enough to matter, sentences for people."""
    out, skews = [], [skew for skew in skews if abs(skew.offset.ns) >= WARNED_NS]
    for sure in (True, False):
        some = [skew for skew in skews if skew.offset.sure == sure]
        if some:
            more = f" and {len(some) - _NAMED} more (clock_skew in the manifest)" if len(some) > _NAMED else ""
            what = "differ" if sure else "differ by no one offset, which is not corrected"
            remedy = "" if not sure else (
                ": corrected" if corrected else "; config.data.correct_clock_skew=True would correct them"
            )  # fmt: skip
            named = ", ".join(_told(skew) for skew in some[:_NAMED])
            out.append(f"clocks of {some[0].table} {what}: {named}{more}{remedy}")
    return out


def _told(skew: Skew) -> str:
    own = skew.offset
    against = f" against {skew.reference}" if skew.reference else ""
    return f"{skew.instance} {own.ns / _MS:+.1f} ms{against} ({own.agreeing:.0%} of {own.pairs} pairs)"


def _groups(pairs: pl.DataFrame, *keys: str):
    return sorted(pairs.partition_by(*keys, as_dict=True).items())


def _against_the_usual(edges: list[tuple[str, str, Offset]]) -> dict[str, Offset]:
    """(client, server, the server's offset) -> the offset of each instance that is not on its group's usual clock.

    A group is what calls one another, even over others. From the instance with the most calls on, offsets and bounds
    add up along the pairs with the most calls; the usual clock is the one that instances with the most calls may have.
    """
    steps: dict[str, list] = {}
    for number, (client, server, offset) in enumerate(edges):
        steps.setdefault(client, []).append((-offset.pairs, number, server, client, offset))
        steps.setdefault(server, []).append((-offset.pairs, number, client, server, offset.negative()))
    calls = {name: -sum(step[0] for step in some) for name, some in steps.items()}
    out, done = {}, set()
    for root in sorted(calls, key=lambda name: (-calls[name], name)):
        if root in done:
            continue
        group, ahead = {root: min(steps[root])[-1].without()}, sorted(steps[root])
        while ahead:
            *_, name, before, offset = heapq.heappop(ahead)
            if name not in group:
                group[name] = offset.plus(group[before])
                for step in steps[name]:
                    heapq.heappush(ahead, step)
        done |= group.keys()
        rows = [(offset.low, offset.high, calls[name]) for name, offset in group.items()]
        low, high, weight = np.array(rows).T
        shared = [weight[(low <= offset.high) & (high >= offset.low)].sum() for offset in group.values()]
        usual = list(group.values())[int(np.argmax(shared))].negative()
        against = {name: offset.plus(usual) for name, offset in group.items()}
        out |= {n: o for n, o in against.items() if abs(o.ns) >= MIN_OFFSET_NS and not o.low <= 0 <= o.high}
    return out
