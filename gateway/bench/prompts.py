"""Prompts with an exact number of tokens, as the server counts them. Knows no tokenizer: it asks the server.

On /v1/completions a prompt is an array of token ids, where a server takes those. Elsewhere it is a row of words that
were found to cost one token each. What the server adds (BOS, chat template) is measured and subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from ortserve.gateway.bench.workload import Api, BenchError, Workload

Prompt = str | list[int]
FIRST_WORD = "a"  # of every text: without a space before it a word may cost other tokens


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Prompts drawn from the ids `low <= id < high`; the server adds `num_fixed` tokens of its own."""

    low: int
    high: int
    num_fixed: int

    def describe(self) -> str:
        """How the prompts are made, for the report."""
        return f"token ids {self.low} to {self.high - 1}"

    def draw(self, generator: np.random.Generator, count: int) -> list[int]:
        """`count` ids."""
        ids: list[int] = generator.integers(self.low, self.high, count).tolist()
        return ids

    def join(self, shared: list[int], rest: list[int]) -> Prompt:
        """The prompt."""
        return shared + rest


@dataclass(frozen=True, slots=True)
class Words:
    """Prompts of `words`, each one token; `FIRST_WORD` and what the server adds are `num_fixed` tokens."""

    words: tuple[str, ...]
    num_fixed: int

    def describe(self) -> str:
        """How the prompts are made, for the report."""
        return f"{len(self.words)} words of one token"

    def draw(self, generator: np.random.Generator, count: int) -> list[int]:
        """`count` indices of words."""
        indices: list[int] = generator.integers(0, len(self.words), count).tolist()
        return indices

    def join(self, shared: list[int], rest: list[int]) -> Prompt:
        """The prompt."""
        return " ".join([FIRST_WORD, *(self.words[index] for index in shared + rest)])


Vocabulary = TokenIds | Words


@dataclass(frozen=True, slots=True)
class PromptSource:
    """Makes the body of request number `index`; the same seed and index give the same bytes."""

    workload: Workload
    vocabulary: Vocabulary
    fixed_length: bool  # the server takes ignore_eos and min_tokens

    def __post_init__(self) -> None:
        """Raise `BenchError` for a prompt shorter than what the server adds by itself."""
        smallest = self.vocabulary.num_fixed + 1
        if self.workload.num_prompt_tokens < smallest:
            raise BenchError(
                f"--prompt-tokens {self.workload.num_prompt_tokens} is too short: with the server's own tokens"
                f" a prompt has at least {smallest}"
            )

    def prompt(self, index: int) -> Prompt:
        """The prompt of request `index`: its first tokens are common to all, the rest is its own."""
        work = self.workload
        num_drawn = work.num_prompt_tokens - self.vocabulary.num_fixed
        num_shared = min(work.num_shared_tokens, num_drawn - 1)
        shared = self.vocabulary.draw(np.random.default_rng([work.seed]), num_shared)
        rest = self.vocabulary.draw(np.random.default_rng([work.seed, index + 1]), num_drawn - num_shared)
        return self.vocabulary.join(shared, rest)

    def body(self, index: int) -> bytes:
        """JSON of a streamed request."""
        work = self.workload
        body = request_fields(work, self.prompt(index), work.num_output_tokens, fixed_length=self.fixed_length)
        body["temperature"] = work.temperature
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
        if work.temperature > 0:
            body["seed"] = (work.seed + index) % (1 << 31)
        return msgspec.json.encode(body)


def request_fields(workload: Workload, prompt: Prompt, num_output: int, *, fixed_length: bool) -> dict[str, Any]:
    """What every request carries: model, prompt and length."""
    fields: dict[str, Any] = {"model": workload.model, "max_tokens": num_output}
    if workload.api is Api.CHAT:
        fields["messages"] = [{"role": "user", "content": prompt}]
    else:
        fields["prompt"] = prompt
    if fixed_length:
        fields |= {"ignore_eos": True, "min_tokens": num_output}
    return fields
