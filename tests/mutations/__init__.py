"""Planted breaks of the rules that clients rely on, run by hand: `python -m tests.mutations`."""
