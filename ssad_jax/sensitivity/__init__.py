"""How figures depend on one setting (`python -m ssad_jax.sweep`)."""
