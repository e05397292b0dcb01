"""Rotary frequencies and the cosine and sine tables of a graph. Knows no tensors of a checkpoint."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ortserve.export.architecture import Rope


def inverse_frequencies(rope: Rope) -> NDArray[np.float64]:
    """Radians per position of each rotated pair, `[rotary_dim / 2]`.

    Llama 3 keeps high frequencies, divides low ones by `factor`, and blends between (transformers
    `modeling_rope_utils.py`, `_compute_llama3_parameters`).
    """
    plain = rope.theta ** -(np.arange(0, rope.rotary_dim, 2, dtype=np.float64) / rope.rotary_dim)
    if rope.kind == "default":
        return plain
    if rope.kind == "linear":
        return plain / rope.factor
    assert rope.kind == "llama3", rope.kind
    turns = rope.original_context * plain / (2 * np.pi)  # full turns within the original context
    kept = (turns - rope.low_frequency_factor) / (rope.high_frequency_factor - rope.low_frequency_factor)
    kept = np.clip(kept, 0.0, 1.0)
    return kept * plain + (1 - kept) * plain / rope.factor


def rotary_tables(rope: Rope, num_positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosine and sine, each `[num_positions, rotary_dim / 2]`."""
    # float64 angles: position 100,000 times a float32 frequency would be off by 0.004 radians
    angles = np.arange(num_positions, dtype=np.float64)[:, None] * inverse_frequencies(rope)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
