"""The bundled model calls tools, through OpenAI's and Anthropic's own clients: freely and when it must."""

# ruff: noqa: E501  # tools as they are written

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from openai import BadRequestError, OpenAI

from tests.gateway.pocket import serving_pocket


def function(name: str, properties: dict[str, Any], description: str, **fields: Any) -> Any:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters, **fields},
    }


WEATHER = function("get_weather", {"city": {"type": "string"}}, "Get the weather")
EMAIL = function("send_email", {"to": {"type": "string"}, "text": {"type": "string"}}, "Send an email.")
UNIT = {"type": "string", "enum": ["celsius", "kelvin"]}
STRICT = function(
    "get_weather",
    {"unit": UNIT, "days": {"type": "integer", "maximum": 9, "minimum": 1}},
    "Get the weather",
    strict=True,
)
ASK: Any = [{"role": "user", "content": "Get the weather in Paris."}]
GREET: Any = [{"role": "user", "content": "Hello!"}]


@pytest.fixture(scope="module")
def address(pocket: Path) -> Iterator[str]:
    with serving_pocket(pocket) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0, _strict_response_validation=True) as client:
        yield client


def calls_of(message: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or []]


def ask(client: OpenAI, messages: Any = ASK, **fields: Any) -> Any:
    reply = client.chat.completions.create(model="pocket", messages=messages, temperature=0, max_tokens=120, **fields)
    return reply.choices[0]


def stream(client: OpenAI, messages: Any = ASK, **fields: Any) -> Any:
    with client.chat.completions.stream(
        model="pocket", messages=messages, temperature=0, max_tokens=120, **fields
    ) as events:
        for _ in events:
            pass
        return events.get_final_completion().choices[0]


def test_it_calls_the_tool_that_fits(client: OpenAI) -> None:
    for choice in (ask(client, tools=[WEATHER, EMAIL]), stream(client, tools=[WEATHER, EMAIL])):
        assert calls_of(choice.message) == [("get_weather", {"city": "Paris"})]
        assert not choice.message.content
        assert choice.finish_reason == "tool_calls"


def test_it_answers_in_words_from_a_result(client: OpenAI) -> None:
    choice = ask(client, tools=[WEATHER])
    result = {"role": "tool", "tool_call_id": choice.message.tool_calls[0].id, "content": '{"temperature": 21}'}
    answer = ask(client, [*ASK, choice.message.model_dump(exclude_none=True), result], tools=[WEATHER])
    assert answer.message.content == "The temperature is 21."
    assert answer.message.tool_calls is None
    assert answer.finish_reason == "stop"


def test_a_call_can_be_demanded(client: OpenAI) -> None:
    assert ask(client, GREET, tools=[WEATHER, EMAIL]).message.tool_calls is None
    for choice in (
        ask(client, GREET, tools=[WEATHER, EMAIL], tool_choice="required"),
        stream(client, GREET, tools=[WEATHER, EMAIL], tool_choice="required"),
    ):
        assert not choice.message.content
        assert choice.message.tool_calls
        assert choice.finish_reason == "tool_calls"


def test_a_named_tool_is_called_once_and_ends_with_stop(client: OpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "send_email"}}
    for choice in (
        ask(client, tools=[WEATHER, EMAIL], tool_choice=named),
        stream(client, tools=[WEATHER, EMAIL], tool_choice=named),
    ):
        ((name, arguments),) = calls_of(choice.message)
        assert name == "send_email"
        assert set(arguments) == {"to", "text"}
        assert choice.finish_reason == "stop"


def test_only_allowed_tools_are_called(client: OpenAI) -> None:
    allowed: Any = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "send_email"}}]},
    }
    names = {name for name, _ in calls_of(ask(client, tools=[WEATHER, EMAIL], tool_choice=allowed).message)}
    assert names == {"send_email"}
    allowed["allowed_tools"]["mode"] = "auto"
    names = {name for name, _ in calls_of(ask(client, tools=[WEATHER, EMAIL], tool_choice=allowed).message)}
    assert names <= {"send_email"}


def test_strict_tools_get_arguments_that_match_even_when_the_model_decides(client: OpenAI) -> None:
    loose = json.loads(json.dumps(STRICT))
    loose["function"]["strict"] = False
    (_, free), *_ = calls_of(ask(client, tools=[loose]).message)
    (_, held), *_ = calls_of(ask(client, tools=[STRICT]).message)
    assert held["unit"] in UNIT["enum"]
    assert 1 <= held["days"] <= 9
    assert free != held  # what the model says by itself does not match, so that the test can fail


def test_one_call_at_a_time_when_so_asked(client: OpenAI) -> None:
    both: Any = [{"role": "user", "content": "Get the weather in Paris and get the weather in Rome."}]
    assert len(calls_of(ask(client, both, tools=[WEATHER]).message)) == 2
    choice = ask(client, both, tools=[WEATHER], parallel_tool_calls=False)
    assert calls_of(choice.message) == [("get_weather", {"city": "Paris"})]
    assert choice.finish_reason == "tool_calls"


def test_several_choices_and_logprobs(client: OpenAI) -> None:
    reply = client.chat.completions.create(
        model="pocket", messages=ASK, tools=[WEATHER], tool_choice="required", n=3, max_tokens=120, logprobs=True, seed=1,
        temperature=1.0,
    )  # fmt: skip
    for choice in reply.choices:
        assert choice.message.tool_calls
        assert choice.logprobs is not None
        assert choice.logprobs.content == []


def test_custom_tools_with_a_grammar(client: OpenAI) -> None:
    grammar = {"type": "grammar", "grammar": {"syntax": "lark", "definition": 'start: "SELECT " /[a-z]{1,8}/ ";\\n"'}}
    tool: Any = {"type": "custom", "custom": {"name": "run_sql", "description": "Runs SQL.", "format": grammar}}
    named: Any = {"type": "custom", "custom": {"name": "run_sql"}}
    for choice in (ask(client, tools=[tool], tool_choice=named), stream_raw(client, tools=[tool], tool_choice=named)):
        (call,) = choice.message.tool_calls
        assert call.type == "custom"
        assert call.custom.name == "run_sql"
        assert call.custom.input.startswith("SELECT ")
        assert call.custom.input.endswith(";\n")


def stream_raw(client: OpenAI, **fields: Any) -> Any:
    """The SDK's types and helper know no custom tools in streams: the whole reply, its stream compared by hand."""
    whole = ask(client, **fields)
    text = ""
    with OpenAI(base_url=client.base_url, api_key="any") as lenient:
        for chunk in lenient.chat.completions.create(
            model="pocket", messages=ASK, temperature=0, max_tokens=120, stream=True, **fields
        ):
            for call in chunk.choices[0].delta.tool_calls or []:
                text += (call.model_extra or {}).get("custom", {}).get("input", "")
    assert text == whole.message.tool_calls[0].custom.input
    return whole


@pytest.mark.parametrize(
    ("tool", "param"),
    [
        (function("f", {"a": {"type": "string", "not": {}}}, "d", strict=True), "tools[0].function.parameters"),
        (
            {"type": "custom", "custom": {"name": "c", "format": {"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: ("}}}},
            "tools[0].custom.format.grammar.definition",
        ),
        (
            {"type": "custom", "custom": {"name": "c", "format": {"type": "grammar", "grammar": {"syntax": "regex", "definition": "("}}}},
            "tools[0].custom.format.grammar.definition",
        ),
    ],
)  # fmt: skip
def test_a_grammar_that_cannot_be_enforced_is_refused_by_name(client: OpenAI, tool: Any, param: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        ask(client, tools=[tool])
    assert caught.value.param == param


def test_a_loose_schema_that_cannot_be_enforced_still_makes_a_call(client: OpenAI) -> None:
    odd = function("get_weather", {"city": {"type": "string", "not": {"const": "x"}}}, "Get the weather")
    choice = ask(client, tools=[odd], tool_choice="required")
    assert calls_of(choice.message)[0][0] == "get_weather"


def test_a_structure_beside_tools(client: OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    format_: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    called = ask(client, tools=[WEATHER], response_format=format_)
    assert calls_of(called.message) == [("get_weather", {"city": "Paris"})]
    answered = ask(client, GREET, tools=[WEATHER], tool_choice="none", response_format=format_)
    assert set(json.loads(answered.message.content)) == {"ok"}


def test_anthropics_client_demands_calls_too(address: str) -> None:
    tool: Any = {
        "name": "get_weather",
        "description": "Get the weather",
        "input_schema": WEATHER["function"]["parameters"],
    }
    with anthropic.Anthropic(base_url=address, api_key="any", max_retries=0) as client:
        for choice in ({"type": "auto"}, {"type": "any"}, {"type": "tool", "name": "get_weather"}):
            fields: dict[str, Any] = {
                "model": "pocket", "max_tokens": 120, "messages": ASK, "tools": [tool], "tool_choice": choice,
                "extra_body": {"temperature": 0},
            }  # fmt: skip
            message = client.messages.create(**fields)
            block: Any
            (block,) = message.content
            assert (block.type, block.name, block.input) == ("tool_use", "get_weather", {"city": "Paris"})
            assert message.stop_reason == "tool_use"
            with client.messages.stream(**fields) as stream:
                (last,) = stream.get_final_message().content
            streamed: Any = last
            assert (streamed.name, streamed.input) == (block.name, block.input)
