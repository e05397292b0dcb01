"""A model that says calls, and the calls that a client makes of its replies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from tests.gateway.running import Running, running
from tests.gateway.scripted import make_driver, saying

PATH = "/v1/chat/completions"
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
TIME = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
SAID = "Let me look."
REPLY = f"{SAID}\n{CALL}\n{TIME}"
EXPECTED = [("get_weather", '{"city": "Paris"}'), ("get_time", "{}")]
HERMES = (
    "{% if tools %}{{ tools | tojson }}<tool_call></tool_call>{% endif %}"
    "{% for m in messages %}{{ m.role }}:{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.id }}={{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}"
    "{% if m.tool_call_id %}#{{ m.tool_call_id }}{% endif %};{% endfor %}"
)  # fmt: skip
MISTRAL = HERMES.replace("<tool_call></tool_call>", "[TOOL_CALLS]") + "{# length 9 #}"


def function(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


TOOLS = [
    function("get_weather", parameters={"type": "object", "properties": {"city": {"type": "string"}}}),
    function("get_time"),
]


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "tools": TOOLS, **fields}


@contextmanager
def talking(text: str, *, template: str = HERMES, tokens_per_step: int = 1) -> Iterator[tuple[httpx.Client, Running]]:
    driver = make_driver(saying(text, tokens_per_step=tokens_per_step), max_context=2048)
    with running(driver, template=template) as server, httpx.Client(base_url=server.url) as http:
        yield http, server


def whole(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = http.post(PATH, json=body(**fields))
    assert response.status_code == 200, response.text
    reply: dict[str, Any] = response.json()
    return reply


def choice_of(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    (choice,) = whole(http, **fields)["choices"]
    return dict(choice)


def stream(http: httpx.Client, **fields: Any) -> list[Any]:
    response = http.post(PATH, json=body(stream=True, **fields))
    assert response.status_code == 200, response.text
    lines = response.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line[6:]) for line in lines[:-2]]


def deltas(chunks: list[Any], index: int = 0) -> list[dict[str, Any]]:
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return [choice["delta"] for choice in choices]


def joined(chunks: list[Any], index: int = 0) -> dict[str, Any]:
    """A stream's message as a strict client puts it together."""
    message: dict[str, Any] = {"content": "", "tool_calls": []}
    calls = message["tool_calls"]
    for delta in deltas(chunks, index):
        message["content"] += delta.get("content") or ""
        for call in delta.get("tool_calls", []):
            if call["index"] == len(calls):
                assert call["id"]
                assert call["type"] == "function"
                assert call["function"]["name"]
                calls.append({"id": call["id"], "type": call["type"], "function": dict(call["function"])})
            else:
                assert set(call) == {"index", "function"}
                assert set(call["function"]) == {"arguments"}
                assert call["index"] == len(calls) - 1  # no call goes on once the next has begun
                calls[-1]["function"]["arguments"] += call["function"]["arguments"]
    message["content"] = message["content"] or None
    return message


def called(message: dict[str, Any]) -> list[tuple[str, str]]:
    return [(call["function"]["name"], call["function"]["arguments"]) for call in message["tool_calls"]]
