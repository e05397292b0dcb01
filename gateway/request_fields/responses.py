"""POST /v1/responses and /v1/responses/input_tokens, field by field."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ortserve.gateway.request_fields.items import ITEM
from ortserve.gateway.request_fields.rules import Rule, extension, honoured, ignored, refused, required
from ortserve.gateway.request_fields.sampling import CACHING, CHOOSING, CONSTRAINTS, DRAWING, EXTENSIONS
from ortserve.gateway.request_fields.shapes import (
    ANYTHING,
    BOOLEAN,
    OBJECT,
    STRING,
    array,
    integer,
    mapping,
    one_of,
    string,
    words,
)
from ortserve.gateway.request_fields.table import FieldTable
from ortserve.gateway.schema.chat import MAX_TOP_LOGPROBS, REASONING_EFFORTS, VERBOSITIES
from ortserve.gateway.schema.response_tools import CALLED_TYPES, NAMESPACE
from ortserve.gateway.schema.responses import INCLUDABLE, MAX_NAME_LENGTH, SERVICE_TIERS, SUMMARIES, TRUNCATIONS
from ortserve.gateway.schema.structure import FORMAT_TYPES
from ortserve.gateway.schema.structure import MAX_NAME_LENGTH as MAX_FORMAT_NAME

# Chat's sampling fields that this API does not specify are taken all the same; it has neither `n` nor `user`'s rule.
CHOOSING_TOO: tuple[Rule, ...] = tuple(
    extension(rule.path, rule.shape, rule.note)
    for rule in CHOOSING
    if rule.path in ("frequency_penalty", "presence_penalty", "logit_bias", "seed", "stop")
)
REASONING: tuple[Rule, ...] = (
    honoured("reasoning", OBJECT),
    honoured("reasoning.effort", words(*REASONING_EFFORTS), "given to the template; `none` switches thinking off"),
    honoured("reasoning.summary", words(*SUMMARIES), "echoed; thoughts are not summarised"),
    honoured("reasoning.generate_summary", words(*SUMMARIES), "the older name of `summary`"),
    ignored("reasoning.context", STRING, "all items given are read"),
    ignored("reasoning.mode", STRING, "there is one"),
)
TEXT: tuple[Rule, ...] = (
    honoured("text", OBJECT),
    honoured("text.format", OBJECT),
    required("text.format.type", words(*FORMAT_TYPES)),
    required("text.format.name", string(MAX_FORMAT_NAME), "letters, digits, `_` and `-`"),
    required("text.format.schema", OBJECT, "a keyword that cannot be enforced is refused by name"),
    honoured("text.format.strict", BOOLEAN, "enforced in any case"),
    honoured("text.format.description", STRING, "not shown to the model"),
    honoured("text.verbosity", words(*VERBOSITIES), "echoed; no model here has been trained for it"),
)


def _hosted(tools: object) -> Iterator[str]:
    """Tools that somebody else would have to run, and words that no tool goes by."""
    for tool in tools if isinstance(tools, list) else ():
        if isinstance(tool, dict) and tool.get("type") not in (*CALLED_TYPES, NAMESPACE):
            yield "tools[].type"


TOOLS: tuple[Rule, ...] = (
    replace(
        honoured(
            "tools",
            array(ANYTHING),
            "`function`, `custom` and `namespace` are called; hosted ones are echoed, and reported as ignored",
        ),
        unheeded=_hosted,
    ),
    honoured("tool_choice", one_of(STRING, ANYTHING), "as in chat, flat; only with tools that can be called"),
    honoured("parallel_tool_calls", BOOLEAN, "false: the reply ends after its first call"),
    honoured("max_tool_calls", integer(1), "echoed; no hosted tool is called"),
)
STATE: tuple[Rule, ...] = (
    honoured("previous_response_id", string(MAX_NAME_LENGTH), "a 400 when it is not found, or still running"),
    honoured("conversation", one_of(STRING, OBJECT), "a 404 when it is not found"),
    honoured("conversation.id", STRING),
    honoured("store", BOOLEAN, "true when absent"),
    honoured("background", BOOLEAN, "only with `store`"),
)

RESPONSES = FieldTable(
    (
        honoured("model", STRING, "absent: the served one"),
        honoured("input", one_of(STRING, array(OBJECT)), "messages and other items; text only"),
        *(rule.below("input[]") for rule in ITEM),
        honoured("instructions", STRING, "in front of this call's items, never inherited"),
        *STATE,
        honoured("max_output_tokens", integer(1)),
        *DRAWING,
        honoured("top_logprobs", integer(0, MAX_TOP_LOGPROBS)),
        honoured("include", array(words(*INCLUDABLE)), "`message.output_text.logprobs` has an effect"),
        honoured("stream", BOOLEAN),
        honoured("stream_options", OBJECT, "only with `stream`"),
        ignored("stream_options.include_obfuscation", BOOLEAN, "events are never padded", neutral=(False,)),
        extension("stream_options.include_usage", BOOLEAN, "counts are in the last event in any case"),
        *TEXT,
        *REASONING,
        *TOOLS,
        honoured("truncation", words(*TRUNCATIONS), "`auto` drops the oldest items"),
        honoured("metadata", mapping(STRING), "kept and echoed"),
        honoured("safety_identifier", string(128), "echoed, not logged"),
        honoured("user", STRING, "echoed, not logged"),
        *CACHING,
        ignored("prompt_cache_options.comparison_response_id", STRING, "caches are not compared"),
        ignored("service_tier", words(*SERVICE_TIERS), "there is one: `default`", neutral=("auto", "default")),
        ignored("access_programs", OBJECT, "there are none"),
        ignored("background_options", OBJECT, "there is one way"),
        ignored("context_management", array(OBJECT), "nothing is compacted"),
        ignored("image", OBJECT, "no image is read or made"),
        refused("prompt", OBJECT, "there is no store of prompts"),
        refused("moderation", OBJECT, "there is no moderation model, and ignoring a policy would be unsafe"),
        *EXTENSIONS,
        *CHOOSING_TOO,
        extension("prediction", ANYTHING, "as in chat"),
        extension("chat_template_kwargs", OBJECT, "variables of the chat template"),
        ignored("client_metadata", OBJECT, "neither logged nor stored"),
        *CONSTRAINTS,
    )
)
