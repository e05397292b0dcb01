"""Tests of the runtime: token ids, blocks, steps."""
