"""Detectors by name. A method is a module with `create(config, system, knowledge) -> Method`."""

import importlib
import inspect

METHODS = {
    "knowledge_ssl": "ssad_jax.methods.knowledge_ssl",  # method A
    "cross_service": "ssad_jax.methods.cross_service",  # method B
}
COMPARED: dict[str, str] = {  # the compared systems
    "tracevae_adapted": "ssad_jax.compared.tracevae",
    "logbert_adapted": "ssad_jax.compared.logbert",
    "logelectra_adapted": "ssad_jax.compared.logelectra",
    "deeptralog_adapted": "ssad_jax.compared.deeptralog",
    "logtracead_adapted": "ssad_jax.compared.logtracead",
    "tracegra_adapted": "ssad_jax.compared.tracegra",
    "art_adapted": "ssad_jax.compared.art",
}
WITH_KNOWLEDGE = {"knowledge_ssl"}  # the others make no use of a knowledge file


def is_own(name: str) -> bool:
    """Whether a name is that of a module of the user's: `package.module`."""
    return "." in name and all(name.split("."))


def get(name: str):
    """The module of the method called `name`: a known one, or a module of the user's, `package.module`.

    Raises:
        InputError: there is none of that name.
    """
    from data_prep.errors import InputError

    known = METHODS | COMPARED
    if name not in known and not is_own(name):
        raise InputError(
            f"config.method is {name!r}; known methods are {', '.join(sorted(known))}, or package.module of your own"
        )
    try:
        module = importlib.import_module(known.get(name, name))
    except ImportError as error:
        raise InputError(f"method {name!r} cannot be imported ({error}); start where the module can be found") from None
    except SyntaxError as error:
        raise InputError(f"method {name!r} is no Python: {error}") from None
    try:
        inspect.signature(module.create).bind("config", "system", "knowledge")
    except (AttributeError, TypeError):
        raise InputError(f"{module.__name__} has no function create(config, system, knowledge) -> Method") from None
    return module
