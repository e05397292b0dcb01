"""What a proof says about text: perplexity of held-out documents, and how far greedy replies agree.

Works on logits; knows neither graphs nor checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ortserve.runtime.parity import GreedyAgreement, Perplexity

Floats = NDArray[np.float32]
Compute = Callable[[Sequence[int], int], Floats]  # tokens and how many came before them, to logits [tokens, vocab]


def log_probabilities(logits: Floats) -> NDArray[np.float64]:
    """Along the last axis."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    normalized: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalized


def compare_perplexity(
    documents: Sequence[Sequence[int]],
    expected: Sequence[Floats],
    found: Sequence[Floats],
    *,
    num_tokens: int,
    max_ratio: float | None,
) -> Perplexity:
    """Of the ids that can be drawn, over every token of the documents but their first."""
    surprises: list[tuple[float, float]] = []
    for tokens, wanted, got in zip(documents, expected, found, strict=True):
        places, following = np.arange(len(tokens) - 1), np.asarray(tokens[1:])
        both = [log_probabilities(logits[:-1, :num_tokens])[places, following] for logits in (wanted, got)]
        surprises.extend(zip(*(values.tolist() for values in both), strict=True))
    reference, graph = np.exp(-np.mean(np.array(surprises), axis=0)).tolist()
    return Perplexity(len(surprises), reference, graph, max_ratio)


def greedy_reply(compute: Compute, prompt: Sequence[int], length: int, *, num_tokens: int) -> list[int]:
    """The most likely ids after the prompt, one by one."""
    reply: list[int] = []
    logits = compute(prompt, 0)
    for place in range(length):
        reply.append(int(np.argmax(logits[-1, :num_tokens])))
        if place + 1 < length:
            logits = compute(reply[-1:], len(prompt) + place)
    return reply


def compare_greedy(
    prompt: Sequence[int], reply: Sequence[int], expected: Floats, *, num_tokens: int
) -> GreedyAgreement:
    """`expected` are the reference's logits after every token of prompt and reply.

    As long as all before is the same, what the reference would choose next is its own greedy reply.
    """
    chosen = np.argmax(expected[len(prompt) - 1 : len(prompt) - 1 + len(reply), :num_tokens], axis=-1)
    differs = np.flatnonzero(chosen != np.asarray(reply))
    return GreedyAgreement(len(reply), int(differs[0]) if len(differs) else len(reply))
