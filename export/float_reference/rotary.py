"""Rotary positions of the independent forward pass: every angle from its definition, one pair at a time.

Shares no code with `rope`, which makes the tables of the graph. Sources: RoFormer (https://arxiv.org/abs/2104.09864),
Llama 3.1's release (`apply_scaling`), YaRN (2309.00071) with the ramp of its release, LongRoPE (2402.13753), and
dynamic NTK scaling as transformers has it (`_compute_dynamic_ntk_parameters`).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ortserve.export.architecture import DynamicScaling, LinearScaling, Llama3Scaling, LongRope, Rope, YarnScaling

Floats = NDArray[np.float32]


def rotate(heads: Floats, rope: Rope, num_tokens: int) -> Floats:
    """Turn component pairs (j, j + rotary_dim / 2) of `[length, heads, head_dim]` by position times frequency.

    `num_tokens`: how long the request becomes, which some frequencies depend on.
    """
    half = rope.rotary_dim // 2
    frequencies = [frequency(rope, pair, num_tokens) for pair in range(half)]
    angles = np.array([[position * turn for turn in frequencies] for position in range(len(heads))])
    turns = rope.attention_factor * np.exp(1j * angles)[:, None, :]
    pairs = (heads[..., :half] + 1j * heads[..., half : 2 * half]) * turns
    return np.concatenate([pairs.real, pairs.imag, heads[..., 2 * half :]], axis=-1).astype(np.float32)


def frequency(rope: Rope, pair: int, num_tokens: int = 1) -> float:
    """Radians per position of one pair, in a request of `num_tokens` tokens."""
    plain = 1.0 / math.pow(rope.theta, 2 * pair / rope.rotary_dim)
    match rope.scaling:
        case LinearScaling(factor):
            return plain / factor
        case Llama3Scaling() as scaling:
            return _llama3(scaling, plain)
        case YarnScaling() as scaling:
            weight = _interpolated_by_yarn(rope, scaling, pair)
            return weight * plain / scaling.factor + (1 - weight) * plain
        case LongRope() as scaling:
            within = num_tokens <= scaling.original_context
            return plain / (scaling.short_factors[pair] if within else scaling.long_factors[pair])
        case DynamicScaling(factor, original) if num_tokens > original:
            dim = rope.rotary_dim
            base = rope.theta * (factor * num_tokens / original - (factor - 1)) ** (dim / (dim - 2))
            return 1.0 / math.pow(base, 2 * pair / dim)
        case _:
            return plain


def _llama3(scaling: Llama3Scaling, plain: float) -> float:
    wavelength = 2 * math.pi / plain
    if wavelength < scaling.original_context / scaling.high_frequency_factor:
        return plain
    if wavelength > scaling.original_context / scaling.low_frequency_factor:
        return plain / scaling.factor
    smooth = (scaling.original_context / wavelength - scaling.low_frequency_factor) / (
        scaling.high_frequency_factor - scaling.low_frequency_factor
    )
    return (1 - smooth) * plain / scaling.factor + smooth * plain


def _interpolated_by_yarn(rope: Rope, scaling: YarnScaling, pair: int) -> float:
    """1 where the frequency is divided, 0 where it is kept.

    A pair turns r times within the original context L when L * theta^(-2 pair / dim) = 2 pi r; solved for the pair.
    """

    def pair_turning(rotations: float) -> float:
        return rope.rotary_dim / 2 * math.log(scaling.original_context / (2 * math.pi * rotations), rope.theta)

    begin, end = pair_turning(scaling.beta_fast), pair_turning(scaling.beta_slow)
    if scaling.truncate:
        begin, end = math.floor(begin), math.ceil(end)
    begin, end = max(begin, 0), min(end, rope.rotary_dim - 1)
    if pair <= begin:
        return 0.0
    return 1.0 if pair >= end else (pair - begin) / (end - begin)
