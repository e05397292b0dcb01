"""Hostile bodies: each is a 4xx of bounded size, and a stream that runs meanwhile says what it would have said."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway import hostile
from tests.gateway.conftest import REPLY
from tests.gateway.pocket import serving_pocket
from tests.gateway.running import Running, running
from tests.gateway.scripted import make_driver, saying
from tests.gateway.test_chat import frames
from tests.waiting import PATIENCE_S

CHAT, TEXT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"
TOKENIZE, DETOKENIZE = "/v1/tokenize", "/v1/detokenize"
LONG = "x" * 1_000_000
MAX_REPLY = 8192  # bytes: what is wrong is named, not repeated
USER = {"role": "user", "content": "hi"}


def nested(depth: int, kind: str) -> bytes:
    return b"[" * depth + b"]" * depth if kind == "array" else b'{"a":' * depth + b"1" + b"}" * depth


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": "scripted", "messages": [USER], **fields}).encode()


def chat_with(field: str, raw: bytes) -> bytes:
    return b'{"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "%b": %b}' % (field.encode(), raw)


BODIES: dict[str, tuple[str, bytes]] = {
    "a long model": (CHAT, chat(model=LONG)),
    "a long role": (CHAT, chat(messages=[{"role": LONG, "content": "hi"}])),
    "a long message": (CHAT, chat(messages=[{"role": "user", "content": LONG}])),
    "a long stop": (CHAT, chat(stop=LONG)),
    "a long name of a token": (CHAT, chat(logit_bias={LONG: 1})),
    "a long word": (CHAT, chat(service_tier=LONG)),
    "a long number of messages": (CHAT, chat(messages=[USER] * 10_000)),
    "many stops": (CHAT, chat(stop=["x"] * 100_000)),
    "many prompts": (TEXT, json.dumps({"model": "scripted", "prompt": ["x"] * 100_000}).encode()),
    "a long prompt": (TEXT, json.dumps({"model": "scripted", "prompt": LONG}).encode()),
    "many token ids": (TEXT, json.dumps({"model": "scripted", "prompt": [5] * 300_000}).encode()),
    "many ids that are none": (DETOKENIZE, json.dumps({"tokens": [5] * 300_000 + [-1]}).encode()),
    "many turns": (
        MESSAGES,
        json.dumps(
            {"model": "scripted", "max_tokens": 5, "messages": [USER, {**USER, "role": "assistant"}] * 5000}
        ).encode(),
    ),
    "many turns of one": (
        MESSAGES,
        json.dumps({"model": "scripted", "max_tokens": 5, "messages": [USER] * 10_000}).encode(),
    ),
    "many items": (RESPONSES, json.dumps({"input": [USER] * 10_000, "store": False}).encode()),
    "many messages to be counted": (TOKENIZE, json.dumps({"messages": [USER] * 10_000}).encode()),
    "a long message to the other API": (
        MESSAGES,
        json.dumps({"model": "scripted", "max_tokens": 5, "messages": [{"role": "user", "content": LONG}]}).encode(),
    ),
    "a long input": (RESPONSES, json.dumps({"input": LONG, "store": False}).encode()),
    "deep arrays": (CHAT, nested(100_000, "array")),
    "deep objects": (CHAT, nested(100_000, "object")),
    "a deep stop": (CHAT, chat_with("stop", nested(400, "array"))),
    "a deep seed": (CHAT, chat_with("seed", nested(400, "object"))),
    "a deep schema": (CHAT, chat_with("response_format", nested(400, "object"))),
    "a huge integer": (CHAT, chat_with("seed", b"1" * 100_000)),
    "a large integer": (CHAT, chat_with("max_tokens", b"-" + b"9" * 40)),
    "a huge number": (CHAT, chat_with("temperature", b"1e999")),
    "not a number": (CHAT, chat_with("temperature", b"NaN")),
    "bytes that are no text": (CHAT, b'{"model": "\xff\xfe"}'),
    "half a surrogate pair": (CHAT, b'{"model": "\\ud800"}'),
    "half a body": (CHAT, chat()[:-5]),
    "nothing": (CHAT, b""),
    "an unknown path": ("/v1/" + "x" * 5000, chat()),
}


@pytest.fixture(scope="module")
def busy() -> Iterator[Running]:
    with running(make_driver(saying(REPLY * 30), pace_s=0.005)) as server:
        yield server


@pytest.mark.parametrize("name", sorted(BODIES))
def test_it_is_refused_in_few_words(http: httpx.Client, name: str) -> None:
    path, body = BODIES[name]
    response = http.post(path, content=body, headers={"content-type": "application/json"})
    assert 400 <= response.status_code < 500, response.text[:500]
    assert response.headers["x-request-id"]
    assert len(response.content) < MAX_REPLY
    assert response.json()["error"]["message"]


def test_names_that_nobody_knows_are_refused_in_few_words() -> None:
    with (
        running(make_driver(saying("x")), strict_parameters=True) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        response = client.post(CHAT, content=chat(**{LONG: 1}))
    assert response.status_code == 400
    assert len(response.content) < MAX_REPLY
    assert response.json()["error"]["param"].startswith("xxx")


def test_running_streams_are_undisturbed(busy: Running) -> None:
    with httpx.Client(base_url=busy.url) as client:
        expected = texts(client.post(CHAT, content=chat(stream=True)).text)
        found: list[list[str]] = []

        def stream() -> None:
            with httpx.Client(base_url=busy.url) as own:
                found.append(texts(own.post(CHAT, content=chat(stream=True)).text))

        readers = [threading.Thread(target=stream) for _ in range(4)]
        for reader in readers:
            reader.start()
        statuses = {
            name: client.post(path, content=body, headers={"content-type": "application/json"}).status_code
            for name, (path, body) in BODIES.items()
        }
        for reader in readers:
            reader.join(PATIENCE_S)
    assert all(400 <= status < 500 for status in statuses.values()), statuses
    assert found == [expected] * 4


@pytest.fixture(scope="module")
def real(pocket: Path) -> Iterator[httpx.Client]:
    """A server that compiles grammars."""
    with serving_pocket(pocket) as url, httpx.Client(base_url=url) as client:
        yield client


def constrained(**fields: Any) -> dict[str, Any]:
    return {"model": "pocket", "messages": [USER], "max_tokens": 8, "temperature": 0, **fields}


@pytest.mark.parametrize("name", sorted(hostile.REFUSED))
def test_structures_that_cannot_be_enforced_are_refused(real: httpx.Client, name: str) -> None:
    fields = hostile.REFUSED[name]
    response = real.post(CHAT, json=constrained(**fields))
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["param"].split(".")[0] in fields
    assert len(response.content) < MAX_REPLY


@pytest.mark.parametrize("name", sorted(hostile.TAKEN))
def test_structures_that_only_look_expensive_are_followed(real: httpx.Client, name: str) -> None:
    response = real.post(CHAT, json=constrained(**hostile.TAKEN[name]))
    assert response.status_code == 200, response.text[:500]
    assert response.json()["usage"]["completion_tokens"] > 0


def test_structures_disturb_no_other_reply(real: httpx.Client) -> None:
    expected = real.post(CHAT, json=constrained(max_tokens=200, ignore_eos=True)).json()["choices"]
    found: list[Any] = []

    def ask() -> None:
        with httpx.Client(base_url=real.base_url) as own:
            found.append(own.post(CHAT, json=constrained(max_tokens=200, ignore_eos=True)).json()["choices"])

    readers = [threading.Thread(target=ask) for _ in range(3)]
    for reader in readers:
        reader.start()
    for fields in (*hostile.REFUSED.values(), *hostile.TAKEN.values()):
        real.post(CHAT, json=constrained(**fields))
    for reader in readers:
        reader.join(PATIENCE_S)
    assert found == [expected] * 3


def texts(body: str) -> list[str]:
    """Every delta, one by one: also how the text was cut must not change."""
    return [choice["delta"].get("content", "") for chunk in frames(body) for choice in chunk["choices"]]
