"""How one table is read from raw files: a list of tasks that do not depend on one another."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor

import polars as pl

from data_prep import tables
from data_prep.executors import ordered


@dataclasses.dataclass(frozen=True)
class Part:
    """Reads one table: `function(*task)` for each task.

    Attributes:
        table: the table's name.
        function: gives the checked rows of a task and their account (`tables.check`). A generator gives several of
            them, so that a large file need not be in memory; such a part is read by the process that asks for it.
        tasks: arguments of each call.
        in_workers: the function gives one pair, can be pickled, and is called through the executor.
        optional: where no row is read there is no such table.
        whole: what can only be told from all rows of a trace (of `spans`): frame -> frame of the same rows.
    """

    table: str
    function: Callable
    tasks: list[tuple]
    in_workers: bool = False
    whole: Callable[[pl.DataFrame], pl.DataFrame] | None = None
    optional: bool = False

    def rows(
        self, executor: Executor | None = None, numbers: Iterable[int] | None = None
    ) -> Iterator[tuple[int, pl.DataFrame, tables.Account]]:
        """(number of the task, rows, their account), of the tasks of these `numbers`, else of all."""
        numbers = list(range(len(self.tasks)) if numbers is None else numbers)
        tasks = [self.tasks[number] for number in numbers]
        if self.in_workers and tasks:
            found = ordered(executor, self.function, *zip(*tasks, strict=True)) if executor else (
                self.function(*task) for task in tasks
            )  # fmt: skip
            yield from ((number, *part) for number, part in zip(numbers, found, strict=True))
            return
        for number, task in zip(numbers, tasks, strict=True):
            for part in self.function(*task):
                yield number, *part
