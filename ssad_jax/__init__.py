"""Self-supervised anomaly detection for distributed systems, from logs, metrics and traces, in JAX."""

__version__ = "0.1.0"
