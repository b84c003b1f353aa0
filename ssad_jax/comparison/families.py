"""What can be compared: families of detectors that one computation gives.

A trained family is a method, or method A under a few other settings; one training gives several detectors (both score
variants, each term, each kind of node). A combined one adds up what two others say. The rest are fitted in closed form
or by a library and give one detector each.
"""

import dataclasses
import difflib
import importlib.util

from data_prep.errors import InputError
from ssad_jax import settings
from ssad_jax.config import use_method
from ssad_jax.floors import FLOORS
from ssad_jax.floors.pyod import PYOD
from ssad_jax.methods import COMPARED, is_own

MAIN, CROSS = "knowledge_ssl", "cross_service"  # methods A and B
COMBINED = "combined"
UNTRAINED = {MAIN: "untrained", CROSS: "cross_service_untrained"}
RECIPE = "linear"
ABLATION_SEEDS = 3

# Method A without one of its parts, by the settings that say so.
ABLATIONS: dict[str, dict] = {
    "no_gcn": {"model.num_graph_layers": 0},
    "no_gru": {"model.temporal": "none"},
    "no_contrast": {"loss.contrastive": 0.0},
    "no_knowledge": {"model.memory": False, "loss.knowledge": 0.0},
    "no_reconstruction": {"loss.reconstruction": 0.0},
    "shuffled_rules": {"knowledge.variant": "shuffled"},
    "random_knowledge": {"knowledge.variant": "random"},
}
CLOSED_FORM, SERVICE_ANOMALY = "closed_form", "service_anomaly_adapted"
RECIPES = (RECIPE, "linear_cpu", CLOSED_FORM, SERVICE_ANOMALY)
SEEDED = ("random", "iforest", "pyod_iforest")  # of the closed and the library's ones; the others give equal scores


@dataclasses.dataclass(frozen=True)
class Family:
    """Detectors of one computation."""

    name: str
    kind: str  # trained | untrained | combined | recipe | floor | pyod
    overrides: tuple[tuple[str, object], ...] = ()  # of the config
    deterministic: bool = False  # every seed gives the same
    method: str | None = None  # that is trained
    parts: tuple[str, ...] = ()  # names of the families that are combined

    def config(self, config):
        """A copy of `config` with this family's settings."""
        own = config.copy_and_resolve_references()
        if self.method not in (None, own.method):
            use_method(own, self.method)
        own.update_from_flattened_dict(dict(self.overrides))
        return own

    def seeds(self, first: int, count: int) -> list[int]:
        """The seeds to run of `count`: three for an ablation, one where all give the same."""
        if self.deterministic:
            count = 1
        elif self.overrides or self.kind == "untrained":
            count = min(count, ABLATION_SEEDS)
        return list(range(first, first + count))


def families() -> dict[str, Family]:
    """All of them, cheap ones first."""
    closed = [Family(name, "recipe", deterministic=True) for name in RECIPES]
    for kind, names in (("floor", FLOORS), ("pyod", PYOD)):
        closed += [Family(name, kind, deterministic=name not in SEEDED) for name in names]
    trained = [
        Family(MAIN, "trained", method=MAIN), Family(CROSS, "trained", method=CROSS),
        Family(COMBINED, COMBINED, parts=(MAIN, CROSS)),
        *(Family(name, "untrained", method=method) for method, name in UNTRAINED.items()),
    ]  # fmt: skip
    trained += [Family(name, "trained", tuple(changes.items()), method=MAIN) for name, changes in ABLATIONS.items()]
    trained += [Family(name, "trained", method=name) for name in COMPARED]
    return {family.name: family for family in closed + trained}


def select(names: str, config) -> tuple[list[Family], list[str]]:
    """The families that `--detectors` asks for, and a sentence for each that `all` leaves out.

    Raises:
        InputError: a name that does not exist, or whose library is not installed.
    """
    known = families()
    missing = importlib.util.find_spec("pyod") is None
    remedy = 'PyOD is not installed; pip install -e ".[baselines]"'
    if names.strip() != "all":
        wanted = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
        known |= {name: Family(name, "trained", method=name) for name in wanted if is_own(name)}
        for name in wanted:
            if name in known:
                settings.check(known[name].config(config))
            else:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise InputError(f"--detectors: {name!r} is unknown; {hint}there are all, {', '.join(known)}")
            if missing and known[name].kind == "pyod":
                raise InputError(f"--detectors: {name} cannot be computed: {remedy}")
        if not wanted:
            raise InputError("--detectors is empty; use all, or names separated by commas")
        return [known[name] for name in wanted], []
    notes, out = [], []
    for family in known.values():
        if family.kind == "pyod" and missing:
            continue
        if why := _pointless(family, config) or _unusable(family, config):
            notes.append(f"{family.name} is left out: {why}")
        else:
            out.append(family)
    if missing:
        notes.append(f"{', '.join(PYOD)} are left out: {remedy}")
    return out, notes


def _pointless(family: Family, config) -> str:
    """Why a family would be another one again; '' if it would not."""
    if dict(family.overrides).get("knowledge.variant") == "shuffled" and not config.knowledge.path:
        return "there are no rules (knowledge.path is empty)"
    own = dataclasses.replace(family, overrides=()).config(config)
    if family.overrides and all(_value(own, key) == value for key, value in family.overrides):
        return f"the config has {', '.join(f'{k}={v}' for k, v in family.overrides)} already"
    return ""


def _unusable(family: Family, config) -> str:
    """Why nothing can be trained with a family's settings; '' if it can."""
    try:
        settings.check(family.config(config))
    except InputError as error:
        return str(error)
    return ""


def _value(config, key: str):
    section, name = key.split(".")
    return config[section][name]
