"""NVIDIA GPUs: which there are, their memory and streams, sessions and sampling on them. Knows no requests."""
