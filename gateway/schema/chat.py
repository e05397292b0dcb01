"""The body of POST /v1/chat/completions, read field by field. What is not implemented is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ortserve.gateway.errors import bad_request, unsupported_parameter
from ortserve.gateway.schema.caching import CacheWish, read_cache_wish
from ortserve.gateway.schema.drafting import DraftWish, read_draft_wish
from ortserve.gateway.schema.fields import Fields, invalid_value
from ortserve.gateway.schema.kept_chat import messages_to_keep
from ortserve.gateway.schema.messages import Message, read_messages
from ortserve.gateway.schema.metadata import read_metadata
from ortserve.gateway.schema.sampling import (
    SamplingDefaults,
    Vocabulary,
    read_include_usage,
    read_num_choices,
    read_sampling,
    read_stops,
)
from ortserve.gateway.schema.structure import Structure, read_structure
from ortserve.gateway.schema.tools import NO_TOOLS, ToolUse, read_tool_use
from ortserve.runtime.request import SamplingParams

MAX_TOP_LOGPROBS = 20
REASONING_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
VERBOSITIES = ("low", "medium", "high")
SERVICE_TIERS = ("auto", "default", "flex", "scale", "priority", "fast")


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One validated call. `template_options` are extra variables of the chat template.

    With `continue_final_message` the reply goes on from the last message instead of answering it.
    """

    model: str
    messages: tuple[Message, ...]
    sampling: SamplingParams
    num_choices: int
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool
    template_options: Mapping[str, object]
    add_generation_prompt: bool
    cache: CacheWish
    draft: DraftWish
    continue_final_message: bool = False
    tools: ToolUse = NO_TOOLS
    includes_reasoning: bool = True
    structure: Structure | None = None  # what the reply must look like
    demands_reasoning: bool = False  # refused when the model has no channel for it
    metadata: Mapping[str, str] | None = None  # the caller's own, shown again
    messages_to_keep: bytes | None = None  # JSON; None: the reply is not kept


def read_chat(fields: Fields, defaults: SamplingDefaults, vocabulary: Vocabulary) -> ChatRequest:
    """Validate a whole body; `ApiError` (400) names the first field that is wrong or not supported."""
    model = fields.required_string("model")
    messages = read_messages(fields, vocabulary)
    _refuse_unsupported(fields)
    _check_accepted(fields)
    stream = fields.boolean("stream")
    continues = read_continuation(fields, messages)
    max_tokens = fields.integer("max_tokens", 1)
    max_completion_tokens = fields.integer("max_completion_tokens", 1)
    sampling = read_sampling(
        fields,
        defaults,
        vocabulary,
        max_tokens=max_tokens if max_completion_tokens is None else max_completion_tokens,
        num_logprobs=_read_num_logprobs(fields),
    )
    return ChatRequest(
        model=model,
        messages=messages,
        sampling=sampling,
        num_choices=read_num_choices(fields),
        stops=read_stops(fields),
        stream=stream,
        include_usage=read_include_usage(fields, stream=stream),
        template_options=read_template_options(fields),
        add_generation_prompt=fields.boolean("add_generation_prompt", default=not continues),
        cache=read_cache_wish(fields),
        draft=read_draft_wish(fields),
        continue_final_message=continues,
        tools=read_tool_use(fields),
        includes_reasoning=fields.boolean("include_reasoning", default=True),
        structure=read_structure(fields),
        metadata=read_metadata(fields),
        messages_to_keep=messages_to_keep(fields) if fields.boolean("store") else None,
    )


def read_continuation(fields: Fields, messages: tuple[Message, ...]) -> bool:
    """`continue_final_message`; a 400 unless there is a text of the assistant's to continue."""
    if not fields.boolean("continue_final_message"):
        return False
    if messages[-1].role != "assistant" or messages[-1].tool_calls:
        message = "Invalid value for 'continue_final_message': the last message is not a text of the assistant's."
        raise bad_request(message, param="continue_final_message", code="invalid_value")
    if fields.boolean("add_generation_prompt"):
        message = "Invalid value for 'add_generation_prompt': it would end the message that is to be continued."
        raise bad_request(message, param="add_generation_prompt", code="invalid_value")
    return True


def _read_num_logprobs(fields: Fields) -> int | None:
    top = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if fields.boolean("logprobs"):
        return top or 0
    if top is not None and top > 0:
        message = "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled."
        raise bad_request(message, param="top_logprobs", code="invalid_value")
    return None


def _refuse_unsupported(fields: Fields) -> None:
    for key in ("moderation", "web_search_options"):
        if fields.has(key):
            raise unsupported_parameter(key, "is not supported with this model.")
    _refuse_audio(fields)


def _refuse_audio(fields: Fields) -> None:
    for modality in fields.array("modalities", "an array of strings") or ():
        if modality != "text":
            message = f"Invalid value: '{modality}'. This model supports the modality 'text' only."
            raise bad_request(message, param="modalities", code="unsupported_value")
    if fields.has("audio"):
        raise unsupported_parameter("audio", "is not supported with this model.")


def _check_accepted(fields: Fields) -> None:
    """Fields without effect here must still have the right shape, so that a client's mistake shows."""
    fields.choice("verbosity", VERBOSITIES)
    fields.choice("service_tier", SERVICE_TIERS)
    fields.string("user")


def read_template_options(fields: Fields) -> Mapping[str, object]:
    """Variables of the chat template: `reasoning_effort` and `chat_template_kwargs`."""
    options: dict[str, object] = {}
    effort = fields.string("reasoning_effort")
    if effort is not None:
        if effort not in REASONING_EFFORTS:
            raise invalid_value("reasoning_effort", effort, REASONING_EFFORTS)
        options["reasoning_effort"] = effort
        if effort == "none":
            options["enable_thinking"] = False
    extra = fields.object("chat_template_kwargs")
    if extra is not None:
        options.update(extra.data)
    return options
