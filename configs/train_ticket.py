"""Train Ticket: real logs, metrics and traces of two days with 45 injected faults (Nezha, ESEC/FSE 2023).

    python -m ssad_jax.main --config=configs/train_ticket.py:knowledge --config.data.raw_dir=DIR \
        --config.data.faults_path=faults.csv --config.data.segments_path=observed_segments.csv

`DIR` is the extracted archive (`rca_data/`, `construct_data/`); the archive's own labels are injection times, so onsets
and observed segments come from files beside it.
"""

from ssad_jax.config import default_config


def get_config(variant: str = "knowledge"):
    if variant != "knowledge":
        raise ValueError(f"configs/train_ticket.py has the variant `knowledge`, not {variant!r}")
    config = default_config("train_ticket_knowledge")
    config.evaluation_log = "docs/train_ticket_evaluations.jsonl"
    config.data.update({
        "source": "nezha",
        "tick_seconds": 2.0,  # 1 s ticks lose 0.03-0.05 AUROC: few calls fall into one
        "stride": 1,  # a window ends, and may alert, every tick
        "train_stride": 2,
        "sequence_length": 4,
        "batch_size": 8,  # little data: more steps an epoch
        "calibration_folds": 3,  # and none of it to spare for calibration alone
        "metrics": (r"CpuUsageRate\(%\)",),  # the others drift between the days
        "metric_units": "traced",
    })
    config.model.hidden_dim = 64  # Table 2 has 256: there are few normal windows to fit it on
    config.optimizer.learning_rate = 1e-3
    config.train.num_epochs = 4
    config.knowledge.path = "configs/knowledge/train_ticket.yaml"
    return config
