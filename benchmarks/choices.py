"""What each choice of how to compute is worth on this device: training and scoring with it and without, by turns.

    python -m benchmarks.choices --nodes=64,128,512 [--batch_size=32] [--precision=bfloat16]

The default form's row is windows/s of the median turn (quartiles). The others' rows are ratios: above 1 the named
form is faster than the default one. Markdown on stdout.
"""

import contextlib
import sys
from unittest import mock

import jax
import numpy as np
import optax
from absl import app, flags

from ssad_jax import backends, train
from ssad_jax.benchmarking import synthetic
from ssad_jax.benchmarking.programs import Scoring, Training
from ssad_jax.benchmarking.timing import by_turns, rates
from ssad_jax.config import default_config
from ssad_jax.layers import graph_encoder, propagation

NODES = flags.DEFINE_list("nodes", ["64", "128", "512"], "Sizes.")
HIDDEN = flags.DEFINE_integer("hidden", 256, "Hidden units.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns.")
STEPS = flags.DEFINE_integer("steps", 2, "Steps in a turn.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Sequences of 8 windows in a step.")
PRECISION = flags.DEFINE_enum("precision", "float32", ["float32", "bfloat16"], "Of the default form.")
WHAT = flags.DEFINE_list("what", ["train", "score"], "What is measured.")
ONLY = flags.DEFINE_list("only", None, "Names of the forms to measure; default all.")


def flat_optimizer(config):
    return optax.flatten(MAKE_OPTIMIZER(config))


def with_all_edges(receivers, weight, num_nodes: int):
    return propagation.flat(receivers, num_nodes)


MAKE_OPTIMIZER = train.make_optimizer
DEFAULT = backends.choices()
TRAINING = {
    "default": ({}, contextlib.nullcontext),
    "dense propagation": ({"model.propagation": "dense"}, contextlib.nullcontext),
    "segment propagation": ({"model.propagation": "segment"}, contextlib.nullcontext),
    "views together" if not DEFAULT.views_together else "views one after another": (
        {}, lambda: backends.instead(views_together=not DEFAULT.views_together)),
    "reconstruction head on all nodes" if DEFAULT.masked_rows else "reconstruction head on masked rows": (
        {}, lambda: backends.instead(masked_rows=not DEFAULT.masked_rows)),
    "vectors of kinds by gathers": (
        {}, lambda: mock.patch.object(graph_encoder, "by_kind", lambda table, layout: table[layout.kind])),
    "edges of weight 0 added": ({}, lambda: mock.patch.object(propagation, "received", with_all_edges)),
    "optimiser on one flat array": ({}, lambda: mock.patch.object(train, "make_optimizer", flat_optimizer)),
    "GRU not unrolled": ({}, lambda: backends.instead(gru_unroll=1)),
    "all sequences encoded at once": ({}, lambda: backends.instead(rows_trained=1 << 30)),
    "without dropout": ({"model.dropout": 0.0}, contextlib.nullcontext),
    "bfloat16": ({"model.precision": "bfloat16"}, contextlib.nullcontext),
    "float32": ({"model.precision": "float32"}, contextlib.nullcontext),
}  # fmt: skip
SCORING = {
    "default": ({}, contextlib.nullcontext),
    "dense propagation": ({"model.propagation": "dense"}, contextlib.nullcontext),
    "segment propagation": ({"model.propagation": "segment"}, contextlib.nullcontext),
    "all passes at once": ({}, lambda: backends.instead(rows_scored=1 << 24)),
    "one window at a time": ({}, lambda: backends.instead(rows_scored=0)),
    "bfloat16": ({"model.precision": "bfloat16"}, contextlib.nullcontext),
    "float32": ({"model.precision": "float32"}, contextlib.nullcontext),
}


def build(what: str, data, changes: dict, patched):
    """A function that runs one turn and returns its seconds, compiled under the patch; and the windows of a turn."""
    config = default_config("choices")
    config.model.update({"hidden_dim": HIDDEN.value, "precision": PRECISION.value})
    config.data.batch_size = BATCH_SIZE.value
    for key, value in changes.items():
        section, name = key.split(".")
        config[section][name] = value
    with patched():
        training = Training(config, data)
        if what == "train":
            call, windows = training.epoch, training.num_windows
        else:
            scoring = Scoring(config, data, training.method, training.params())
            call, windows = scoring.run, scoring.num_windows
        call()
        call()
    return call, windows


def measure(what: str, forms: dict, num_nodes: int, data) -> tuple[dict[str, list[float]], int]:
    """Seconds of each turn of each form, and windows of a turn."""
    calls = {}
    for name, (changes, patched) in forms.items():
        if (ONLY.value and name not in ("default", *ONLY.value)) or name == PRECISION.value:
            continue
        print(f"{what}, N = {num_nodes}: {name}", file=sys.stderr, flush=True)
        calls[name], windows = build(what, data, changes, patched)
    return by_turns(calls, ROUNDS.value), windows


def main(_) -> None:
    train.enable_compilation_cache(default_config("choices"))
    for what, forms in (("train", TRAINING), ("score", SCORING)):
        if what not in WHAT.value:
            continue
        print(f"\n| {what}: form | " + " | ".join(f"N = {n}" for n in NODES.value) + " |")
        print("|---|" + "---|" * len(NODES.value))
        columns = {}
        for number in map(int, NODES.value):
            sequences = BATCH_SIZE.value * (STEPS.value if what == "train" else 1)
            data = synthetic.make_prepared(number, 4 * number, 8, sequences, synthetic.test_windows(number))
            columns[number] = measure(what, forms, number, data)
            jax.clear_caches()
        for name in next(iter(columns.values()))[0]:
            cells = []
            for found, windows in columns.values():
                if name == "default":
                    cells.append("{median:,.0f} ({low:,.0f} to {high:,.0f})".format(**rates(windows, found[name])))
                    continue
                ratios = np.divide(found["default"], found[name])  # of neighbours in time
                low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
                cells.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    app.run(main)
