"""Offline preparation: raw telemetry -> telemetry tables -> event graphs -> prepared dataset. Never imports jax."""
