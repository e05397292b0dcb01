"""POST /v1/messages and /v1/messages/count_tokens, Anthropic's, field by field."""

from __future__ import annotations

from ortserve.gateway.contract.rules import Rule, extension, honoured, ignored, refused, required
from ortserve.gateway.contract.sampling import CONSTRAINTS, EXTENSIONS
from ortserve.gateway.contract.shapes import (
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
from ortserve.gateway.contract.table import FieldTable
from ortserve.gateway.schema.anthropic import SERVICE_TIERS, THINKING_TYPES
from ortserve.gateway.schema.anthropic_content import ROLES, TTLS_S
from ortserve.gateway.schema.sampling import INT64_MAX, MAX_PENALTY, MAX_STOPS

TEXT_OR_BLOCKS = one_of(STRING, array(OBJECT))
OTHER_BLOCKS = (  # fields of blocks that are no text
    "source", "content", "input", "tool_use_id", "thinking", "data", "signature", "file_id", "caller", "context", "id",
    "is_error", "name", "title", "toolset_name", "transformations",
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
    *(rule.below("messages[].content[]") for rule in BLOCK),
    *(refused(f"messages[].content[].{name}", note="of a block that is no text") for name in OTHER_BLOCKS),
    honoured("system", TEXT_OR_BLOCKS),
    *(rule.below("system[]") for rule in BLOCK),
)  # fmt: skip
TOOLS: tuple[Rule, ...] = (
    refused("tools", array(OBJECT), "not called yet"),
    refused("tool_choice", OBJECT, "only with tools", neutral=({"type": "auto"}, {"type": "none"})),
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
        required("thinking.type", words(*THINKING_TYPES), "`enabled` is refused: no thinking is shown"),
        ignored("thinking.budget_tokens", integer(), "of enabled thinking"),
        ignored("thinking.display", STRING, "of enabled thinking"),
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
