"""The record of every look at labelled test windows of a real system.

Each look is a chance to choose what happens to do well on them. With `config.evaluation_log` set, each leaves one line
of JSON, whatever it found. Simulated data can be made anew and is not recorded. Imports no jax.
"""

import datetime
import hashlib
import json
from pathlib import Path

from data_prep import settings as data_settings
from data_prep.errors import InputError
from ssad_jax.config import flatten

FIGURES = ("auroc", "auprc", "tpr_at_5_percent_fpr", "hit_rate_at_1")
# Settings that leave the scores as they are: names, places, how often something is saved, two ways to one number.
# Seed and protocol have columns of their own.
NO_MATTER = {
    "name", "seed", "evaluation_log", "train.checkpoint_every", "train.keep_checkpoints", "train.compilation_cache",
    "train.resident_megabytes", "data.protocol", "parallel.mapping", "score.bootstrap", "score.batch_runs",
    *(f"data.{key}" for key in data_settings.PLACES if key != "batch_size"),
}  # fmt: skip


def config_hash(config, without=()) -> str:
    """Hash of the settings that scores depend on, but for the seed and the keys or sections `without`."""
    flat = flatten(config.to_dict())
    sections = {"methods", *without}  # settings of the methods count where they are the config's own
    left_out = {k for k in flat if k in NO_MATTER or k in sections or k.split(".")[0] in sections}
    text = json.dumps({k: v for k, v in flat.items() if k not in left_out}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def append(config, manifest: dict, command: str, protocol: str, detector: str, figures: dict, once=False) -> None:
    """Add a line, if `config.evaluation_log` names a file, the faults are real and some window is labelled.

    Args:
        figures: of the detector on the test windows: `FIGURES` and num_windows.
        once: not where the file has this line already, whatever its date.

    Raises:
        InputError: the file cannot be written.
    """
    path = checked_path(config)
    made_up = manifest.get("simulated") or manifest.get("injected")
    if not path or made_up or not figures["num_windows"]:
        return
    line = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "config": config_hash(config)[:12],
        "dataset": manifest["dataset_hash"][:12],
        "protocol": protocol,
        "seed": config.seed,
        "detector": detector,
        **{name: None if figures[name] is None else round(figures[name], 6) for name in FIGURES},
    }
    path = Path(path)
    try:
        if once and path.is_file() and any(_same(line, old) for old in path.read_text().splitlines()):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise InputError(
            f"evaluation_log={str(path)!r} cannot be written ({error.strerror}); name another --config.evaluation_log"
        ) from None


def checked_path(config) -> str:
    """`config.evaluation_log`, where lines may be appended.

    A checkpoint brings its config along, so that its author chooses the file: no other kind of file may be changed.

    Raises:
        InputError: its name does not end with .jsonl.
    """
    path = config.get("evaluation_log", "")
    if path and not str(path).endswith(".jsonl"):
        raise InputError(f"evaluation_log={str(path)!r} must end with .jsonl; set --config.evaluation_log")
    return path


def _same(line: dict, old: str) -> bool:
    try:
        return json.loads(old) | {"date": None} == line | {"date": None}
    except (ValueError, TypeError):  # not written by this program
        return False
