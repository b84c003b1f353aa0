"""Several detectors under one protocol, on identical windows (`python -m ssad_jax.compare`)."""
