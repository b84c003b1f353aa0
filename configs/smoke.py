"""Smoke: every step of the program on half an hour of simulated OpenStack, in seconds on a CPU. Results mean nothing.

    python -m ssad_jax.main --config=configs/smoke.py
"""

from ssad_jax.config import default_config


def get_config():
    config = default_config("smoke")
    config.data.update({
        "source": "openstack",
        "node_level": "instance",
        "metrics": ("cpu.user", "mem.used", "load.min1"),
        "metric_baseline_minutes": 5.0,
        "segment_seconds": 150.0,  # so that half an hour has segments to fit, to calibrate and to test on
        "sequence_length": 4,
        "batch_size": 8,
        "num_workers": 1,
    })
    config.simulate.update({"hours": 0.6, "faults_per_hour": 8.0, "fault_kinds": ("restart", "error")})
    config.knowledge.path = "configs/knowledge/openstack.yaml"
    config.model.hidden_dim = 16
    config.train.update({"num_epochs": 2, "checkpoint_every": 1})
    config.score.bootstrap = 50
    return config
