"""Simulated faults put into the known-normal time of real telemetry: settings can be chosen without real labels."""

import json
from pathlib import Path

from data_prep.errors import InputError

RECORD = "injections.json"  # beside the tables: what was injected where, and how it was drawn


def settings_of(raw_dir: str) -> dict | None:
    """How the faults in the tables under `raw_dir` were drawn; None if they are not injected ones."""
    path = Path(raw_dir, RECORD)
    if not raw_dir or not path.is_file():
        return None
    try:
        return json.loads(path.read_text())["settings"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is no record of injected faults ({error}); inject anew or remove it") from error
