"""From score terms to calibrated scores, thresholds and suspects."""
