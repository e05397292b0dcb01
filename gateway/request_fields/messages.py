"""POST /v1/messages and /v1/messages/count_tokens, Anthropic's, field by field."""

from __future__ import annotations

from ortserve.gateway.request_fields.rules import Rule, extension, honoured, ignored, refused, required
from ortserve.gateway.request_fields.sampling import CONSTRAINTS, EXTENSIONS
from ortserve.gateway.request_fields.shapes import (
    ANYTHING,
    BOOLEAN,
    OBJECT,
    STRING,
    array,
    integer,
    mapping,
    number,
    one_of,
    words,
)
from ortserve.gateway.request_fields.table import FieldTable
from ortserve.gateway.schema.anthropic import SERVICE_TIERS, THINKING_TYPES
from ortserve.gateway.schema.anthropic_content import BLOCKS, ROLES, TTLS_S
from ortserve.gateway.schema.anthropic_tools import CHOICES
from ortserve.gateway.schema.sampling import INT64_MAX, MAX_PENALTY, MAX_STOPS

TEXT_OR_BLOCKS = one_of(STRING, array(OBJECT))
OTHER_BLOCKS = ("source", "file_id", "caller", "context", "title", "toolset_name", "transformations")
OTHER_RESULTS = (  # fields of results that are no text
    "content", "context", "encrypted_content", "encrypted_stdout", "error_code", "error_message", "file_type",
    "is_file_update", "lines", "new_lines", "new_start", "num_lines", "old_lines", "old_start", "page_age",
    "retrieved_at", "return_code", "source", "start_line", "state_changes", "stderr", "stdout", "tabs", "title",
    "tool_name", "tool_references", "total_lines", "transformations", "url",
)  # fmt: skip
OTHER_TOOLS = (  # fields of tools that Anthropic runs
    "allowed_domains", "blocked_domains", "citations", "configs", "max_characters", "max_content_tokens", "max_uses",
    "response_inclusion", "url_sources", "use_cache", "user_location",
)  # fmt: skip

CACHE_CONTROL: tuple[Rule, ...] = (
    honoured("cache_control", OBJECT, "a reusable prefix ends here"),
    required("cache_control.type", words("ephemeral")),
    honoured("cache_control.ttl", words(*TTLS_S)),
)
BLOCK: tuple[Rule, ...] = (
    required("type", words("text")),
    required("text", STRING),
    *CACHE_CONTROL,
    ignored("citations", ANYTHING, "of earlier replies"),
)
CONVERSATION: tuple[Rule, ...] = (
    required("messages", array(OBJECT, min_items=1)),
    required("messages[].role", words(*ROLES)),
    required("messages[].content", TEXT_OR_BLOCKS, "a last one of the assistant is gone on from"),
    required("messages[].content[].type", words(*dict.fromkeys(name for names in BLOCKS.values() for name in names))),
    honoured("messages[].content[].text", STRING, "of `text`"),
    *(rule.below("messages[].content[]") for rule in BLOCK[2:]),
    honoured("messages[].content[].thinking", STRING, "if the template shows it"),
    ignored("messages[].content[].signature", STRING, "thoughts are believed"),
    ignored("messages[].content[].data", STRING, "of redacted thinking, which nobody here can read"),
    honoured("messages[].content[].id", STRING, "of `tool_use`, as the two below"),
    honoured("messages[].content[].name", STRING),
    honoured("messages[].content[].input", OBJECT),
    honoured("messages[].content[].tool_use_id", STRING, "of `tool_result`, as the two below"),
    honoured("messages[].content[].content", TEXT_OR_BLOCKS),
    honoured("messages[].content[].is_error", BOOLEAN, "true: the text says that it is an error"),
    *(rule.below("messages[].content[].content[]") for rule in BLOCK),
    *(
        refused(f"messages[].content[].content[].{name}", note="of a result that cannot be read")
        for name in OTHER_RESULTS
    ),
    *(refused(f"messages[].content[].{name}", note="of a block that cannot be read") for name in OTHER_BLOCKS),
    honoured("system", TEXT_OR_BLOCKS),
    *(rule.below("system[]") for rule in BLOCK),
)  # fmt: skip
TOOLS: tuple[Rule, ...] = (
    honoured("tools", array(OBJECT)),
    honoured("tools[].type", words("custom"), "any other is a tool of Anthropic's, which is refused"),
    required("tools[].name", STRING, "at most 128 letters, digits and `_-.:/`"),
    honoured("tools[].description", STRING),
    required("tools[].input_schema", OBJECT),
    honoured("tools[].strict", BOOLEAN, "the input matches the schema"),
    ignored("tools[].cache_control", OBJECT, "tools are part of the prompt, whose prefixes are kept anyway"),
    ignored("tools[].input_examples", array(ANYTHING), "templates have no place for them"),
    ignored("tools[].eager_input_streaming", BOOLEAN, "inputs always stream as they come"),
    ignored("tools[].defer_loading", BOOLEAN, "all tools are in the prompt"),
    ignored("tools[].allowed_callers", array(STRING), "there is one: the model", neutral=(["direct"],)),
    *(refused(f"tools[].{name}", note="of a tool that Anthropic runs") for name in OTHER_TOOLS),
    honoured("tool_choice", OBJECT),
    required("tool_choice.type", words(*CHOICES), "`none` hides the tools from the model"),
    honoured("tool_choice.name", STRING, "of the type `tool`"),
    honoured("tool_choice.disable_parallel_tool_use", BOOLEAN, "true: the reply ends after its first call"),
)

MESSAGES = FieldTable(
    (
        required("model", STRING, "the served name or the model's own"),
        required("max_tokens", integer(1)),
        *CONVERSATION,
        *CACHE_CONTROL,
        honoured("stop_sequences", array(STRING, max_items=MAX_STOPS)),
        honoured("stream", BOOLEAN),
        honoured("temperature", number(0, 1)),
        honoured("top_p", number(0, 1)),
        *TOOLS,
        honoured("thinking", OBJECT),
        required("thinking.type", words(*THINKING_TYPES), "`enabled` is refused by models without a channel for it"),
        ignored("thinking.budget_tokens", integer(), "thinking is not bounded"),
        ignored("thinking.display", STRING, "shown as it is"),
        honoured("output_format", OBJECT, "as `output_config.format`"),
        required("output_format.type", words("json_schema")),
        required("output_format.schema", OBJECT),
        honoured("output_config", OBJECT),
        honoured("output_config.format", OBJECT),
        required("output_config.format.type", words("json_schema")),
        required("output_config.format.schema", OBJECT, "a keyword that cannot be enforced is refused by name"),
        ignored("output_config.effort", STRING, "no model here has been trained for it"),
        ignored("metadata", OBJECT, "neither logged nor stored"),
        ignored("service_tier", words(*SERVICE_TIERS), "there is one", neutral=SERVICE_TIERS),
        ignored("speed", STRING, "there is one", neutral=("standard",)),
        ignored("inference_geo", STRING, "computed where the server stands"),
        ignored("diagnostics", OBJECT, "nothing is compared with earlier messages"),
        ignored("user_profile_id", STRING, "neither logged nor stored"),
        ignored("workspace_id", STRING, "there is one"),
        refused("container", OBJECT, "no code is run"),
        refused("mcp_servers", array(OBJECT), "no server is called"),
        *EXTENSIONS,
        extension("frequency_penalty", number(-MAX_PENALTY, MAX_PENALTY)),
        extension("presence_penalty", number(-MAX_PENALTY, MAX_PENALTY)),
        extension("logit_bias", mapping(number(-100, 100)), "keys are token ids of this model"),
        extension("seed", integer(-INT64_MAX - 1, INT64_MAX)),
        *CONSTRAINTS,
    )
)  # fmt: skip
