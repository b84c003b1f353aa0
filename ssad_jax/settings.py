"""Checks of the settings of model, losses, optimiser, training and scores before anything starts. Imports no jax."""

import math
from pathlib import Path

from data_prep.errors import InputError
from ssad_jax import evaluation_log
from ssad_jax.methods import COMPARED, METHODS, is_own

CHOICES = {
    "model.propagation": ("auto", "dense", "segment"),
    "model.skip_init": ("expectation", "zero"),
    "model.temporal": ("gru", "none"),
    "model.memory": (True, False),
    "knowledge.variant": ("rules", "shuffled", "random", "none"),
    "model.precision": ("float32", "bfloat16"),
    "cross_service.channels": ("evidence", "all"),
    "cross_service.window_signals": (True, False),
    "parallel.mapping": ("pmap", "shard_map"),
    "score.temporal": ("forecast", "paper"),
    "score.prior": ("mahalanobis", "paper"),
    "score.variant": ("calibrated", "paper"),
    "score.threshold": ("quantile", "pot", "conformal", "adaptive"),
    "score.conformal_windows": ("all", "disjoint"),
}
WHOLE = {  # least value
    "model.hidden_dim": 1, "model.num_graph_layers": 0, "model.num_prototypes": 1, "views.window_jitter": 0,
    "cross_service.align_ticks": 0, "train.num_epochs": 1, "train.checkpoint_every": 1, "train.keep_checkpoints": 1,
    "score.batch_runs": 1, "score.neighbours": 1, "score.bootstrap": 0, "score.accept_windows": 3,
    "alerts.min_windows": 1, "alerts.log_lines": 0, "alerts.traces": 0,
    "compared.tracevae.layers": 1, "compared.tracevae.heads": 1, "compared.tracevae.latent": 1,
    "compared.tracevae.operations": 1, "compared.tracevae.drawn": 1, "compared.tracevae.samples": 1,
    "compared.logbert.heads": 1, "compared.logbert.layers": 0, "compared.logbert.events": 1,
    "compared.logbert.masks": 1, "compared.logbert.drawn": 1,
    "compared.logelectra.heads": 1, "compared.logelectra.layers": 0, "compared.logelectra.generator_layers": 0,
    "compared.logelectra.buckets": 1, "compared.logelectra.tokens": 1, "compared.logelectra.drawn": 1,
    "compared.deeptralog.width": 1, "compared.deeptralog.steps": 0, "compared.logtracead.width": 1,
    "compared.logtracead.latent": 1,
    "compared.tracegra.width": 1, "compared.art.width": 2, "compared.art.wide": 1,
}  # fmt: skip
POSITIVE = (
    "optimizer.learning_rate", "optimizer.clip_norm", "loss.temperature", "train.resident_megabytes",
    "score.scale_floor",
)  # fmt: skip
AT_LEAST_ZERO = (
    "optimizer.weight_decay", "loss.reconstruction", "loss.contrastive", "loss.knowledge", "score.alpha", "score.beta",
    "score.eta", "cross_service.service", "cross_service.system", "alerts.cool_down_seconds",
    "compared.tracegra.signals", "compared.tracegra.structure", "compared.tracegra.divergence", "compared.art.noise",
    "compared.tracevae.ball", "compared.tracevae.std_limit", "compared.logtracead.beta", "compared.logtracead.distance",
)  # fmt: skip
BELOW_ONE = (  # 0 <= x < 1
    "alerts.stay_open_rate", "model.dropout", "views.edge_drop", "views.attribute_drop", "cross_service.modality_alone",
    "cross_service.modality_drop",
)
MULTIPLES = {  # of the key beside; and the least value
    "compared.logbert.width": ("heads", 1), "compared.logelectra.width": ("heads", 4),
    "compared.tracevae.width": ("heads", 1),
}  # fmt: skip
INSIDE = (  # 0 < x < 1
    "loss.mask_ratio", "score.quantile", "score.pot_risk", "score.false_alarm_rate", "compared.deeptralog.nu",
)  # fmt: skip


def check(config) -> None:
    """Look at every setting outside `config.data` (`data_prep.settings` looks at those).

    Raises:
        InputError: the first value that cannot be used, with the values that can.
    """
    known = (*METHODS, *COMPARED)
    if config.method not in known and not is_own(config.method):
        raise InputError(f"method={config.method!r} is unknown; use {', '.join(known)} or package.module of your own")
    if config.knowledge.path and not Path(config.knowledge.path).is_file():
        raise InputError(
            f"knowledge.path={config.knowledge.path!r} is not a file; start from the directory that it is relative to, "
            "or set --config.knowledge.path"
        )
    evaluation_log.checked_path(config)
    if config.seed < 0:
        raise InputError(f"seed={config.seed} cannot be used; set --config.seed to 0 or more")
    for key, choices in CHOICES.items():
        _require(config, key, lambda x, choices=choices: x in choices, " or ".join(map(str, choices)))
    for key, least in WHOLE.items():
        _require(config, key, lambda x, least=least: x >= least, f"{least} or more")
    for key in POSITIVE:
        _require(config, key, lambda x: 0 < x < math.inf, "a number above 0")
    for key in AT_LEAST_ZERO:
        _require(config, key, lambda x: 0 <= x < math.inf, "0 or more")
    if config.method == "cross_service" and not (config.cross_service.service or config.cross_service.system):
        raise InputError(
            "both terms of the loss are switched off; set --config.cross_service.service or system above 0"
        )
    weights = config.compared.tracegra
    if config.method == "tracegra_adapted" and not (weights.signals or weights.structure):
        raise InputError(
            "both terms of the loss are switched off; set --config.compared.tracegra.signals or structure above 0"
        )
    terms = config.loss.reconstruction or config.loss.contrastive or config.loss.knowledge and config.model.memory
    if config.method == "knowledge_ssl" and not terms:
        raise InputError(
            "all terms of the loss are switched off; set one of --config.loss.reconstruction, contrastive or knowledge "
            "(which needs --config.model.memory) above 0"
        )
    _require(config, "compared.art.width", lambda x: x % 2 == 0, "an even number: it has two heads")
    for key in BELOW_ONE:
        _require(config, key, lambda x: 0 <= x < 1, "0 or more, below 1")
    for key, (divisor, least) in MULTIPLES.items():
        by = _value(config, f"{key.rpartition('.')[0]}.{divisor}")
        _require(
            config, key, lambda x, by=by, least=least: x >= least and x % by == 0,
            f"a multiple of {divisor} ({by}), {least} or more",
        )  # fmt: skip
    for key in INSIDE:
        _require(config, key, lambda x: 0 < x < 1, "a number between 0 and 1")


def _require(config, key: str, accept, remedy: str) -> None:
    value = _value(config, key)
    if not accept(value):
        raise InputError(f"{key}={value!r} cannot be used; set --config.{key} to {remedy}")


def _value(config, key: str):
    for name in key.split("."):
        config = config[name]
    return config
