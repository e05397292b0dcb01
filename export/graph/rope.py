"""Rotary frequencies and the cosine and sine tables of a graph. Knows no tensors of a checkpoint."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ortserve.export.architecture import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRope,
    Rope,
    YarnScaling,
)

Frequencies = NDArray[np.float64]


def inverse_frequencies(rope: Rope, num_tokens: int = 1) -> Frequencies:
    """Radians per position of each rotated pair, `[rotary_dim / 2]`, in requests of `num_tokens` tokens.

    Source: transformers `modeling_rope_utils.py`.
    """
    scaling = rope.scaling
    theta = rope.theta
    if isinstance(scaling, DynamicScaling):
        theta *= _dynamic_growth(scaling, num_tokens) ** (rope.rotary_dim / (rope.rotary_dim - 2))
    plain: Frequencies = theta ** -(np.arange(0, rope.rotary_dim, 2, dtype=np.float64) / rope.rotary_dim)
    if scaling is None or isinstance(scaling, DynamicScaling):
        return plain
    if isinstance(scaling, LinearScaling):
        divided: Frequencies = plain / scaling.factor
        return divided
    if isinstance(scaling, Llama3Scaling):
        turns = scaling.original_context * plain / (2 * np.pi)  # full turns within the original context
        span = scaling.high_frequency_factor - scaling.low_frequency_factor
        return _blend(plain, scaling.factor, kept=(turns - scaling.low_frequency_factor) / span)
    if isinstance(scaling, LongRope):
        is_long = num_tokens > scaling.original_context
        stretched: Frequencies = plain / np.array(scaling.long_factors if is_long else scaling.short_factors)
        return stretched
    return _blend(plain, scaling.factor, kept=_kept_by_yarn(rope, scaling))


def rotary_tables(rope: Rope, num_positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosine and sine times the attention factor, each `[num_positions, rotary_dim / 2]`.

    Where the angles depend on how long a request becomes: of requests of `num_positions` tokens.
    """
    # float64 angles: position 100,000 times a float32 frequency would be off by 0.004 radians
    angles = np.arange(num_positions, dtype=np.float64)[:, None] * inverse_frequencies(rope, num_positions)
    cosine, sine = np.cos(angles) * rope.attention_factor, np.sin(angles) * rope.attention_factor
    return cosine.astype(np.float32), sine.astype(np.float32)


def _dynamic_growth(scaling: DynamicScaling, num_tokens: int) -> float:
    """Of the base before its exponent: 1 within the original context."""
    stretch = max(num_tokens, scaling.original_context) / scaling.original_context
    return scaling.factor * stretch - (scaling.factor - 1)


def _blend(plain: Frequencies, factor: float, *, kept: Frequencies) -> Frequencies:
    """Between the divided frequency at a share of 0 and the plain one at a share of 1."""
    share = np.clip(kept, 0.0, 1.0)
    return share * plain + (1 - share) * plain / factor


def _kept_by_yarn(rope: Rope, scaling: YarnScaling) -> Frequencies:
    """The share falls along the pairs from the one that turns `beta_fast` times to the one that turns `beta_slow`."""
    pair_of_turns = [
        rope.rotary_dim * np.log(scaling.original_context / (turns * 2 * np.pi)) / (2 * np.log(rope.theta))
        for turns in (scaling.beta_fast, scaling.beta_slow)
    ]
    low, high = pair_of_turns
    if scaling.truncate:
        low, high = np.floor(low), np.ceil(high)
    low, high = max(low, 0.0), min(high, rope.rotary_dim - 1.0)
    if low == high:
        high += 0.001  # as transformers: a step instead of a division by zero
    falling: Frequencies = 1 - (np.arange(rope.rotary_dim // 2) - low) / (high - low)
    return falling
