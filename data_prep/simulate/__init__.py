"""A small OpenStack under load, simulated and written in the raw layout of the real archive."""

from data_prep.simulate.faults import KINDS
from data_prep.simulate.run import simulate

__all__ = ["KINDS", "simulate"]
