"""Your own system: method A on a directory of telemetry tables (spans, logs, metrics, ... as Parquet or CSV).

    python -m ssad_jax.main --config=configs/telemetry.py --config.data.raw_dir=DIR

`DIR` holds `spans`, `logs`, `metrics`, `events`, `topology`, `faults`, `gaps`, whichever there are, with the column
names of OpenTelemetry; times are nanoseconds since 1970, UTC. What to change first (`--config.data.KEY=VALUE`):

    raw_dir       where the tables lie
    tick_seconds  seconds a tick: so long that a busy service serves several calls in it; a window is 20 ticks
    metrics       regular expressions of the metric names to use: few that tell of load beat many that drift

Then `prepared_dir` (one for each dataset), `node_level` (`instance` where instances keep their names) and
`knowledge.path` (rules for your system; see `configs/knowledge/`).
"""

from ssad_jax.config import default_config


def get_config():
    config = default_config("telemetry")
    config.data.update({
        "source": "tables",
        "tick_seconds": 2.0,
        "stride": 1,
        "train_stride": 2,
        "sequence_length": 4,
        "batch_size": 8,
        "calibration_folds": 3,  # all normal time is fitted on and calibrated on, in turns
        "metrics": (r".*(?i:cpu|mem|load).*",),
    })
    # What Train Ticket is trained with (configs/train_ticket.py): enough for hours of normal time, quick on a CPU.
    config.model.hidden_dim = 64
    config.optimizer.learning_rate = 1e-3
    config.train.num_epochs = 4
    return config
