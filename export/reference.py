"""An independent float32 forward pass in NumPy, written from the papers, to prove an exported graph against.

Shares no code with the graph builders: norms, attention and masks are computed here from the definitions, rotary
angles in `reference_rotary`. Weights are read one matrix at a time, so memory stays at the largest one plus the
activations. Sources: Llama 2 (https://arxiv.org/abs/2307.09288), RMSNorm (1910.07467), GQA (2305.13245), Gemma 2
(2408.00118), OLMo 2 (2501.00656), GELU (1606.08415).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ortserve.export.architecture import Architecture, Attention, Linear, Mlp, Norm
from ortserve.export.checkpoint import Checkpoint
from ortserve.export.reference_rotary import rotate

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
    stream = stream * np.float32(architecture.embedding_scale)
    for layer in architecture.layers:
        branch = _norm(checkpoint, layer.attention_norm, stream)
        branch = _attention(checkpoint, architecture, layer.attention, branch, spans)
        stream = stream + _norm(checkpoint, layer.attention_post_norm, branch)
        branch = _norm(checkpoint, layer.mlp_norm, stream)
        branch = _mlp(checkpoint, layer.mlp, branch)
        stream = stream + _norm(checkpoint, layer.mlp_post_norm, branch)
    stream = _norm(checkpoint, architecture.final_norm, stream)
    logits = np.empty((len(tokens), architecture.vocab_size), np.float32)
    for start in range(0, architecture.vocab_size, HEAD_ROWS):
        rows = checkpoint.read_rows(architecture.lm_head, start, start + HEAD_ROWS)
        logits[:, start : start + len(rows)] = stream @ rows.T
    logits = _softcap(logits * np.float32(architecture.logit_scale), architecture.logit_softcap)
    return [logits[span] for span in spans]


def _linear(checkpoint: Checkpoint, linear: Linear, value: Floats) -> Floats:
    start, stop = linear.rows or (0, None)

    def read(name: str) -> Floats:
        return checkpoint.stored(name).read(start, stop)

    product = np.concatenate([value @ read(name).T for name in linear.weights], axis=1)
    if linear.biases:
        product = product + np.concatenate([read(name) for name in linear.biases])
    return product * np.float32(linear.scale)


def _norm(checkpoint: Checkpoint, norm: Norm | None, value: Floats) -> Floats:
    """RMS norm along the last axis; where there is none, the value."""
    if norm is None:
        return value
    mean_square = np.mean(np.square(value, dtype=np.float64), axis=-1, keepdims=True)
    factor = checkpoint.read(norm.weight) + np.float32(norm.offset)
    normed: Floats = (value / np.sqrt(mean_square + norm.epsilon)).astype(np.float32) * factor
    return normed


def _mlp(checkpoint: Checkpoint, mlp: Mlp, value: Floats) -> Floats:
    gate = _linear(checkpoint, mlp.gate, value)
    if mlp.activation == "silu":
        gate = gate / (1 + np.exp(-gate))
    else:
        gate = gate / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    return _linear(checkpoint, mlp.down, gate * _linear(checkpoint, mlp.up, value))


def _attention(
    checkpoint: Checkpoint, architecture: Architecture, attention: Attention, value: Floats, spans: Sequence[slice]
) -> Floats:
    query_size, key_size = architecture.query_size, architecture.key_size
    both = _linear(checkpoint, attention.qkv, value)
    query, key, value = np.split(both, [query_size, query_size + key_size], axis=1)
    if attention.norm is not None:
        # a norm of the width of the projection sees one group, one of the width of a head as many as there are heads
        query = _norm(checkpoint, attention.norm.query, query.reshape(len(query), -1, attention.norm.query.width))
        key = _norm(checkpoint, attention.norm.key, key.reshape(len(key), -1, attention.norm.key.width))
    context = [
        _attend(
            attention,
            query[span].reshape(-1, architecture.num_heads, architecture.head_dim),
            key[span].reshape(-1, architecture.num_kv_heads, architecture.head_dim),
            value[span].reshape(-1, architecture.num_kv_heads, architecture.head_dim),
        )
        for span in spans
    ]
    return _linear(checkpoint, attention.output, np.concatenate(context))


def _attend(attention: Attention, query: Floats, key: Floats, value: Floats) -> Floats:
    """Causal attention of one sequence: `[length, heads, head_dim]` and `[length, kv_heads, head_dim]` twice."""
    length, num_heads, _ = query.shape
    group = num_heads // key.shape[1]
    if attention.rope is not None:
        query, key = rotate(query, attention.rope), rotate(key, attention.rope)
    places = np.arange(length)
    visible = places[None, :] <= places[:, None]
    if attention.window is not None:
        visible &= places[None, :] > places[:, None] - attention.window
    context = np.empty_like(query)
    for head in range(num_heads):
        scores = query[:, head] @ key[:, head // group].T * np.float32(attention.scale)
        scores = np.where(visible, _softcap(scores, attention.softcap), -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        context[:, head] = weights / weights.sum(axis=-1, keepdims=True) @ value[:, head // group]
    return context.reshape(length, -1)


def _softcap(value: Floats, cap: float | None) -> Floats:
    if cap is None:
        return value
    bounded: Floats = np.float32(cap) * np.tanh(value / np.float32(cap))
    return bounded
