"""What a long simulation leaves behind, written as it happens: memory does not grow with the simulated time.

Each class stands in the place of a list or dict of the engine or of Rally (`Engine.logs`, `Engine.traces`,
`Rally.finished`), and what is written is the same, byte for byte.
"""

import dataclasses
import heapq
import json
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from data_prep.simulate.state import LogLine, Trace
from data_prep.simulate.workloads import Iteration

_BUCKET = 600.0  # seconds of log lines that are sorted at a time
_BUFFER = 2000  # log lines that wait to be written together
_RECENT = 2000.0  # seconds for which finished iterations can be looked back at; a fault's recovery is far shorter


class LogLines:
    """Log lines, given back in the order of a key that is drawn for each as it comes."""

    def __init__(self, directory: Path, key: Callable[[LogLine], float | None]):
        """`key`: of a line, drawn in the order in which lines come; None: the line is left out."""
        directory.mkdir(parents=True)
        self._directory, self._key, self._waiting, self._buckets, self._number = directory, key, [], set(), 0

    def append(self, line: LogLine) -> None:
        key = self._key(line)
        if key is not None:
            self._waiting.append((key, self._number, line))
            self._number += 1
            if len(self._waiting) >= _BUFFER:
                self._flush()

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[LogLine]:
        self._flush()
        for bucket in sorted(self._buckets):
            with open(self._directory / str(bucket), encoding="utf-8") as file:
                rows = [json.loads(row) for row in file]
            for _, _, fields in sorted(rows, key=lambda row: row[:2]):
                yield LogLine(*fields)

    def _flush(self) -> None:
        files = {}
        for key, number, line in self._waiting:
            bucket = int(key // _BUCKET)
            values = [getattr(line, field.name) for field in dataclasses.fields(line)]
            files.setdefault(bucket, []).append(json.dumps([key, number, values]) + "\n")
        for bucket, rows in files.items():
            with open(self._directory / str(bucket), "a", encoding="utf-8") as file:
                file.writelines(rows)
        self._buckets |= files.keys()
        self._waiting = []


class Traces:
    """Traces by id, each handed over and forgotten when its iteration has finished and nothing can add to it.

    Work that nobody waits for goes on after its iteration. A span can only be started or stopped through a context that
    leads to the trace: once nothing but its spans is left of a trace, they are all there.
    """

    def __init__(self, write: Callable[[str, Trace], None]):
        """`write`: takes the name of the workload and the trace."""
        self._write = write
        self._started: dict[str, tuple[weakref.ref, list]] = {}
        self._finished: list[tuple[str, str]] = []  # workload, trace id

    def __setitem__(self, trace_id: str, trace: Trace) -> None:
        self._write_some(lambda alive: not alive)
        self._started[trace_id] = weakref.ref(trace), trace.spans

    def finish(self, workload: str, iteration: Iteration) -> None:
        self._finished.append((workload, iteration.trace_id))

    def close(self) -> None:
        """Hands over the other traces of finished iterations."""
        self._write_some(lambda alive: True)

    def _write_some(self, due: Callable[[bool], bool]) -> None:
        later = []
        for workload, trace_id in self._finished:
            trace, spans = self._started[trace_id]
            if due(trace() is not None):
                del self._started[trace_id]
                whole = Trace(trace_id)
                whole.spans = spans
                self._write(workload, whole)
            else:
                later.append((workload, trace_id))
        self._finished = later


class Iterations:
    """Finished iterations of one workload; `reversed` gives the last _RECENT seconds of them, `iter` all."""

    def __init__(self, path: Path, on_append: Callable[[Iteration], None]):
        self._path, self._on_append, self._count = path, on_append, 0
        self._recent: deque[Iteration] = deque()

    def append(self, iteration: Iteration) -> None:
        self._count += 1
        self._recent.append(iteration)
        while self._recent[0].finished < iteration.finished - _RECENT:
            self._recent.popleft()
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.astuple(iteration)) + "\n")
        self._on_append(iteration)

    def __len__(self) -> int:
        return self._count

    def __reversed__(self) -> Iterator[Iteration]:
        return reversed(self._recent)

    def __iter__(self) -> Iterator[Iteration]:
        """All in the order of their numbers, which is that of their starts."""
        waiting, following = [], 1
        for number, iteration in self._as_written():
            heapq.heappush(waiting, (number, iteration))
            while waiting and waiting[0][0] == following:
                yield Iteration(*heapq.heappop(waiting)[1])
                following += 1
        while waiting:  # behind one that was not finished
            yield Iteration(*heapq.heappop(waiting)[1])

    def _as_written(self):
        if self._count:
            with open(self._path, encoding="utf-8") as file:
                for row in file:
                    values = json.loads(row)
                    yield values[0], values
