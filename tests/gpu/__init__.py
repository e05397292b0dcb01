"""Tests that need an NVIDIA GPU; `make test` skips them where there is none."""
