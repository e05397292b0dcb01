"""Whole replies as Anthropic's JSON objects. Knows no generation: values are filled in by the routes."""

from __future__ import annotations

from typing import Literal

import msgspec

from ortserve.gateway.generation import FinishWord, TokenUsage

StopReason = Literal["end_turn", "max_tokens", "stop_sequence"]


class MessageUsage(msgspec.Struct, frozen=True):
    """Token counts of one call; the prompt is the sum of the first three."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class TextBlock(msgspec.Struct, frozen=True):
    """A piece of content that is text."""

    text: str
    type: Literal["text"] = "text"


class MessageReply(msgspec.Struct, frozen=True):
    """The answer to POST /v1/messages; while it is streamed, without content and without a reason."""

    id: str
    model: str
    content: list[TextBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"


class TokenCountReply(msgspec.Struct, frozen=True):
    """The answer to POST /v1/messages/count_tokens."""

    input_tokens: int


def message_usage(usage: TokenUsage) -> MessageUsage:
    """Counts as Anthropic divides them: every token of the prompt was read, written, or neither."""
    num_other = usage.num_prompt_tokens - usage.num_cached_tokens - usage.num_cache_write_tokens
    return MessageUsage(num_other, usage.num_cache_write_tokens, usage.num_cached_tokens, usage.num_output_tokens)


def stop_reason(finish: FinishWord, stop: str | None) -> StopReason:
    """Why a reply has ended; `stop` is the stop string that has ended it."""
    if finish == "length":
        return "max_tokens"
    return "end_turn" if stop is None else "stop_sequence"
