"""The body of POST /v1/responses, read field by field. What is not implemented is refused by name. Knows no store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ortserve.gateway.errors import bad_request, unsupported_parameter
from ortserve.gateway.schema.caching import read_cache_wish
from ortserve.gateway.schema.chat import MAX_TOP_LOGPROBS, REASONING_EFFORTS, VERBOSITIES, ChatRequest
from ortserve.gateway.schema.drafting import read_draft_wish
from ortserve.gateway.schema.fields import Fields, invalid_type, invalid_value
from ortserve.gateway.schema.item_messages import messages_of
from ortserve.gateway.schema.items import Item, num_messages, read_input
from ortserve.gateway.schema.messages import Message
from ortserve.gateway.schema.metadata import read_metadata
from ortserve.gateway.schema.response_echo import ConversationReference, Json, RequestEcho
from ortserve.gateway.schema.response_tools import ResponseTools, read_response_tools
from ortserve.gateway.schema.sampling import (
    SamplingDefaults,
    Vocabulary,
    read_include_usage,
    read_sampling,
    read_stops,
)
from ortserve.gateway.schema.structure import Structure, read_flat_format, refuse_structure
from ortserve.runtime.request import SamplingParams

LOGPROBS = "message.output_text.logprobs"
INCLUDABLE = (
    "file_search_call.results", "web_search_call.results", "web_search_call.action.sources",
    "message.input_image.image_url", "computer_call_output.output.image_url", "code_interpreter_call.outputs",
    "reasoning.encrypted_content", LOGPROBS,
)  # fmt: skip
SERVICE_TIERS = ("auto", "default", "flex", "scale", "priority", "fast", "ultrafast")
SUMMARIES = ("auto", "concise", "detailed")
TRUNCATIONS = ("auto", "disabled")
MAX_NAME_LENGTH = 1024
REFUSED_FIELDS = ("prompt", "moderation")


@dataclass(frozen=True, slots=True)
class ResponseCall:
    """One validated call. `input` are its own items: what it goes on from is found by the two ids in `echo`."""

    model: str | None
    input: tuple[Item, ...]
    stream: bool
    echo: RequestEcho
    chat: ChatRequest  # all but the messages
    namespaces: Mapping[str, str]  # of tools, by the names that the model knows

    def with_items(self, items: Sequence[Item], model: str) -> ChatRequest:
        """The chat of a whole conversation, with the instructions in front; they are never inherited."""
        messages = messages_of(items)
        if self.echo.instructions is not None:
            messages = (Message("system", self.echo.instructions), *messages)
        return replace(self.chat, model=model, messages=messages)


def read_response_call(fields: Fields, defaults: SamplingDefaults, vocabulary: Vocabulary) -> ResponseCall:
    """Validate a whole body; `ApiError` (400) names the first field that is wrong or not supported."""
    model = fields.string("model")
    if _read_truncation(fields) == "disabled":
        vocabulary.check_count(num_messages(fields), "input")  # a turn takes a token at least
    items = read_input(fields)
    for key in REFUSED_FIELDS:
        if fields.has(key):
            raise unsupported_parameter(key, "is not supported with this model.")
    refuse_structure(fields)
    _check_accepted(fields)
    stream = fields.boolean("stream")
    read_include_usage(fields, stream=stream)  # counts are always in the last event
    max_output_tokens = fields.integer("max_output_tokens", 1)
    sampling = read_sampling(
        fields, defaults, vocabulary, max_tokens=max_output_tokens, num_logprobs=_read_num_logprobs(fields)
    )
    tools = read_response_tools(fields)
    chat = ChatRequest(
        model="",
        messages=(),
        sampling=sampling,
        num_choices=1,
        stops=read_stops(fields),
        stream=stream,
        include_usage=True,
        template_options=_read_template_options(fields),
        add_generation_prompt=True,
        cache=read_cache_wish(fields),
        draft=read_draft_wish(fields),
        structure=_read_format(fields),
        tools=tools.use,
    )
    return ResponseCall(model, items, stream, _read_echo(fields, sampling, tools), chat, tools.namespaces)


def _read_echo(fields: Fields, sampling: SamplingParams, tools: ResponseTools) -> RequestEcho:
    store, background = fields.boolean("store", default=True), fields.boolean("background")
    if background and not store:
        message = "background can only be used when `store` is true."
        raise bad_request(message, param="background", code="invalid_value")
    conversation = _read_conversation(fields)
    previous = fields.string("previous_response_id", max_length=MAX_NAME_LENGTH)
    if conversation is not None and previous is not None:
        message = "Invalid request: 'previous_response_id' and 'conversation' cannot be used together."
        raise bad_request(message, param="conversation", code="mutually_exclusive_parameters")
    return RequestEcho(
        background=background,
        conversation=conversation,
        frequency_penalty=sampling.frequency_penalty,
        instructions=fields.string("instructions"),
        max_output_tokens=sampling.max_tokens,
        max_tool_calls=fields.integer("max_tool_calls", 1),
        metadata=read_metadata(fields) or {},
        parallel_tool_calls=tools.use.is_parallel,
        presence_penalty=sampling.presence_penalty,
        previous_response_id=previous,
        prompt_cache_key=fields.string("prompt_cache_key"),
        prompt_cache_retention=fields.string("prompt_cache_retention"),
        reasoning=_read_reasoning(fields),
        safety_identifier=fields.string("safety_identifier", max_length=128),
        store=store,
        temperature=sampling.temperature,
        text=_read_text(fields),
        tool_choice=tools.choice,
        tools=list(tools.tools),
        top_logprobs=fields.integer("top_logprobs") or 0,
        top_p=sampling.top_p,
        truncation=_read_truncation(fields),
        user=fields.string("user"),
    )


def _read_truncation(fields: Fields) -> Literal["auto", "disabled"]:
    return "auto" if fields.choice("truncation", TRUNCATIONS) == "auto" else "disabled"


def _read_conversation(fields: Fields) -> ConversationReference | None:
    value = fields.get("conversation")
    if value is None:
        return None
    if isinstance(value, str):
        return ConversationReference(value)
    if not isinstance(value, dict):
        raise invalid_type("conversation", "one of a string or object", value)
    return ConversationReference(Fields(value, "conversation").required_string("id"))


def _read_num_logprobs(fields: Fields) -> int | None:
    """Asked for by `include`, or by a number of rivals above 0."""
    num_top = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS) or 0
    includes = fields.array("include", "an array of strings") or []
    for index, value in enumerate(includes):
        if value not in INCLUDABLE:
            raise invalid_value(f"include[{index}]", value, INCLUDABLE)
    return num_top if num_top > 0 or LOGPROBS in includes else None


def _read_text(fields: Fields) -> Json:
    text = fields.object("text") or Fields({}, "text")
    format_ = text.object("format")
    shown = {"type": "text"} if format_ is None else dict(format_.data)
    return {"format": shown, "verbosity": text.choice("verbosity", VERBOSITIES) or "medium"}


def _read_format(fields: Fields) -> Structure | None:
    """What the reply must look like."""
    text = fields.object("text")
    format_ = None if text is None else text.object("format")
    return None if format_ is None else read_flat_format(format_)


def _read_reasoning(fields: Fields) -> Json:
    reasoning = fields.object("reasoning") or Fields({}, "reasoning")
    summary = reasoning.choice("summary", SUMMARIES) or reasoning.choice("generate_summary", SUMMARIES)
    return {"effort": reasoning.choice("effort", REASONING_EFFORTS), "summary": summary}


def _read_template_options(fields: Fields) -> Mapping[str, object]:
    options: dict[str, object] = {}
    reasoning = fields.object("reasoning")
    effort = None if reasoning is None else reasoning.choice("effort", REASONING_EFFORTS)
    if effort is not None:
        options["reasoning_effort"] = effort
        if effort == "none":
            options["enable_thinking"] = False
    extra = fields.object("chat_template_kwargs")
    return options if extra is None else {**options, **extra.data}


def _check_accepted(fields: Fields) -> None:
    """Fields without effect here must still have the right shape, so that a client's mistake shows."""
    fields.choice("service_tier", SERVICE_TIERS)
    for key in ("access_programs", "background_options", "client_metadata", "image"):
        fields.object(key)
    fields.array("context_management", "an array of objects")
