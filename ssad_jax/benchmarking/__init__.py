"""What `python -m ssad_jax.benchmark` measures, a file each."""
