"""How figures depend on one setting: trainings with several values and seeds, a table and a plot.

    python -m ssad_jax.sweep --config=configs/smoke.py --parameter=optimizer.learning_rate --values=1e-4,5e-4

Writes sweep.json, sweep.md and sweep.png. Trainings that can share a program are run as one vmapped program where a
quick measurement says that this is faster, else one after another. Finished cells (value x seed) stay in the workdir:
the same command goes on where it was interrupted, and another value adds its own cells alone.
"""

import sys
from pathlib import Path

from absl import flags

from data_prep import command
from data_prep.errors import InputError
from ssad_jax import settings

CONFIG = command.define_config_flag()
PARAMETER = flags.DEFINE_string("parameter", None, "Key of the config to vary, such as optimizer.learning_rate.")
VALUES = flags.DEFINE_string("values", None, "Its values, separated by commas.")
# Other commands define flags of these names for their own command lines; one program may import several.
SEEDS = flags.DEFINE_integer("seeds", 3, "Trainings with each value, from config.seed on.", allow_override=True)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where cells and tables go; default runs/<config.name>_sweep_<parameter>.", allow_override=True
)
TOGETHER = flags.DEFINE_enum(
    "together", "auto", ["auto", "yes", "no"], "Trainings in one vmapped program; auto: where that measures faster."
)
PROTOCOL = flags.DEFINE_enum(
    "protocol", "", ["", "chronological", "folds"],
    "folds: test windows of all five folds, pooled; default config.data.protocol.", allow_override=True,
)  # fmt: skip
FIGURES = flags.DEFINE_string("figures", "auroc", "Figures to draw, separated by commas.")


def sweep(
    config, parameter, num_seeds: int, workdir: Path, together: str = "auto", protocol: str = "",
    shown: tuple[str, ...] = ("auroc",), scores: tuple[str, ...] = (),
) -> dict:  # fmt: skip
    """Compute what is missing, measure everything and write the tables and the plot.

    Args:
        parameter: `sensitivity.parameter.Parameter`.
        num_seeds, together, protocol: as the flags; protocol "": that of the config.
        shown: figures to draw, of `tables.TITLES`.
        scores: to measure; default: `config.score.variant`.

    Returns:
        What sweep.json holds.

    Raises:
        InputError: a key, value or setting that cannot be used, or data that cannot be prepared.
        Failure: a training diverged whose program is its own; those of numbers of a shared program are noted.
    """
    from ssad_jax import workdir as workdirs  # with what it brings: not needed for --help and bad flags
    from ssad_jax.comparison.compute import Store
    from ssad_jax.scoring import output
    from ssad_jax.sensitivity import compute, plot, results, speed, tables

    speed.check(together, parameter.needs)
    workdir = workdirs.make(workdir)
    store = Store(workdir, _say)
    protocol = protocol or config.data.protocol
    found = compute.variants(config, parameter, protocol)
    seeds = list(range(config.seed, config.seed + num_seeds))
    form = compute.fill(store, parameter, found, seeds, together, _say)
    form = form or results.last_form(workdir)
    document = results.collect(config, parameter, found, seeds, store, form, protocol, shown, scores)
    output.write_json(workdir / "sweep.json", document)
    output.write_atomically(workdir / "sweep.md", lambda path: path.write_text(tables.markdown(document), "utf-8"))
    output.write_atomically(workdir / "sweep.png", lambda path: plot.draw(document, path))
    print(tables.plain(document))
    print(f"table: {workdir / 'sweep.md'}, plot: {workdir / 'sweep.png'}")
    return document


def _say(message: str) -> None:
    print(f"sweep: {message}", file=sys.stderr, flush=True)


def main() -> None:
    config = CONFIG.value
    settings.check(config)
    for name, value in (("parameter", PARAMETER.value), ("values", VALUES.value)):
        if value is None:
            raise InputError(
                f"--{name} is missing; write --parameter=optimizer.learning_rate --values=1e-4,5e-4, for example"
            )
    if SEEDS.value < 1:
        raise InputError(f"--seeds={SEEDS.value} is too few; use 1 or more")
    workdir = Path(WORKDIR.value or f"runs/{config.name}_sweep_{PARAMETER.value.replace('.', '_')}")
    with command.stopped_by_signals(f"finished cells are kept in {workdir}; the same command goes on there"):
        from ssad_jax import workdir as workdirs
        from ssad_jax.sensitivity import parameter, tables

        chosen = parameter.parse(config, PARAMETER.value, VALUES.value)
        shown = tables.parse_figures(FIGURES.value)
        with workdirs.using(workdir):
            sweep(config, chosen, SEEDS.value, workdir, TOGETHER.value, PROTOCOL.value, shown)


if __name__ == "__main__":
    command.run(main)
