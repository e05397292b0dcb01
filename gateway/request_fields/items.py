"""Items of the Responses API, field by field. An item of a hosted tool is kept and listed whatever it has."""

from __future__ import annotations

from ortserve.gateway.request_fields.rules import Rule, honoured, ignored, refused, required
from ortserve.gateway.request_fields.sampling import BREAKPOINT
from ortserve.gateway.request_fields.shapes import ANYTHING, OBJECT, STRING, array, one_of, string, words
from ortserve.gateway.schema.items import MAX_ID_LENGTH, PHASES, ROLES, STATUSES

TEXT_OR_PARTS = one_of(STRING, array(OBJECT))
MEDIA = ("detail", "file_data", "file_id", "file_url", "filename", "image_url", "input_audio")
OF_HOSTED_TOOLS = (
    "acknowledged_safety_checks", "action", "actions", "approval_request_id", "approve", "async", "background",
    "caller", "code", "container_id", "environment", "error", "execution", "fingerprint", "max_output_length",
    "operation", "output_format", "outputs", "pending_safety_checks", "quality", "queries", "reason", "reasoning",
    "result", "results", "revised_prompt", "server_label", "size", "svg_usage", "text", "tools",
)  # fmt: skip

PART: tuple[Rule, ...] = (
    required("type", STRING, "text, and `refusal` of the assistant"),
    honoured("text", STRING),
    *BREAKPOINT,
    *(refused(name, note="of a part that is no text") for name in MEDIA),
)
ITEM: tuple[Rule, ...] = (
    honoured("type", STRING, "absent: `message`, or `item_reference` where there is an id and no role"),
    honoured("id", string(MAX_ID_LENGTH), "absent: made here; a reference to what is not kept is a 404, as OpenAI's"),
    honoured("status", words(*STATUSES), "kept and listed"),
    honoured("role", words(*ROLES), "of messages"),
    honoured("phase", words(*PHASES), "of messages; kept and listed"),
    honoured("content", TEXT_OR_PARTS, "of messages, and of `reasoning`"),
    *(rule.below("content[]") for rule in PART),
    honoured("content[].refusal", STRING),
    ignored("content[].annotations", array(ANYTHING), "of earlier replies"),
    ignored("content[].logprobs", array(ANYTHING), "of earlier replies"),
    honoured("call_id", STRING, "of calls and of what they have given"),
    honoured("name", STRING, "of calls"),
    honoured("namespace", STRING, "of calls"),
    honoured("arguments", one_of(STRING, OBJECT), "of `function_call`; JSON, and an object is taken too"),
    honoured("input", STRING, "of `custom_tool_call`"),
    honoured("output", TEXT_OR_PARTS, "what a call has given"),
    *(rule.below("output[]") for rule in PART),
    *(ignored(f"output[].{name}", ANYTHING, "of hosted tools") for name in ("outcome", "stderr", "stdout")),
    honoured("summary", array(OBJECT), "of `reasoning`"),
    required("summary[].type", words("summary_text")),
    required("summary[].text", STRING, "where the item has no `content`"),
    ignored("encrypted_content", STRING, "kept and listed; nobody here can read it"),
    *(ignored(name, ANYTHING, "of hosted tools: kept and listed, not shown to the model") for name in OF_HOSTED_TOOLS),
)
