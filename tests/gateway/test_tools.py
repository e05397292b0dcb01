"""Tool calls through the chat route: whole and streamed, choices, stops, log-probabilities, every kind of tool."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from time import monotonic
from typing import Any

import httpx
import pytest
from openai import OpenAI

from ortserve.runtime.request import Request
from tests.gateway.running import running
from tests.gateway.scripted import make_driver, make_tokenizer
from tests.gateway.tool_calls import (
    CALL,
    EXPECTED,
    HERMES,
    MISTRAL,
    REPLY,
    SAID,
    TOOLS,
    called,
    choice_of,
    deltas,
    joined,
    stream,
    talking,
    whole,
)
from tests.waiting import PATIENCE_S


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with talking(REPLY) as (client, _):
        yield client


def test_a_whole_reply_with_calls(http: httpx.Client) -> None:
    choice = choice_of(http)
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert message["content"] == SAID
    assert called(message) == EXPECTED
    ids = [call["id"] for call in message["tool_calls"]]
    assert len(set(ids)) == 2
    assert all(id_.startswith("call_") and len(id_) == 29 for id_ in ids)
    assert {call["type"] for call in message["tool_calls"]} == {"function"}


def test_content_is_null_when_nothing_is_said() -> None:
    with talking(CALL) as (http, _):
        message = choice_of(http)["message"]
        assert message["content"] is None
        assert len(message["tool_calls"]) == 1
        chunks = stream(http)
        assert all(not delta.get("content") for delta in deltas(chunks))


def test_calls_are_left_out_when_there_are_none() -> None:
    with talking("Just words.") as (http, _):
        choice = choice_of(http)
        assert choice["message"] == {
            "content": "Just words.", "role": "assistant", "refusal": None, "annotations": [],
        }  # fmt: skip
        assert choice["finish_reason"] == "stop"
        chunks = stream(http)
        assert all("tool_calls" not in delta for delta in deltas(chunks))
        assert joined(chunks)["content"] == "Just words."


@pytest.mark.parametrize("tokens_per_step", [1, 3, 50])
def test_a_stream_with_calls(tokens_per_step: int) -> None:
    with talking(REPLY, tokens_per_step=tokens_per_step) as (http, _):
        chunks = stream(http, stream_options={"include_usage": True})
        message = joined(chunks)
        assert message["content"] == SAID
        assert called(message) == EXPECTED
        first, last = chunks[0]["choices"][0], chunks[-2]["choices"][0]
        assert first["delta"] == {"role": "assistant", "content": "", "refusal": None}
        assert last == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "tool_calls"}
        for delta in deltas(chunks)[1:-1]:
            assert set(delta) in ({"content"}, {"tool_calls"})
            assert len(delta.get("tool_calls", [1])) == 1
        starts = [call for delta in deltas(chunks) for call in delta.get("tool_calls", []) if "id" in call]
        assert [(call["index"], call["function"]) for call in starts] == [
            (0, {"name": "get_weather", "arguments": ""}),
            (1, {"name": "get_time", "arguments": ""}),
        ]
        assert chunks[-1]["usage"] == whole(http)["usage"]


def test_arguments_come_in_several_deltas(http: httpx.Client) -> None:
    calls = [call for delta in deltas(stream(http)) for call in delta.get("tool_calls", []) if call["index"] == 0]
    fragments = [call["function"]["arguments"] for call in calls]
    assert len(fragments) > 5
    assert "".join(fragments) == '{"city": "Paris"}'
    assert (calls[0]["type"], calls[0]["function"]["name"]) == ("function", "get_weather")
    for call in calls[1:]:  # helpers join what is repeated
        assert set(call) == {"index", "function"}
        assert set(call["function"]) == {"arguments"}


def test_every_choice_has_its_own_calls(http: httpx.Client) -> None:
    reply = whole(http, n=3)
    assert [called(choice["message"]) for choice in reply["choices"]] == [EXPECTED] * 3
    ids = {call["id"] for choice in reply["choices"] for call in choice["message"]["tool_calls"]}
    assert len(ids) == 6
    chunks = stream(http, n=3)
    for index in range(3):
        assert called(joined(chunks, index)) == EXPECTED


def test_one_call_when_calls_are_not_parallel(http: httpx.Client) -> None:
    choice = choice_of(http, parallel_tool_calls=False)
    assert called(choice["message"]) == EXPECTED[:1]
    assert choice["message"]["content"] == SAID
    assert choice["finish_reason"] == "tool_calls"
    chunks = stream(http, parallel_tool_calls=False)
    assert called(joined(chunks)) == EXPECTED[:1]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_generation_ends_after_the_only_call() -> None:
    with talking(CALL + " words" * 50) as (http, server):
        reply = whole(http, parallel_tool_calls=False)
        num_tokens = len(make_tokenizer().encode(CALL, add_special_tokens=False))
        assert reply["usage"]["completion_tokens"] <= num_tokens
        assert server.driver.submitted[-1].id in {*server.driver.cancelled, *server.driver.finished}


def test_a_choice_ends_after_its_only_call_while_others_go_on() -> None:
    """The other one waits for that: the engine generates nothing more for a choice that has ended."""
    call = make_tokenizer().encode(CALL, add_special_tokens=False)
    has_ended: list[bool] = []

    def script(request: Request) -> Iterator[list[int]]:
        if request.choice == 0:
            yield from ([token] for token in call)
            yield from itertools.repeat([])
        begun = monotonic()
        while not driver.cancelled and monotonic() - begun < PATIENCE_S:
            yield []
        has_ended.append(bool(driver.cancelled))
        yield from ([token] for token in call)

    driver = make_driver(script, pace_s=0.001, max_context=2048)
    with running(driver, template=HERMES) as server, httpx.Client(base_url=server.url) as http:
        assert len(whole(http, n=2, parallel_tool_calls=False)["choices"]) == 2
    assert has_ended == [True]


def test_a_call_cut_by_the_limit_stays_as_it_is(http: httpx.Client) -> None:
    limit = len(
        make_tokenizer().encode(
            f'{SAID}\n<tool_call>\n{{"name": "get_weather", "arguments": {{"ci', add_special_tokens=False
        )
    )
    choice = choice_of(http, max_tokens=limit)
    assert choice["finish_reason"] == "length"
    assert called(choice["message"]) == [("get_weather", '{"ci')]
    chunks = stream(http, max_tokens=limit)
    assert called(joined(chunks)) == [("get_weather", '{"ci')]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_a_call_that_has_not_begun_when_cut_is_content(http: httpx.Client) -> None:
    limit = len(make_tokenizer().encode(f'{SAID}\n<tool_call>\n{{"na', add_special_tokens=False))
    choice = choice_of(http, max_tokens=limit)
    assert choice["message"]["content"] == f'{SAID}\n<tool_call>\n{{"na'
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("stop", "calls", "finish"),
    [
        ("look", [], "stop"),
        ("Paris", [("get_weather", '{"city": "')], "stop"),  # inside of arguments too
        ("\n<tool_call>\n{\"name\": \"get_time", [EXPECTED[0]], "tool_calls"),
        ("nowhere", EXPECTED, "tool_calls"),
    ],
)  # fmt: skip
def test_stop_strings_end_calls_too(http: httpx.Client, stop: str, calls: list[Any], finish: str) -> None:
    choice = choice_of(http, stop=stop)
    message = choice["message"]
    assert (called(message) if "tool_calls" in message else []) == calls
    assert choice["finish_reason"] == finish
    chunks = stream(http, stop=stop)
    assert called(joined(chunks)) == calls
    assert joined(chunks)["content"] == message["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == finish


def test_logprobs_are_the_contents(http: httpx.Client) -> None:
    choice = choice_of(http, logprobs=True, top_logprobs=1)
    entries = choice["logprobs"]["content"]
    assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == choice["message"]["content"] == SAID
    streamed = [
        entry
        for chunk in stream(http, logprobs=True, top_logprobs=1)
        for entry in (chunk["choices"][0]["logprobs"] or {}).get("content", [])
    ]
    assert streamed == entries


def test_without_tools_the_text_is_content() -> None:
    with talking(CALL) as (http, server):
        without: list[dict[str, Any]] = [{"tools": None}, {"tools": []}, {"tool_choice": "none"}]
        for fields in without:
            choice = choice_of(http, **fields)
            assert choice["message"]["content"] == CALL
            assert choice["finish_reason"] == "stop"
            prompt = server.driver.submitted[-1].prompt
            assert b"get_weather" not in b"".join(map(make_tokenizer().token_bytes, prompt))


def test_functions_as_before_there_were_tools(http: httpx.Client) -> None:
    functions = [tool["function"] for tool in TOOLS]
    choice = choice_of(http, tools=None, functions=functions)
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    assert "tool_calls" not in choice["message"]
    chunks = stream(http, tools=None, functions=functions)
    calls = [delta["function_call"] for delta in deltas(chunks) if "function_call" in delta]
    assert calls[0] == {"name": "get_weather", "arguments": ""}
    assert all(set(call) == {"arguments"} for call in calls[1:])
    assert "".join(call["arguments"] for call in calls) == '{"city": "Paris"}'
    assert chunks[-1]["choices"][0]["finish_reason"] == "function_call"


CUSTOM = {"type": "custom", "custom": {"name": "run_code", "description": "Runs Python."}}


def test_a_custom_tools_input_is_text() -> None:
    text = 'print("é")\n'
    arguments = json.dumps({"input": text})
    with talking(f'<tool_call>\n{{"name": "run_code", "arguments": {arguments}}}\n</tool_call>') as (http, _):
        (call,) = choice_of(http, tools=[CUSTOM])["message"]["tool_calls"]
        assert call == {"id": call["id"], "type": "custom", "custom": {"name": "run_code", "input": text}}
        streamed = [one for delta in deltas(stream(http, tools=[CUSTOM])) for one in delta.get("tool_calls", [])]
        assert streamed[0]["type"] == "custom"
        assert streamed[0]["custom"] == {"name": "run_code", "input": ""}
        assert all(set(one) == {"index", "custom"} for one in streamed[1:])
        assert "".join(one["custom"]["input"] for one in streamed) == text


def test_arguments_of_a_custom_tool_that_are_no_input_are_kept() -> None:
    with talking('<tool_call>\n{"name": "run_code", "arguments": {"code": 1}}\n</tool_call>') as (http, _):
        (call,) = choice_of(http, tools=[CUSTOM])["message"]["tool_calls"]
        assert call["custom"]["input"] == '{"code": 1}'


def test_markers_that_are_special_tokens_are_seen() -> None:
    reply = '[TOOL_CALLS][{"name": "get_time", "arguments": {}}]'
    with talking(reply, template=MISTRAL) as (http, _):
        choice = choice_of(http)
        assert called(choice["message"]) == [("get_time", "{}")]
        (call,) = choice["message"]["tool_calls"]
        assert len(call["id"]) == 9
        assert call["id"].isalnum()
        assert called(joined(stream(http))) == [("get_time", "{}")]
        assert choice_of(http, tools=None)["message"]["content"] == '[{"name": "get_time", "arguments": {}}]'


def test_the_sdks_stream_helper_puts_calls_together(http: httpx.Client) -> None:
    with (
        OpenAI(base_url=f"{http.base_url}/v1", api_key="any", _strict_response_validation=True) as client,
        client.chat.completions.stream(
            model="scripted",
            messages=[{"role": "user", "content": "hi"}],
            tools=TOOLS,  # type: ignore[arg-type]  # plain dictionaries, as users write them
        ) as events,
    ):
        kinds = [event.type for event in events]
        final = events.get_final_completion()
    assert kinds.count("tool_calls.function.arguments.done") == 2
    (choice,) = final.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    assert [(call.function.name, call.function.arguments) for call in choice.message.tool_calls] == EXPECTED
