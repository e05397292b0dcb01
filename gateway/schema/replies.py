"""Whole replies as OpenAI's JSON objects. Knows no generation: values are filled in by the routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from ortserve.gateway.replies.choice import FinishWord
from ortserve.gateway.replies.generation import TokenUsage, WholeChoice
from ortserve.gateway.replies.pieces import ShownToken
from ortserve.gateway.replies.reply import WholeCall
from ortserve.gateway.schema.tools import ToolUse

ChatFinish = Literal["stop", "length", "tool_calls", "function_call"]


class PromptDetails(msgspec.Struct, frozen=True):
    """How the prompt's tokens were obtained."""

    cached_tokens: int
    cache_write_tokens: int
    audio_tokens: int = 0


class CompletionDetails(msgspec.Struct, frozen=True):
    """Output tokens that drafts guessed right, and guesses that were computed for nothing (not part of the output)."""

    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class UsageReply(msgspec.Struct, frozen=True):
    """Token counts of one call."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


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


class GenerationValues(msgspec.Struct, frozen=True):
    """Sampling values used when a request omits them."""

    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float


class ModelReply(msgspec.Struct, frozen=True):
    """One entry of GET /v1/models. All fields after the third are extensions."""

    id: str
    created: int
    owned_by: str
    max_model_len: int
    context_length: int
    verified: bool
    generation_defaults: GenerationValues
    state: str  # ready, or what it is instead: loading, unloaded, ...
    object: Literal["model"] = "model"


class EncoderReply(msgspec.Struct, frozen=True):
    """An encoder in GET /v1/models. All fields after the third are extensions."""

    id: str
    created: int
    owned_by: str
    max_model_len: int
    context_length: int
    verified: bool
    task: str
    dimensions: list[int]
    prompt_names: list[str]
    state: str
    object: Literal["model"] = "model"


class ModelList(msgspec.Struct, frozen=True):
    """The answer to GET /v1/models."""

    data: list[ModelReply | EncoderReply]
    object: Literal["list"] = "list"


def usage_reply(usage: TokenUsage) -> UsageReply:
    """Counts in OpenAI's nesting."""
    return UsageReply(
        prompt_tokens=usage.num_prompt_tokens,
        completion_tokens=usage.num_output_tokens,
        total_tokens=usage.num_prompt_tokens + usage.num_output_tokens,
        prompt_tokens_details=PromptDetails(usage.num_cached_tokens, usage.num_cache_write_tokens),
        completion_tokens_details=CompletionDetails(
            reasoning_tokens=usage.num_reasoning_tokens,
            accepted_prediction_tokens=usage.num_accepted_tokens,
            rejected_prediction_tokens=usage.num_rejected_tokens,
        ),
    )


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
