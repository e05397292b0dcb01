"""POST /v1/chat/completions, field by field."""

from __future__ import annotations

from ortserve.gateway.request_fields.rules import Rule, extension, honoured, ignored, refused, required
from ortserve.gateway.request_fields.sampling import BREAKPOINT, CACHING, CHOOSING, EXTENSIONS, FOREIGN, FORMATS
from ortserve.gateway.request_fields.shapes import (
    ANYTHING,
    BOOLEAN,
    OBJECT,
    STRING,
    array,
    integer,
    mapping,
    one_of,
    words,
)
from ortserve.gateway.request_fields.table import FieldTable
from ortserve.gateway.schema.chat import MAX_TOP_LOGPROBS, REASONING_EFFORTS, SERVICE_TIERS, VERBOSITIES
from ortserve.gateway.schema.messages import ROLES
from ortserve.gateway.schema.metadata import MAX_PAIRS
from ortserve.gateway.schema.tools import SYNTAXES

TEXT_OR_PARTS = one_of(STRING, array(OBJECT))

MESSAGES: tuple[Rule, ...] = (
    required("messages", array(OBJECT, min_items=1)),
    required("messages[].role", words(*ROLES), "`developer` is `system`, `function` is `tool`"),
    honoured("messages[].content", TEXT_OR_PARTS, "parts are joined; null and absent where there are tool calls"),
    required("messages[].content[].type", STRING, "`text`, and `refusal` of the assistant"),
    honoured("messages[].content[].text", STRING),
    honoured("messages[].content[].refusal", STRING),
    refused("messages[].content[].image_url", OBJECT, "the model reads text only"),
    refused("messages[].content[].input_audio", OBJECT, "the model reads text only"),
    refused("messages[].content[].file", OBJECT, "the model reads text only"),
    *(rule.below("messages[].content[]") for rule in BREAKPOINT),
    honoured("messages[].name", STRING, "if the template shows it"),
    honoured("messages[].refusal", STRING, "of the assistant, when there is no content"),
    honoured("messages[].tool_call_id", STRING),
    honoured("messages[].tool_calls", array(OBJECT)),
    honoured("messages[].tool_calls[].id", STRING),
    ignored("messages[].tool_calls[].type", STRING, "`function` or `custom`, whichever is there",
            neutral=("function", "custom")),
    honoured("messages[].tool_calls[].function", OBJECT),
    required("messages[].tool_calls[].function.name", STRING),
    honoured("messages[].tool_calls[].function.arguments", one_of(STRING, OBJECT), "JSON; an object is taken too"),
    honoured("messages[].tool_calls[].custom", OBJECT),
    required("messages[].tool_calls[].custom.name", STRING),
    honoured("messages[].tool_calls[].custom.input", STRING),
    honoured("messages[].function_call", OBJECT, "the older form of `tool_calls`"),
    required("messages[].function_call.name", STRING),
    honoured("messages[].function_call.arguments", one_of(STRING, OBJECT)),
    ignored("messages[].audio", OBJECT, "earlier audio replies have no text"),
    ignored("messages[].annotations", array(ANYTHING), "of earlier replies"),
    extension("messages[].reasoning_content", STRING, "if the template shows it"),
    extension("messages[].reasoning", STRING, "the same under its other name"),
)  # fmt: skip
FUNCTION: tuple[Rule, ...] = (
    required("name", STRING, "at most 128 letters, digits and `_-.:/`"),
    honoured("description", STRING),
    honoured("parameters", OBJECT, "a JSON schema of an object; absent: without properties"),
    honoured("strict", BOOLEAN, "arguments match the schema"),
)
TOOLS: tuple[Rule, ...] = (
    honoured("tools", array(OBJECT)),
    required("tools[].type", words("function", "custom")),
    honoured("tools[].function", OBJECT),
    *(rule.below("tools[].function") for rule in FUNCTION),
    honoured("tools[].custom", OBJECT, "called with one text"),
    required("tools[].custom.name", STRING),
    honoured("tools[].custom.description", STRING),
    honoured("tools[].custom.format", OBJECT, "absent: any text"),
    required("tools[].custom.format.type", words("text", "grammar")),
    honoured("tools[].custom.format.grammar", OBJECT),
    required("tools[].custom.format.grammar.syntax", words(*SYNTAXES)),
    required("tools[].custom.format.grammar.definition", STRING),
    honoured("tool_choice", one_of(STRING, OBJECT), "`none` hides the tools from the model; any other only with tools"),
    required("tool_choice.type", words("function", "custom", "allowed_tools"), "where it is an object"),
    *(
        rule
        for path in ("tool_choice", "tool_choice.allowed_tools.tools[]")
        for rule in (
            honoured(f"{path}.function", OBJECT),
            required(f"{path}.function.name", STRING),
            honoured(f"{path}.custom", OBJECT),
            required(f"{path}.custom.name", STRING),
        )
    ),
    honoured("tool_choice.allowed_tools", OBJECT, "the prompt names all tools, so that its prefix stays cached"),
    required("tool_choice.allowed_tools.mode", words("auto", "required")),
    required("tool_choice.allowed_tools.tools", array(OBJECT)),
    required("tool_choice.allowed_tools.tools[].type", words("function", "custom")),
    honoured("parallel_tool_calls", BOOLEAN, "false: the reply ends after its first call"),
    honoured("functions", array(OBJECT), "the older form of `tools`; not together with them"),
    *(rule.below("functions[]") for rule in FUNCTION[:3]),
    honoured("function_call", one_of(STRING, OBJECT), "the older form of `tool_choice`"),
    required("function_call.name", STRING, "where it is an object"),
)
REASONING: tuple[Rule, ...] = (
    honoured("reasoning_effort", words(*REASONING_EFFORTS), "given to the template; `none` switches thinking off"),
    extension("include_reasoning", BOOLEAN, "false: thoughts are counted and not shown"),
    ignored("verbosity", words(*VERBOSITIES), "no model here has been trained for it", neutral=("medium",)),
)
PREDICTION: tuple[Rule, ...] = (
    honoured("prediction", OBJECT, "a draft of the reply: changes speed, never tokens"),
    required("prediction.type", words("content")),
    required("prediction.content", TEXT_OR_PARTS),
    required("prediction.content[].type", words("text")),
    required("prediction.content[].text", STRING),
    ignored("prediction.content[].prompt_cache_breakpoint", OBJECT, "a prediction is not part of the prompt"),
)
CHAT = FieldTable(
    (
        required("model", STRING, "the served name or the model's own"),
        *MESSAGES,
        honoured("max_completion_tokens", integer(1), "absent: the rest of the context, or of the rotary regime"),
        honoured("max_tokens", integer(1), "`max_completion_tokens` wins"),
        *CHOOSING,
        honoured("logprobs", BOOLEAN, "log-softmax of the raw logits"),
        honoured("top_logprobs", integer(0, MAX_TOP_LOGPROBS), "only with `logprobs`"),
        *FORMATS,
        *FOREIGN,
        *TOOLS,
        *REASONING,
        *PREDICTION,
        *CACHING,
        refused("modalities", array(STRING), "only text", neutral=(["text"],)),
        refused("audio", OBJECT, "the model writes text only"),
        refused("moderation", OBJECT, "there is no moderation model, and ignoring a policy would be unsafe"),
        refused("web_search_options", OBJECT, "nothing is searched"),
        honoured("store", BOOLEAN, "kept, and found under this path; a stream that fails is not"),
        honoured("metadata", mapping(STRING), f"at most {MAX_PAIRS} pairs; echoed, and kept with `store`"),
        ignored("service_tier", words(*SERVICE_TIERS), "there is one: `default`", neutral=("auto", "default")),
        ignored("safety_identifier", STRING, "neither logged nor stored"),
        *EXTENSIONS,
        extension("chat_template_kwargs", OBJECT, "variables of the chat template"),
        extension("add_generation_prompt", BOOLEAN, "absent: true"),
        extension("continue_final_message", BOOLEAN, "the reply goes on from the last message, the assistant's"),
    )
)
