"""Telemetry as it comes -> windows, with the names, scales and templates that an earlier preparation has fitted.

    live = LiveWindows(fitted.load("prepared/shop"), start)
    for window in live.push(tables_of_the_last_seconds, complete_until):
        score = scorer.push(window)

Rows wait until `lateness_seconds` after their time, for what was recorded later of the same moment (a span is exported
when it ends, its callees' spans elsewhere), and become ticks then. A window is made when its last tick is. Memory holds
the rows that wait, the traces of the last `trace_seconds`, the metrics' baseline, and three windows of ticks.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import polars as pl

from data_prep import clock_skew, event_graph, observations, padding, scaling, signals, split, templates
from data_prep.fitted import Fitted
from data_prep.observations import NAME, TIME
from data_prep.tables import SCHEMAS, TELEMETRY, Account, combine
from ssad_jax.prepared import Window

NS = split.NS
AHEAD_SECONDS = 300.0  # a row from further ahead of the clock than this is a wrong clock: it would wait for long
MOST_TICKS = 600  # that are made at a time: what comes after a long pause needs no more memory
SCRAPE_SECONDS = 300.0  # the longest time between two readings of a counter that still makes a rate
MOST_NAMES = 1000  # of unknown units that are named
MOST_BODIES = 100_000  # masked bodies whose template is remembered


class LiveWindows:
    """The windows of one system in the order of their time.

    Attributes:
        accounts: what became of the rows of each table: `read = kept + duplicates + set aside + pending`; rows are set
            aside as `late` (their ticks have been made) or `ahead` (their clock is wrong).
        unknown: rows of units that fit time does not have, by unit; they count on the unit `<unknown>`.
    """

    def __init__(
        self, fitted: Fitted, start_unix_nano: int, lateness_seconds: float = 30.0, trace_seconds: float = 60.0
    ):
        """
        Args:
            fitted: what the windows are made with.
            start_unix_nano: where the first tick begins.
            lateness_seconds: how long after its time a row may come.
            trace_seconds: how long before a span its trace may have begun.
        """
        self._fitted, settings = fitted, fitted.settings
        self._tick_ns = round(settings["tick_seconds"] * NS)
        self._length, self._stride = settings["window_length"], settings["stride"]
        self._observed = settings["node_level"], settings["metrics"], settings["metric_baseline_minutes"]
        self._lateness, self._trace = round(lateness_seconds * NS), round(trace_seconds * NS)
        before = 60 * settings["metric_baseline_minutes"] + signals.METRIC_MAX_AGE_SECONDS + SCRAPE_SECONDS
        self._kept_for = {"spans": self._trace, "metrics": round(before * NS)}  # after a row's ticks have been made
        self._templates = templates.Templates(fitted.bodies)
        self._numbers: dict[str, int] = {}
        self._units = fitted.vocabulary.units
        self._rows = {name: pl.DataFrame(schema=SCHEMAS[name].columns) for name in TELEMETRY}
        edges = fitted.edges
        self._edge_slots = padding.edge_budget(2 * len(edges.kind))  # no window can have more
        self.node_names = tuple(event_graph.make_nodes(fitted.vocabulary, self._templates.texts).names)
        self.accounts = {name: Account() for name in TELEMETRY}
        self.unknown: collections.Counter[str] = collections.Counter()
        self._origin = self._done = start_unix_nano  # ticks are made up to `_done`
        self._first = self._next = 0  # numbers of the first tick that is held, and of the next window's first
        self._ticks: dict[str, np.ndarray] = {}

    def restart(self, start_unix_nano: int) -> None:
        """Goes on at a later time that nothing precedes; rows that wait for ticks in between are set aside.

        Raises:
            ValueError: ticks after that time have been made.
        """
        ticks = -(-(start_unix_nano - self._origin) // self._tick_ns)
        start = self._origin + ticks * self._tick_ns  # on the same axis of ticks
        if start < self._done:
            raise ValueError(f"ticks up to {self._done} ns have been made; restart at that time or later")
        for name, frame in self._rows.items():
            passed = frame.filter(pl.col(_time(name)).is_between(self._done, start, closed="left")).height
            self._aside(name, "between_observed_times", passed)
        self._done, self._first, self._next, self._ticks = start, ticks, ticks, {}

    def push(self, tables: dict[str, pl.DataFrame], complete_until: int) -> list[Window]:
        """Takes rows up, and returns the windows that are whole now.

        Args:
            tables: rows of `spans`, `logs`, `metrics`, `events` in any order, in the columns of their schemas
                (`tables.check` or a source gives them so).
            complete_until: the time, in ns, up to which telemetry has come but for what may be late: now.
        """
        for name, frame in tables.items():
            frame = clock_skew.corrected(frame, self._fitted.clock_offsets.get(name, {}))
            self._take_up(name, frame.select(list(SCHEMAS[name].columns)), complete_until)
        windows = []
        while (ticks := (complete_until - self._lateness - self._done) // self._tick_ns) > 0:
            self._make_ticks(min(ticks, MOST_TICKS))
            windows += self._make_windows()
        return windows

    @property
    def pending(self) -> dict[str, int]:
        """Rows of each table that wait for their ticks."""
        return {name: frame.filter(pl.col(_time(name)) >= self._done).height for name, frame in self._rows.items()}

    def check(self) -> None:
        """Raises RuntimeError if a row is unaccounted for."""
        pending = self.pending
        for name, account in self.accounts.items():
            if account.read != account.kept + account.duplicates + sum(account.set_aside.values()) + pending[name]:
                raise RuntimeError(f"rows of {name} do not add up: {account}, {pending[name]} pending")

    def _take_up(self, name: str, frame: pl.DataFrame, complete_until: int) -> None:
        time = pl.col(_time(name))
        latest = complete_until + round(AHEAD_SECONDS * NS)
        in_time, late = (frame.filter(some).height for some in (time.is_between(self._done, latest), time < self._done))
        self.accounts[name].read += frame.height
        self._aside(name, "late", late)
        self._aside(name, "ahead", frame.height - in_time - late)
        # What is late may still be a parent, or the reading that a metric stands at.
        usable = frame.filter(time.is_between(self._done - self._kept_for.get(name, 0), latest))
        self._rows[name] = pl.concat([self._rows[name], usable])

    def _aside(self, name: str, reason: str, count: int) -> None:
        self.accounts[name].aside(reason, count, name, 0, "quarantine")

    def _make_ticks(self, ticks: int) -> None:
        start, end = self._done, self._done + ticks * self._tick_ns
        made = signals.per_tick(self._observations(start, end), self._fitted.vocabulary, start, ticks, self._tick_ns)
        if self._ticks:
            made = {name: np.concatenate([self._ticks[name], array]) for name, array in made.items()}
        self._ticks, self._done = made, end
        for name, frame in self._rows.items():
            self._rows[name] = frame.filter(pl.col(_time(name)) >= end - self._kept_for.get(name, 0))

    def _observations(self, start: int, end: int) -> dict[str, pl.DataFrame]:
        """Those of [start, end), of metrics also earlier ones, as `signals.per_tick` takes them."""
        out = {}
        for name in TELEMETRY:
            time = pl.col(_time(name))
            frame = self._rows[name].filter(time < end) if name != "spans" else self._traces(start, end)
            within = time.is_between(start, end, closed="left")
            came = frame.filter(within).height
            frame, _ = combine([frame], name)
            now = frame.filter(within)
            self.accounts[name].kept += now.height
            self.accounts[name].duplicates += came - now.height
            observed = observations.observe_table(name, frame, *self._observed)
            self._count_unknown(now)
            first = start - round(signals.METRIC_MAX_AGE_SECONDS * NS) if name == "metrics" else start
            within = pl.col(TIME).is_between(first, end, closed="left")
            out |= {key: rows.filter(within) for key, rows in observed.items()}
        out["logs"] = out["logs"].with_columns(self._numbered(out["logs"]["masked"]).alias("template"))
        return out

    def _count_unknown(self, rows: pl.DataFrame) -> None:
        units = rows.group_by(observations.unit(self._observed[0])).len()
        for unit, count in units.filter(~pl.col(NAME).is_in(self._units)).sort(NAME).iter_rows():
            if unit in self.unknown or len(self.unknown) < MOST_NAMES:
                self.unknown[unit] += count

    def _traces(self, start: int, end: int) -> pl.DataFrame:
        """All spans that have come of the traces that have one in [start, end)."""
        spans = self._rows["spans"]
        now = spans.filter(pl.col(_time("spans")).is_between(start, end, closed="left"))
        return spans.join(now.select("trace_id").unique(), on="trace_id", how="semi")

    def _numbered(self, masked: pl.Series) -> pl.Series:
        """Template numbers; those of bodies that have come before are remembered."""
        new = [body for body in masked.unique().to_list() if body not in self._numbers]
        if len(self._numbers) + len(new) > MOST_BODIES:
            self._numbers, new = {}, masked.unique().to_list()
        self._numbers |= zip(new, self._templates.assign(pl.Series("masked", new, pl.String)), strict=True)
        return masked.replace_strict(self._numbers, default=templates.UNSEEN, return_dtype=pl.Int32)

    def _make_windows(self) -> list[Window]:
        """Those whose last tick was made last; ticks that no later window needs are dropped."""
        length, fitted = self._length, self._fitted
        starts = np.arange(self._next, self._first + len(self._ticks["ops"]) - length + 1, self._stride)
        windows = []
        if len(starts):
            whole = signals.aggregate(self._ticks, length, starts - self._first)
            signal, context = scaling.scale(whole, fitted.vocabulary, fitted.statistics)
            nodes = event_graph.node_attributes(signal, context, fitted.node_budget)
            active = event_graph.active_edges(fitted.edges, whole)
            pairs, kind, padding_node = fitted.edges.pairs, fitted.edges.kind, fitted.node_budget - 1
            edges = padding.pad_edges(pairs, kind, active, self._edge_slots, padding_node)
            begin = self._origin + starts * self._tick_ns
            times = starts, begin, begin + length * self._tick_ns
            windows = [Window(*row) for row in zip(nodes, *edges, *(t.tolist() for t in times), strict=True)]
            self._next = int(starts[-1]) + self._stride
        passed = max(self._next - signals.LAGS * length - self._first, 0)
        self._ticks = {name: array[passed:] for name, array in self._ticks.items()}
        self._first += passed
        return windows


def on_one_clock(fitted: Fitted, frames: dict[str, pl.DataFrame]) -> tuple[Fitted, dict[str, pl.DataFrame]]:
    """Recorded tables with times as they are corrected, in order; and `fitted` so that nothing is corrected twice.

    For tables that are at hand as a whole: what was observed when, and when a row comes, then follows its true time.
    """
    offsets = fitted.clock_offsets
    frames = frames | {
        name: clock_skew.corrected(frames[name], own).sort(_time(name), maintain_order=True)
        for name, own in offsets.items() if name in frames
    }  # fmt: skip
    return dataclasses.replace(fitted, clock_offsets={}), frames


def arriving(frames: dict[str, pl.DataFrame], intervals, step: int, lateness: int) -> Iterator[tuple]:
    """Yields (where an interval begins: in its first step, else None), rows of the tables, now: step by step of time.

    frames: telemetry tables in order of time; intervals: (start, end) of observed time; all times in ns.

    Each row comes once. An interval goes on until every tick before its end is complete; its first step also brings
    what came before it and after the interval before.
    """
    times = {name: frames[name][_time(name)].to_numpy() for name in TELEMETRY if name in frames}
    came = dict.fromkeys(times, 0)
    for start, end in intervals:
        begin = start
        for now in itertools.chain(range(start + step, end + lateness, step), [end + lateness]):
            until = {name: max(came[name], int(np.searchsorted(time, now))) for name, time in times.items()}
            yield begin, {name: frames[name][came[name] : until[name]] for name in times}, now
            begin, came = None, until


def _time(name: str) -> str:
    return "start_time_unix_nano" if name == "spans" else "time_unix_nano"
