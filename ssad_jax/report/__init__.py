"""Numbers to plots and one self-contained page."""
