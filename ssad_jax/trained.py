"""A trained method from the checkpoints of a workdir."""

from pathlib import Path

import jax

from data_prep.errors import InputError
from ssad_jax import checkpoint, methods, train
from ssad_jax.checkpoint import Checkpoint, Context
from ssad_jax.knowledge import Knowledge
from ssad_jax.methods.interface import Method
from ssad_jax.prepared import System


def restore(workdir, step: int | None = None) -> Checkpoint:
    """Checkpoint `step` of a workdir, or its newest; `tree["params"]` are of K networks, on a leading axis.

    Raises:
        InputError: there is none, or none that is whole.
    """
    return checkpoint.restore(Path(workdir) / "checkpoints", _abstract_params, step)


def method(context: Context, system: System, dataset_hash: str | None = None) -> Method:
    """The method that a checkpoint's config describes, for a system: the checkpoint's own, or another dataset's.

    Args:
        dataset_hash: of that dataset.

    Raises:
        InputError: the method's parameters belong to the names of the dataset that it was trained on, or to it alone.
    """
    saved = context.knowledge
    knowledge = Knowledge(tuple(saved["names"]), saved["keys"]) if saved else None
    made = methods.get(context.config.method).create(context.config, system, knowledge)
    if made.bound and system.node_names != context.system.node_names:
        raise InputError(
            f"{context.config.method} knows the {len(context.system.node_names)} nodes that it was trained on alone, "
            f"this dataset has other ones ({len(system.node_names)}); train on this dataset"
        )
    if made.one_dataset and dataset_hash not in (None, context.manifest.get("dataset_hash")):
        raise InputError(
            f"{context.config.method} numbers what the training time of its dataset holds, and this dataset is another "
            "one; train on this dataset"
        )
    return made


def _abstract_params(context: Context):
    """Shapes of the parameters that a checkpoint's config describes."""
    init, of_all = method(context, context.system).init, train.streams(0, train.num_networks(context.config))
    return {"params": jax.eval_shape(lambda: train.init_params(init, of_all))}
