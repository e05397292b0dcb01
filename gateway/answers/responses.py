"""Responses as OpenAI's JSON objects, with every field that some client demands. Knows no generation."""

from __future__ import annotations

from typing import Literal

import msgspec

from ortserve.gateway.answers.chat import TokenLogprob, chat_logprobs
from ortserve.gateway.errors import Problem
from ortserve.gateway.replies.generation import TokenUsage
from ortserve.gateway.replies.pieces import ShownToken
from ortserve.gateway.schema.response_echo import RequestEcho

ItemStatus = Literal["in_progress", "completed", "incomplete"]
ResponseStatus = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]


class InputDetails(msgspec.Struct, frozen=True):
    """How the input's tokens were obtained."""

    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(msgspec.Struct, frozen=True):
    """What the output's tokens were spent on."""

    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct, frozen=True):
    """Token counts of one response."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class OutputText(msgspec.Struct, frozen=True):
    """A part of a message that is text."""

    text: str
    logprobs: list[TokenLogprob] = []
    annotations: list[str] = []
    type: Literal["output_text"] = "output_text"


class OutputMessage(msgspec.Struct, frozen=True):
    """A message of the model."""

    id: str
    status: ItemStatus
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"
    type: Literal["message"] = "message"


class ReasoningText(msgspec.Struct, frozen=True):
    """A part of thoughts."""

    text: str
    type: Literal["reasoning_text"] = "reasoning_text"


class ReasoningItem(msgspec.Struct, frozen=True):
    """What the model thought before it answered; it is neither summarised nor encrypted."""

    id: str
    status: ItemStatus
    content: list[ReasoningText]
    summary: list[str] = []
    encrypted_content: None = None
    type: Literal["reasoning"] = "reasoning"


class FunctionCall(msgspec.Struct, frozen=True):
    """A call of a function; `arguments` is JSON text."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: ItemStatus
    namespace: str | msgspec.UnsetType = msgspec.UNSET
    type: Literal["function_call"] = "function_call"


class CustomCall(msgspec.Struct, frozen=True):
    """A call of a custom tool with its input, which is any text."""

    id: str
    call_id: str
    name: str
    input: str
    status: ItemStatus
    namespace: str | msgspec.UnsetType = msgspec.UNSET
    type: Literal["custom_tool_call"] = "custom_tool_call"


OutputItem = OutputMessage | ReasoningItem | FunctionCall | CustomCall


class ResponseError(msgspec.Struct, frozen=True):
    """Why a response has failed."""

    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


class IncompleteDetails(msgspec.Struct, frozen=True):
    """Why a response has ended early."""

    reason: Literal["max_output_tokens", "content_filter"]


class ResponseReply(RequestEcho, frozen=True, kw_only=True):
    """The answer to POST /v1/responses, and what is kept of it."""

    id: str
    created_at: int
    model: str
    status: ResponseStatus
    completed_at: int | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    output: list[OutputItem] = msgspec.field(default_factory=list)
    usage: ResponseUsage | None = None
    service_tier: Literal["default"] = "default"
    object: Literal["response"] = "response"


class InputTokensReply(msgspec.Struct, frozen=True):
    """The answer to POST /v1/responses/input_tokens."""

    input_tokens: int
    object: Literal["response.input_tokens"] = "response.input_tokens"


def response_usage(usage: TokenUsage) -> ResponseUsage:
    """Counts in the nesting of the Responses API."""
    return ResponseUsage(
        input_tokens=usage.num_prompt_tokens,
        input_tokens_details=InputDetails(usage.num_cached_tokens, usage.num_cache_write_tokens),
        output_tokens=usage.num_output_tokens,
        output_tokens_details=OutputDetails(usage.num_reasoning_tokens),
        total_tokens=usage.num_prompt_tokens + usage.num_output_tokens,
    )


def response_error(problem: Problem) -> ResponseError:
    """A failure in the few codes that a response may carry."""
    if problem.status == 429:
        return ResponseError("rate_limit_exceeded", problem.message)
    return ResponseError("invalid_prompt" if problem.status < 500 else "server_error", problem.message)


def text_logprobs(tokens: tuple[ShownToken, ...]) -> list[TokenLogprob]:
    """Entries whose bytes joined are the UTF-8 of the text they belong to."""
    return chat_logprobs(tokens).content
