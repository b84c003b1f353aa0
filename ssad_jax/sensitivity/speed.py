"""Whether trainings advance together or one after another: measured on the data and the devices at hand."""

import dataclasses

import jax

from data_prep.errors import InputError
from ssad_jax.sensitivity.networks import Networks

STEPS, CALLS = 4, 3  # of the measurement, for each form; one call more compiles
# A measurement takes about 2 * STEPS * (CALLS + 1) steps of each network, and compiles twice: less than 5% of the
# training it decides about.
WORTH = 20 * 2 * STEPS * (CALLS + 1)


@dataclasses.dataclass(frozen=True)
class Form:
    """How the trainings of a sweep were run, and why."""

    together: bool
    why: str
    trainings: int
    seconds_together: float | None = None  # a step of one network of so many that advance together
    seconds_alone: float | None = None  # a step of a network that advances alone

    def describe(self) -> str:
        how = "together, in one vmapped program" if self.together else "one after another"
        return f"{self.trainings} trainings {how}: {self.why}"


def choose(asked: str, networks: Networks, trainings: list[tuple[float, int]], worth: int = WORTH) -> Form:
    """The faster form of some trainings.

    Args:
        asked: auto, yes or no, as the flag `--together`.
        worth: steps of a training from which on measuring pays.
    """
    count = len(trainings)
    if asked != "auto":
        return Form(asked == "yes", f"--together={asked}", count)
    if count == 1:
        return Form(False, "there is one", count)
    if (steps := networks.steps()) < worth:
        return Form(False, f"not measured, with {steps} steps a training", count)
    alone = networks.seconds_per_step(trainings, False, STEPS, CALLS)
    try:
        together = networks.seconds_per_step(trainings, True, STEPS, CALLS)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Form(False, "together they do not fit into the memory of the device", count, None, alone)
    figures = f"measured {1e3 * together:.3g} ms for a step of a network together, {1e3 * alone:.3g} ms alone"
    return Form(together < alone, figures, count, together, alone)


def check(asked: str, needs: str) -> None:
    """Raises InputError where trainings were asked to advance together and cannot."""
    if asked == "yes" and needs != "traced":
        raise InputError("--together=yes: other values of this parameter are other programs; use --together=auto")
