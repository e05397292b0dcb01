"""The work that all sides of a comparison are given, and what their replies say of speed. Knows no server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import numpy as np

LOWEST_ID = 300  # those below are special or bytes
DECODE_PROMPT, DECODE_TOKENS = 64, 96
STREAMS = (1, 4, 8, 16)
PROMPTS = (128, 512, 1536)
PREFIX, SUFFIX = 1024, 32
LONG_PROMPT, BESIDE, BESIDE_TOKENS, BEGUN = 1536, 4, 160, 16


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: greedy, exactly so many tokens long."""

    prompt: tuple[int, ...]
    num_tokens: int
    after: int = 0  # sent when the first request has had so many deliveries
    ignore_eos: bool = True  # else the reply ends by itself, at `num_tokens` at the latest

    def fields(self) -> dict[str, Any]:
        """For a worker process."""
        return {
            "prompt": self.prompt,
            "num_tokens": self.num_tokens,
            "after": self.after,
            "ignore_eos": self.ignore_eos,
        }


@dataclass(frozen=True, slots=True)
class Timeline:
    """One reply as it came; seconds of one clock."""

    sent_s: float
    arrivals: tuple[float, ...]  # of deliveries, each of one token or more
    num_tokens: int
    text: str

    @property
    def ttft_s(self) -> float:
        return self.arrivals[0] - self.sent_s

    @property
    def weight(self) -> float:
        """Tokens per delivery."""
        return self.num_tokens / len(self.arrivals)


def decode_rate(replies: Sequence[Timeline]) -> float:
    """Tokens per second of all streams together, from when each has its first until one has its last."""
    begun = max(reply.arrivals[0] for reply in replies)
    ended = min(reply.arrivals[-1] for reply in replies)
    if ended <= begun:
        raise ValueError("no time was there in which all streams decoded: ask for more tokens")
    count = sum(reply.weight * sum(begun < one <= ended for one in reply.arrivals) for reply in replies)
    return count / (ended - begun)


def whole_rate(replies: Sequence[Timeline]) -> float:
    """Tokens per second from the first request to the last token, prompts included."""
    seconds = max(reply.arrivals[-1] for reply in replies) - min(reply.sent_s for reply in replies)
    return sum(reply.num_tokens for reply in replies) / seconds


def latency_p95(replies: Sequence[Timeline], begin_s: float, end_s: float) -> float:
    """95th percentile of the gaps between deliveries that overlap the interval, in seconds."""
    pairs = [pair for reply in replies for pair in zip(reply.arrivals, reply.arrivals[1:], strict=False)]
    gaps = [after - before for before, after in pairs if after > begin_s and before < end_s]
    return quantiles(gaps, n=20, method="inclusive")[-1] if len(gaps) > 1 else gaps[0]


class Prompts:
    """Draws prompts that no prompt cache has seen, the same ones for every side of a round."""

    def __init__(self, seed: int, vocabulary: int) -> None:
        self._generator = np.random.default_rng([20, seed])
        self._vocabulary = vocabulary

    def draw(self, length: int) -> tuple[int, ...]:
        return tuple(self._generator.integers(LOWEST_ID, self._vocabulary, length).tolist())


def decoding(prompts: Prompts, streams: int) -> list[Ask]:
    return [Ask(prompts.draw(DECODE_PROMPT), DECODE_TOKENS) for _ in range(streams)]


def interference(prompts: Prompts) -> list[Ask]:
    """Streams, and a long prompt that comes while they decode: the last one."""
    streams = [Ask(prompts.draw(DECODE_PROMPT), BESIDE_TOKENS) for _ in range(BESIDE)]
    return [*streams, Ask(prompts.draw(LONG_PROMPT), 1, after=BEGUN)]


def interference_figures(replies: Sequence[Timeline]) -> Iterator[tuple[str, float]]:
    """Milliseconds and seconds by name."""
    *streams, long = replies
    sent, first = long.sent_s, long.arrivals[0]
    begun = max(reply.arrivals[0] for reply in streams)
    gaps = [b - a for reply in streams for a, b in zip(reply.arrivals, reply.arrivals[1:], strict=False)
            if a >= begun and b <= sent]  # fmt: skip
    yield f"ITL ms of {BESIDE} streams, median before a long prompt", 1e3 * median(gaps)
    yield f"ITL ms of {BESIDE} streams, p95 beside a prompt of {LONG_PROMPT}", 1e3 * latency_p95(streams, sent, first)
    yield f"TTFT ms of a prompt of {LONG_PROMPT} beside {BESIDE} streams", 1e3 * long.ttft_s
