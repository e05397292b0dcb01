"""Tools and thinking through Anthropic's API: blocks, events in order, results and thoughts of earlier turns."""

from __future__ import annotations

from typing import Any

import anthropic
import httpx
import pytest
from jiter import from_json

from tests.gateway.running import running
from tests.gateway.scripted import make_driver, saying
from tests.gateway.test_messages import PATH, call, events_of
from tests.gateway.test_reasoning import TEMPLATE as THINKING
from tests.gateway.test_tools_template import prompt_of
from tests.gateway.tool_calls import CALL, HERMES, SAID, TIME, talking

CUT = CALL.replace('"Paris"', '"Paris", "street": "Rue de Rivoli"')
REPLY = f"{SAID}\n{CALL}\n{TIME}"
TOOLS: list[dict[str, Any]] = [
    {"name": "get_weather", "description": "d", "input_schema": {"type": "object", "properties": {}}},
    {"name": "get_time", "input_schema": {"type": "object"}},
]


def test_a_whole_reply_with_calls() -> None:
    with talking(REPLY) as (http, _):
        reply = http.post(PATH, json=call(tools=TOOLS, max_tokens=256)).json()
        text, weather, time = reply["content"]
        assert text == {"type": "text", "text": SAID}
        assert weather == {"type": "tool_use", "id": weather["id"], "name": "get_weather", "input": {"city": "Paris"}}
        assert (time["name"], time["input"]) == ("get_time", {})
        assert weather["id"] != time["id"]
        assert reply["stop_reason"] == "tool_use"
        assert reply["stop_sequence"] is None


@pytest.mark.parametrize("tokens_per_step", [1, 60])
def test_events_with_calls(tokens_per_step: int) -> None:
    with talking(REPLY, tokens_per_step=tokens_per_step) as (http, _):
        whole = http.post(PATH, json=call(tools=TOOLS, max_tokens=256)).json()
        events = events_of(http.post(PATH, json=call(tools=TOOLS, max_tokens=256, stream=True)))
        names = [name for name, _ in events if name != "ping"]
        assert names[0] == "message_start"
        assert names[-2:] == ["message_delta", "message_stop"]
        blocks: list[dict[str, Any]] = []
        is_open = False
        for name, event in events:
            if name == "content_block_start":
                assert not is_open
                assert event["index"] == len(blocks)
                blocks.append({**event["content_block"], "deltas": []})
                is_open = True
            elif name == "content_block_delta":
                assert is_open
                assert event["index"] == len(blocks) - 1
                blocks[-1]["deltas"].append(event["delta"])
            elif name == "content_block_stop":
                assert event["index"] == len(blocks) - 1
                is_open = False
        assert not is_open
        text, weather, time = blocks
        assert {delta["type"] for delta in text["deltas"]} == {"text_delta"}
        assert "".join(delta["text"] for delta in text["deltas"]) == SAID
        assert weather["input"] == time["input"] == {}
        assert {delta["type"] for delta in weather["deltas"]} == {"input_json_delta"}
        assert "".join(delta["partial_json"] for delta in weather["deltas"]) == '{"city": "Paris"}'
        assert events[-2][1]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
        assert events[-2][1]["usage"] == whole["usage"]


def test_the_sdk_puts_calls_together() -> None:
    with (
        talking(REPLY) as (http, _),
        anthropic.Anthropic(base_url=str(http.base_url), api_key="any", max_retries=0) as client,
        client.messages.stream(
            model="scripted",
            max_tokens=256,
            messages=[{"role": "user", "content": "hi"}],
            tools=TOOLS,  # type: ignore[arg-type]  # plain dictionaries, as users write them
        ) as stream,
    ):
        message = stream.get_final_message()
    assert [block.type for block in message.content] == ["text", "tool_use", "tool_use"]
    assert message.content[1].input == {"city": "Paris"}  # type: ignore[union-attr]  # a call, as just seen
    assert message.stop_reason == "tool_use"


def test_one_call_when_parallel_use_is_disabled() -> None:
    with talking(REPLY) as (http, _):
        choice = {"type": "auto", "disable_parallel_tool_use": True}
        reply = http.post(PATH, json=call(tools=TOOLS, tool_choice=choice, max_tokens=256)).json()
        assert [block["type"] for block in reply["content"]] == ["text", "tool_use"]


@pytest.mark.parametrize(("max_tokens", "members"), [(60, {}), (72, {"city": "Paris"})])
def test_a_call_that_is_cut_has_what_is_whole_and_says_why(max_tokens: int, members: dict[str, str]) -> None:
    with talking(CUT) as (http, _):
        reply = http.post(PATH, json=call(tools=TOOLS, max_tokens=max_tokens)).json()
        (block,) = reply["content"]
        assert block["input"] == members
        assert reply["stop_reason"] == "max_tokens"
        events = events_of(http.post(PATH, json=call(tools=TOOLS, max_tokens=max_tokens, stream=True)))
        deltas: list[Any] = [event["delta"] for name, event in events if name == "content_block_delta"]
        pieces = [delta["partial_json"] for delta in deltas if delta["type"] == "input_json_delta"]
        assert "".join(pieces), "the cut input is streamed as far as it goes"
        assert block["input"] == from_json("".join(pieces).encode(), partial_mode=True)


def test_none_hides_the_tools() -> None:
    with talking(CALL) as (http, server):
        reply = http.post(PATH, json=call(tools=TOOLS, tool_choice={"type": "none"}, max_tokens=256)).json()
        assert reply["content"] == [{"type": "text", "text": CALL}]
        assert "get_weather" not in prompt_of(server)


def test_calls_and_results_of_earlier_turns() -> None:
    use = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}}
    other = {"type": "tool_use", "id": "toolu_2", "name": "get_time", "input": {}}
    messages = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": [{"type": "text", "text": "Well."}, use, other]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "sunny"}]},
                {"type": "tool_result", "tool_use_id": "toolu_2", "content": "no clock", "is_error": True},
                {"type": "text", "text": "And now?"},
            ],
        },
    ]
    with talking("ok") as (http, server):
        assert http.post(PATH, json=call(messages=messages)).status_code == 200
        assert prompt_of(server) == (
            'user:weather?;assistant:Well.toolu_1=get_weather({"city": "Paris"})toolu_2=get_time({});'
            "tool:sunny#toolu_1;tool:Error: no clock#toolu_2;user:And now?;"
        )


def test_thinking_is_shown_when_it_is_enabled() -> None:
    driver = make_driver(saying("so it is\n</think>\n\nhello world"))
    with running(driver, template=THINKING) as server, httpx.Client(base_url=server.url) as http:
        thinking = {"type": "enabled", "budget_tokens": 1024}
        reply = http.post(PATH, json=call(thinking=thinking)).json()
        assert reply["content"] == [
            {"type": "thinking", "thinking": "so it is", "signature": ""},
            {"type": "text", "text": "hello world"},
        ]
        events = events_of(http.post(PATH, json=call(thinking=thinking, stream=True)))
        starts = [event["content_block"]["type"] for name, event in events if name == "content_block_start"]
        assert starts == ["thinking", "text"]
        thought = [e["delta"]["thinking"] for _, e in events if e.get("delta", {}).get("type") == "thinking_delta"]
        assert "".join(thought) == "so it is"


def test_without_a_channel_thinking_cannot_be_enabled() -> None:
    with talking("x", template=HERMES) as (http, _):
        response = http.post(PATH, json=call(thinking={"type": "enabled", "budget_tokens": 1024}))
        assert response.status_code == 400
        assert "thinking" in response.json()["error"]["message"]
        assert http.post(PATH, json=call(thinking={"type": "adaptive"})).status_code == 200
        assert http.post(PATH, json=call(thinking={"type": "disabled"})).status_code == 200


def test_thoughts_of_earlier_turns_reach_the_template() -> None:
    template = "{% for m in messages %}{{ m.reasoning_content or '' }}|{{ m.content }};{% endfor %}"
    thought = {"type": "thinking", "thinking": "hm", "signature": "x"}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": [thought, {"type": "text", "text": "b"}]},
        {"role": "user", "content": "c"},
    ]
    with talking("ok", template=template) as (http, server):
        assert http.post(PATH, json=call(messages=messages)).status_code == 200
        assert prompt_of(server) == "|a;hm|b;|c;"
