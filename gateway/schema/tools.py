"""What a request says about tools: which there are, which may, must or must not be called. Knows no format of calls."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from ortserve.gateway.errors import ApiError, bad_request
from ortserve.gateway.schema.fields import Fields, invalid_type, invalid_value, missing
from ortserve.gateway.tools.custom import INPUT, INPUT_SCHEMA
from ortserve.gateway.tools.format import ToolShape

NAME = re.compile(r"[a-zA-Z0-9_.:/-]{1,128}")  # OpenAI's characters and those that other servers' names have
MODES = ("none", "auto", "required")
SYNTAXES = ("lark", "regex")


class ToolMode(StrEnum):
    """Whether a reply calls tools."""

    NONE = "none"
    AUTO = "auto"  # the model decides
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class InputGrammar:
    """What a custom tool's input must match."""

    syntax: str  # lark or regex
    definition: str


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool. `parameters` is the JSON schema of its arguments; a custom tool's is one string, its input."""

    name: str
    description: str | None = None
    parameters: Mapping[str, object] = field(default_factory=lambda: {"type": "object", "properties": {}})
    is_strict: bool = False
    is_custom: bool = False
    grammar: InputGrammar | None = None

    @property
    def shape(self) -> ToolShape:
        """What reading and constraining its calls needs. A regular expression holds in JSON too, Lark does not."""
        if self.grammar is None:
            return ToolShape(self.name, self.parameters)
        if self.grammar.syntax == "lark":
            return ToolShape(self.name, self.parameters, self.grammar.definition)
        text = {"type": "string", "pattern": f"^(?:{self.grammar.definition})$"}
        return ToolShape(self.name, {**INPUT_SCHEMA, "properties": {INPUT: text}, "additionalProperties": False})

    @property
    def is_constrained(self) -> bool:
        """Its arguments must be what was asked for even where the model decides to call it."""
        return self.is_strict or self.grammar is not None

    def template_value(self) -> dict[str, object]:
        """The mapping that chat templates read."""
        function: dict[str, object] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        return {"type": "function", "function": {**function, "parameters": dict(self.parameters)}}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of a request and how they may be called.

    `allowed` are the names that may be, None for all. `is_named`: the request has named the one to call, `is_legacy`:
    it speaks of functions, as the API did before tools.
    """

    tools: tuple[Tool, ...] = ()
    mode: ToolMode = ToolMode.AUTO
    allowed: frozenset[str] | None = None
    is_parallel: bool = True
    is_named: bool = False
    is_legacy: bool = False

    @property
    def offered(self) -> tuple[Tool, ...]:
        """The tools that the model is told of."""
        return () if self.mode is ToolMode.NONE else self.tools

    @property
    def callable_tools(self) -> tuple[Tool, ...]:
        """The tools that may be called."""
        return tuple(tool for tool in self.offered if self.allowed is None or tool.name in self.allowed)


NO_TOOLS = ToolUse()


def read_tool_use(fields: Fields) -> ToolUse:
    """`tools`, `tool_choice` and `parallel_tool_calls`, or the older `functions` and `function_call`.

    `ApiError` (400) names the first that is wrong.
    """
    is_parallel = fields.boolean("parallel_tool_calls", default=True)
    if fields.has("functions"):
        if fields.has("tools"):
            message = "Invalid 'functions': 'functions' and 'tools' cannot be given together. Use 'tools'."
            raise bad_request(message, param="functions", code="invalid_value")
        functions = tuple(_read_function(item) for item in fields.objects("functions") or ())
        refuse_doubles(functions, "functions")
        return _choose_function(fields, functions)
    tools = tuple(_read_tool(item) for item in fields.objects("tools") or ())
    refuse_doubles(tools, "tools")
    if not tools and _is_chosen(fields.get("function_call")):
        raise _without_tools("function_call", "functions")
    return choose_tool(fields, tools, is_parallel=is_parallel)


def read_parameters(fields: Fields, key: str) -> Mapping[str, object]:
    """A JSON schema of an object; an object without properties when absent."""
    schema = fields.object(key)
    if schema is None:
        return {"type": "object", "properties": {}}
    type_ = schema.get("type")
    if type_ not in (None, "object"):
        message = f"Invalid schema for '{schema.name('type')}': schema must be of type 'object', not '{type_}'."
        raise bad_request(message, param=schema.path, code="invalid_function_parameters")
    return schema.data


def read_name(fields: Fields) -> str:
    """A tool's name."""
    name = fields.required_string("name")
    if NAME.fullmatch(name) is None:
        param = fields.name("name")
        message = (
            f"Invalid '{param}': expected 1 to 128 letters, digits and the characters _ - . : / but got '{name[:64]}'."
        )
        raise bad_request(message, param=param, code="invalid_value")
    return name


def read_flat_tool(fields: Fields) -> Tool:
    """A function or custom tool as the Responses API has it, without a nested object."""
    type_ = fields.choice("type", ("function", "custom"))
    if type_ is None:
        raise missing(fields.name("type"))
    return _read_function(fields) if type_ == "function" else _read_custom(fields)


def _read_tool(fields: Fields) -> Tool:
    type_ = fields.choice("type", ("function", "custom"))
    if type_ is None:
        raise missing(fields.name("type"))
    inner = fields.object(type_)
    if inner is None:
        raise missing(fields.name(type_))
    return _read_function(inner) if type_ == "function" else _read_custom(inner)


def _read_function(fields: Fields) -> Tool:
    return Tool(
        read_name(fields),
        fields.string("description"),
        read_parameters(fields, "parameters"),
        is_strict=fields.boolean("strict"),
    )


def _read_custom(fields: Fields) -> Tool:
    return Tool(
        read_name(fields),
        fields.string("description"),
        INPUT_SCHEMA,
        is_custom=True,
        grammar=_read_input_format(fields),
    )


def _read_input_format(fields: Fields) -> InputGrammar | None:
    format_ = fields.object("format")
    if format_ is None:
        return None
    type_ = format_.choice("type", ("text", "grammar"))
    if type_ is None:
        raise missing(format_.name("type"))
    if type_ == "text":
        return None
    inner = format_.object("grammar") or format_  # flat in the Responses API
    syntax = inner.choice("syntax", SYNTAXES)
    if syntax is None:
        raise missing(inner.name("syntax"))
    return InputGrammar(syntax, inner.required_string("definition"))


def refuse_doubles(tools: Sequence[Tool], key: str) -> None:
    """Raise a 400 for two tools of one name: a call could mean either."""
    seen: set[str] = set()
    for index, tool in enumerate(tools):
        if tool.name in seen:
            message = f"Invalid '{key}[{index}]': there are two tools with the name '{tool.name}'."
            raise bad_request(message, param=f"{key}[{index}]", code="invalid_value")
        seen.add(tool.name)


def choose_tool(fields: Fields, tools: tuple[Tool, ...], *, is_parallel: bool) -> ToolUse:
    """The tools with what `tool_choice` says of them."""
    choice = fields.get("tool_choice")
    if not tools and _is_chosen(choice):
        raise _without_tools("tool_choice", "tools")
    if choice is None:
        return ToolUse(tools, is_parallel=is_parallel)
    if isinstance(choice, str):
        if choice not in MODES:
            raise invalid_value("tool_choice", choice, MODES)
        return ToolUse(tools, ToolMode(choice), is_parallel=is_parallel)
    chosen = fields.object("tool_choice") if isinstance(choice, dict) else None
    if chosen is None:
        raise invalid_type("tool_choice", "one of a string or object", choice)
    type_ = chosen.choice("type", ("function", "custom", "allowed_tools"))
    if type_ is None:
        raise missing(chosen.name("type"))
    if type_ == "allowed_tools":
        return _allow_tools(chosen, tools, is_parallel=is_parallel)
    name = _read_chosen_name(chosen, type_, tools, "tool_choice")
    return ToolUse(tools, ToolMode.REQUIRED, frozenset([name]), is_parallel, is_named=True)


def _allow_tools(chosen: Fields, tools: tuple[Tool, ...], *, is_parallel: bool) -> ToolUse:
    inner = chosen.object("allowed_tools") or chosen  # flat in the Responses API
    mode = inner.choice("mode", ("auto", "required"))
    if mode is None:
        raise missing(inner.name("mode"))
    items = inner.objects("tools")
    if not items:
        raise missing(inner.name("tools"))
    names = []
    for item in items:
        type_ = item.choice("type", ("function", "custom"))
        if type_ is None:
            raise missing(item.name("type"))
        names.append(_read_chosen_name(item, type_, tools, item.path))
    return ToolUse(tools, ToolMode(mode), frozenset(names), is_parallel)


def _read_chosen_name(fields: Fields, type_: str, tools: Sequence[Tool], param: str) -> str:
    inner = fields.object(type_) or fields  # flat in the Responses API
    name = inner.required_string("name")
    if not any(tool.name == name and tool.is_custom == (type_ == "custom") for tool in tools):
        message = f"Invalid value for '{param}': there is no {type_} tool '{name}' in 'tools'."
        raise bad_request(message, param=param, code="invalid_value")
    return name


def _choose_function(fields: Fields, functions: tuple[Tool, ...]) -> ToolUse:
    choice = fields.get("function_call")
    if choice is None or choice in ("none", "auto"):
        return ToolUse(functions, ToolMode(str(choice or "auto")), is_parallel=False, is_legacy=True)
    if isinstance(choice, str):
        raise invalid_value("function_call", choice, ("none", "auto"))
    chosen = fields.object("function_call")
    assert chosen is not None
    name = chosen.required_string("name")
    if all(tool.name != name for tool in functions):
        message = f"Invalid value for 'function_call': there is no function '{name}' in 'functions'."
        raise bad_request(message, param="function_call", code="invalid_value")
    allowed = frozenset([name])
    return ToolUse(functions, ToolMode.REQUIRED, allowed, is_parallel=False, is_named=True, is_legacy=True)


def _is_chosen(choice: object) -> bool:
    return choice not in (None, "none", "auto")


def _without_tools(key: str, tools: str) -> ApiError:
    message = f"Invalid value for '{key}': '{key}' is only allowed when '{tools}' are specified."
    return bad_request(message, param=key, code="invalid_value")
