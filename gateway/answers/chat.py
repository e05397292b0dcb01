"""The answer to POST /v1/chat/completions as OpenAI's JSON. Knows no frame: values are filled in by the routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from ortserve.gateway.answers.usage import UsageReply
from ortserve.gateway.replies.choice import FinishWord
from ortserve.gateway.replies.generation import WholeChoice
from ortserve.gateway.replies.pieces import ShownToken
from ortserve.gateway.replies.reply import WholeCall
from ortserve.gateway.schema.tools import ToolUse

ChatFinish = Literal["stop", "length", "tool_calls", "function_call"]


class TopLogprob(msgspec.Struct, frozen=True):
    """One of the most likely tokens at a place."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True):
    """One emitted token and its rivals."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """Log-probabilities of a chat choice, or of one of its chunks."""

    content: list[TokenLogprob]
    refusal: None = None


class FunctionReply(msgspec.Struct, frozen=True):
    """The function to call; `arguments` is JSON text."""

    name: str
    arguments: str


class CustomReply(msgspec.Struct, frozen=True):
    """The custom tool to call and its input, which is any text."""

    name: str
    input: str


class ToolCallReply(msgspec.Struct, frozen=True):
    """A call of a function."""

    id: str
    function: FunctionReply
    type: Literal["function"] = "function"


class CustomCallReply(msgspec.Struct, frozen=True):
    """A call of a custom tool."""

    id: str
    custom: CustomReply
    type: Literal["custom"] = "custom"


class ChatMessage(msgspec.Struct, frozen=True):
    """The assistant's turn. What it has none of is left out: clients take an empty list of calls for calls."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    annotations: list[str] = []
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    reasoning: str | msgspec.UnsetType = msgspec.UNSET  # the same under the name that other clients read
    tool_calls: list[ToolCallReply | CustomCallReply] | msgspec.UnsetType = msgspec.UNSET
    function_call: FunctionReply | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(msgspec.Struct, frozen=True):
    """One of `n` answers."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinish


class ChatReply(msgspec.Struct, frozen=True):
    """The answer to POST /v1/chat/completions."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageReply
    system_fingerprint: str
    object: Literal["chat.completion"] = "chat.completion"
    service_tier: Literal["default"] = "default"
    metadata: Mapping[str, str] | msgspec.UnsetType = msgspec.UNSET  # where some were given, or it is kept


def chat_message(choice: WholeChoice, *, is_legacy: bool, includes_reasoning: bool) -> ChatMessage:
    """Content null when there are calls and nothing was said."""
    reasoning = choice.reasoning if choice.reasoning and includes_reasoning else msgspec.UNSET
    if not choice.calls:
        return ChatMessage(choice.text, reasoning_content=reasoning, reasoning=reasoning)
    function = FunctionReply(choice.calls[0].name, choice.calls[0].arguments)
    return ChatMessage(
        choice.text or None,
        reasoning_content=reasoning,
        reasoning=reasoning,
        tool_calls=msgspec.UNSET if is_legacy else [_call_reply(call) for call in choice.calls],
        function_call=function if is_legacy else msgspec.UNSET,
    )


def _call_reply(call: WholeCall) -> ToolCallReply | CustomCallReply:
    if call.is_custom:
        return CustomCallReply(call.id, CustomReply(call.name, call.arguments))
    return ToolCallReply(call.id, FunctionReply(call.name, call.arguments))


def chat_finish(finish: FinishWord, tools: ToolUse) -> ChatFinish:
    """As at OpenAI, a call that the request has named ends with `stop`."""
    if finish != "tool_calls":
        return finish
    if tools.is_named:
        return "stop"
    return "function_call" if tools.is_legacy else "tool_calls"


def chat_logprobs(tokens: tuple[ShownToken, ...]) -> ChatLogprobs:
    """Entries whose bytes joined are the UTF-8 of the text they belong to."""
    return ChatLogprobs(
        [
            TokenLogprob(
                token=shown.text,
                logprob=shown.logprob,
                bytes=list(shown.data),
                top_logprobs=[TopLogprob(text, logprob, list(data)) for text, data, logprob in shown.top],
            )
            for shown in tokens
        ]
    )
