"""Score new telemetry of a system that a workdir was trained on, with everything that was fitted then.

    python -m ssad_jax.live --workdir=runs/shop --raw_dir=today > scores.jsonl

Reads the directory as `config.data.source` says, makes windows with the names, scales and templates of the prepared
dataset (`data_prep.live`) and scores them one by one (`ssad_jax.streaming`). A line of JSON a window goes to stdout as
it is scored, what became of the rows to stderr. No labels are read and nothing is fitted.
"""

import datetime
import json
import os
import sys
from pathlib import Path

from absl import flags

from data_prep import command
from data_prep.errors import Failure, InputError
from data_prep.visible import visible

WORKDIR = flags.DEFINE_string("workdir", None, "Working directory of a run that has been evaluated.", required=True)
RAW_DIR = flags.DEFINE_string("raw_dir", None, "The new telemetry.", required=True)
SOURCE = flags.DEFINE_string("source", None, "Its layout, if it is not that of the training data.")
PREPARED_DIR = flags.DEFINE_string("prepared_dir", None, "The prepared dataset, if it lies elsewhere by now.")
STEP_SECONDS = flags.DEFINE_float("step_seconds", 60.0, "Recorded time that is taken up at a time.", lower_bound=0.1)
LATENESS_SECONDS = flags.DEFINE_float("lateness_seconds", 30.0, "How late a row may come.", lower_bound=0)
TRACE_SECONDS = flags.DEFINE_float("trace_seconds", 60.0, "How long a trace may last.", lower_bound=0)
SUSPECTS = 5  # services that a line names
LONGEST_SECONDS = 86_400.0  # that a step, a row's delay or a trace may take


def main() -> None:
    from data_prep import sources
    from data_prep.fitted import load
    from data_prep.live import LiveWindows, arriving, on_one_clock
    from data_prep.prepare import NS, intervals_of, reading
    from ssad_jax.streaming import Scorer

    _check_flags()
    data, where = _settings()
    scorer, fitted = Scorer.load(WORKDIR.value), load(where)
    check(scorer, fitted, where)
    found = sources.read(reading(data, RAW_DIR.value))
    for warning in found.warnings:
        print(f"warning: {visible(warning)}", file=sys.stderr)
    for name, account in found.accounts.items():
        if account.read != account.kept:
            print(visible(_left_out(name, account)), file=sys.stderr)
    fitted, frames = on_one_clock(fitted, found.frames)
    intervals = [(int(start), int(end)) for start, end in intervals_of(frames, data)]
    _check_extent(intervals, fitted.settings)
    live = LiveWindows(fitted, intervals[0][0], LATENESS_SECONDS.value, TRACE_SECONDS.value)
    if live.node_names != scorer.system.node_names:
        raise InputError(f"{where} is not the dataset that {WORKDIR.value} was trained on; name it by --prepared_dir")
    step, lateness = round(STEP_SECONDS.value * NS), round(LATENESS_SECONDS.value * NS)
    windows = alerts = 0
    for begin, tables, now in arriving(frames, intervals, step, lateness):
        if begin is not None:
            live.restart(begin)
            scorer.reset()
        for window in live.push(tables, now):
            score = scorer.push(window)
            windows, alerts = windows + 1, alerts + score.is_alert
            _write(json.dumps(describe(score)))
    live.check()
    print(f"{windows} windows, {alerts} alerts", file=sys.stderr)
    pending = live.pending
    for name, account in live.accounts.items():
        if account.read:
            others = {"duplicates": account.duplicates, **account.set_aside, "after_the_last_tick": pending[name]}
            aside = "".join(f", {reason.replace('_', ' ')} {n:,}" for reason, n in others.items() if n)
            print(f"{name}: {account.read:,} rows, {account.kept:,} in windows' time{aside}", file=sys.stderr)
    if live.unknown:
        names = ", ".join(f"{unit} ({count:,} rows)" for unit, count in live.unknown.most_common(10))
        print(f"not seen in training, counted as unknown: {visible(names)}", file=sys.stderr)


def _check_flags() -> None:
    for flag in (STEP_SECONDS, LATENESS_SECONDS, TRACE_SECONDS):
        if not flag.value <= LONGEST_SECONDS:  # nor where it is no number
            raise InputError(f"--{flag.name}={flag.value:g} cannot be used; give at most {LONGEST_SECONDS:g} seconds")


def _check_extent(intervals: list[tuple[int, int]], settings: dict) -> None:
    """Says on stderr what time is scored. Raises InputError where that are more windows than can be meant."""
    from data_prep.split import MAX_WINDOWS, NS

    ends = (intervals[0][0], intervals[-1][1])
    first, last = (f"{datetime.datetime.fromtimestamp(ns // NS, datetime.UTC):%Y-%m-%d %H:%M:%S}" for ns in ends)
    seconds = sum(end - start for start, end in intervals) / NS
    windows = seconds / (settings["tick_seconds"] * settings["stride"])
    if windows > MAX_WINDOWS:
        raise InputError(
            f"observed time from {first} to {last}, less the gaps, has {windows:.0f} windows, more than {MAX_WINDOWS}; "
            "remove rows of a wrong time, or name what was not recorded in the table gaps"
        )
    print(f"observed: {first} to {last} UTC, less the gaps {seconds / 3600:,.1f} hours", file=sys.stderr, flush=True)


def _left_out(name: str, account) -> str:
    """What of a table's rows was left out where they were read."""
    parts = [f"duplicates {account.duplicates:,}"] if account.duplicates else []
    for reason, count in account.set_aside.items():
        file, row = account.examples[reason]
        parts.append(f"{reason.replace('_', ' ')} {count:,} (the first: {file}, row {row})")
    return f"{name}: {account.read:,} rows read, {account.kept:,} kept, {', '.join(parts)}"


def _write(line: str) -> None:
    """A line to stdout. Raises Failure where it takes none."""
    try:
        print(line, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what waits in the buffer is lost, too
        raise Failure(f"stdout takes no more scores ({error.strerror}); start again where it can be written") from None


def _settings():
    """`config.data` of the run, for the new telemetry; and where the prepared dataset lies."""
    from ssad_jax import trained

    if not Path(RAW_DIR.value).is_dir():
        raise InputError(f"--raw_dir={RAW_DIR.value} is no directory; name the one that holds the new telemetry")
    data = trained.restore(WORKDIR.value).context.config.data
    where = PREPARED_DIR.value or data.prepared_dir
    with data.unlocked():
        data.update({"source": SOURCE.value or data.source, "faults_path": "", "segments_path": ""})
    return data, where


def check(scorer, fitted, where) -> None:
    """Raises InputError if windows made with `fitted` are not those that `scorer` scores."""
    from ssad_jax import prepared

    if prepared.load(where).manifest["dataset_hash"] != scorer.fitted.dataset_hash:
        raise InputError(
            f"{WORKDIR.value} was evaluated on another dataset than {where}; name that one by --prepared_dir"
        )


def describe(score) -> dict:
    """A line of output; names as in `scores.parquet`. Suspects where there is an alert."""
    return {
        "window_start_unix_nano": score.window_start_unix_nano, "window_end_unix_nano": score.window_end_unix_nano,
        "score": round(score.score, 6), "p_value": round(score.p_value, 6), "is_alert": score.is_alert,
        "suspects": score.suspects[:SUSPECTS] if score.is_alert else [], "prototype": score.prototype,
    }  # fmt: skip


if __name__ == "__main__":
    command.run(main)
