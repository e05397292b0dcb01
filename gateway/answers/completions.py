"""The answer to POST /v1/completions as OpenAI's JSON. Knows no frame: values are filled in by the routes."""

from __future__ import annotations

from typing import Literal

import msgspec

from ortserve.gateway.answers.usage import UsageReply
from ortserve.gateway.replies.choice import FinishWord
from ortserve.gateway.replies.pieces import ShownToken


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """Log-probabilities of a text choice, or of one of its chunks; offsets are characters of the whole text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct, frozen=True):
    """One continuation of one prompt."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishWord


class CompletionReply(msgspec.Struct, frozen=True):
    """The answer to POST /v1/completions."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageReply
    system_fingerprint: str
    object: Literal["text_completion"] = "text_completion"


def completion_logprobs(
    tokens: tuple[ShownToken, ...], *, offset: int, prompt: tuple[ShownToken, ...] = ()
) -> CompletionLogprobs:
    """Parallel lists, as the older API has them; `offset` characters come before the generated text.

    An echoed prompt comes first, and its first token has no probability. The drawn token is always among the top ones,
    with the same float.
    """
    first = [None] if prompt else []
    shown = (*prompt[1:], *tokens)
    return CompletionLogprobs(
        tokens=[token.text for token in (*prompt, *tokens)],
        token_logprobs=[*first, *(token.logprob for token in shown)],
        top_logprobs=[*first, *map(_top, shown)],
        text_offset=[*(token.offset for token in prompt), *(offset + token.offset for token in tokens)],
    )


def _top(shown: ShownToken) -> dict[str, float]:
    top: dict[str, float] = {}
    for text, _, logprob in shown.top:
        top.setdefault(text, logprob)  # tokens may share a text; the most likely one comes first
    top.setdefault(shown.text, shown.logprob)
    return top
