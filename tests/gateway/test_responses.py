"""POST /v1/responses on a real server: exact events, the object every client reads, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import OpenAI
from openai.types.responses import ResponseOutputMessage, ResponseOutputText

from ortserve.gateway.http.watch import Patience, Watch
from ortserve.gateway.store.responses import Responses
from ortserve.gateway.streams import stream as streams
from ortserve.runtime.request import FinishReason
from tests.gateway.conftest import REPLY
from tests.gateway.running import Running, running
from tests.gateway.scripted import Held, make_driver, make_tokenizer, saying

PATH = "/v1/responses"
COUNT = "/v1/responses/input_tokens"
MESSAGE = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}


def call(**fields: Any) -> dict[str, Any]:
    return {"model": "scripted", "input": "hi", **fields}


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """Data of all events; their names must be the types in them, and their numbers count from 0."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    events: list[dict[str, Any]] = []
    for frame in response.text.removesuffix("\n\n").split("\n\n"):
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == len(events)
        events.append(event)
    return events


def refused(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[OpenAI]:
    """Every reply and event is validated against the SDK's types."""
    url = f"{server.url}/v1"
    with OpenAI(base_url=url, api_key="any", max_retries=0, _strict_response_validation=True) as client:
        yield client


def test_the_object_has_every_field_some_client_demands(http: httpx.Client) -> None:
    reply = http.post(PATH, json=call()).json()
    assert set(reply) == {
        "id", "object", "created_at", "completed_at", "status", "background", "error", "incomplete_details",
        "instructions", "max_output_tokens", "max_tool_calls", "model", "output", "parallel_tool_calls",
        "previous_response_id", "prompt_cache_key", "prompt_cache_retention", "reasoning", "safety_identifier",
        "service_tier", "store", "temperature", "text", "tool_choice", "tools", "top_logprobs", "top_p", "truncation",
        "presence_penalty", "frequency_penalty", "usage", "user", "metadata", "conversation",
    }  # fmt: skip
    assert reply["status"] == "completed"
    assert type(reply["created_at"]) is type(reply["completed_at"]) is int
    assert reply["created_at"] <= reply["completed_at"]
    (item,) = reply["output"]
    assert item == {
        "id": item["id"], "type": "message", "status": "completed", "role": "assistant",
        "content": [{"type": "output_text", "text": REPLY, "annotations": [], "logprobs": []}],
    }  # fmt: skip
    usage = reply["usage"]
    assert usage["input_tokens"] > 0
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["input_tokens_details"] == {"cached_tokens": 0, "cache_write_tokens": 0}
    assert usage["output_tokens_details"] == {"reasoning_tokens": 0}


def test_what_was_asked_for_is_echoed(http: httpx.Client) -> None:
    asked = {
        "instructions": "Be brief.", "max_output_tokens": 99, "max_tool_calls": 3, "metadata": {"a": "b"},
        "parallel_tool_calls": False, "prompt_cache_key": "k", "prompt_cache_retention": "24h",
        "reasoning": {"effort": "low", "summary": "auto"}, "safety_identifier": "s", "store": False,
        "temperature": 0.5, "text": {"format": {"type": "text"}, "verbosity": "low"}, "tool_choice": "none",
        "tools": [{"type": "web_search"}], "top_logprobs": 2, "top_p": 0.25, "truncation": "auto", "user": "u",
        "presence_penalty": 0.5, "frequency_penalty": -0.5, "background": False,
    }  # fmt: skip
    reply = http.post(PATH, json=call(**asked)).json()
    assert {key: reply[key] for key in asked} == asked
    assert len(reply["output"][0]["content"][0]["logprobs"][0]["top_logprobs"]) == 2


def test_the_order_of_events(http: httpx.Client) -> None:
    events = events_of(http.post(PATH, json=call(stream=True)))
    num_tokens = len(make_tokenizer().encode(REPLY, add_special_tokens=False))
    names = [event["type"].removeprefix("response.") for event in events]
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert names == [
        "created", "in_progress", "output_item.added", "content_part.added", *["output_text.delta"] * len(deltas),
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert 5 < len(deltas) <= num_tokens
    created, in_progress, item_added, part_added = events[:4]
    text_done, part_done, item_done, completed = events[-4:]
    for event in (created, in_progress):
        assert event["response"]["status"] == "in_progress"
        assert event["response"]["output"] == []
        assert event["response"]["usage"] is None
        assert set(event["response"]) == set(completed["response"])
    item_id = item_added["item"]["id"]
    assert item_added["item"] == {
        "id": item_id, "type": "message", "status": "in_progress", "role": "assistant", "content": [],
    }  # fmt: skip
    assert part_added["part"] == {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    for event in (part_added, *deltas, text_done, part_done):
        assert (event["item_id"], event["output_index"], event["content_index"]) == (item_id, 0, 0)
    assert all(delta["logprobs"] == [] for delta in deltas)
    assert "".join(delta["delta"] for delta in deltas) == REPLY == text_done["text"] == part_done["part"]["text"]
    assert item_done["item"]["status"] == "completed"
    assert completed["response"]["output"] == [item_done["item"]]
    assert len({event["response"]["id"] for event in (created, in_progress, completed)}) == 1
    whole = http.post(PATH, json=call()).json()
    assert completed["response"]["usage"] == whole["usage"]
    assert whole["usage"]["output_tokens"] == num_tokens + 1


def test_a_limit_makes_it_incomplete(http: httpx.Client) -> None:
    whole = http.post(PATH, json=call(max_output_tokens=3)).json()
    *_, item_done, last = events_of(http.post(PATH, json=call(max_output_tokens=3, stream=True)))
    assert last["type"] == "response.incomplete"
    assert item_done["item"]["status"] == "incomplete"
    for reply in (whole, last["response"]):
        assert reply["status"] == "incomplete"
        assert reply["incomplete_details"] == {"reason": "max_output_tokens"}
        assert reply["completed_at"] is None
        assert reply["output"][0]["status"] == "incomplete"
        assert reply["usage"]["output_tokens"] == 3


@pytest.mark.parametrize("fields", [{"top_logprobs": 2}, {"include": ["message.output_text.logprobs"]}])
def test_logprobs_cover_the_text_exactly(http: httpx.Client, fields: dict[str, Any]) -> None:
    whole = http.post(PATH, json=call(**fields)).json()["output"][0]["content"][0]
    events = events_of(http.post(PATH, json=call(stream=True, **fields)))
    streamed = [entry for event in events if event["type"].endswith("text.delta") for entry in event["logprobs"]]
    assert streamed == whole["logprobs"] == events[-4]["logprobs"]
    assert bytes(byte for entry in streamed for byte in entry["bytes"]) == REPLY.encode()
    assert {len(entry["top_logprobs"]) for entry in streamed} == {fields.get("top_logprobs", 0)}


def test_an_empty_reply_is_a_message_all_the_same() -> None:
    with running(make_driver(lambda _: [])) as server, httpx.Client(base_url=server.url) as http:
        reply = http.post(PATH, json=call()).json()
        events = events_of(http.post(PATH, json=call(stream=True)))
    assert reply["output"][0]["content"][0]["text"] == ""
    assert [event["type"] for event in events][2:] == [
        "response.output_item.added", "response.content_part.added", "response.output_text.done",
        "response.content_part.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip


def test_a_failure_in_the_middle_is_the_last_event() -> None:
    driver = make_driver(saying("hello"), ending=FinishReason.ERROR)
    with running(driver) as server, httpx.Client(base_url=server.url) as http:
        last = events_of(http.post(PATH, json=call(stream=True)))[-1]
        assert refused(http.post(PATH, json=call()), 500)["code"] == "internal_error"
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"]["code"] == "server_error"
    assert "the graph failed" in last["response"]["error"]["message"]
    assert last["response"]["output"][0]["content"][0]["text"] == "hello"


def test_silence_is_filled_with_events_that_count() -> None:
    script = Held("ab", 1)
    with (
        running(make_driver(script), patience=Patience(ping_s=0.05)) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="any", _strict_response_validation=True) as client,
        client.responses.stream(model="scripted", input="hi") as stream,
    ):
        events = []
        for event in stream:
            events.append(event)
            if [one.type for one in events].count("response.in_progress") == 3:
                script.release()
        assert stream.get_final_response().output_text == "ab"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events].count("response.in_progress") >= 3


def test_no_sign_of_life_comes_while_the_end_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end has its number by then: an event before it would have a larger one."""
    watches: list[Watch] = []
    are_quiet: list[bool] = []
    add = Responses.add

    class Noted(Watch):
        def __init__(self, *words: Any, **options: Any) -> None:
            super().__init__(*words, **options)
            watches.append(self)

    async def add_noted(self: Responses, *words: Any) -> None:
        (watch,) = watches
        are_quiet.append(watch._timer is not None and watch._timer.cancelled())
        await add(self, *words)

    monkeypatch.setattr(streams, "Watch", Noted)
    monkeypatch.setattr(Responses, "add", add_noted)
    with running(make_driver(saying("ab"))) as server:
        text = httpx.post(f"{server.url}{PATH}", json=call(stream=True)).text
    assert "response.completed" in text
    assert are_quiet == [True]


def test_every_form_of_input_is_the_prompt_of_chat_completions(http: httpx.Client, server: Running) -> None:
    system = {"role": "system", "content": "Be brief."}
    turns = [system, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    body = {"model": "scripted", "messages": turns, "max_tokens": 1}
    assert http.post("/v1/chat/completions", json=body).status_code == 200
    expected = server.driver.submitted[-1].prompt
    said = {"role": "assistant", "content": [{"type": "output_text", "text": "y"}, {"type": "text", "text": "es"}]}
    refusal = {"role": "assistant", "content": [{"type": "refusal", "refusal": "yes"}]}
    thoughts: dict[str, Any] = {"type": "reasoning", "summary": [], "encrypted_content": None}
    hosted = {"type": "web_search_call", "id": "ws_1", "status": "completed"}
    for fields in (
        {"input": turns},
        {"input": [{**system, "role": "developer"}, MESSAGE, said]},
        {"input": [MESSAGE, said], "instructions": "Be brief."},
        {"input": [system, {**MESSAGE, "id": "msg_1", "status": "completed"}, {"type": "message", **refusal}]},
        {"input": [system, MESSAGE, hosted, thoughts, {**said, "id": "msg_2", "phase": "final_answer"}]},
    ):
        assert http.post(COUNT, json=call(**fields)).json() == {
            "object": "response.input_tokens", "input_tokens": len(expected),
        }, fields  # fmt: skip
        assert http.post(PATH, json=call(**fields)).json()["usage"]["input_tokens"] == len(expected)
        assert server.driver.submitted[-1].prompt == expected, fields


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": None}, "input", "missing_required_parameter"),
        ({"input": []}, "input", "empty_array"),
        ({"input": 7}, "input", "invalid_type"),
        ({"input": ["x"]}, "input[0]", "invalid_type"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "invalid_value"),
        ({"input": [{"type": "message", "content": "x"}]}, "input[0].role", "missing_required_parameter"),
        ({"input": [{"role": "user"}]}, "input[0].content", "missing_required_parameter"),
        ({"input": [{"role": "user", "content": 7}]}, "input[0].content", "invalid_type"),
        ({"input": [{"type": "nonsense"}]}, "input[0].type", "invalid_value"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id", "missing_required_parameter"),
        ({"input": [{"type": "function_call_output"}]}, "input[0].output", "missing_required_parameter"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type", None),
        ({"input": "x" * 600}, "input", "context_length_exceeded"),
        ({"instructions": ["x"]}, "instructions", "invalid_type"),
        ({"max_output_tokens": 0}, "max_output_tokens", "integer_below_min_value"),
        ({"temperature": 3}, "temperature", "decimal_above_max_value"),
        ({"top_p": -1}, "top_p", "decimal_below_min_value"),
        ({"top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
        ({"include": ["everything"]}, "include[0]", "invalid_value"),
        ({"truncation": "middle"}, "truncation", "invalid_value"),
        ({"service_tier": "slow"}, "service_tier", "invalid_value"),
        ({"metadata": {"k": 7}}, "metadata.k", "invalid_type"),
        ({"metadata": {str(key): "v" for key in range(17)}}, "metadata", "object_above_max_properties"),
        ({"reasoning": {"effort": "extreme"}}, "reasoning.effort", "invalid_value"),
        ({"reasoning": {"summary": "long"}}, "reasoning.summary", "invalid_value"),
        ({"text": {"verbosity": "loud"}}, "text.verbosity", "invalid_value"),
        ({"safety_identifier": "x" * 129}, "safety_identifier", "string_above_max_length"),
        ({"background": True, "store": False}, "background", "invalid_value"),
        ({"conversation": 7}, "conversation", "invalid_type"),
        ({"conversation": "c", "previous_response_id": "r"}, "conversation", "mutually_exclusive_parameters"),
        ({"previous_response_id": "r"}, "previous_response_id", "previous_response_not_found"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "unsupported_parameter"),
        ({"moderation": {"model": "m"}}, "moderation", "unsupported_parameter"),
        ({"guided_regex": "a*"}, "guided_regex", "unsupported_parameter"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice", "invalid_value"),
    ],
)
def test_refusals_name_the_field(http: httpx.Client, fields: dict[str, Any], param: str, code: str | None) -> None:
    for stream in (False, True):
        error = refused(http.post(PATH, json={"stream": stream, **call(**fields)}))
        assert error["param"] == param, error
        assert code is None or error["code"] == code, error


def test_stream_options_need_a_stream(http: httpx.Client) -> None:
    options = {"include_obfuscation": True}
    assert refused(http.post(PATH, json=call(stream_options=options)))["param"] == "stream_options"
    assert "obfuscation" not in http.post(PATH, json=call(stream=True, stream_options=options)).text


def test_null_is_absent_and_unknown_fields_are_accepted(http: httpx.Client) -> None:
    fields = dict.fromkeys(
        ["instructions", "tools", "tool_choice", "text", "reasoning", "include", "metadata", "conversation", "stream"]
    )
    assert http.post(PATH, json=call(**fields, client_metadata={"a": 1}, whatever=[1])).status_code == 200
    assert http.post(PATH, json=call(tools=[], include=[])).status_code == 200
    assert http.post(PATH, json={"input": "hi"}).json()["model"] == "scripted"
    assert refused(http.post(PATH, json=call(model="other")), 404)["code"] == "model_not_found"


def test_the_sdk_reads_it(client: OpenAI) -> None:
    reply = client.responses.create(model="scripted", input="hi", metadata={"a": "b"}, top_logprobs=1)
    assert reply.output_text == REPLY
    (message,) = reply.output
    assert isinstance(message, ResponseOutputMessage)
    (part,) = message.content
    assert isinstance(part, ResponseOutputText)
    assert part.logprobs
    assert client.responses.input_tokens.count(model="scripted", input="hi").input_tokens > 0


def test_the_stream_helper(client: OpenAI) -> None:
    with client.responses.stream(model="scripted", input="hi", instructions="Be brief.") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == REPLY
    assert final.usage is not None
