"""Anthropic's Messages API on the wire: replies, events, refusals. A scripted engine says the same every time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from ortserve.gateway.http.watch import Patience
from ortserve.gateway.options.edge import EdgeOptions
from ortserve.runtime.errors import EngineClosedError, EngineError, OverloadedError
from ortserve.runtime.request import FinishReason
from tests.gateway.conftest import REPLY
from tests.gateway.running import running
from tests.gateway.scripted import Held, make_driver, saying
from tests.gateway.test_metrics import scrape, value

PATH = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
QUESTION = [{"role": "user", "content": "hi"}]
EPHEMERAL = {"type": "ephemeral"}
Events = list[tuple[str, dict[str, Any]]]


def call(**fields: Any) -> dict[str, Any]:
    return {"model": "scripted", "max_tokens": 64, "messages": QUESTION, **fields}


def block(text: str, **fields: Any) -> dict[str, Any]:
    return {"type": "text", "text": text, **fields}


def said(content: Any, role: str = "user") -> list[dict[str, Any]]:
    return [{"role": role, "content": content}]


def refused(response: httpx.Response, status: int, type_: str) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"type", "error", "request_id"}
    assert set(body["error"]) == {"type", "message"}
    assert (body["type"], body["error"]["type"]) == ("error", type_), body
    assert body["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]
    return str(body["error"]["message"])


def events_of(response: httpx.Response) -> Events:
    """The events of a stream: every one an `event:` line, a `data:` line of the same type, and a blank line."""
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["request-id"]
    assert response.text.endswith("\n\n")
    found: Events = []
    for frame in response.text.removesuffix("\n\n").split("\n\n"):
        event, data = frame.split("\n")
        name, body = event.removeprefix("event: "), json.loads(data.removeprefix("data: "))
        assert body["type"] == name
        found.append((name, body))
    return found


def deltas_of(events: Events) -> list[str]:
    return [body["delta"]["text"] for name, body in events if name == "content_block_delta"]


def test_a_whole_reply(http: httpx.Client) -> None:
    response = http.post(PATH, json=call(), headers={"anthropic-version": "2023-06-01"})
    assert response.status_code == 200
    assert response.headers["request-id"] == response.headers["x-request-id"]
    reply = response.json()
    usage = reply.pop("usage")
    assert reply.pop("id").startswith("msg_")
    assert reply == {
        "type": "message",
        "role": "assistant",
        "model": "scripted",
        "content": [{"type": "text", "text": REPLY}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
    }
    num_prompt = http.post(COUNT, json=call()).json()["input_tokens"]
    assert usage.pop("output_tokens") > 1
    assert usage == {"input_tokens": num_prompt, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}


def test_events_come_in_order(http: httpx.Client) -> None:
    whole = http.post(PATH, json=call()).json()
    events = events_of(http.post(PATH, json=call(stream=True)))
    names = [name for name, _ in events]
    num_deltas = len(deltas_of(events))
    assert num_deltas > 3
    assert names == [
        "message_start",
        "content_block_start",
        "ping",
        *["content_block_delta"] * num_deltas,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start = events[0][1]["message"]
    assert start.pop("id").startswith("msg_")
    usage = {**whole["usage"], "output_tokens": 0}
    assert start == {
        "type": "message", "role": "assistant", "model": "scripted", "content": [], "stop_reason": None,
        "stop_sequence": None, "usage": usage,
    }  # fmt: skip
    assert events[1][1] == {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    assert events[2][1] == {"type": "ping"}
    assert all(body["index"] == 0 for name, body in events if name.startswith("content_block"))
    assert "".join(deltas_of(events)) == REPLY
    assert events[-2][1] == {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": whole["usage"],
    }


@pytest.mark.parametrize(
    ("fields", "text", "reason", "stop"),
    [
        ({"stop_sequences": ["STOP", "wor"]}, "hello ", "stop_sequence", "wor"),
        ({"stop_sequences": ["world, ", "or", "orld, c"]}, "hello w", "stop_sequence", "or"),
        ({"stop_sequences": ["ld", "world"]}, "hello ", "stop_sequence", "world"),
        ({"stop_sequences": ["nothing"]}, REPLY, "end_turn", None),
        ({"max_tokens": 1}, "hello", "max_tokens", None),
    ],
)
def test_why_it_ended(http: httpx.Client, fields: dict[str, Any], text: str, reason: str, stop: str | None) -> None:
    whole = http.post(PATH, json=call(**fields)).json()
    assert whole["content"] == [block(text)]
    assert (whole["stop_reason"], whole["stop_sequence"]) == (reason, stop)
    events = events_of(http.post(PATH, json=call(stream=True, **fields)))
    assert "".join(deltas_of(events)) == text
    assert events[-2][1]["delta"] == {"stop_reason": reason, "stop_sequence": stop}
    assert events[-2][1]["usage"] == whole["usage"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model": None}, "model"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": said("hi", "tool")}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": said(7)}, "messages[0].content"),
        ({"messages": said([{"type": "text"}])}, "messages[0].content[0].text"),
        ({"messages": said([{"type": "image", "source": {}}])}, "messages[0].content[0].type"),
        ({"messages": said([{"type": "tool_use", "id": "a", "name": "f", "input": {}}], "assistant")}, "calls tools"),
        ({"messages": said([{"type": "tool_use", "name": "f", "input": {}}], "assistant")}, "content[0].id"),
        ({"messages": said([{"type": "tool_use", "id": "a", "name": "f", "input": {}}])}, "content[0].type"),
        ({"messages": said([{"type": "tool_result", "content": "x"}])}, "content[0].tool_use_id"),
        ({"messages": said([{"type": "tool_result", "tool_use_id": "a", "content": [{"type": "image"}]}])}, "type"),
        ({"messages": said([block("x", cache_control={"type": "forever"})])}, "cache_control.type"),
        ({"messages": said([block("x", cache_control={**EPHEMERAL, "ttl": "2h"})])}, "cache_control.ttl"),
        ({"messages": said([block("x", cache_control=EPHEMERAL)] * 5)}, "cache_control"),
        ({"messages": said("x" * 600)}, "too long"),
        ({"messages": [*QUESTION, *said("The answer is ", "assistant")]}, "trailing whitespace"),
        ({"system": 7}, "system"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"temperature": 1.5}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"top_k": 0.5}, "top_k"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"stop_sequences": ["a", ""]}, "stop_sequences[1]"),
        ({"metadata": {"user_id": 7}}, "metadata.user_id"),
        ({"stream": "yes"}, "stream"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{"name": "f g", "input_schema": {}}]}, "tools[0].name"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
        ({"tools": [{"name": "f", "input_schema": {}}] * 2}, "tools[1]"),
        ({"tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice"),
        ({"tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"thinking": {}}, "thinking.type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ({"guided_regex": "a*"}, "guided_regex"),
    ],
)
def test_refusals_name_the_field(http: httpx.Client, fields: dict[str, Any], named: str) -> None:
    for stream in (False, True):
        body = {"stream": stream, **call(**fields)}
        assert named in refused(http.post(PATH, json=body), 400, "invalid_request_error")


def test_fields_without_effect_are_accepted(http: httpx.Client) -> None:
    fields = {
        "metadata": {"user_id": "someone"}, "service_tier": "auto", "thinking": {"type": "disabled"}, "tools": [],
        "tool_choice": {"type": "auto"}, "top_k": 3, "top_p": 0.5, "temperature": 1, "system": "", "whatever": [1],
        "cache_control": None, "context_management": {},
    }  # fmt: skip
    assert http.post(PATH, json=call(**fields)).status_code == 200


def test_failures_of_every_status() -> None:
    driver = make_driver(saying("x"))
    with (
        running(driver, api_key="k", edge=EdgeOptions(max_body_bytes=2000)) as server,
        httpx.Client(base_url=server.url, headers={"x-api-key": "k"}) as http,
    ):
        assert "x-api-key" in refused(httpx.post(server.url + PATH, json=call()), 401, "authentication_error")
        wrong = {"x-api-key": "other"}
        refused(httpx.post(server.url + PATH, json=call(), headers=wrong), 401, "authentication_error")
        bearer = {"authorization": "Bearer k"}
        assert httpx.post(server.url + PATH, json=call(), headers=bearer).status_code == 200
        assert "`scripted`" in refused(http.post(PATH, json=call(model="claude")), 404, "not_found_error")
        refused(http.get(f"{PATH}/batches"), 404, "not_found_error")
        assert "POST" in refused(http.get(PATH), 405, "invalid_request_error")
        refused(http.post(PATH, content=b"{"), 400, "invalid_request_error")
        refused(http.post(PATH, json=call(system="x" * 3000)), 413, "request_too_large")
        driver.refusal = OverloadedError("full", retry_after_s=2)
        busy = http.post(PATH, json=call())
        refused(busy, 429, "rate_limit_error")
        assert busy.headers["retry-after"] == "2"
        driver.refusal = EngineClosedError("closed")
        refused(http.post(PATH, json=call()), 503, "overloaded_error")
        driver.refusal = EngineError("broken")
        refused(http.post(PATH, json=call()), 500, "api_error")
        # The other routes keep their own envelope.
        assert set(http.get("/v1/nothing").json()["error"]) == {"message", "type", "param", "code"}
        assert "request-id" not in http.get("/v1/models").headers


def test_a_failure_in_the_middle_is_an_event() -> None:
    with (
        running(make_driver(saying("hello"), ending=FinishReason.ERROR)) as server,
        httpx.Client(base_url=server.url) as http,
    ):
        events = events_of(http.post(PATH, json=call(stream=True)))
        assert "message_stop" not in [name for name, _ in events]
        assert events[-1][0] == "error"
        assert events[-1][1]["error"]["type"] == "api_error"
        refused(http.post(PATH, json=call()), 500, "api_error")
        samples = scrape(http)
        assert value(samples, "requests_total", route=PATH, status="200", outcome="failed") == 1
        assert value(samples, "requests_total", route=PATH, status="500", outcome="failed") == 0


def test_spellings_labels_and_cross_origin(http: httpx.Client) -> None:
    before = scrape(http)
    for path in ("/messages", "//v1/v1/messages/", "/v1/messages"):
        assert http.post(path, json=call()).status_code == 200
    assert http.post("/messages/count_tokens", json=call()).status_code == 200
    after = scrape(http)
    for route, count in ((PATH, 3), (COUNT, 1)):
        labels = {"route": route, "status": "200", "outcome": "done"}
        assert value(after, "requests_total", **labels) - value(before, "requests_total", **labels) == count
    origin = {"origin": "http://page.example"}
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "x-api-key,anthropic-version"}
    preflight = http.options(PATH, headers={**origin, **asked})
    assert preflight.status_code == 200
    assert "x-api-key" in preflight.headers["access-control-allow-headers"]
    assert "request-id" in http.post(PATH, json=call(), headers=origin).headers["access-control-expose-headers"]


def test_what_the_model_is_given(http: httpx.Client) -> None:
    """The same prompts as through OpenAI's route, and turns of one role in a row as one."""

    def count(messages: Sequence[dict[str, Any]], **fields: Any) -> int:
        return int(http.post(COUNT, json={"model": "scripted", "messages": messages, **fields}).json()["input_tokens"])

    system = {"role": "system", "content": "Be brief."}
    body = {"model": "scripted", "messages": [system, *QUESTION], "max_tokens": 1}
    num_tokens = http.post("/v1/chat/completions", json=body).json()["usage"]["prompt_tokens"]
    assert count(QUESTION, system="Be brief.") == num_tokens
    assert count(QUESTION, system=[block("Be "), block("brief.")]) == num_tokens
    assert count([system, *said([block("h"), block("i")])]) == num_tokens
    assert count([*said("one"), *said("two")]) == count(said("one\n\ntwo"))


def test_a_prefilled_reply_goes_on(http: httpx.Client) -> None:
    turns = [*QUESTION, *said("The answer:", "assistant")]
    reply = http.post(PATH, json=call(messages=turns)).json()
    assert reply["content"] == [block(REPLY)]
    num_open = http.post(COUNT, json=call(messages=turns)).json()["input_tokens"]
    num_plain = http.post(COUNT, json=call()).json()["input_tokens"]
    # One token per character that is part of no word: nothing follows the text.
    assert num_plain < num_open <= num_plain + len("The answer:")


def test_silence_is_filled_with_ping_events() -> None:
    script, names = Held("ab", 1), list[str]()
    with (
        running(make_driver(script), patience=Patience(ping_s=0.05)) as server,
        httpx.stream("POST", server.url + PATH, json=call(stream=True)) as response,
    ):
        for line in response.iter_lines():
            if line.startswith("event: "):
                names.append(line.removeprefix("event: "))
            if names.count("ping") == 4:  # the first follows the head
                script.release()
    assert names[-1] == "message_stop"
    assert [name for name in names if name != "ping"][1:3] == ["content_block_start", "content_block_delta"]
