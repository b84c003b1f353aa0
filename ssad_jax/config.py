"""The default configuration; files in `configs/` change what differs.

Every key has its default here, so that a misspelt override fails (the config is locked) and a config file
shows only what it is about. Defaults of the model, losses and optimiser are Table 2 of the paper
(`docs/method.md`); what the paper leaves open is marked "ours".
"""

import difflib

from ml_collections import ConfigDict

from data_prep.errors import InputError
from ssad_jax.methods import COMPARED, METHODS


def default_config(name: str) -> ConfigDict:
    """A complete configuration called `name` (the default working directory is `runs/<name>`)."""
    config = ConfigDict()
    config.name = name
    config.seed = 0
    config.method = "knowledge_ssl"  # knowledge_ssl (method A) | cross_service (method B) | a compared one | your own
    config.evaluation_log = ""  # JSON lines file: every evaluation on labelled test windows that are not simulated

    config.methods = ConfigDict({method: {} for method in (*METHODS, *COMPARED)})  # of each; see `use_method`
    config.methods.tracevae_adapted = ConfigDict({
        "data": {"batch_size": 16},  # windows: with two traces of each 32 (ours; published: 64)
        "optimizer": {"learning_rate": 1e-3, "weight_decay": 1e-4, "clip_norm": 10.0},  # published rate and clip
        "train": {"num_epochs": 10},  # ours; published: 60
    })

    config.methods.logbert_adapted = ConfigDict({
        "data": {"batch_size": 16},  # windows: with two pieces of each 32 sequences, as published
        "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.0},  # published: Adam
        "train": {"num_epochs": 20},  # ours: the loss still falls by 1 % an epoch
    })
    config.methods.logelectra_adapted = ConfigDict({
        "data": {"batch_size": 16},  # windows: with two lines of each 32 (ours)
        "optimizer": {"learning_rate": 5e-4, "weight_decay": 0.01},  # ELECTRA
        "train": {"num_epochs": 10},  # ours: the loss still falls by 2 % an epoch
    })
    config.methods.deeptralog_adapted = ConfigDict({
        "data": {"batch_size": 8},  # windows (ours)
        "optimizer": {"learning_rate": 5e-4, "weight_decay": 5e-7},  # of few epochs; published: 1e-4
        "train": {"num_epochs": 8},  # ours
    })
    config.methods.logtracead_adapted = ConfigDict({  # the paper's are not known
        "data": {"batch_size": 8},  # windows
        "optimizer": {"learning_rate": 3e-3, "weight_decay": 5e-7},
        "train": {"num_epochs": 6},  # the loss then falls by 3 % an epoch (OpenStack)
    })
    config.methods.tracegra_adapted = ConfigDict({
        "data": {"batch_size": 16},  # windows (ours)
        "optimizer": {"learning_rate": 5e-3, "weight_decay": 1e-4},  # ours: nothing is published
        "train": {"num_epochs": 8},  # ours: the loss then falls by 2 % an epoch
    })
    config.methods.art_adapted = ConfigDict({
        "data": {"batch_size": 8},  # windows (ours)
        "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.0},  # published: Adam
        "train": {"num_epochs": 4},  # ours: the loss then falls by 2 % an epoch
    })

    config.data = ConfigDict({
        "source": "tables",  # tables | openstack | nezha | jaeger_prometheus | otlp | train_ticket_versions
        "raw_dir": "",  # where the raw telemetry lies; empty: simulate, if config.simulate.hours > 0
        "prepared_dir": f"prepared/{name}",
        "faults_path": "",  # labels, where the raw layout has none
        "segments_path": "",  # observed segments, where the raw layout does not tell
        "utc_offset_hours": 1.0,  # of times written without an offset (openstack, train_ticket_versions)
        "correct_clock_skew": False,  # True: put spans and logs of clocks that differ on a common one
        "on_bad_rows": "quarantine",  # quarantine | error
        "node_level": "service",  # service | instance: what one service node stands for
        "tick_seconds": 1.0,
        "window_length": 20,  # ticks (Table 2)
        "stride": 5,  # ticks (Table 2)
        "train_stride": 5,  # ticks between the starts of training sequences (ours)
        "sequence_length": 8,  # consecutive windows in a training sequence (ours)
        "batch_size": 32,  # sequences in the global batch (Table 2)
        "protocol": "chronological",  # chronological | fold:K (K = 0..4)
        "train_share": 0.6,  # of the segments of a recording, in time order
        "calibration_share": 0.25,  # of the training segments, held out from fitting
        "calibration_folds": 0,  # K > 1: K groups of training segments take turns instead, one network without each
        "train_on": "normal",  # normal: leave out windows that touch a known fault | all
        "segment_seconds": 600.0,  # continuous time is cut into segments of this length
        "recording_gap_hours": 6.0,  # a longer silence separates recordings
        "metrics": (".*",),  # regular expressions of the metric names to use
        "pods": (".*",),  # regular expressions of the `namespace/pod` whose metrics to read (Prometheus)
        "metric_units": "all",  # all | traced: metrics only of services that have spans or logs
        "metric_baseline_minutes": 30.0,  # metrics are differences from their median over the time before; 0: levels
        "max_templates_per_service": 40,  # the most frequent ones; the rest share one node
        "min_template_count": 3,  # in training time
        "mask_units": "siblings",  # masked together: node | siblings (one kind, one service) | owner (all of a service)
        "ridge": 3.0,  # strength of the closed-form expectations, in windows
        "num_workers": 0,  # processes that prepare; 0: all cores
        "executor": "processes",  # that prepares: processes or dask
        "dask_scheduler": "",  # tcp://host:port or a scheduler file; empty: a cluster of this machine's own
    })
    # The embedded simulator (openstack, without raw_dir). hours = 0: none.
    config.simulate = ConfigDict({
        "hours": 0.0,
        "seed": 0,
        "faults_per_hour": 10.0,
        "fault_kinds": ("restart", "latency", "error", "cpu", "memory", "message_loss"),
    })

    config.model = ConfigDict({
        "hidden_dim": 256,  # Table 2
        "num_graph_layers": 2,  # Table 2; 0: none, a node sees itself alone
        "temporal": "gru",  # gru | none: a state of each window alone
        "memory": True,  # False: u = s, no prototypes
        "dropout": 0.3,  # Table 2
        "num_prototypes": 32,  # Table 2
        "skip_init": "expectation",  # expectation | zero: what an untrained network predicts (ours)
        "propagation": "auto",  # auto | dense | segment
        "precision": "float32",
    })
    config.loss = ConfigDict({  # a term of weight 0 is not computed
        "reconstruction": 1.0,  # lambda_1, Table 2
        "contrastive": 0.5,  # lambda_2, Table 2
        "knowledge": 0.3,  # lambda_3, Table 2
        "temperature": 0.2,  # Table 2
        "mask_ratio": 0.15,  # Table 2
    })
    config.views = ConfigDict({  # the positive view of the contrast (ours)
        "edge_drop": 0.1,  # share of edges
        "attribute_drop": 0.1,  # share of signal entries
        "window_jitter": 1,  # windows; a sequence is shifted by so many at most, where neighbours exist
    })
    config.cross_service = ConfigDict({  # method B alone; the paper gives no values
        "service": 1.0,  # weight of the contrast between services
        "system": 1.0,  # weight of the contrast between windows
        "channels": "evidence",  # evidence | all: signals that speak of faults, or volumes as well
        "window_signals": True,  # the encoder is also given the signals of the whole window
        "modality_alone": 0.2,  # share of views that show one modality alone
        "modality_drop": 0.2,  # share of the others that lack one
        "align_ticks": 1,  # a called service is moved in time by so many ticks at most
    })
    config.compared = ConfigDict({  # sizes of the compared systems (docs/compared.md)
        "tracevae": {  # 500 wide, 4 layers are published
            "width": 32,  # ours
            "layers": 2,  # of each encoder and decoder (ours)
            "heads": 2,  # of attention (ours)
            "latent": 10,  # of z and of z2; the authors' training script
            "operations": 256,  # known ones; the others are one (ours)
            "drawn": 2,  # traces of a window in a training step (ours)
            "samples": 4,  # of the likelihood of a trace (ours)
            "ball": 1.0,  # weight of leaving the unit ball; the authors' training script
            "scaled": True,  # categorical probabilities over the likeliest one's (published)
            "per_span": True,  # likelihoods over the number of spans (published)
            "std_limit": 0.1,  # least deviation of latencies, of an operation's own in training; 0: none (ours)
        },
        "logbert": {  # full size: 256 wide, 4 layers, 4 heads, 128 events (published), 8 masks
            "width": 32,  # ours
            "layers": 2,  # ours
            "heads": 4,  # published
            "events": 64,  # of a piece at most (ours)
            "masks": 4,  # fixed ones of scoring (ours)
            "drawn": 2,  # pieces of a window in a training step (ours)
        },
        "logelectra": {  # full size: 128 wide, 4 layers
            "width": 64,  # of the discriminator; the generator has a quarter (ours)
            "layers": 2,  # of the discriminator (ours)
            "generator_layers": 2,  # ours
            "heads": 4,  # ours
            "buckets": 4096,  # tokens are hashed into (ours)
            "tokens": 64,  # of a line at most (ours)
            "drawn": 2,  # lines of a window in a training step (ours)
        },
        "deeptralog": {
            "width": 32,  # hidden units; published: 300
            "steps": 3,  # of the gated graph network
            "metrics": False,  # True: metric nodes as well, which the paper does not have
            "soft_boundary": False,  # True: the loss with a radius, outside of which a share nu of windows may lie
            "nu": 0.05,  # published
        },
        "logtracead": {  # ours where it says nothing else: the paper's are not known
            "width": 32,  # hidden units
            "latent": 32,  # of z
            "beta": 5e-3,  # weight of the divergence (D-VAE)
            "distance": 1e-2,  # weight of the squared distance from the centre
            "metrics": False,  # True: metric nodes as well, which the paper does not have
        },
        "tracegra": {
            "width": 32,  # of graph layers and LSTMs (ours; full size: 64)
            "signals": 0.5,  # weight of the error of signals (ours)
            "structure": 0.5,  # weight of the error of calls (ours)
            "variational": False,  # True: the encoder gives a distribution
            "divergence": 0.01,  # weight of its divergence from the prior (ours)
        },
        "art": {
            "width": 32,  # of channels, of the second graph layer and of the GRU (authors' code)
            "wide": 64,  # of the first graph layer (authors' code)
            "noise": 0.3,  # added to inputs in training, standard deviation (authors' code)
        },
    })
    config.knowledge = ConfigDict({
        "path": "",
        "variant": "rules",  # rules | shuffled | random | none: what the prototypes know
    })
    config.optimizer = ConfigDict({
        "learning_rate": 5e-4,  # Table 2
        "weight_decay": 1e-4,  # Table 2
        "clip_norm": 1.0,  # ours
    })
    config.train = ConfigDict({
        "num_epochs": 100,  # Table 2
        "checkpoint_every": 10,  # epochs
        "keep_checkpoints": 2,
        "resident_megabytes": 2048,  # a larger dataset is streamed to the device in chunks
        "compilation_cache": True,
    })
    config.parallel = ConfigDict({"mapping": "pmap"})  # pmap | shard_map
    config.score = ConfigDict({
        "variant": "calibrated",  # calibrated | paper: which one is `score`; both are always reported
        "temporal": "forecast",  # forecast | paper: how the temporal term of `calibrated` is read off the states (ours)
        "prior": "mahalanobis",  # mahalanobis | paper: the same for the prior term (ours)
        "alpha": 1.0,  # reconstruction (the paper gives no values)
        "beta": 0.25,  # temporal
        "eta": 0.25,  # prior
        "neighbours": 5,  # nearest normal windows that a distance is the mean of (method B)
        "scale_floor": 0.2,  # smallest normal scale of a residual, in units of the scaled signal
        "batch_runs": 4,  # runs scored at once
        "threshold": "quantile",  # quantile | pot | conformal | adaptive
        "quantile": 0.99,
        "pot_risk": 1e-3,
        "false_alarm_rate": 0.01,  # of normal windows, for the thresholds conformal and adaptive
        "conformal_windows": "all",  # all | disjoint: which calibration windows conformal p-values rest on
        "accept_windows": 180,  # window lengths after which the adaptive threshold takes an alarm for the new normal
        "bootstrap": 1000,  # resamplings of segments for the intervals
    })
    config.alerts = ConfigDict({  # windows that alert -> alarms
        "stay_open_rate": 0.05,  # an alarm stays open while windows have a p-value up to this
        "min_windows": 1,  # alerting windows that an alarm needs
        "cool_down_seconds": 60.0,  # an alarm that opens so soon after another one is the same
        "log_lines": 8,  # shown with an alarm
        "traces": 5,
    })
    return config


def use_method(config: ConfigDict, name: str) -> None:
    """Make `config` one of the method called `name`, with the settings that `config.methods` has for it.

    What the methods' settings have in common stays: a key that one of them sets must be set by the other, or it has the
    value of the method before.

    Raises:
        InputError: there is no such key, or its value has another type.
    """
    known, own = flatten(config.to_dict()), flatten(config.methods.get(name, ConfigDict()).to_dict())
    for key, value in own.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise InputError(f"methods.{name}.{key} is no setting" + (f"; did you mean {near[0]}?" if near else ""))
        if type(value) is not type(known[key]) and not (type(known[key]) is float and type(value) is int):
            raise InputError(f"methods.{name}.{key}={value!r} has another type than {key}={known[key]!r}")
    config.method = name
    config.update_from_flattened_dict(own)


def flatten(values: dict, prefix: str = "") -> dict:
    """{'a': {'b': 1}} -> {'a.b': 1}."""
    flat = {}
    for key, value in values.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat
