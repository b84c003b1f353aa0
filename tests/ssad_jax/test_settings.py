"""Settings outside `config.data` are looked at before anything starts."""

import pytest

from data_prep.errors import InputError
from ssad_jax import settings
from ssad_jax.config import default_config


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
