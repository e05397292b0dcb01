"""What a request says about tools: every field and every refusal, with the words OpenAI has for it."""

# ruff: noqa: E501  # a request a line

from __future__ import annotations

from typing import Any

import pytest

from ortserve.gateway.errors import ApiError
from ortserve.gateway.schema.chat import ChatRequest, read_chat
from ortserve.gateway.schema.fields import Fields
from ortserve.gateway.schema.sampling import SamplingDefaults, Vocabulary
from ortserve.gateway.schema.tools import InputGrammar, ToolMode, ToolUse, read_tool_use

F = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True},
}
G = {"type": "function", "function": {"name": "g"}}
C = {
    "type": "custom",
    "custom": {"name": "c", "format": {"type": "grammar", "grammar": {"syntax": "regex", "definition": "a+"}}},
}
TOOLS = [F, G, C]


def read(**fields: Any) -> ToolUse:
    return read_tool_use(Fields(fields))


def chat(**fields: Any) -> ChatRequest:
    messages = [{"role": "user", "content": "hi"}]
    return read_chat(Fields({"model": "m", "messages": messages, **fields}), SamplingDefaults(), Vocabulary(10, 100))


def test_tools_as_they_are_read() -> None:
    use = chat(tools=TOOLS).tools
    assert [tool.name for tool in use.tools] == ["f", "g", "c"]
    assert [tool.is_strict for tool in use.tools] == [True, False, False]
    assert [tool.is_custom for tool in use.tools] == [False, False, True]
    assert use.tools[2].grammar == InputGrammar("regex", "a+")
    assert [tool.is_constrained for tool in use.tools] == [True, False, True]
    assert use.mode is ToolMode.AUTO
    assert use.is_parallel
    assert not use.is_named
    assert use.tools[1].template_value() == {
        "type": "function", "function": {"name": "g", "parameters": {"type": "object", "properties": {}}},
    }  # fmt: skip
    assert use.tools[0].template_value()["function"] == {
        "name": "f", "description": "d", "parameters": {"type": "object"},
    }  # fmt: skip


@pytest.mark.parametrize(
    "absent", [{}, {"tools": None}, {"tools": []}, {"functions": []}, {"tools": [], "tool_choice": "auto"}]
)
def test_no_tools(absent: dict[str, Any]) -> None:
    assert read(**absent, parallel_tool_calls=False).tools == ()
    assert read(**absent, function_call="none").offered == ()


def test_an_empty_array_is_nothing_beside_the_field_of_the_other_name() -> None:
    functions = [F["function"], G["function"]]
    assert read(tools=TOOLS, functions=[]) == read(tools=TOOLS)
    assert read(tools=[], functions=functions) == read(functions=functions)


@pytest.mark.parametrize(
    ("choice", "mode", "allowed", "is_named"),
    [
        (None, "auto", None, False),
        ("auto", "auto", None, False),
        ("none", "none", None, False),
        ("required", "required", None, False),
        ({"type": "function", "function": {"name": "g"}}, "required", {"g"}, True),
        ({"type": "function", "name": "g"}, "required", {"g"}, True),
        ({"type": "custom", "custom": {"name": "c"}}, "required", {"c"}, True),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]}},
            "auto", {"f"}, False,
        ),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "custom", "name": "c"}]}, "required", {"c"}, False),
    ],
)  # fmt: skip
def test_choices(choice: object, mode: str, allowed: set[str] | None, is_named: bool) -> None:
    use = read(tools=TOOLS, tool_choice=choice)
    assert use.mode == mode
    assert use.allowed == allowed
    assert use.is_named == is_named
    names = [] if mode == "none" else [tool.name for tool in use.tools if allowed is None or tool.name in allowed]
    assert [tool.name for tool in use.callable_tools] == names
    assert len(use.offered) == (0 if mode == "none" else 3)  # the prompt names all, so that its prefix stays cached


def test_functions_are_tools_of_which_one_may_be_called() -> None:
    use = read(functions=[F["function"], G["function"]])
    assert [tool.name for tool in use.tools] == ["f", "g"]
    assert use.is_legacy
    assert not use.is_parallel
    named = read(functions=[G["function"]], function_call={"name": "g"})
    assert (named.mode, named.allowed, named.is_named) == (ToolMode.REQUIRED, frozenset("g"), True)
    assert read(functions=[G["function"]], function_call="none").offered == ()


def tool(**fields: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "f", **fields}}]


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"tools": "f"}, "invalid_type", "tools"),
        ({"tools": ["f"]}, "invalid_type", "tools[0]"),
        ({"tools": [{"function": {"name": "f"}}]}, "missing_required_parameter", "tools[0].type"),
        ({"tools": [{"type": "web_search"}]}, "invalid_value", "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "missing_required_parameter", "tools[0].function"),
        ({"tools": [{"type": "function", "function": {}}]}, "missing_required_parameter", "tools[0].function.name"),
        ({"tools": tool(name="")}, "invalid_value", "tools[0].function.name"),
        ({"tools": tool(name="two words")}, "invalid_value", "tools[0].function.name"),
        ({"tools": tool(name="f" * 129)}, "invalid_value", "tools[0].function.name"),
        ({"tools": tool(name=1)}, "invalid_type", "tools[0].function.name"),
        ({"tools": tool(description=1)}, "invalid_type", "tools[0].function.description"),
        ({"tools": tool(parameters="x")}, "invalid_type", "tools[0].function.parameters"),
        ({"tools": tool(parameters={"type": "array"})}, "invalid_function_parameters", "tools[0].function.parameters"),
        ({"tools": tool(strict="yes")}, "invalid_type", "tools[0].function.strict"),
        ({"tools": [F, F]}, "invalid_value", "tools[1]"),
        ({"tools": [{"type": "custom"}]}, "missing_required_parameter", "tools[0].custom"),
        ({"tools": [{"type": "custom", "custom": {"name": "c", "format": {}}}]}, "missing_required_parameter", "tools[0].custom.format.type"),
        ({"tools": [{"type": "custom", "custom": {"name": "c", "format": {"type": "grammar", "grammar": {"syntax": "ebnf", "definition": "x"}}}}]}, "invalid_value", "tools[0].custom.format.grammar.syntax"),
        ({"tools": [{"type": "custom", "custom": {"name": "c", "format": {"type": "grammar", "grammar": {"syntax": "lark"}}}}]}, "missing_required_parameter", "tools[0].custom.format.grammar.definition"),
        ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "invalid_value", "tool_choice"),
        ({"function_call": {"name": "f"}}, "invalid_value", "function_call"),
        ({"tools": TOOLS, "tool_choice": "any"}, "invalid_value", "tool_choice"),
        ({"tools": TOOLS, "tool_choice": 1}, "invalid_type", "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {}}, "missing_required_parameter", "tool_choice.type"),
        ({"tools": TOOLS, "tool_choice": {"type": "hosted"}}, "invalid_value", "tool_choice.type"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "missing_required_parameter", "tool_choice.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "h"}}}, "invalid_value", "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "c"}}}, "invalid_value", "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": [F]}}}, "missing_required_parameter", "tool_choice.allowed_tools.mode"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}}, "missing_required_parameter", "tool_choice.allowed_tools.tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "h"}}]}}}, "invalid_value", "tool_choice.allowed_tools.tools[0]"),
        ({"tools": TOOLS, "functions": [{"name": "f"}]}, "invalid_value", "functions"),
        ({"functions": [{"name": "f"}, {"name": "f"}]}, "invalid_value", "functions[1]"),
        ({"functions": [{"name": "f"}], "function_call": "required"}, "invalid_value", "function_call"),
        ({"functions": [{"name": "f"}], "function_call": {"name": "g"}}, "invalid_value", "function_call"),
        ({"functions": [{"name": "f"}], "function_call": {}}, "missing_required_parameter", "function_call.name"),
        ({"parallel_tool_calls": "no"}, "invalid_type", "parallel_tool_calls"),
        ({"include_reasoning": 1}, "invalid_type", "include_reasoning"),
    ],
)  # fmt: skip
def test_refusals_name_the_field(fields: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        chat(**fields)
    assert (caught.value.problem.status, caught.value.problem.code, caught.value.problem.param) == (400, code, param)


ASSISTANT = {"role": "assistant", "content": "Half a"}
CALLER = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}


def test_a_reply_goes_on_from_the_last_message_when_asked_to() -> None:
    user = {"role": "user", "content": "hi"}
    request = chat(messages=[user, ASSISTANT], continue_final_message=True)
    assert request.continue_final_message
    assert not request.add_generation_prompt
    assert chat(messages=[user, ASSISTANT], add_generation_prompt=False).add_generation_prompt is False
    assert chat(messages=[user, ASSISTANT]).add_generation_prompt
    for messages in ([user], [user, CALLER]):
        with pytest.raises(ApiError) as caught:
            chat(continue_final_message=True, messages=messages)
        assert caught.value.problem.param == "continue_final_message"
    with pytest.raises(ApiError) as caught:
        chat(continue_final_message=True, messages=[user, ASSISTANT], add_generation_prompt=True)
    assert caught.value.problem.param == "add_generation_prompt"
