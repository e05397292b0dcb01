"""An independent float32 forward pass in NumPy, written from the papers, to prove an exported graph against.

Shares no code with the graph builders: rotary angles, norms, attention and masks are computed here from the
definitions. Weights are read one matrix at a time, so memory stays at the largest chunk plus the activations.
Sources: Llama 2 (https://arxiv.org/abs/2307.09288), RoFormer (2104.09864), RMSNorm (1910.07467), GQA (2305.13245).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ortserve.export.architecture import Architecture, Linear, Rope
from ortserve.export.checkpoint import Checkpoint

Floats = NDArray[np.float32]
HEAD_ROWS = 8192  # rows of the output matrix multiplied at a time


def reference_logits(
    checkpoint: Checkpoint, architecture: Architecture, sequences: Sequence[Sequence[int]]
) -> list[Floats]:
    """Logits after every token of every sequence, each `[length, vocab_size]`."""
    lengths = [len(sequence) for sequence in sequences]
    tokens = np.concatenate([np.asarray(sequence, np.int64) for sequence in sequences])
    bounds = np.cumsum([0, *lengths])
    spans = [slice(start, stop) for start, stop in pairwise(bounds)]
    stream = np.stack([checkpoint.read_rows(architecture.embedding, token, token + 1)[0] for token in tokens])
    for layer in architecture.layers:
        normed = _rms_norm(stream, checkpoint.read(layer.attention_norm), architecture.norm_epsilon)
        query, key, value = _split_linear(checkpoint, layer.qkv, normed)
        context = np.concatenate([_attend(architecture, query[span], key[span], value[span]) for span in spans])
        stream = stream + _linear(checkpoint, layer.attention_output, context)
        normed = _rms_norm(stream, checkpoint.read(layer.mlp_norm), architecture.norm_epsilon)
        gate = _linear(checkpoint, layer.gate, normed)
        gate = gate / (1 + np.exp(-gate))
        stream = stream + _linear(checkpoint, layer.down, gate * _linear(checkpoint, layer.up, normed))
    stream = _rms_norm(stream, checkpoint.read(architecture.final_norm), architecture.norm_epsilon)
    logits = np.empty((len(tokens), architecture.vocab_size), np.float32)
    for start in range(0, architecture.vocab_size, HEAD_ROWS):
        rows = checkpoint.read_rows(architecture.lm_head, start, start + HEAD_ROWS)
        logits[:, start : start + len(rows)] = stream @ rows.T
    return [logits[span] for span in spans]


def _linear(checkpoint: Checkpoint, linear: Linear, value: Floats) -> Floats:
    return np.concatenate(_split_linear(checkpoint, linear, value), axis=1)


def _split_linear(checkpoint: Checkpoint, linear: Linear, value: Floats) -> list[Floats]:
    products = [value @ checkpoint.read(name).T for name in linear.weights]
    if linear.biases:
        products = [product + checkpoint.read(name) for product, name in zip(products, linear.biases, strict=True)]
    return products


def _rms_norm(value: Floats, weight: Floats, epsilon: float) -> Floats:
    mean_square = np.mean(np.square(value, dtype=np.float64), axis=-1, keepdims=True)
    normed: Floats = (value / np.sqrt(mean_square + epsilon)).astype(np.float32) * weight
    return normed


def _attend(architecture: Architecture, query: Floats, key: Floats, value: Floats) -> Floats:
    """Causal attention of one sequence: `[length, heads head_dim]` and `[length, kv_heads head_dim]` twice."""
    length, head_dim = len(query), architecture.head_dim
    group = architecture.num_heads // architecture.num_kv_heads
    query = _rotate(query.reshape(length, architecture.num_heads, head_dim), architecture.rope)
    key = _rotate(key.reshape(length, architecture.num_kv_heads, head_dim), architecture.rope)
    value = value.reshape(length, architecture.num_kv_heads, head_dim)
    places = np.arange(length)
    visible = places[None, :] <= places[:, None]
    if architecture.sliding_window is not None:
        visible &= places[None, :] > places[:, None] - architecture.sliding_window
    context = np.empty_like(query)
    for head in range(architecture.num_heads):
        scores = query[:, head] @ key[:, head // group].T / np.float32(math.sqrt(head_dim))
        scores = np.where(visible, scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        context[:, head] = weights / weights.sum(axis=-1, keepdims=True) @ value[:, head // group]
    return context.reshape(length, -1)


def _rotate(heads: Floats, rope: Rope) -> Floats:
    """Turn component pairs (j, j + rotary_dim / 2) of `[length, heads, head_dim]` by position times frequency."""
    half = rope.rotary_dim // 2
    angles = np.array([[position * _frequency(rope, pair) for pair in range(half)] for position in range(len(heads))])
    turns = np.exp(1j * angles)[:, None, :]
    pairs = (heads[..., :half] + 1j * heads[..., half : 2 * half]) * turns
    return np.concatenate([pairs.real, pairs.imag, heads[..., 2 * half :]], axis=-1).astype(np.float32)


def _frequency(rope: Rope, pair: int) -> float:
    """Radians per position of one pair; Llama 3 stretches by wavelength (its release's `apply_scaling`)."""
    frequency = 1.0 / math.pow(rope.theta, 2 * pair / rope.rotary_dim)
    if rope.kind == "linear":
        return frequency / rope.factor
    if rope.kind == "llama3":
        wavelength = 2 * math.pi / frequency
        if wavelength < rope.original_context / rope.high_frequency_factor:
            return frequency
        if wavelength > rope.original_context / rope.low_frequency_factor:
            return frequency / rope.factor
        smooth = (rope.original_context / wavelength - rope.low_frequency_factor) / (
            rope.high_frequency_factor - rope.low_frequency_factor
        )
        return (1 - smooth) * frequency / rope.factor + smooth * frequency
    return frequency
