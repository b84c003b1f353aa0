"""Looks at a method of the user's own before it is trained: whether its functions give what `interface` says."""

import jax
import jax.numpy as jnp
import numpy as np

from data_prep.errors import InputError
from ssad_jax.batching import Needs, make_batch, resident
from ssad_jax.methods.interface import Method, Representations, ScoreTerms, WindowScores
from ssad_jax.prepared import Prepared

RUNS, LENGTH = 2, 3  # of the batch that is tried, in shapes alone


def check(method, name: str, prepared: Prepared) -> None:
    """Try the functions of a method, called `name`, on the shapes of a dataset's windows; nothing is computed.

    Raises:
        InputError: what one of them gives and what it should.
    """

    def require(so, what: str) -> None:
        if not so:
            raise InputError(f"{name}: {what}; ssad_jax/methods/interface.py says what a method gives")

    require(isinstance(method, Method), f"create gives {_shown(method)} instead of Method")
    require(isinstance(method.needs, Needs), f"needs={method.needs!r} is no Needs")
    require((method.observe is None) == (method.absorb is None), "observe and absorb need one another")
    names = method.score_names
    texts = isinstance(names, tuple) and all(isinstance(text, str) for text in names)
    require(texts and len(set(names)) == len(names), f"score_names={names!r} is no tuple of different names")

    windows = resident(prepared, np.zeros(1, int), method.needs)
    key = jax.random.key(0, impl="threefry2x32")
    params = jax.eval_shape(method.init, key)
    require(isinstance(params, dict), f"init gives {_shown(params)} instead of a dict of arrays")

    def tried(function, length, *arguments):
        rows = jnp.zeros((RUNS, length), jnp.int32)
        return jax.eval_shape(
            lambda params, windows: function(params, make_batch(windows, rows, jnp.arange(RUNS)), *arguments),
            params, windows,
        )  # fmt: skip

    length = 1 if method.needs.alone else LENGTH
    terms = tried(method.loss, length, jax.random.split(key, RUNS), lambda x: x)
    require(isinstance(terms, tuple) and len(terms) == 3, "loss gives no (sums, counts, diagnostics)")
    sums, counts, _ = terms
    named = isinstance(sums, dict) and isinstance(counts, dict) and sums and sums.keys() == counts.keys()
    require(named, "the sums and the counts of loss are no dicts of the same names")
    for term, value in [*sums.items(), *counts.items()]:
        require(getattr(value, "shape", None) == (), f"loss gives {_shown(value)} as {term!r} instead of one number")
    if method.observe:
        observed = tried(method.observe, length)
        require(isinstance(observed, tuple) and len(observed) == 2, "observe gives no (sums, count)")
        after = jax.eval_shape(method.absorb, params, observed[0], jnp.int32(0))
        require(after == params, "absorb gives other parameters than init, in names or shapes")

    found = tried(method.score, LENGTH)
    wanted = WindowScores if names else Representations if method.by_distance else ScoreTerms
    why = "as score_names are given" if names else "as there are no score_names"
    require(isinstance(found, wanted), f"score gives {_shown(found)} instead of {wanted.__name__}, {why}")
    if names:
        shapes = {"score": (RUNS, LENGTH, len(names)), "service": (RUNS, LENGTH, len(prepared.system.service_names))}
        for field, shape in shapes.items():
            value = getattr(found, field)
            fits = value is None and field == "service" or getattr(value, "shape", None) == shape
            wrong = f"{field} is {_shown(value)} instead of {shape} for {RUNS} runs of {LENGTH} windows"
            require(fits, f"in the WindowScores of score {wrong}")


def _shown(value) -> str:
    return f"an array {value.shape}" if hasattr(value, "shape") else type(value).__name__
