"""POST /v1/chat/completions, field by field."""

from __future__ import annotations

from ortserve.gateway.contract.rules import Rule, extension, honoured, ignored, refused, required
from ortserve.gateway.contract.sampling import BREAKPOINT, CACHING, CHOOSING, CONSTRAINTS, EXTENSIONS
from ortserve.gateway.contract.shapes import ANYTHING, BOOLEAN, OBJECT, STRING, array, integer, mapping, one_of, words
from ortserve.gateway.contract.table import FieldTable
from ortserve.gateway.schema.chat import MAX_TOP_LOGPROBS, REASONING_EFFORTS, SERVICE_TIERS, VERBOSITIES
from ortserve.gateway.schema.messages import ROLES
from ortserve.gateway.schema.metadata import MAX_PAIRS

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
TOOLS: tuple[Rule, ...] = (
    refused("tools", array(OBJECT), "not called yet"),
    refused("tool_choice", one_of(STRING, OBJECT), "only with tools", neutral=("none", "auto")),
    refused("functions", array(OBJECT), "not called yet"),
    refused("function_call", one_of(STRING, OBJECT), "only with functions", neutral=("none", "auto")),
    ignored("parallel_tool_calls", BOOLEAN, "without tools there are no calls"),
)
FORMATS: tuple[Rule, ...] = (
    refused("response_format", OBJECT, "only text", neutral=({"type": "text"},)),
    *CONSTRAINTS,
)
REASONING: tuple[Rule, ...] = (
    honoured("reasoning_effort", words(*REASONING_EFFORTS), "given to the template; `none` switches thinking off"),
    ignored("include_reasoning", BOOLEAN, "thoughts are part of the text"),
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
        honoured("max_completion_tokens", integer(1), "absent: the rest of the context"),
        honoured("max_tokens", integer(1), "`max_completion_tokens` wins"),
        *CHOOSING,
        honoured("logprobs", BOOLEAN, "log-softmax of the raw logits"),
        honoured("top_logprobs", integer(0, MAX_TOP_LOGPROBS), "only with `logprobs`"),
        *FORMATS,
        *TOOLS,
        *REASONING,
        *PREDICTION,
        *CACHING,
        refused("modalities", array(STRING), "only text", neutral=(["text"],)),
        refused("audio", OBJECT, "the model writes text only"),
        refused("moderation", OBJECT, "there is no moderation model, and ignoring a policy would be unsafe"),
        refused("web_search_options", OBJECT, "nothing is searched"),
        ignored("store", BOOLEAN, "chat completions are not stored", neutral=(False,)),
        ignored("metadata", mapping(STRING), f"at most {MAX_PAIRS} pairs; of stored completions"),
        ignored("service_tier", words(*SERVICE_TIERS), "there is one: `default`", neutral=("auto", "default")),
        ignored("safety_identifier", STRING, "neither logged nor stored"),
        *EXTENSIONS,
        extension("chat_template_kwargs", OBJECT, "variables of the chat template"),
        extension("add_generation_prompt", BOOLEAN, "absent: true"),
        extension("continue_final_message", BOOLEAN, "the reply goes on from the last message, the assistant's"),
    )
)
