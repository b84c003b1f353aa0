"""Traces as trees whose times can be replayed: what takes longer delays everything that waits for it.

A fault marks spans (`Changes`); `Requests.replay` works out the consequences. A span waits for its children, as long as
they end before it does: what a child takes longer is added to all that its parent does later, and so on up to the root.
Children that overlap delay their parent by the largest of their delays, not by the sum.
"""

import bisect
import dataclasses
import itertools

import polars as pl

START, END = "start_time_unix_nano", "end_time_unix_nano"


@dataclasses.dataclass
class Changes:
    """What a fault does, by row of spans (or of logs). Times in ns."""

    way_in: dict[int, int] = dataclasses.field(default_factory=dict)  # span starts so much later than it was called
    way_back: dict[int, int] = dataclasses.field(default_factory=dict)  # its caller notices its end so much later
    slow: dict[int, float] = dataclasses.field(default_factory=dict)  # factor on the time it spends itself
    slow_tail: dict[int, float] = dataclasses.field(default_factory=dict)  # the same, only after its last child's end
    failed: set[int] = dataclasses.field(default_factory=set)  # status ERROR
    removed: set[int] = dataclasses.field(default_factory=set)  # with everything beneath
    lost_logs: set[int] = dataclasses.field(default_factory=set)
    new_logs: list[tuple[int, dict]] = dataclasses.field(default_factory=list)  # (span it is written in, row)


class Requests:
    """The traces of one stretch: `spans` and `logs` are telemetry tables; rows are numbered as they are there."""

    def __init__(self, spans: pl.DataFrame, logs: pl.DataFrame | None):
        self.spans, self.logs = spans, logs
        self.start, self.end = spans[START].to_list(), spans[END].to_list()
        self.service, self.name, self.kind = (spans[c].to_list() for c in ("service_name", "span_name", "kind"))
        keys = list(zip(spans["trace_id"].to_list(), spans["span_id"].to_list(), strict=True))
        row = {key: i for i, key in enumerate(keys)}
        parents = zip(keys, spans["parent_span_id"].to_list(), strict=True)
        self.parent = [row.get((trace, parent), -1) if parent is not None else -1 for (trace, _), parent in parents]
        self.children: list[list[int]] = [[] for _ in keys]
        for i, parent in enumerate(self.parent):
            if parent >= 0:
                self.children[parent].append(i)
        self.order: list[int] = []  # parents before their children
        self._put_in_order()
        self.lines: list[list[int]] = [[] for _ in keys]  # of logs, by span
        self.span_of_line: dict[int, int] = {}
        self.time_of_line = [] if logs is None else logs["time_unix_nano"].to_list()
        if logs is not None:
            for line, key in enumerate(zip(logs["trace_id"].to_list(), logs["span_id"].to_list(), strict=True)):
                if (i := row.get(key)) is not None:
                    self.lines[i].append(line)
                    self.span_of_line[line] = i

    def _put_in_order(self) -> None:
        """Spans that call one another in a circle have no root: the first span of each circle becomes one."""
        placed, starts = [False] * len(self.parent), [i for i, parent in enumerate(self.parent) if parent < 0]
        for i in itertools.chain(starts, range(len(self.parent))):
            if placed[i]:
                continue
            if self.parent[i] >= 0:
                around = {i: None}
                while (i := self.parent[i]) not in around:
                    around[i] = None
                self.children[self.parent[i]].remove(i)
                self.parent[i] = -1
            below = [i]
            for j in below:
                placed[j] = True
                below += self.children[j]
            self.order += below

    def is_client(self, i: int) -> bool:
        return self.kind[i] == "CLIENT"

    def is_served(self, i: int) -> bool:
        """Whether the span answers a call: another service's, or a user's."""
        if self.kind[i] is not None:
            return self.kind[i] in ("SERVER", "CONSUMER")
        return self.parent[i] < 0 or self.service[self.parent[i]] != self.service[i]

    def calls(self) -> list[int]:
        """Served spans whose caller's client span is there: only with these a delay between the two can be seen."""
        pairs = ((i, parent) for i, parent in enumerate(self.parent) if parent >= 0 and self.is_client(parent))
        return [i for i, parent in pairs if self.service[i] != self.service[parent] and self.is_served(i)]

    def own_part(self, i: int) -> list[int]:
        """The span and what its service does within it: spans beneath it, without those of other requests."""
        part = [i]
        for j in part:
            part += [c for c in self.children[j] if self.service[c] == self.service[i] and not self.is_served(c)]
        return part

    def seen(self, i: int) -> tuple[int, int]:
        """Start and end of a span as its parent sees them.

        Clocks differ by milliseconds: an answered call that does not lie within its client span is put in its middle.
        """
        start, end, parent = self.start[i], self.end[i], self.parent[i]
        if parent < 0 or not self.is_client(parent) or not self.is_served(i):
            return start, end
        spare = (self.end[parent] - self.start[parent]) - (end - start)
        if spare < 0 or (self.start[parent] <= start and end <= self.end[parent]):
            return start, end
        return self.start[parent] + spare // 2, self.start[parent] + spare // 2 + end - start

    def replay(self, changes: Changes) -> tuple[pl.DataFrame, pl.DataFrame | None]:
        """Spans and logs as they would have been with `changes`; ids stay."""
        gone = set(changes.removed)
        for i in self.order:
            if self.parent[i] in gone:
                gone.add(i)
        longer, delays = [0] * len(self.start), {}
        for i in reversed(self.order):
            if i not in gone:
                delays[i] = self._delays(i, changes, gone, longer)
                longer[i] = delays[i][-1][1] if delays[i] else 0
        shift = [0] * len(self.start)
        for i in self.order:
            if (parent := self.parent[i]) >= 0:
                called = shift[parent] + _at(delays.get(parent), self.seen(i)[0])
                shift[i] = called + changes.way_in.get(i, 0)

        spans = self.spans.with_columns(
            pl.Series(START, [a + s for a, s in zip(self.start, shift, strict=True)], pl.Int64),
            pl.Series(END, [b + s + e for b, s, e in zip(self.end, shift, longer, strict=True)], pl.Int64),
            pl.Series("status_code", [
                "ERROR" if i in changes.failed else code for i, code in enumerate(self.spans["status_code"].to_list())
            ], pl.String),
        ).filter(pl.Series([i not in gone for i in range(len(shift))], dtype=pl.Boolean))  # fmt: skip
        if self.logs is None:
            return spans, None

        def moved(time, i):
            return time if i is None else time + shift[i] + _at(delays.get(i), time)

        at = [self.span_of_line.get(line) for line in range(self.logs.height)]
        keep = [line not in changes.lost_logs and i not in gone for line, i in enumerate(at)]
        times = [moved(time, i) for time, i in zip(self.time_of_line, at, strict=True)]
        logs = self.logs.with_columns(pl.Series("time_unix_nano", times, pl.Int64)).filter(
            pl.Series(keep, dtype=pl.Boolean)
        )
        new = [row | {"time_unix_nano": moved(row["time_unix_nano"], i)} for i, row in changes.new_logs]
        return spans, pl.concat([logs, pl.DataFrame(new, schema=logs.schema, orient="row")])

    def _delays(self, i: int, changes: Changes, gone: set[int], longer: list[int]) -> list[tuple[int, int]]:
        """[(time, delay that the span's work has gathered by then)], from its start to its end; [] if it has none.

        Known already is how much longer its children take.
        """
        factor, tail = changes.slow.get(i, 1.0), changes.slow_tail.get(i, 1.0)
        start, end = self.start[i], self.end[i]
        costs, seen = {}, {c: self.seen(c) for c in self.children[i]}
        for c in self.children[i]:
            if seen[c][1] <= end:  # it waits for these; what ends later, nobody waits for
                extra = longer[c] + changes.way_in.get(c, 0) + changes.way_back.get(c, 0)
                costs[c] = self.start[c] - self.end[c] if c in gone else extra
        if factor == tail == 1.0 and not any(costs.values()):
            return []
        moments = [(max(seen[c][0], start), 1, c) for c in costs] + [(max(seen[c][1], start), 0, c) for c in costs]
        delay, now, points, active, begun, overlaps = 0, start, [(start, 0)], set(), {}, set()
        # Ends before starts at the same time, but no end before its own start.
        for time, _, c in sorted(moments, key=lambda m: (m[0], m[1] if self.start[m[2]] < self.end[m[2]] else 2)):
            if not active:
                delay += round((time - now) * (factor - 1))
            now = time
            if c not in begun:
                points.append((time, delay))
                begun[c] = delay
                if active:
                    overlaps |= active | {c}
                active.add(c)
            else:
                active.remove(c)
                delay = max(delay, begun[c] + costs[c]) if c in overlaps else begun[c] + costs[c]
                points.append((time, delay))
        delay += round((end - now) * (factor * tail - 1))
        points.append((end, delay))
        return points


def _at(points: list[tuple[int, int]] | None, time: int) -> int:
    """The delay at `time`: between two points in proportion, before the first and after the last as there."""
    if not points or time <= points[0][0]:
        return 0
    if time >= points[-1][0]:
        return points[-1][1]
    after = bisect.bisect_left(points, (time, -(1 << 62)))
    (t0, d0), (t1, d1) = points[after - 1], points[after]
    return d1 if t1 == time else d0 + (d1 - d0) * (time - t0) // (t1 - t0)
