"""Training objectives: pure functions of outputs and masks that return a local (sum, count)."""
