"""Everything that is fitted on normal time: what new windows are scored with, beside a network's parameters.

On disk it is `evaluation/calibration.npz`: plain arrays, texts as JSON.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

from data_prep import plain_arrays
from data_prep.errors import InputError
from ssad_jax.prepared import Prepared
from ssad_jax.scoring.calibration import Calibration
from ssad_jax.scoring.detectors import Scored, overlap_of
from ssad_jax.scoring.output import write_arrays
from ssad_jax.scoring.states import AsMeasured, Forecast, Mahalanobis, Reading, Readings, Silent, Whitening
from ssad_jax.scoring.thresholds import Rule, Threshold, fit_rule

READINGS = {kind.__name__: kind for kind in (AsMeasured, Silent, Forecast, Mahalanobis)}


@dataclasses.dataclass(frozen=True)
class Fitted:
    """See the module; `save` and `load` take it through a file."""

    calibration: Calibration
    readings: tuple[Readings, ...]  # of each network
    rule: Rule  # of the variant that is the score
    settings: dict  # `config.score` as plain values
    step: int  # of the checkpoint
    dataset_hash: str | None  # of the dataset whose calibration windows it was fitted on

    @classmethod
    def of(cls, prepared: Prepared, scored: Scored, score_config, step: int) -> "Fitted":
        """What `score_dataset` has fitted, and the rule of `config.score.variant`."""
        rule = fit_rule(getattr(scored.held_out, score_config.variant), score_config, overlap_of(prepared, scored))
        settings = json.loads(json.dumps(score_config.to_dict()))
        hashed = prepared.manifest.get("dataset_hash")
        return cls(scored.calibration, scored.readings, rule, settings, step, hashed)

    def save(self, path) -> None:
        """Write the file, whole or not at all."""
        facts = {
            "settings": self.settings,
            "step": self.step,
            "dataset_hash": self.dataset_hash,
            "threshold_method": self.rule.threshold.method,
            "together": self.rule.together,
            "readings": [[type(reading).__name__ for reading in network] for network in self.readings],
        }
        arrays = self.calibration.arrays() | {
            "threshold": np.array(self.rule.threshold.value),
            "rests_on": self.rule.rests_on,
            "facts": np.array(json.dumps(facts)),
        }
        for k, network in enumerate(self.readings):
            for name, reading in zip(Readings._fields, network, strict=True):
                arrays |= _flat(f"reading.{k}.{name}", dataclasses.asdict(reading))
        write_arrays(Path(path), arrays)

    @classmethod
    def load(cls, path) -> "Fitted":
        """Read the file.

        Raises:
            InputError: there is none, it is damaged, or an earlier version wrote it.
        """
        if not Path(path).is_file():
            raise InputError(f"{path} is missing; evaluate first: python -m ssad_jax.evaluate --workdir=DIR")
        try:
            arrays = plain_arrays.load(path)
            facts = json.loads(str(arrays["facts"]))
            readings = tuple(
                Readings(*(_reading(READINGS[kind], arrays, f"reading.{k}.{name}")
                           for name, kind in zip(Readings._fields, network, strict=True)))
                for k, network in enumerate(facts["readings"])
            )  # fmt: skip
            threshold = Threshold(float(arrays["threshold"]), facts["threshold_method"])
            return cls(
                Calibration.from_arrays(arrays), readings, Rule(threshold, arrays["rests_on"], facts["together"]),
                facts["settings"], facts["step"], facts["dataset_hash"],
            )  # fmt: skip
        except Exception as error:  # damage shows as many kinds of error, depending on the byte
            reason = type(error).__name__
            raise InputError(
                f"{path} cannot be read ({reason}: {error}): damaged, or of an earlier version; evaluate again: "
                "python -m ssad_jax.evaluate --workdir=DIR"
            ) from None


def _flat(prefix: str, values: dict) -> dict[str, np.ndarray]:
    out = {}
    for name, value in values.items():
        out |= _flat(f"{prefix}.{name}", value) if isinstance(value, dict) else {f"{prefix}.{name}": value}
    return out


def _reading(kind: type, arrays: dict[str, np.ndarray], prefix: str) -> Reading:
    fields = {}
    for field in dataclasses.fields(kind):
        name = f"{prefix}.{field.name}"
        nested = field.type is Whitening
        fields[field.name] = _reading(Whitening, arrays, name) if nested else arrays[name]
    return kind(**fields)
