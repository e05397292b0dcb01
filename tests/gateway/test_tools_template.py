"""How conversations with tools are put before templates: tools, calls, results and ids, in each template's own way."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.gateway.running import Running
from tests.gateway.scripted import CHATML, make_tokenizer
from tests.gateway.tool_calls import MISTRAL, PATH, body, called, choice_of, function, talking

HISTORY: list[dict[str, Any]] = [
    {"role": "user", "content": "weather?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_abc",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_abc", "content": [{"type": "text", "text": "sunny"}]},
]


def prompt_of(server: Running) -> str:
    return b"".join(map(make_tokenizer().token_bytes, server.driver.submitted[-1].prompt)).decode()


def test_the_template_reads_tools_calls_and_results() -> None:
    with talking("ok") as (http, server):
        assert http.post(PATH, json=body(messages=HISTORY)).status_code == 200
        tools = json.dumps(
            [
                function("get_weather", parameters={"type": "object", "properties": {"city": {"type": "string"}}}),
                function("get_time", parameters={"type": "object", "properties": {}}),
            ]
        )
        assert prompt_of(server) == (
            f'{tools}<tool_call></tool_call>user:weather?;assistant:call_abc=get_weather({{"city": "Paris"}});'
            "tool:sunny#call_abc;"
        )


@pytest.mark.parametrize(
    ("arguments", "shown"), [({"city": "Rome"}, '{"city": "Rome"}'), ('{"ci', '"{\\"ci"'), ("", "{}")]
)
def test_arguments_in_other_shapes_are_shown_as_well_as_can_be(arguments: object, shown: str) -> None:
    """An object instead of its JSON, text that a limit has cut, nothing."""
    call = {"id": "call_abc", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    with talking("ok") as (http, server):
        messages = [HISTORY[0], {**HISTORY[1], "tool_calls": [call]}, HISTORY[2]]
        assert http.post(PATH, json=body(messages=messages)).status_code == 200
        assert f"assistant:call_abc=get_weather({shown});tool:" in prompt_of(server)


def test_ids_are_shortened_for_templates_that_want_them_short() -> None:
    with talking("ok", template=MISTRAL) as (http, server):
        assert http.post(PATH, json=body(messages=HISTORY, tools=None)).status_code == 200
        shown = prompt_of(server)
        called_id = shown.split("assistant:")[1].split("=")[0]
        assert len(called_id) == 9
        assert shown.endswith(f"#{called_id};")


def test_templates_without_tools_are_told_in_words() -> None:
    with talking('{"name": "get_time", "arguments": {}}', template=CHATML) as (http, server):
        assert called(choice_of(http)["message"]) == [("get_time", "{}")]
        shown = prompt_of(server)
        assert '{"name": "get_weather"' in shown
        assert http.post(PATH, json=body(messages=HISTORY, tools=None)).status_code == 200
        shown = prompt_of(server)
        assert '{"name": "get_weather", "arguments": {"city": "Paris"}}' in shown
        assert "Result of the call:\nsunny" in shown
