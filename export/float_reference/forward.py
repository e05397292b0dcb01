"""An independent float32 forward pass in NumPy, written from the papers, to prove an exported graph against.

Shares no code with the graph builders: norms, attention and masks are computed here from the definitions, rotary
angles in `reference_rotary`. Weights are read one matrix at a time, so memory stays at the largest one plus the
activations. Sources: Llama 2 (https://arxiv.org/abs/2307.09288), RMSNorm (1910.07467), GQA (2305.13245), Gemma 2
(2408.00118), OLMo 2 (2501.00656), GELU (1606.08415).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ortserve.export.architecture import Architecture, Attention, Experts, Linear, Mlp, Norm
from ortserve.export.float_reference.adapter import SidePaths
from ortserve.export.float_reference.rotary import rotate
from ortserve.export.sources.checkpoint import Checkpoint

Floats = NDArray[np.float32]
Watch = Callable[[int, Floats], None]  # a layer, and the residual stream after it, [tokens of all sequences, hidden]
# The logits after every token of every sequence, each [length, vocab_size], by whatever computes them.
Compute = Callable[[Sequence[Sequence[int]], Watch | None], list[Floats]]
HEAD_ROWS = 8192  # rows of the output matrix multiplied at a time


class Weights(Protocol):
    """What the pass multiplies by; see `CheckpointWeights`."""

    def embed(self, architecture: Architecture, tokens: NDArray[np.int64]) -> Floats:
        """Embedding rows `[T, hidden]`, not scaled."""
        ...

    def norm_factor(self, norm: Norm) -> Floats:
        """What normed values are multiplied by, `[width]`."""
        ...

    def multiply(self, linear: Linear, value: Floats) -> Floats:
        """`value [T, columns]` to `[T, rows]`, bias and scale included."""
        ...

    def head(self, architecture: Architecture, value: Floats) -> Floats:
        """`value [T, hidden]` to logits `[T, vocab_size]`, neither scaled nor capped."""
        ...

    def cached(self, attention: Attention, key: Floats, value: Floats) -> tuple[Floats, Floats]:
        """Keys, rotated, and values of one sequence, `[length, kv_heads, head_dim]` each, as the cache returns them."""
        ...


class CheckpointWeights:
    """The checkpoint's own values, read one matrix at a time."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.side_paths = None if checkpoint.adapter_folder is None else SidePaths(checkpoint.adapter_folder)

    def embed(self, architecture: Architecture, tokens: NDArray[np.int64]) -> Floats:
        """One read for each token: an embedding is large and a proof short."""
        read = self.checkpoint.read_rows
        return np.stack([read(architecture.embedding, token, token + 1)[0] for token in tokens.tolist()])

    def norm_factor(self, norm: Norm) -> Floats:
        """The stored weight and the architecture's offset."""
        return self.checkpoint.read(norm.weight) + np.float32(norm.offset)

    def multiply(self, linear: Linear, value: Floats) -> Floats:
        """The stacked tensors one after another."""
        start, stop = linear.rows or (0, None)

        def read(name: str) -> Floats:
            return self.checkpoint.stored(name).read(start, stop)

        def apply(name: str) -> Floats:
            if self.side_paths is None:
                return value @ read(name).T
            base = self.checkpoint.base_tensors[name].read(start, stop)
            applied: Floats = value @ base.T + self.side_paths.add(name, value, slice(start, stop))
            return applied

        product = np.concatenate([apply(name) for name in linear.weights], axis=1)
        if linear.biases:
            product = product + np.concatenate([read(name) for name in linear.biases])
        return product * np.float32(linear.scale)

    def head(self, architecture: Architecture, value: Floats) -> Floats:
        """A few thousand rows at a time."""
        logits = np.empty((len(value), architecture.vocab_size), np.float32)
        for start in range(0, architecture.vocab_size, HEAD_ROWS):
            rows = self.checkpoint.read_rows(architecture.lm_head, start, start + HEAD_ROWS)
            logits[:, start : start + len(rows)] = value @ rows.T
        return logits

    def cached(self, attention: Attention, key: Floats, value: Floats) -> tuple[Floats, Floats]:
        """A cache of floats loses nothing."""
        del attention
        return key, value


def reference_logits(
    checkpoint: Checkpoint,
    architecture: Architecture,
    sequences: Sequence[Sequence[int]],
    lengths: Sequence[int] | None = None,
    watch: Watch | None = None,
) -> list[Floats]:
    """Logits after every token of every sequence, each `[length, vocab_size]`.

    `lengths`: how long each becomes, where rotary frequencies depend on it; None: as long as it is, as in transformers.
    """
    return logits_by(CheckpointWeights(checkpoint), architecture, sequences, lengths, watch)


def logits_by(
    weights: Weights,
    architecture: Architecture,
    sequences: Sequence[Sequence[int]],
    lengths: Sequence[int] | None = None,
    watch: Watch | None = None,
) -> list[Floats]:
    """The same with other weights in the checkpoint's place."""
    logits = weights.head(architecture, final_states(weights, architecture, sequences, lengths, watch))
    logits = _softcap(logits * np.float32(architecture.logit_scale), architecture.logit_softcap)
    return [logits[span] for span in _spans(sequences)]


def final_states(
    weights: Weights,
    architecture: Architecture,
    sequences: Sequence[Sequence[int]],
    lengths: Sequence[int] | None = None,
    watch: Watch | None = None,
) -> Floats:
    """What the output matrix is given, `[tokens of all sequences, hidden]`; `watch` sees what each layer gives."""
    lengths = lengths or [len(sequence) for sequence in sequences]
    tokens = np.concatenate([np.asarray(sequence, np.int64) for sequence in sequences])
    spans = _spans(sequences)
    stream = weights.embed(architecture, tokens) * np.float32(architecture.embedding_scale)
    for index, layer in enumerate(architecture.layers):
        branch = _norm(weights, layer.attention_norm, stream)
        branch = _attention(weights, architecture, layer.attention, branch, list(zip(spans, lengths, strict=True)))
        stream = stream + _norm(weights, layer.attention_post_norm, branch)
        branch = _norm(weights, layer.mlp_norm, stream)
        branch = _feed_forward(weights, layer.mlp, branch)
        stream = stream + _norm(weights, layer.mlp_post_norm, branch)
        if watch is not None:
            watch(index, stream)
    return _norm(weights, architecture.final_norm, stream)


def _spans(sequences: Sequence[Sequence[int]]) -> list[slice]:
    bounds = np.cumsum([0, *(len(sequence) for sequence in sequences)])
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def _norm(weights: Weights, norm: Norm | None, value: Floats) -> Floats:
    """RMS norm along the last axis; where there is none, the value."""
    if norm is None:
        return value
    mean_square = np.mean(np.square(value, dtype=np.float64), axis=-1, keepdims=True)
    factor = weights.norm_factor(norm)
    normed: Floats = (value / np.sqrt(mean_square + norm.epsilon)).astype(np.float32) * factor
    return normed


def _feed_forward(weights: Weights, mlp: Mlp | Experts, value: Floats) -> Floats:
    return _experts(weights, mlp, value) if isinstance(mlp, Experts) else _mlp(weights, mlp, value)


def _mlp(weights: Weights, mlp: Mlp, value: Floats) -> Floats:
    gate = weights.multiply(mlp.gate, value)
    if mlp.activation == "silu":
        gate = gate / (1 + np.exp(-gate))
    else:
        gate = gate / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    return weights.multiply(mlp.down, gate * weights.multiply(mlp.up, value))


def _experts(weights: Weights, experts: Experts, value: Floats) -> Floats:
    """A token's experts are those with the highest scores; each expert is applied to its tokens alone."""
    scores = weights.multiply(experts.router, value)
    chosen = np.argsort(-scores, axis=1, kind="stable")[:, : experts.num_active]
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    share = np.take_along_axis(powers, chosen, axis=1)
    share = share / (share if experts.normalized else powers).sum(axis=1, keepdims=True)
    total = np.zeros_like(value)
    for index, expert in enumerate(experts.experts):
        tokens, places = np.nonzero(chosen == index)
        if len(tokens):
            total[tokens] += share[tokens, places, None] * _mlp(weights, expert, value[tokens])
    return total


def _attention(
    weights: Weights,
    architecture: Architecture,
    attention: Attention,
    value: Floats,
    spans: Sequence[tuple[slice, int]],
) -> Floats:
    query_size, key_size = architecture.query_size, architecture.key_size
    both = weights.multiply(attention.qkv, value)
    query, key, value = np.split(both, [query_size, query_size + key_size], axis=1)
    if attention.norm is not None:
        # a norm of the width of the projection sees one group, one of the width of a head as many as there are heads
        query = _norm(weights, attention.norm.query, query.reshape(len(query), -1, attention.norm.query.width))
        key = _norm(weights, attention.norm.key, key.reshape(len(key), -1, attention.norm.key.width))
    context: list[Floats] = []
    for span, length in spans:
        heads = query[span].reshape(-1, architecture.num_heads, architecture.head_dim)
        keys, values = (
            part[span].reshape(-1, architecture.num_kv_heads, architecture.head_dim) for part in (key, value)
        )
        if attention.rope is not None:
            heads, keys = (rotate(part, attention.rope, length) for part in (heads, keys))
        context.append(_attend(attention, heads, *weights.cached(attention, keys, values)))
    return weights.multiply(attention.output, np.concatenate(context))


def _attend(attention: Attention, query: Floats, key: Floats, value: Floats) -> Floats:
    """Causal attention of one sequence: `[length, heads, head_dim]` and `[length, kv_heads, head_dim]` twice."""
    length, num_heads, _ = query.shape
    group = num_heads // key.shape[1]
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
