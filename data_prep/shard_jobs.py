"""Preparing as independent jobs, for schedulers that run arrays of them: `--shard=i/n`, and `--shard=merge` at the end.

Job i of n reads and checks every n-th task of raw files and spills their rows into `part-i` of a directory that all
jobs share, beside the prepared dataset (`.<name>.shards`). The merge does the rest, as without shards and with the
same result. A part is written under a temporary name and renamed: what is there is whole.
"""

import dataclasses
import json
import os
import shutil
import uuid
from importlib.metadata import version
from pathlib import Path

from absl import logging

from data_prep import disk, settings, sources, spilled
from data_prep.errors import InputError
from data_prep.executors import executor
from data_prep.fingerprint import label_fingerprints, program_fingerprint, raw_fingerprint
from data_prep.prepare import prepare, reading
from data_prep.tables import TELEMETRY, Account

_IDENTITY, _ACCOUNTS, _PARTITIONS = "identity/shards.json", "accounts.json", "partitions"


def run(config, shard: str) -> None:
    """Does what `shard` says: `i/n` (1 <= i <= n), or `merge`.

    Raises:
        InputError: `shard` is neither, there is no raw telemetry to share out, the parts that are there are of another
            configuration, other raw files or another version of the program, one is missing, or none can be written.
        Failure: the disk is full.
    """
    settings.check(config)
    if not config.data.raw_dir:
        raise InputError("--shard shares out raw files and data.raw_dir is empty; set --config.data.raw_dir")
    with disk.needed(directory(config), "does this part again"):
        _run(config, shard)


def _run(config, shard: str) -> None:
    if shard == "merge":
        _merge(config)
        return
    number, slash, count = shard.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise InputError(f"--shard={shard!r} cannot be used; write i/n with i from 1 to n, or merge")
    _read_part(config, int(number), int(count))


def directory(config) -> Path:
    """Where the parts lie until they are merged."""
    prepared_dir = Path(config.data.prepared_dir).absolute()
    return prepared_dir.with_name(f".{prepared_dir.name}.shards")


def _read_part(config, number: int, count: int) -> None:
    data, shared = reading(config.data, config.data.raw_dir), directory(config)
    parts = sources.parts(data)
    num = _agree(shared, _identity(data) | {"shards": count}, spilled.num_partitions(data.raw_dir))
    target = shared / f"part-{number}"
    if target.is_dir():
        logging.info("%s is there already", target)
        return
    partial = _fresh(target)
    accounts = {}
    try:
        with executor(data) as pool:
            for part in parts:
                if part.table in TELEMETRY:
                    own = range(number - 1, len(part.tasks), count)
                    found = spilled.spill_part(part, partial, data.node_level, num, pool, own)
                    for account in found.values():
                        account.relative_to(data.raw_dir)
                    accounts[part.table] = {task: dataclasses.asdict(account) for task, account in found.items()}
        _publish(partial, target, _ACCOUNTS, accounts)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _merge(config) -> None:
    shared = directory(config)
    there = _read_identity(shared)
    if there is None:
        raise InputError(f"{shared} holds no parts; run --shard=i/n for each i from 1 to n before --shard=merge")
    count = there["shards"]
    _agree(shared, _identity(config.data) | {"shards": count}, there[_PARTITIONS])
    folders = [shared / f"part-{number}" for number in range(1, count + 1)]
    missing = [f"{number}/{count}" for number, folder in enumerate(folders, 1) if not folder.is_dir()]
    if missing:
        raise InputError(
            f"{shared} lacks shard {', '.join(missing)}; run --shard={missing[0]}, then --shard=merge again"
        )
    accounts = [_read_json(folder / _ACCOUNTS, folder) for folder in folders]

    def spilled_rows(part):
        own = {int(task): _account(values) for some in accounts for task, values in some.get(part.table, {}).items()}
        return folders, own

    prepare(config, spilled_rows)
    try:
        shutil.rmtree(shared)
    except OSError as error:  # the dataset is finished: nothing is lost but room
        logging.warning("%s cannot be removed (%s); remove it by hand", shared, error.strerror)


def _identity(data) -> dict:
    """What all jobs of one dataset must agree in. Hashes of trace ids, which say where a row goes, are polars' own."""
    facts = settings.of_preparation(data) | label_fingerprints(data)
    facts |= {"raw_files": raw_fingerprint(data.raw_dir, times=True), "program": program_fingerprint()}
    return json.loads(json.dumps(facts | {"polars": version("polars")}))


def _agree(shared: Path, own: dict, num: int) -> int:
    """Writes `own` where no job has written before; else raises InputError where it differs from what is there.

    Returns the number of partitions of all jobs: the `num` of the first.
    """
    target = (shared / _IDENTITY).parent
    _publish(_fresh(target), target, Path(_IDENTITY).name, own | {_PARTITIONS: num})
    there = _read_identity(shared)
    differing = sorted(key for key in own.keys() | there.keys() - {_PARTITIONS} if own.get(key) != there.get(key))
    if differing:
        raise InputError(
            f"{shared} has parts that were made otherwise ({', '.join(differing)} differ); "
            "remove it to start again, or use the configuration that it was made with"
        )
    return there[_PARTITIONS]


def _fresh(target: Path) -> Path:
    """A name beside `target` that nobody has used: a container that is started again has the same host and process."""
    return target.with_name(f".{target.name}.{uuid.uuid4().hex}")


def _publish(partial: Path, target: Path, name: str, content: dict) -> None:
    """Writes `content` as `name` into the directory `partial` and calls that `target`, unless there is one already.

    Then another run was faster, with the same content. A directory with files in it is never replaced.
    """
    try:
        partial.mkdir(parents=True, exist_ok=True)
        (partial / name).write_text(json.dumps(content))
        try:
            os.rename(partial, target)
        except OSError:
            if not target.is_dir():
                raise
    except OSError as error:
        if disk.reason(error):
            raise
        raise InputError(f"{target} cannot be written ({error.strerror}); name another prepared_dir") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read_identity(shared: Path) -> dict | None:
    return _read_json(shared / _IDENTITY, shared) if os.path.isfile(shared / _IDENTITY) else None


def _read_json(path: Path, directory: Path) -> dict:
    """Raises InputError where the file cannot be read."""
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__} instead of an object")
        return found
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read ({reason}); remove {directory} and run its shards again") from None


def _account(values: dict) -> Account:
    return Account(**values | {"examples": {reason: tuple(place) for reason, place in values["examples"].items()}})
