"""Reads what a model is exported from: checkpoints, packed integers, adapters, the hub. Knows no graph."""
