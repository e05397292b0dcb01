"""Checkpoints that this package makes: random weights in known shapes, wider twins of trained ones."""
