"""The prepared dataset that a config names: made where there is none, refused where it was made otherwise."""

from pathlib import Path

from data_prep import settings as data_settings
from data_prep.errors import InputError
from data_prep.fingerprint import label_fingerprints, raw_fingerprint
from data_prep.settings import of_preparation
from ssad_jax import prepared


def find_prepared(config, parallel) -> prepared.Prepared:
    """The prepared dataset that the config names, made by the first process where there is none.

    Raises:
        InputError: a setting cannot be used, or a dataset is there, but made with other settings.
    """
    data_settings.check(config)
    directory = config.data.prepared_dir

    def prepare_once():
        if not prepared.exists(directory):
            from data_prep.prepare import prepare  # with its readers and the simulator

            prepare(config)

    parallel.in_main(f"prepare {directory}", prepare_once)
    data = prepared.load(directory)
    if differing := differing_settings(config, data.manifest):
        raise InputError(
            f"{directory} was prepared with other settings ({', '.join(differing)}); "
            "delete it or name another --config.data.prepared_dir"
        )
    return data


def differing_settings(config, manifest: dict) -> list[str]:
    """In what a prepared dataset differs from the one that the config would make."""
    data = config.data
    simulated = manifest.get("simulated")
    prepared_with = {k: v for k, v in manifest.get("data_config", {}).items() if k not in data_settings.PLACES}
    there, now = ({f"data.{k}": v for k, v in part.items()} for part in (prepared_with, of_preparation(data)))
    if data.raw_dir and simulated:
        return [f"from simulated telemetry, not from raw_dir={data.raw_dir}"]
    if data.raw_dir and Path(data.raw_dir).is_dir() and "raw_files" in manifest:  # else only the prepared data are left
        if manifest["raw_files"] != raw_fingerprint(data.raw_dir):
            return [f"from other raw files than those in raw_dir={data.raw_dir}"]
        there, now = there | manifest["label_files"], now | label_fingerprints(data)
    if not data.raw_dir and not simulated and config.simulate.hours > 0:
        return ["from a raw_dir, which is empty now"]
    if simulated:
        there |= {f"simulate.{k}": v for k, v in simulated.items()}
        now |= {f"simulate.{k}": data_settings.plain(v) for k, v in config.simulate.items()}
    there = {k: data_settings.plain(v) for k, v in there.items()}
    return [f"{k}={v!r} there, {now.get(k)!r} now" for k, v in sorted(there.items()) if v != now.get(k)]
