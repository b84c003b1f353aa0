"""Test time on the page: observed stretches side by side, unobserved time between them as gaps of fixed width."""

import dataclasses

import numpy as np

from ssad_jax.report.text import time_text
from ssad_jax.scoring.assess import TestWindows

NS = 1_000_000_000
CELLS, PANELS = 720, 4  # cells of a panel; more windows than fit share a cell
NEAR = 0.15  # of a panel: how far a cut moves to fall between segments
GAP = 7.0  # pixels
TICK_ROOM, DATE_ROOM = 62.0, 122.0  # pixels that a tick label takes


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Cells without unobserved time between them."""

    x: float  # left end, pixels
    cells: list[np.ndarray]  # of each cell the rows of TestWindows that it shows
    start_unix_nano: int
    end_unix_nano: int


@dataclasses.dataclass(frozen=True)
class Panel:
    """One row of the time axis."""

    stretches: list[Stretch]
    cell: float  # width of a cell, pixels
    gaps: list[tuple[float, float]]  # left end, unobserved seconds
    ticks: list[tuple[float, str]]  # x, UTC

    def place(self, stretch: Stretch, first: int, last: int) -> tuple[float, float]:
        """Left end and width, in pixels, of the cells first..last of a stretch."""
        return stretch.x + first * self.cell, (last + 1 - first) * self.cell


def panels(test: TestWindows, width: float) -> tuple[list[Panel], int]:
    """The axis of all test windows: (panels, most windows of a cell). Panels are `width` pixels wide or less."""
    total = len(test.window)
    if not total:
        return [], 0
    order = np.lexsort((test.start_unix_nano, test.segment))
    runs = np.split(order, np.flatnonzero(np.diff(test.segment[order])) + 1)
    runs.sort(key=lambda rows: test.start_unix_nano[rows[0]])
    together = -(-total // (CELLS * PANELS))
    parts = [[run[i : i + together] for i in range(0, len(run), together)] for run in runs]
    rows = _rows(parts)
    gap = min(GAP, 0.25 * width / max(map(len, rows)))
    cell = min((width - gap * (len(row) - 1)) / sum(map(len, row)) for row in rows)
    return [_panel(test, row, cell, gap) for row in rows], together


def _rows(parts: list[list[np.ndarray]]) -> list[list[list[np.ndarray]]]:
    """Cells of segments over panels of about equal length, cut between segments where one ends near enough."""
    ends = np.cumsum([len(part) for part in parts])
    total = int(ends[-1])
    count = -(-total // CELLS)
    share = total / count
    cuts = [0]
    for wanted in share * np.arange(1, count):
        near = int(ends[np.argmin(np.abs(ends - wanted))])
        cuts.append(near if abs(near - wanted) <= NEAR * share else int(wanted))
    rows = []
    for first, last in zip(cuts, [*cuts[1:], total], strict=True):
        starts = ends - [len(part) for part in parts]
        clipped = [part[max(first - s, 0) : max(last - s, 0)] for part, s in zip(parts, starts, strict=True)]
        rows.append([part for part in clipped if part])
    return rows


def _panel(test: TestWindows, row, cell: float, gap: float) -> Panel:
    stretches, gaps, x = [], [], 0.0
    for cells in row:
        start, end = int(test.start_unix_nano[cells[0][0]]), int(test.end_unix_nano[cells[-1][-1]])
        if stretches:
            unseen = (start - stretches[-1].end_unix_nano) / NS
            gaps.append((x, max(unseen, 0.0)))
            x += gap
        stretches.append(Stretch(x, cells, start, end))
        x += len(cells) * cell
    return Panel(stretches, cell, gaps, _ticks(test, stretches, cell))


def _ticks(test: TestWindows, stretches: list[Stretch], cell: float) -> list[tuple[float, str]]:
    """Time of day at stretches, and within long ones, that have room for it; with the date where it is a new one."""
    ticks, free, day = [], -np.inf, ""
    for stretch in stretches:
        end = stretch.x + len(stretch.cells) * cell
        for i, rows in enumerate(stretch.cells):
            x = stretch.x + i * cell
            text = time_text(test.start_unix_nano[rows[0]])
            new_day = text[:10] != day
            room = DATE_ROOM if new_day else TICK_ROOM
            inside = i > 0 and (x < free + TICK_ROOM or x + room > end)
            if x < free or inside:
                continue
            ticks.append((x, text[:16] if new_day else text[11:]))
            free, day = x + room, text[:10]
    return ticks
