"""Settings outside `config.data` are looked at before anything starts."""

from importlib import util
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from data_prep.errors import InputError
from ssad_jax import settings
from ssad_jax.config import default_config, flatten, use_method


def test_defaults_pass():
    settings.check(default_config("x"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.propagation", "foo"), ("model.precision", "bad"), ("loss.mask_ratio", 0.0), ("loss.mask_ratio", 1.0),
        ("train.checkpoint_every", 0), ("views.edge_drop", 2.0), ("score.quantile", 2.0), ("model.dropout", 1.0),
        ("optimizer.learning_rate", float("nan")), ("optimizer.weight_decay", -1.0), ("parallel.mapping", "jit"),
        ("score.variant", "papr"), ("views.window_jitter", -1), ("model.hidden_dim", 0),
    ],
)  # fmt: skip
def test_a_value_that_cannot_work_is_named(key, value):
    config = default_config("x")
    section, name = key.split(".")
    config[section][name] = value
    with pytest.raises(InputError, match=f"{key}=.*--config.{key}"):
        settings.check(config)


def test_every_number_of_a_compared_system_has_bounds():
    flat = flatten(default_config("x").compared.to_dict())
    numbers = {key: value for key, value in flat.items() if not isinstance(value, bool)}
    for key, value in numbers.items():
        for bad in (-1,) if isinstance(value, int) else (-1.0, float("inf"), float("nan")):
            config = default_config("x")
            config.compared.update_from_flattened_dict({key: bad})
            with pytest.raises(InputError, match=f"compared.{key}=.*--config.compared.{key}"):
                settings.check(config)


def test_tracegra_needs_a_term():
    config = default_config("x")
    config.compared.tracegra.update({"signals": 0.0, "structure": 0.0})
    settings.check(config)  # no other method reads them
    config.method = "tracegra_adapted"
    with pytest.raises(InputError, match="switched off"):
        settings.check(config)


@pytest.mark.parametrize(
    ("method", "section"), [("cross_service", {"service": 0.0, "system": 0.0}),
                            ("knowledge_ssl", {"reconstruction": 0.0, "contrastive": 0.0, "knowledge": 0.0})],
)  # fmt: skip
def test_a_method_needs_a_term_of_its_own_loss(method, section):
    config = default_config("x")
    config["cross_service" if method == "cross_service" else "loss"].update(section)
    config.method = method
    with pytest.raises(InputError, match="switched off"):
        settings.check(config)
    config.method = "knowledge_ssl" if method == "cross_service" else "cross_service"  # which does not read them
    settings.check(config)


@pytest.mark.parametrize(
    ("own", "message"), [({"model": {"hiden_dim": 3}}, "hiden_dim is no setting; did you mean model.hidden_dim"),
                         ({"model": {"hidden_dim": "3"}}, "has another type than model.hidden_dim")],
)  # fmt: skip
def test_settings_of_a_method_are_looked_at(own, message):
    config = default_config("x")
    config.methods.cross_service = ConfigDict(own)
    with pytest.raises(InputError, match=message):
        use_method(config, "cross_service")


def test_both_methods_set_the_same_keys_where_a_configuration_is_of_either():
    path = Path(__file__).parents[2] / "configs" / "train_ticket.py"
    spec = util.spec_from_file_location("train_ticket", path)
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    ours = module.get_config()
    assert set(flatten(ours.methods.cross_service.to_dict())) == set(flatten(ours.methods.knowledge_ssl.to_dict()))
    for start, wanted in (("", "knowledge"), ("knowledge", "")):
        config, expected = module.get_config(start), module.get_config(wanted)
        use_method(config, expected.method)
        config.name = expected.name
        assert flatten(config.to_dict()) == flatten(expected.to_dict())
