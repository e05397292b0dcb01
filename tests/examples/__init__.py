"""Tests of the examples: each runs as its users run it."""
