"""The body of POST /v1/messages as the same validated call that OpenAI's chat is. What is not implemented is refused.

Extensions have the names they have on OpenAI's routes: sampling fields such as `seed` and `min_p`, `cache_salt`,
`speculative`.
"""

from __future__ import annotations

from collections.abc import Sequence

from ortserve.gateway.errors import bad_request, unsupported_parameter
from ortserve.gateway.schema.anthropic_content import read_conversation
from ortserve.gateway.schema.anthropic_tools import read_anthropic_tools
from ortserve.gateway.schema.caching import CacheWish, read_cache_salt
from ortserve.gateway.schema.chat import ChatRequest
from ortserve.gateway.schema.drafting import read_draft_wish
from ortserve.gateway.schema.fields import Fields, invalid_value, missing
from ortserve.gateway.schema.messages import Message
from ortserve.gateway.schema.sampling import (
    SamplingDefaults,
    Vocabulary,
    check_num_stops,
    read_sampling,
    read_stop,
)
from ortserve.gateway.schema.structure import Structure, refuse_structure, schema_structure

SERVICE_TIERS = ("auto", "standard_only")
THINKING_TYPES = ("disabled", "adaptive", "enabled")


def read_message_call(fields: Fields, defaults: SamplingDefaults, vocabulary: Vocabulary) -> ChatRequest:
    """Validate a whole body; `ApiError` (400) names the first field that is wrong or not supported."""
    return _read(fields, defaults, vocabulary, is_counted=False)


def read_counted_call(fields: Fields, defaults: SamplingDefaults, vocabulary: Vocabulary) -> ChatRequest:
    """The same for a body of which only the prompt matters: `max_tokens` may be absent."""
    return _read(fields, defaults, vocabulary, is_counted=True)


def _read(fields: Fields, defaults: SamplingDefaults, vocabulary: Vocabulary, *, is_counted: bool) -> ChatRequest:
    model = fields.required_string("model")
    max_tokens = fields.integer("max_tokens", 1)
    if max_tokens is None and not is_counted:
        raise missing("max_tokens")
    messages = read_conversation(fields, vocabulary)
    _refuse_unsupported(fields)
    _check_accepted(fields)
    fields.number("temperature", 0, 1)  # narrower than OpenAI's, which is read below
    continues = _ends_with_assistant(messages)
    thinking = _read_thinking(fields)
    thinks = thinking in ("enabled", "adaptive")  # Anthropic's models think when asked to
    return ChatRequest(
        model=model,
        messages=messages,
        sampling=read_sampling(fields, defaults, vocabulary, max_tokens=max_tokens, num_logprobs=None),
        num_choices=1,
        stops=_read_stop_sequences(fields),
        stream=fields.boolean("stream"),
        include_usage=True,
        template_options={"enable_thinking": thinks},
        add_generation_prompt=not continues,
        cache=CacheWish(salt=read_cache_salt(fields)),
        draft=read_draft_wish(fields),
        continue_final_message=continues,
        tools=read_anthropic_tools(fields),
        includes_reasoning=thinks,
        demands_reasoning=thinking == "enabled",
        structure=_read_output_format(fields),
    )


def _read_thinking(fields: Fields) -> str | None:
    thinking = fields.object("thinking")
    if thinking is None:
        return None
    type_ = thinking.choice("type", THINKING_TYPES)
    if type_ is None:
        raise missing(thinking.name("type"))
    return type_


def _read_output_format(fields: Fields) -> Structure | None:
    """`output_config.format`, or `output_format` as its beta called it: a JSON schema."""
    config = fields.object("output_config")
    wanted = fields.object("output_format") or (None if config is None else config.object("format"))
    if wanted is None:
        return None
    kind = wanted.required_string("type")
    if kind != "json_schema":
        raise invalid_value(wanted.name("type"), kind, ("json_schema",))
    schema = wanted.object("schema")
    if schema is None:
        raise missing(wanted.name("schema"))
    return schema_structure(schema.data, wanted.name("schema"))


def _ends_with_assistant(messages: Sequence[Message]) -> bool:
    """Anthropic's prefill: the reply goes on from the last message.

    As there, it must not end with a blank: tokens begin with theirs, and a model that cannot write one goes astray.
    """
    last = messages[-1]
    if last.role != "assistant":
        return False
    if last.tool_calls:
        message = "Invalid 'messages': the final assistant message calls tools, so their results must follow."
        raise bad_request(message, param="messages", code="invalid_value")
    if last.content[-1:].isspace():
        message = "Invalid 'messages': the final assistant content cannot end with trailing whitespace."
        raise bad_request(message, param="messages", code="invalid_value")
    return True


def _read_stop_sequences(fields: Fields) -> tuple[str, ...]:
    values = fields.array("stop_sequences", "an array of strings") or []
    check_num_stops(values, "stop_sequences")
    return tuple(read_stop(value, f"stop_sequences[{index}]") for index, value in enumerate(values))


def _refuse_unsupported(fields: Fields) -> None:
    for key in ("container", "mcp_servers"):
        if fields.has(key):
            raise unsupported_parameter(key, "is not supported by this version.")
    refuse_structure(fields)


def _check_accepted(fields: Fields) -> None:
    """Fields without effect here must still have the right shape, so that a client's mistake shows."""
    fields.choice("service_tier", SERVICE_TIERS)
    metadata = fields.object("metadata")
    if metadata is not None:
        metadata.string("user_id")
