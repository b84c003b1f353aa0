"""Checks of `config.data` before anything is read: a value that cannot work is named at once, with the remedy."""

import polars as pl

from data_prep.errors import InputError

# Of `config.data`: where things lie, who prepares them and how they are batched; they do not change what is prepared.
PLACES = (
    "raw_dir", "prepared_dir", "faults_path", "segments_path", "num_workers", "executor", "dask_scheduler",
    "batch_size",
)  # fmt: skip
CHOICES = {
    "executor": ("processes", "dask"),
    "on_bad_rows": ("quarantine", "error"),
    "node_level": ("service", "instance"),
    "train_on": ("normal", "all"),
    "metric_units": ("all", "traced"),
    "mask_units": ("node", "siblings", "owner"),
}
# Least value of whole numbers.
LEAST = {
    "window_length": 2, "stride": 1, "train_stride": 1, "sequence_length": 1, "batch_size": 1,
    "max_templates_per_service": 1, "min_template_count": 1, "num_workers": 0,
}  # fmt: skip
POSITIVE = ("tick_seconds", "segment_seconds", "recording_gap_hours", "ridge")
SHARES = ("train_share", "calibration_share")


def of_preparation(config_data) -> dict:
    """The settings that a prepared dataset depends on, as JSON has them (tuples are lists)."""
    return {key: plain(value) for key, value in config_data.items() if key not in PLACES}


def plain(value):
    return list(value) if isinstance(value, tuple) else value


def check(config) -> None:
    """Look at every setting of `config.data` that preparing uses.

    Raises:
        InputError: the first value that cannot be used; files and directories are looked at when they are read.
    """
    data = config.data
    for key, choices in CHOICES.items():
        if data[key] not in choices:
            raise InputError(f"data.{key}={data[key]!r} is unknown; use {' or '.join(choices)}")
    for key, least in LEAST.items():
        if data[key] < least:
            raise InputError(f"data.{key}={data[key]} is too small; use {least} or more")
    for key in POSITIVE:
        if not 0 < data[key] < float("inf"):
            raise InputError(f"data.{key}={data[key]} must be above 0; set --config.data.{key}")
    for key in SHARES:
        if not 0 < data[key] < 1:
            raise InputError(f"data.{key}={data[key]} must lie between 0 and 1; set --config.data.{key}")
    if data.calibration_folds < 0 or data.calibration_folds == 1:
        raise InputError(
            f"data.calibration_folds={data.calibration_folds} cannot be used; use 0 (a held-out share) or 2 or more"
        )
    if data.tick_seconds < 0.001:
        raise InputError(f"data.tick_seconds={data.tick_seconds} is below a millisecond; use 0.001 or more")
    window_seconds = data.tick_seconds * data.window_length
    if data.segment_seconds < window_seconds:
        raise InputError(
            f"data.segment_seconds={data.segment_seconds} is shorter than a window ({data.window_length} ticks x "
            f"{data.tick_seconds} s = {window_seconds:g} s); make segments longer, best by ten times"
        )
    if not (data.metric_baseline_minutes == 0 or data.metric_baseline_minutes >= 1):
        raise InputError(
            f"data.metric_baseline_minutes={data.metric_baseline_minutes} is no time; use 0 (levels) or 1 or more"
        )
    if data.dask_scheduler and data.executor != "dask":
        raise InputError(
            f"data.dask_scheduler={data.dask_scheduler!r} needs data.executor=dask; set that, or leave it empty"
        )
    for key in ("metrics", "pods"):
        _check_patterns(key, data[key])
    if not str(data.prepared_dir).strip():
        raise InputError("data.prepared_dir is empty; name the directory to prepare into")
    if not data.raw_dir and config.simulate.hours > 0 and data.source != "openstack":
        raise InputError(
            f"data.raw_dir is empty and the simulator writes OpenStack telemetry, not {data.source!r}; "
            "set data.raw_dir or data.source=openstack"
        )


def _check_patterns(key: str, patterns) -> None:
    if isinstance(patterns, str) or not all(isinstance(pattern, str) for pattern in patterns):
        raise InputError(f"data.{key}={patterns!r} is no tuple of regular expressions; write ('cpu.*', 'mem.*')")
    for pattern in patterns:
        try:
            pl.Series([""]).str.contains(pattern)
        except pl.exceptions.PolarsError:
            raise InputError(
                f"data.{key}: {pattern!r} is no regular expression (Rust syntax, no look-around); mend it, with a "
                "backslash before a literal bracket"
            ) from None
