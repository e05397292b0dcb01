"""What a response repeats of its request. Knows no reply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

Json = Mapping[str, object]


class ConversationReference(msgspec.Struct, frozen=True):
    """The conversation a response belongs to."""

    id: str


class RequestEcho(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of a response that say what was asked for."""

    background: bool
    conversation: ConversationReference | None
    frequency_penalty: float
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: Mapping[str, str]
    parallel_tool_calls: bool
    presence_penalty: float
    previous_response_id: str | None
    prompt_cache_key: str | None
    prompt_cache_retention: str | None
    reasoning: Json
    safety_identifier: str | None
    store: bool
    temperature: float
    text: Json
    tool_choice: str | Json
    tools: list[Json]
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"]
    user: str | None
