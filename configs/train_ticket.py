"""Train Ticket: real logs, metrics and traces of two days with 45 injected faults (Nezha, ESEC/FSE 2023).

    python -m ssad_jax.main --config=configs/train_ticket.py --config.data.raw_dir=DIR \
        --config.data.faults_path=faults.csv --config.data.segments_path=observed_segments.csv

`DIR` is the extracted archive (`rca_data/`, `construct_data/`); the archive's own labels are injection times, so onsets
and observed segments come from files beside it. The default is method B, `:knowledge` is method A; both read the same
prepared dataset.
"""

from ml_collections import ConfigDict

from ssad_jax.config import default_config, use_method

VARIANTS = {"": "cross_service", "knowledge": "knowledge_ssl"}


def get_config(variant: str = ""):
    if variant not in VARIANTS:
        raise ValueError(f"configs/train_ticket.py has the variant `knowledge`, not {variant!r}")
    config = default_config("train_ticket" + (f"_{variant}" if variant else ""))
    config.evaluation_log = "docs/train_ticket_evaluations.jsonl"
    config.data.update({
        "source": "nezha",
        "prepared_dir": "prepared/train_ticket",
        "tick_seconds": 2.0,  # 1 s ticks lose 0.03-0.05 AUROC: few calls fall into one
        "stride": 1,  # a window ends, and may alert, every tick
        "train_stride": 2,
        "sequence_length": 4,
        "calibration_folds": 3,  # little data, none of it to spare for calibration alone
        "metrics": (r"CpuUsageRate\(%\)",),  # the others drift between the days
        "metric_units": "traced",
    })
    config.knowledge.path = "configs/knowledge/train_ticket.yaml"
    config.methods.knowledge_ssl = ConfigDict({
        "data": {"batch_size": 8},  # sequences: more steps an epoch
        "model": {"hidden_dim": 64, "num_graph_layers": 2},  # Table 2 has 256 units: there are few normal windows
        "optimizer": {"learning_rate": 1e-3},
        "train": {"num_epochs": 4},
    })
    config.methods.cross_service = ConfigDict({
        "data": {"batch_size": 32},  # windows
        "model": {"hidden_dim": 32, "num_graph_layers": 1},
        "optimizer": {"learning_rate": 2e-4},  # of the paper's two best
        "train": {"num_epochs": 4},
    })
    use_method(config, VARIANTS[variant])
    return config
