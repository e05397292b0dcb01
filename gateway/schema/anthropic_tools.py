"""Anthropic's tools and tool_choice as the same nouns that OpenAI's are. Knows no format of calls."""

from __future__ import annotations

from ortserve.gateway.errors import bad_request
from ortserve.gateway.schema.fields import Fields, missing
from ortserve.gateway.schema.tools import Tool, ToolMode, ToolUse, read_name, read_parameters, refuse_doubles

CHOICES = {"auto": ToolMode.AUTO, "any": ToolMode.REQUIRED, "tool": ToolMode.REQUIRED, "none": ToolMode.NONE}


def read_anthropic_tools(fields: Fields) -> ToolUse:
    """`tools` and `tool_choice`; `ApiError` (400) names the first that is wrong."""
    tools = tuple(_read_tool(item) for item in fields.objects("tools") or ())
    refuse_doubles(tools, "tools")
    choice = fields.object("tool_choice")
    if choice is None:
        return ToolUse(tools)
    type_ = choice.choice("type", tuple(CHOICES))
    if type_ is None:
        raise missing(choice.name("type"))
    is_parallel = not choice.boolean("disable_parallel_tool_use")
    mode = CHOICES[type_]
    if mode is ToolMode.REQUIRED and not tools:
        message = "Invalid value for 'tool_choice': it is only allowed when 'tools' are specified."
        raise bad_request(message, param="tool_choice", code="invalid_value")
    if type_ != "tool":
        return ToolUse(tools, mode, is_parallel=is_parallel)
    name = choice.required_string("name")
    if all(tool.name != name for tool in tools):
        message = f"Invalid value for 'tool_choice': there is no tool '{name}' in 'tools'."
        raise bad_request(message, param="tool_choice", code="invalid_value")
    return ToolUse(tools, mode, frozenset([name]), is_parallel, is_named=True)


def _read_tool(fields: Fields) -> Tool:
    type_ = fields.string("type")
    if type_ not in (None, "custom"):
        param = fields.name("type")
        message = f"Invalid value: '{param}' is '{type_}', but this server runs no tools: supported is 'custom'."
        raise bad_request(message, param=param, code="invalid_value")
    name = read_name(fields)
    if fields.get("input_schema") is None:
        raise missing(fields.name("input_schema"))
    parameters = read_parameters(fields, "input_schema")
    return Tool(name, fields.string("description"), parameters, is_strict=fields.boolean("strict"))
