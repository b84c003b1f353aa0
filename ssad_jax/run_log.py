"""What a training run tells: progress on stderr, `metrics.jsonl` and TensorBoard events in the workdir."""

import contextlib
import json
import os
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import scalar

from data_prep import disk


class RunLog:
    """One record an epoch; use as a context manager.

    Args:
        workdir: where the files go.
        num_epochs, first_epoch: the planned total, and how many a resumed run has behind it.
        first_step: records of later steps are removed, left by a run that was killed after its last checkpoint.
        active: false in processes that write nothing.
    """

    def __init__(self, workdir, num_epochs: int, first_epoch: int, first_step: int, active: bool):
        self._active = active
        self._num_epochs = num_epochs
        self._progress = self._bar = None
        if not active:
            return
        workdir = Path(workdir)
        path = workdir / "metrics.jsonl"
        kept = [line for line in _lines(path) if line["step"] <= first_step]
        partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        disk.sync(partial)
        os.replace(partial, path)
        self._file = open(path, "a")
        # Not tensorboardX's SummaryWriter: it writes in a thread, and once that has died (of a full disk) waits for it
        # without end.
        self._board = EventsWriter(str(workdir / "events"))
        if first_step:  # viewers forget what they have seen of later steps
            self._show(first_step + 1, session_log=SessionLog(status=SessionLog.START))
        console = Console(stderr=True)
        if console.is_terminal:
            columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[words]}"))
            self._progress = Progress(
                *(TextColumn(c) if isinstance(c, str) else c for c in columns), TimeRemainingColumn(), console=console
            )
            self._progress.start()
            self._bar = self._progress.add_task("epochs", total=num_epochs, completed=first_epoch, words="")

    def record(self, epoch: int, step: int, metrics: dict[str, float]) -> None:
        """Write the averages of an epoch; `epoch` counts completed epochs, `step` completed steps."""
        if not self._active:
            return
        self._file.write(json.dumps({"step": step, "epoch": epoch, **metrics}) + "\n")
        self._file.flush()
        values = [value for name, number in metrics.items() for value in scalar(name, number).value]
        self._show(step, summary=Summary(value=values))
        words = f"loss {metrics['loss']:.4f}  {metrics['windows_per_second']:.0f} windows/s"
        if self._progress is not None:
            self._progress.update(self._bar, completed=epoch, words=words)
        else:
            terms = "  ".join(f"{k.removeprefix('loss/')} {v:.4f}" for k, v in metrics.items() if k.startswith("loss/"))
            print(f"epoch {epoch}/{self._num_epochs}  step {step}  {words}  {terms}", file=sys.stderr, flush=True)

    def _show(self, step: int, **content) -> None:
        self._board.write_event(Event(wall_time=time.time(), step=step, **content))
        self._board.flush()

    def say(self, message: str) -> None:
        """A line on stderr, above the bar if there is one."""
        if not self._active:
            return
        if self._progress is not None:
            self._progress.console.print(message, markup=False, highlight=False)
        else:
            print(message, file=sys.stderr, flush=True)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if self._active:
            if self._progress is not None:
                self._progress.stop()
            self._file.close()
            self._board.close()


def _lines(path: Path) -> list[dict]:
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text("utf-8", "replace").splitlines():
        with contextlib.suppress(ValueError, RecursionError):  # a torn last line of a killed run
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
    return lines
