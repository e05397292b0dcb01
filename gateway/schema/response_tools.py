"""`tools` and `tool_choice` of the Responses API. Knows no prompt."""

from __future__ import annotations

from ortserve.gateway.errors import bad_request, unsupported_parameter
from ortserve.gateway.schema.fields import Fields, invalid_type
from ortserve.gateway.schema.response_replies import Json

CALLED_TYPES = ("function", "custom", "namespace")


def read_tools(fields: Fields) -> tuple[Json, ...]:
    """The tools as they are echoed. Those that OpenAI runs are accepted, and never offered to the model.

    Clients such as Codex always name some; refusing them would refuse the client.
    """
    tools = []
    for tool in fields.objects("tools") or ():
        if tool.required_string("type") in CALLED_TYPES:
            raise unsupported_parameter(tool.path, "is not supported: this version does not call tools yet.")
        tools.append(dict(tool.data))
    return tuple(tools)


def read_tool_choice(fields: Fields) -> str:
    """How tools are chosen: with no tool to call there is no choice."""
    value = fields.get("tool_choice")
    if value is not None and not isinstance(value, str | dict):
        raise invalid_type("tool_choice", "one of a string or object", value)
    if value not in (None, "none", "auto"):
        message = "Invalid value for 'tool_choice': no tool of this request can be called by this model."
        raise bad_request(message, param="tool_choice", code="invalid_value")
    return str(value or "auto")
