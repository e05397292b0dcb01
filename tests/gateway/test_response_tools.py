"""Tools and reasoning through the Responses API: items, exact events, namespaces, histories, and the SDK's loop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import OpenAI

from ortserve.gateway.schema.fields import Fields
from ortserve.gateway.schema.response_tools import read_response_tools
from ortserve.gateway.schema.tools import ToolMode, ToolUse
from tests.gateway.running import running
from tests.gateway.scripted import make_driver, saying
from tests.gateway.test_responses import PATH, call, events_of, refused
from tests.gateway.tool_calls import CALL, HERMES, SAID, TIME, talking

THINKING = HERMES + "{# <think></think> #}"
THOUGHT = "The weather is wanted."
REPLY = f"<think>{THOUGHT}</think>\n\n{SAID}\n{CALL}\n{TIME}"
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "name": "get_weather", "description": "d", "parameters": PARAMETERS, "strict": False},
    {"type": "function", "name": "get_time", "parameters": {"type": "object", "properties": {}}, "strict": False},
    {"type": "web_search"},
]


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with talking(REPLY, template=THINKING) as (client, _):
        yield client


def test_items_come_in_the_order_they_were_said(http: httpx.Client) -> None:
    reply = http.post(PATH, json=call(tools=TOOLS)).json()
    assert reply["status"] == "completed"
    assert reply["tools"] == TOOLS
    assert reply["tool_choice"] == "auto"
    thoughts, said, weather, clock = reply["output"]
    assert thoughts == {
        "id": thoughts["id"], "type": "reasoning", "status": "completed", "summary": [], "encrypted_content": None,
        "content": [{"type": "reasoning_text", "text": THOUGHT}],
    }  # fmt: skip
    assert said["content"][0]["text"].strip() == SAID
    assert weather == {
        "id": weather["id"], "type": "function_call", "status": "completed", "call_id": weather["call_id"],
        "name": "get_weather", "arguments": '{"city": "Paris"}',
    }  # fmt: skip
    assert (clock["name"], clock["arguments"]) == ("get_time", "{}")
    assert [item["id"].partition("_")[0] for item in reply["output"]] == ["rs", "msg", "fc", "fc"]
    assert len({item["id"] for item in reply["output"]} | {weather["call_id"], clock["call_id"]}) == 6
    assert 0 < reply["usage"]["output_tokens_details"]["reasoning_tokens"] < reply["usage"]["output_tokens"]


def test_tools_that_nobody_here_runs_are_reported(http: httpx.Client) -> None:
    """Also a type that is none, which may be a typing mistake."""
    namespace = {"type": "namespace", "name": "n", "description": "d", "tools": TOOLS[:1]}
    custom = {"type": "custom", "name": "c"}
    for tools, ignored in (
        ([*TOOLS[:2], namespace, custom], None),
        (TOOLS, "tools[].type"),
        ([{**TOOLS[0], "type": "funktion"}, {"type": "mcp"}], "tools[].type"),
    ):
        response = http.post(PATH, json=call(tools=tools))
        assert response.status_code == 200
        assert response.headers.get("x-ortserve-ignored") == ignored


def test_every_item_has_its_events(http: httpx.Client) -> None:
    events = events_of(http.post(PATH, json=call(tools=TOOLS, stream=True)))
    names = [event["type"].removeprefix("response.") for event in events]
    shape = [name for place, name in enumerate(names) if place == 0 or name != names[place - 1]]
    texts = ["content_part.added", "{}.delta", "{}.done", "content_part.done"]
    arguments = ["function_call_arguments.delta", "function_call_arguments.done"]
    assert shape == [
        "created", "in_progress",
        "output_item.added", *(name.format("reasoning_text") for name in texts), "output_item.done",
        "output_item.added", *(name.format("output_text") for name in texts), "output_item.done",
        "output_item.added", *arguments, "output_item.done",
        "output_item.added", *arguments, "output_item.done",
        "completed",
    ]  # fmt: skip
    output = events[-1]["response"]["output"]
    assert [event["item"] for event in events if event["type"] == "response.output_item.done"] == output
    for place, item in enumerate(output):
        own = [event for event in events if event.get("output_index") == place]
        ids = {event["item_id"] if "item_id" in event else event["item"]["id"] for event in own}
        assert ids == {item["id"]}
        added = own[0]["item"]
        assert added["status"] == "in_progress"
        text = "".join(event["delta"] for event in own if event["type"].endswith(".delta"))
        done = next(event for event in own if event["type"].endswith((".text.done", "_text.done", "arguments.done")))
        if item["type"] == "function_call":
            assert added["arguments"] == ""
            assert added["call_id"] == item["call_id"]
            assert text == done["arguments"] == item["arguments"]
            assert done["name"] == added["name"] == item["name"]
            assert "content_index" not in done
        else:
            assert added["content"] == []
            assert text == done["text"] == item["content"][0]["text"]
            assert done["content_index"] == 0


@pytest.mark.parametrize("tokens_per_step", [1, 7, 1000])
def test_streams_and_whole_replies_agree(tokens_per_step: int) -> None:
    def bare(output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{key: value for key, value in item.items() if key not in ("id", "call_id")} for item in output]

    with talking(REPLY, template=THINKING, tokens_per_step=tokens_per_step) as (http, _):
        whole = http.post(PATH, json=call(tools=TOOLS)).json()
        last = events_of(http.post(PATH, json=call(tools=TOOLS, stream=True)))[-1]["response"]
    assert bare(whole["output"]) == bare(last["output"])
    assert whole["usage"] == last["usage"]


def test_a_cut_call_is_incomplete() -> None:
    with talking(CALL) as (http, _):
        tokens = http.post(PATH, json=call(tools=TOOLS)).json()["usage"]["output_tokens"]
        body = call(tools=TOOLS, max_output_tokens=tokens - 20)
        reply = http.post(PATH, json=body).json()
        last = events_of(http.post(PATH, json={**body, "stream": True}))[-1]
    assert last["type"] == "response.incomplete"
    for response in (reply, last["response"]):
        assert response["status"] == "incomplete"
        (item,) = response["output"]
        assert item["type"] == "function_call"
        assert item["status"] == "incomplete"
        assert '{"city": "Paris"}'.startswith(item["arguments"])


def test_one_call_where_only_one_is_allowed() -> None:
    with talking(f"{CALL}\n{TIME}") as (http, server):
        reply = http.post(PATH, json=call(tools=TOOLS, parallel_tool_calls=False)).json()
        assert [item["name"] for item in reply["output"]] == ["get_weather"]
        assert reply["parallel_tool_calls"] is False
        assert len(server.driver.cancelled) == 1


def test_tools_in_namespaces() -> None:
    written = CALL.replace("get_weather", "home.get_weather")
    namespace = {"type": "namespace", "name": "home", "description": "d", "tools": TOOLS[:2]}
    with talking(written) as (http, _):
        reply = http.post(PATH, json=call(tools=[namespace])).json()
        (item,) = reply["output"]
        assert (item["namespace"], item["name"]) == ("home", "get_weather")
        assert reply["tools"] == [namespace]
        added = events_of(http.post(PATH, json=call(tools=[namespace], stream=True)))[2]["item"]
        assert (added["namespace"], added["name"]) == ("home", "get_weather")
        # The model reads its own earlier call as it wrote it.
        plain = {**item, "namespace": None, "name": "home.get_weather", "id": "fc_2"}
        counts = [
            http.post(f"{PATH}/input_tokens", json=call(input=[{"role": "user", "content": "a"}, called])).json()
            for called in (item, plain)
        ]
        assert counts[0] == counts[1]


def test_choices_are_flat_too() -> None:
    def read(**choice: Any) -> ToolUse:
        return read_response_tools(Fields({"tools": TOOLS, "tool_choice": choice})).use

    named = read(type="function", name="get_time")
    assert (named.mode, named.allowed, named.is_named) == (ToolMode.REQUIRED, frozenset({"get_time"}), True)
    some = read(type="allowed_tools", mode="auto", tools=[{"type": "function", "name": "get_time"}])
    assert (some.mode, some.allowed, some.is_named) == (ToolMode.AUTO, frozenset({"get_time"}), False)


def test_custom_tools_take_text() -> None:
    written = '<tool_call>\n{"name": "run", "arguments": {"input": "ls \\"x\\""}}\n</tool_call>'
    tools = [{"type": "custom", "name": "run", "description": "d", "format": {"type": "text"}}]
    with talking(written) as (http, _):
        (item,) = http.post(PATH, json=call(tools=tools)).json()["output"]
        assert item == {
            "id": item["id"], "type": "custom_tool_call", "status": "completed", "call_id": item["call_id"],
            "name": "run", "input": 'ls "x"',
        }  # fmt: skip
        events = events_of(http.post(PATH, json=call(tools=tools, stream=True)))
        names = [event["type"] for event in events if "custom" in event["type"]]
        assert set(names) == {"response.custom_tool_call_input.delta", "response.custom_tool_call_input.done"}
        done = next(event for event in events if event["type"].endswith("input.done"))
        assert done["input"] == 'ls "x"'


def test_histories_are_those_of_chat_completions(http: httpx.Client) -> None:
    items = [
        {"role": "user", "content": "weather?"},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"role": "assistant", "content": "Let me look."},
        {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": '{"city": "Paris"}'},
        {"type": "function_call", "call_id": "call_2", "name": "get_time", "arguments": ""},
        {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
        {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "noon"}]},
    ]
    messages = [
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant", "content": "Let me look.", "reasoning_content": "hm",
            "tool_calls": [
                {"id": "call_1", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}},
                {"id": "call_2", "function": {"name": "get_time", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        {"role": "tool", "tool_call_id": "call_2", "content": "noon"},
    ]  # fmt: skip
    chat_tools = [
        {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}
        for tool in TOOLS[:2]
    ]
    body = {"model": "scripted", "messages": messages, "tools": chat_tools, "max_tokens": 1}
    expected = http.post("/v1/chat/completions", json=body).json()["usage"]["prompt_tokens"]
    count = http.post(f"{PATH}/input_tokens", json=call(input=items, tools=TOOLS)).json()
    assert count["input_tokens"] == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"name": "f"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "name": "f", "parameters": {"type": "string"}}]}, "tools[0].parameters"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1]"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "nobody"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "function"}]}]}, "tools[0].tools[0].name"),
    ],
)
def test_wrong_tools_are_named(http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    assert refused(http.post(PATH, json=call(**fields)))["param"] == param


def test_a_loop_by_the_sdk() -> None:
    driver = make_driver(saying(REPLY), max_context=2048)
    with (
        running(driver, template=THINKING) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, _strict_response_validation=True) as client,
    ):
        tools: Any = TOOLS
        with client.responses.stream(model="scripted", input="hi", tools=tools) as stream:
            kinds = {event.type for event in stream}
            first = stream.get_final_response()
        assert "response.function_call_arguments.delta" in kinds
        calls = [item for item in first.output if item.type == "function_call"]
        assert [json.loads(item.arguments) for item in calls] == [{"city": "Paris"}, {}]
        outputs: Any = [{"type": "function_call_output", "call_id": item.call_id, "output": "x"} for item in calls]
        second = client.responses.create(model="scripted", input=outputs, previous_response_id=first.id, tools=tools)
        assert second.output[0].type == "reasoning"
        listed = list(client.responses.input_items.list(second.id, order="asc"))
        assert [item.type for item in listed] == [
            "message", "reasoning", "message", "function_call", "function_call", "function_call_output",
            "function_call_output",
        ]  # fmt: skip
