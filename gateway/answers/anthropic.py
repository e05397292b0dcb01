"""Whole replies as Anthropic's JSON objects. Knows no generation: values are filled in by the routes."""

from __future__ import annotations

from typing import Literal

import msgspec

from ortserve.gateway.replies.choice import FinishWord
from ortserve.gateway.replies.generation import TokenUsage, WholeChoice
from ortserve.gateway.tools.cut_json import whole_members

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


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


class ThinkingBlock(msgspec.Struct, frozen=True):
    """Reasoning. Nothing is signed here: whoever sends it back is believed."""

    thinking: str
    signature: str = ""
    type: Literal["thinking"] = "thinking"


class ToolUseBlock(msgspec.Struct, frozen=True):
    """A call."""

    id: str
    name: str
    input: dict[str, object]
    type: Literal["tool_use"] = "tool_use"


Block = TextBlock | ThinkingBlock | ToolUseBlock


class MessageReply(msgspec.Struct, frozen=True):
    """The answer to POST /v1/messages; while it is streamed, without content and without a reason."""

    id: str
    model: str
    content: list[Block]
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


def content_blocks(choice: WholeChoice, *, includes_reasoning: bool) -> list[Block]:
    """What a reply consists of, in the order of its parts; an empty text when there is nothing else.

    A call that was cut has the members of its input that are whole, as clients make it of a stream: the reason tells.
    """
    blocks: list[Block] = []
    if choice.reasoning and includes_reasoning:
        blocks.append(ThinkingBlock(choice.reasoning))
    if choice.text:
        blocks.append(TextBlock(choice.text))
    for call in choice.calls:
        value = call.parsed()
        blocks.append(
            ToolUseBlock(call.id, call.name, value if isinstance(value, dict) else whole_members(call.arguments))
        )
    return blocks or [TextBlock("")]


def stop_reason(finish: FinishWord, stop: str | None) -> StopReason:
    """Why a reply has ended; `stop` is the stop string that has ended it."""
    if finish == "length":
        return "max_tokens"
    if finish == "tool_calls":
        return "tool_use"
    return "end_turn" if stop is None else "stop_sequence"
