"""Rally task reports (`rally task report --json`): the workload's iterations and the faults its hooks injected."""

from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from data_prep.errors import InputError
from data_prep.sources import json_files
from data_prep.tables import SCHEMAS, from_seconds

# A fault is over when this many iterations in a row succeed: three concurrent clients pass by chance far sooner.
RECOVERED_AFTER = 20

# What the scripts of the archive restart; the first word found in the hook's command decides.
_RESTARTS = {"nova": "nova-compute", "glance": "glance-api", "neutron": "neutron-server"}


class Action(msgspec.Struct):
    """One atomic action; times in unix seconds."""

    name: str
    started_at: float
    finished_at: float
    failed: bool = False
    children: list["Action"] = []


class _Chart(msgspec.Struct):
    data: Any = None


class _Output(msgspec.Struct):
    complete: list[_Chart] = []


class Iteration(msgspec.Struct):
    """One run of the workload; `timestamp` is its start in unix seconds, `duration` is in seconds."""

    timestamp: float
    duration: float
    error: list[Any] = []
    atomic_actions: list[Action] = []
    output: _Output = msgspec.field(default_factory=_Output)

    @property
    def failed(self) -> bool:
        return bool(self.error)

    @property
    def end(self) -> float:
        return self.timestamp + self.duration

    @property
    def trace_id(self) -> str | None:
        """The name of the trace file of this iteration, where it was traced."""
        found = (chart.data.get("trace_id") for chart in self.output.complete if isinstance(chart.data, dict))
        return next((trace_id for trace_id in found if trace_id), None)


class HookResult(msgspec.Struct):
    """One execution of a hook; unix seconds. A script can end with status `failed` and have done its harm."""

    status: str
    started_at: float
    finished_at: float
    output: _Output = msgspec.field(default_factory=_Output)


class _Fault(msgspec.Struct):
    """What a result states; unix seconds."""

    started_at: float
    finished_at: float
    service_name: str
    fault_type: str


class _HookConfig(msgspec.Struct):
    action: dict[str, Any] = {}


class Hook(msgspec.Struct):
    config: _HookConfig = msgspec.field(default_factory=_HookConfig)
    results: list[HookResult] = []

    @property
    def command(self) -> str:
        return " ".join(str(argument) for argument in self.config.action.values())


class Workload(msgspec.Struct):
    """`data`: iterations in the order of their start."""

    data: list[Iteration]
    hooks: list[Hook] = []
    description: str = ""


class _Subtask(msgspec.Struct):
    workloads: list[Workload]
    title: str = ""


class _Task(msgspec.Struct):
    subtasks: list[_Subtask]


class _Report(msgspec.Struct):
    tasks: list[_Task]


def read_report(path: Path | str) -> list[Workload]:
    """The workloads of a report (`.json` or `.json.gz`). Raises InputError if it is cut off or not a Rally report."""
    path = Path(path)
    try:
        report = json_files.decode(path, _Report)
    except json_files.ERRORS as error:
        raise InputError(f"{path} is not a whole Rally report ({error}); copy it again or remove it") from error
    return [workload for task in report.tasks for subtask in task.subtasks for workload in subtask.workloads]


def faults(report: list[Workload]) -> pl.DataFrame:
    """The injected faults of a report as rows of table `faults`.

    A result that states type, culprit and times is taken at its word. Otherwise the script's name tells what was
    restarted, and the fault lasts from the hook's start to the end of the last failed iteration that it caused (at
    least to the hook's end): iterations that end after the hook started count, up to the first `RECOVERED_AFTER`
    successes in a row or the next hook.

    Raises msgspec.ValidationError for a stated fault with a value of a wrong type.
    """
    rows = []
    for workload in report:
        results = sorted(
            ((result, hook.command) for hook in workload.hooks for result in hook.results),
            key=lambda pair: pair[0].started_at,
        )
        starts = [result.started_at for result, _ in results] + [float("inf")]
        for (result, command), next_start in zip(results, starts[1:], strict=True):
            stated = _stated(result)
            if stated:
                rows += stated
                continue
            end = max(result.finished_at, _last_failure(workload.data, result.started_at, next_start))
            rows.append((result.started_at, end, _restarted(command), "restart"))
    frame = pl.DataFrame(
        [(from_seconds(start), from_seconds(end), service, kind) for start, end, service, kind in rows],
        schema=SCHEMAS["faults"].required,
        orient="row",
    )
    return frame.sort(frame.columns)


def _stated(result: HookResult) -> list[tuple[float, float, str, str]]:
    charts = [chart.data for chart in result.output.complete if isinstance(chart.data, dict)]
    return [
        msgspec.structs.astuple(msgspec.convert(chart, _Fault))
        for chart in charts
        if chart.keys() >= set(_Fault.__struct_fields__)
    ]


def _last_failure(iterations: list[Iteration], started: float, next_hook: float) -> float:
    """End of the last failed iteration in the disturbed stretch after `started`; -inf where none failed."""
    last, successes = float("-inf"), 0
    for iteration in iterations:
        if iteration.end < started:
            continue
        if iteration.timestamp >= next_hook or successes >= RECOVERED_AFTER:
            break
        successes = 0 if iteration.failed else successes + 1
        if iteration.failed:
            last = max(last, iteration.end)
    return last


def _restarted(command: str) -> str:
    return next((service for word, service in _RESTARTS.items() if word in command), "unknown")
