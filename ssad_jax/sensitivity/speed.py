"""Whether trainings advance together or one after another: measured on the data and the devices at hand."""

import dataclasses

import jax
import numpy as np

from data_prep.errors import InputError
from ssad_jax.sensitivity.networks import Networks

# A few trainings together tell enough: more of them gain no less.
TRAININGS, STEPS, CALLS = 4, 2, 3  # of the measurement, for each form; one call more compiles
SHARE = 0.1  # of all steps of a sweep, that measuring may cost
GAIN = 0.9  # of the time alone, that makes up for losing all trainings where an interruption loses one alone


@dataclasses.dataclass(frozen=True)
class Form:
    """How the trainings of a sweep were run, and why."""

    together: bool
    why: str
    trainings: int
    seconds_together: float | None = None  # a step of one network of some that advance together
    seconds_alone: float | None = None  # a step of a network that advances alone

    def describe(self) -> str:
        how = "together, in one vmapped program" if self.together else "one after another"
        return f"{self.trainings} training(s) {how}: {self.why}"


def choose(asked: str, networks: Networks, trainings: list[tuple[float, int]]) -> Form:
    """The form of some trainings: together where that is clearly faster.

    Args:
        asked: auto, yes or no, as the flag `--together`.
    """
    count, some = len(trainings), trainings[:TRAININGS]
    if asked != "auto":
        return Form(asked == "yes", f"--together={asked}", count)
    if count == 1:
        return Form(False, "there is no other", count)
    steps = networks.steps()
    if (len(some) + 1) * STEPS * (CALLS + 1) > SHARE * count * steps:
        return Form(False, f"with {steps} steps each too short to measure which is faster", count)
    try:
        watches = networks.stopwatch(some, True, STEPS), networks.stopwatch(some[:1], False, STEPS)
        taken = [[watch() for watch in watches] for _ in range(CALLS)]  # by turns: other load meets both
    except jax.errors.JaxRuntimeError as error:
        if not out_of_memory(error):
            raise
        return Form(False, "together they do not fit into the memory of the device", count)
    together, alone = (float(np.median(column)) for column in zip(*taken, strict=True))
    why = f"a step of a network took {1e3 * together:.3g} ms together ({len(some)}), {1e3 * alone:.3g} ms alone"
    return Form(together < GAIN * alone, why, count, together, alone)


def out_of_memory(error: jax.errors.JaxRuntimeError) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error)


def check(asked: str, needs: str) -> None:
    """Raises InputError where trainings were asked to advance together and cannot."""
    if asked == "yes" and needs != "traced":
        raise InputError("--together=yes: other values of this parameter are other programs; use --together=auto")
