"""The setting that a sweep varies: its key, its values, and what another value asks for. Imports no jax."""

import dataclasses
import difflib
import math
from urllib.parse import quote

from data_prep import settings as data_settings
from data_prep.errors import InputError
from ssad_jax import settings
from ssad_jax.config import flatten
from ssad_jax.evaluation_log import NO_MATTER

# Numbers that enter the computation of a training step as values: networks that differ in them share one program.
# All others change shapes, what is drawn, or which parts there are.
TRACED = (
    "optimizer.learning_rate", "optimizer.weight_decay", "optimizer.clip_norm", "loss.reconstruction",
    "loss.contrastive", "loss.knowledge", "loss.temperature",
)  # fmt: skip
# What a method does not read: sections, or keys.
UNUSED = {
    "knowledge_ssl": ("cross_service.", "score.neighbours"),
    "cross_service": (
        "knowledge.", "loss.reconstruction", "loss.contrastive", "loss.knowledge", "loss.mask_ratio", "model.temporal",
        "model.memory", "model.dropout", "model.num_prototypes", "model.skip_init", "views.window_jitter",
        "data.sequence_length", "score.temporal", "score.prior", "score.beta",
    ),
}  # fmt: skip
NEEDS = {  # what another value asks for
    "traced": "another training, of the same program",
    "static": "another training, of another program",
    "data": "another prepared dataset",
    "score": "other scores of the same training",
}


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A key of the config, and the values to try."""

    key: str
    values: tuple
    along: tuple[tuple[str, tuple], ...] = ()  # other keys, with their value beside each of `values`

    @property
    def needs(self) -> str:
        """A key of `NEEDS`."""
        section, _, name = self.key.partition(".")
        if self.key in TRACED:
            return "traced"
        if section == "simulate" or section == "data" and name not in data_settings.PLACES:
            return "data"
        return "score" if section == "score" else "static"

    def changes(self, value) -> tuple[tuple[str, object], ...]:
        """(key, value) of everything that is set for one of the values; a traced value has nothing beside it."""
        beside = tuple((key, values[self.values.index(value)]) for key, values in self.along)
        return ((self.key, value), *beside)

    def applied(self, config, value):
        """A copy of the config with the value, which a traced parameter may have as a traced scalar.

        The copies with another dataset name a prepared directory of their own.
        """
        own = config.copy_and_resolve_references()
        own.update_from_flattened_dict({key: beside for key, beside in self.changes(value) if key != self.key})
        here = own
        *sections, name = self.key.split(".")
        for section in sections:
            here = here[section]
        if self.needs == "data" and value != here[name]:
            own.data.prepared_dir = f"{own.data.prepared_dir.rstrip('/')}_{name}_{quote(str(value), safe='')}"
        with here.ignore_type():
            here[name] = value
        return own


def parse(config, key: str, values: str) -> Parameter:
    """What `--parameter` and `--values` ask for.

    Args:
        values: separated by commas, each of the type that the config has.

    Raises:
        InputError: the key does not exist or changes no score; a value has the wrong type or cannot be used.
    """
    known = flatten(config.to_dict())
    if key not in known:
        near = difflib.get_close_matches(key, known, 1) or [k for k in known if k.split(".")[-1] == key]
        hint = f"; did you mean {near[0]!r}?" if near else "; docs/configuration.md lists all keys"
        raise InputError(f"--parameter={key}: the configuration has no key {key!r}{hint}")
    if key in NO_MATTER or key.startswith(("alerts.", "methods.", *UNUSED[config.method])):
        raise InputError(f"--parameter={key} leaves the scores as they are; sweep a setting that they depend on")
    words = [word.strip() for word in values.split(",") if word.strip()]
    if not words:
        raise InputError("--values is empty; give values separated by commas, such as 1e-4,5e-4")
    parameter = Parameter(key, tuple(dict.fromkeys(_value(key, word, known[key]) for word in words)))
    for value in parameter.values:
        own = parameter.applied(config, value)
        settings.check(own)
        data_settings.check(own)
    return parameter


def _value(key: str, word: str, now):
    """A word as a value of the type of `now`."""
    kind = type(now)
    if kind is str:
        return word
    if kind is bool:
        if word.lower() in ("true", "false"):
            return word.lower() == "true"
        raise InputError(f"--values: {word!r} is not true or false, as {key} is")
    if kind is int or kind is float:
        try:
            number = kind(word)
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return number
        what = "whole number" if kind is int else "number"
        raise InputError(f"--values: {word!r} is no {what}, as {key} is ({now!r}); give {what}s separated by commas")
    raise InputError(f"--parameter={key} is {now!r}, a list; only numbers, words and switches can be swept")
