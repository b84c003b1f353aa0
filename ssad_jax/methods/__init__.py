"""Detectors by name. A method is a module with `create(config, system, knowledge) -> Method`."""

import importlib

METHODS = {
    "knowledge_ssl": "ssad_jax.methods.knowledge_ssl",  # method A
    "cross_service": "ssad_jax.methods.cross_service",  # method B
}
WITH_KNOWLEDGE = {"knowledge_ssl"}  # the others make no use of a knowledge file


def get(name: str):
    """The module of the method called `name`.

    Raises:
        InputError: there is none of that name.
    """
    from data_prep.errors import InputError

    if name not in METHODS:
        raise InputError(f"config.method is {name!r}; known methods are {', '.join(sorted(METHODS))}")
    return importlib.import_module(METHODS[name])
