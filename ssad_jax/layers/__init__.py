"""Building blocks of the detectors: pure functions and Flax NNX modules."""
