"""The bundled model through /v1/responses and OpenAI's own client: parsed replies, grammars and strict tools."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from openai import BadRequestError, OpenAI
from pydantic import BaseModel, Field

from tests.gateway.pocket import serving_pocket

WEATHER = "Get the weather in Paris."
UNITS = ("celsius", "kelvin")


class Forecast(BaseModel):
    """What a reply must look like; nothing that the model says by itself does."""

    unit: Literal["celsius", "kelvin"]
    days: int = Field(ge=1, le=9)
    sunny: bool


def tool(**fields: Any) -> Any:
    parameters = {
        "type": "object",
        "properties": {
            "unit": {"type": "string", "enum": list(UNITS)},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
        },
        "required": ["unit", "days"],
        "additionalProperties": False,
    }
    return {
        "type": "function", "name": "get_weather", "description": "Get the weather", "parameters": parameters, **fields,
    }  # fmt: skip


@pytest.fixture(scope="module")
def client(pocket: Path) -> Iterator[OpenAI]:
    with (
        serving_pocket(pocket) as address,
        OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0, _strict_response_validation=True) as client,
    ):
        yield client


def ask(client: OpenAI, **fields: Any) -> Any:
    asked = {"model": "pocket", "input": WEATHER, "temperature": 0, "max_output_tokens": 120, **fields}
    return client.responses.create(**asked)


def arguments_of(reply: Any) -> Any:
    (call,) = [item for item in reply.output if item.type == "function_call"]
    return json.loads(call.arguments)


def test_parse_gives_an_object_of_the_class(client: OpenAI) -> None:
    with pytest.raises(ValueError, match=r"Forecast|JSON"):
        Forecast.model_validate_json(ask(client).output_text)  # so that the test can fail
    reply = client.responses.parse(
        model="pocket", input=WEATHER, text_format=Forecast, temperature=0, max_output_tokens=120
    )
    assert reply.status == "completed"
    assert isinstance(reply.output_parsed, Forecast)
    assert Forecast.model_validate_json(reply.output_text) == reply.output_parsed
    kept = client.responses.retrieve(reply.id)
    assert kept.output_text == reply.output_text


def test_a_parsed_stream_says_the_same(client: OpenAI) -> None:
    asked: Any = {"model": "pocket", "input": WEATHER, "temperature": 0, "max_output_tokens": 120}
    with client.responses.stream(**asked, text_format=Forecast) as events:
        deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        final = events.get_final_response()
    assert isinstance(final.output_parsed, Forecast)
    assert final.output_text == deltas
    assert final.output_parsed == client.responses.parse(**asked, text_format=Forecast).output_parsed


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "name": "get_weather"}])
def test_strict_tools_get_arguments_that_match(client: OpenAI, choice: Any) -> None:
    free = arguments_of(ask(client, tools=[tool(strict=False)], tool_choice="auto"))
    held = arguments_of(ask(client, tools=[tool(strict=True)], tool_choice=choice))
    assert free.get("unit") not in UNITS or set(free) != {"unit", "days"}  # so that the test can fail
    assert held["unit"] in UNITS
    assert 1 <= held["days"] <= 9
    assert set(held) == {"unit", "days"}


def test_a_strict_tool_is_streamed_as_it_is_answered_whole(client: OpenAI) -> None:
    whole = arguments_of(ask(client, tools=[tool(strict=True)]))
    events = list(ask(client, tools=[tool(strict=True)], stream=True))
    deltas = "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
    assert json.loads(deltas) == whole
    assert events[-1].type == "response.completed"


@pytest.mark.parametrize("stream", [False, True])
def test_custom_tools_with_a_grammar(client: OpenAI, stream: bool) -> None:
    grammar = {"type": "grammar", "syntax": "lark", "definition": 'start: "SELECT " /[a-z]{1,8}/ ";\\n"'}
    sql = {"type": "custom", "name": "run_sql", "description": "Runs SQL.", "format": grammar}
    asked = {"tools": [sql], "tool_choice": {"type": "custom", "name": "run_sql"}}
    reply = list(ask(client, **asked, stream=True))[-1].response if stream else ask(client, **asked)
    (call,) = reply.output
    assert (call.type, call.name) == ("custom_tool_call", "run_sql")
    assert call.input.startswith("SELECT ")
    assert call.input.endswith(";\n")


def test_what_cannot_be_enforced_is_named(client: OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"not": {"type": "string"}}}}
    format_ = {"type": "json_schema", "name": "x", "schema": schema, "strict": True}
    with pytest.raises(BadRequestError) as caught:
        ask(client, text={"format": format_})
    assert "not" in str(caught.value)
    assert str(caught.value.param).startswith("text.format")
