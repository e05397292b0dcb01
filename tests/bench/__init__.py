"""Benchmarks, each runnable as `python -m tests.bench.<name>`. Not collected by pytest."""
