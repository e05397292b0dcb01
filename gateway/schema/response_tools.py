"""`tools` and `tool_choice` of the Responses API: flat, in namespaces, or run by OpenAI. Knows no format of calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ortserve.gateway.errors import bad_request
from ortserve.gateway.schema.fields import Fields
from ortserve.gateway.schema.response_echo import Json
from ortserve.gateway.schema.tools import Tool, ToolUse, choose_tool, read_flat_tool, read_name, refuse_doubles

CALLED_TYPES = ("function", "custom")
NAMESPACE = "namespace"
BETWEEN = "."  # a namespace and its tool's name, as the model reads and writes them


@dataclass(frozen=True, slots=True)
class ResponseTools:
    """The tools as they are used and as they are echoed; `namespaces` by the names that the model knows."""

    use: ToolUse
    tools: tuple[Json, ...]
    choice: str | Json
    namespaces: Mapping[str, str] = field(default_factory=dict)


def read_response_tools(fields: Fields) -> ResponseTools:
    """`ApiError` (400) names the first that is wrong.

    Tools that OpenAI runs are accepted and echoed, and never offered to the model: clients such as Codex always name
    some, and refusing them would refuse the client.
    """
    called: list[Tool] = []
    namespaces: dict[str, str] = {}
    echoed: list[Json] = []
    for tool in fields.objects("tools") or ():
        type_ = tool.required_string("type")
        echoed.append(dict(tool.data))
        if type_ in CALLED_TYPES:
            called.append(read_flat_tool(tool))
        elif type_ == NAMESPACE:
            for inner in _read_namespace(tool):
                called.append(inner)
                namespaces[inner.name] = tool.required_string("name")
    tools = tuple(called)
    refuse_doubles(tools, "tools")
    is_parallel = fields.boolean("parallel_tool_calls", default=True)
    choice = fields.get("tool_choice")
    use = choose_tool(fields, tools, is_parallel=is_parallel)
    return ResponseTools(use, tuple(echoed), choice if isinstance(choice, str | dict) else "auto", namespaces)


def full_name(namespace: str | None, name: str) -> str:
    """The name that the model knows a tool by."""
    return name if namespace is None else f"{namespace}{BETWEEN}{name}"


def _read_namespace(fields: Fields) -> list[Tool]:
    namespace = read_name(fields)
    tools = []
    for inner in fields.objects("tools") or ():
        tool = read_flat_tool(inner)
        name = full_name(namespace, tool.name)
        if len(name) > 128:
            message = f"Invalid '{inner.path}': the names of the namespace and the tool have more than 127 characters."
            raise bad_request(message, param=inner.path, code="invalid_value")
        tools.append(replace(tool, name=name))
    return tools
