"""Checks outside the suite: too long for it, or hard on the machine."""
