"""Chat completions that are kept: the same reply again, its messages, metadata, lists, and what others see of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from ortserve.gateway.store.state import State, StateOptions
from ortserve.runtime.request import FinishReason
from tests.gateway.conftest import REPLY
from tests.gateway.running import Running, running
from tests.gateway.scripted import Held, make_driver, saying
from tests.gateway.test_responses import refused
from tests.waiting import wait_for

PATH = "/v1/chat/completions"
USER = {"role": "user", "content": "hi"}


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [USER], "store": True, **fields}


@pytest.fixture
def own(server: Running) -> Iterator[httpx.Client]:
    """A caller nobody else is: it sees only what it keeps itself."""
    key = f"Bearer {time.monotonic_ns()}"
    with httpx.Client(base_url=server.url, headers={"authorization": key}) as http:
        yield http


@pytest.fixture
def client(server: Running) -> Iterator[OpenAI]:
    """Every reply is validated against the SDK's types."""
    key = str(time.monotonic_ns())
    with OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, _strict_response_validation=True) as client:
        yield client


def add(http: httpx.Client, **fields: Any) -> str:
    return str(http.post(PATH, json=chat(**fields)).json()["id"])


def listed(http: httpx.Client, query: str = "") -> list[str]:
    return [one["id"] for one in http.get(f"{PATH}{query}").json()["data"]]


def test_by_the_sdk(client: OpenAI) -> None:
    completions = client.chat.completions
    messages: list[Any] = [{"role": "system", "content": "Be brief."}, USER]
    first = completions.create(model="scripted", messages=messages, store=True, metadata={"a": "b", "n": "1"})
    second = completions.create(model="scripted", messages=messages, store=True, n=2, logprobs=True, top_logprobs=2)
    completions.create(model="scripted", messages=messages)
    assert first.metadata == {"a": "b", "n": "1"}
    assert completions.retrieve(first.id) == first
    assert completions.retrieve(second.id) == second
    assert list(completions.list(limit=1)) == [first, second]
    assert completions.list(order="desc").data == [second, first]
    assert completions.list(metadata={"n": "1", "a": "b"}).data == [first]
    assert completions.list(metadata={"n": "1", "a": "c"}).data == []
    assert completions.list(model="scripted", after=first.id).data == [second]
    assert completions.list(model="another").data == []
    changed = completions.update(second.id, metadata={"c": "d"})
    assert changed == second.model_copy(update={"metadata": {"c": "d"}})
    assert completions.retrieve(second.id) == changed
    deleted = completions.delete(first.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (first.id, "chat.completion.deleted", True)
    for call in (completions.retrieve, completions.delete, completions.messages.list):
        with pytest.raises(openai.NotFoundError, match="not found"):
            call(first.id)
    with pytest.raises(openai.NotFoundError, match="not found"):
        completions.update(first.id, metadata={})


def test_a_streamed_reply_is_kept_as_it_was_sent(own: httpx.Client) -> None:
    frames = own.post(PATH, json=chat(stream=True, n=2, metadata={"a": "b"})).text
    assert frames.endswith("data: [DONE]\n\n")
    assert '"usage"' not in frames, "counts are kept, and shown only when asked for"
    (id,) = listed(own)
    assert f'"id":"{id}"' in frames
    kept = own.get(f"{PATH}/{id}").json()
    whole = own.post(PATH, json=chat(n=2, metadata={"a": "b"})).json()
    for name in ("id", "created"):
        del kept[name], whole[name]
    assert kept == whole
    assert [choice["message"]["content"] for choice in kept["choices"]] == [REPLY] * 2


def test_messages_are_what_was_asked(own: httpx.Client) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": parts, "name": "me", "id": "mine"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "x"},
    ]
    id = add(own, messages=messages)
    page = own.get(f"{PATH}/{id}/messages").json()
    assert page["data"] == [
        {"id": f"{id}-0", "role": "user", "name": "me", "content": None, "content_parts": parts},
        {"id": f"{id}-1", "role": "assistant", "tool_calls": [call], "content": None, "content_parts": None},
        {"id": f"{id}-2", "role": "tool", "tool_call_id": "c1", "content": "x", "content_parts": None},
    ]
    assert (page["object"], page["first_id"], page["last_id"]) == ("list", f"{id}-0", f"{id}-2")

    def places(query: str) -> tuple[list[str], bool]:
        page = own.get(f"{PATH}/{id}/messages?{query}").json()
        return [one["id"].removeprefix(f"{id}-") for one in page["data"]], page["has_more"]

    assert places("limit=2") == (["0", "1"], True)
    assert places(f"limit=2&after={id}-1") == (["2"], False)
    assert places(f"order=desc&limit=1&after={id}-2") == (["1"], True)
    assert places(f"limit=1&before={id}-2") == (["1"], True)
    assert refused(own.get(f"{PATH}/{id}/messages?after=x"))["param"] == "after"


@pytest.mark.parametrize("key", ['a"b', "a.b", "$", "ключ", "a]b", "a\\u0062", "'; --", "%"])
def test_metadata_are_found_whatever_their_names_are(own: httpx.Client, key: str) -> None:
    id = add(own, metadata={key: 'v"%', "other": "x"})
    add(own, metadata={"other": "x"})
    found = own.get(PATH, params={f"metadata[{key}]": 'v"%'}).json()["data"]
    assert [one["id"] for one in found] == [id]
    assert own.get(PATH, params={f"metadata[{key}]": "x"}).json()["data"] == []


def test_metadata_are_echoed_without_being_kept(own: httpx.Client) -> None:
    response = own.post(PATH, json=chat(store=False, metadata={"a": "b"}))
    assert response.json()["metadata"] == {"a": "b"}
    assert "metadata" not in own.post(PATH, json=chat(store=False)).json()
    assert "x-ortserve-ignored" not in response.headers
    assert listed(own) == []


def test_others_see_nothing(own: httpx.Client, http: httpx.Client) -> None:
    id = add(own)
    assert id not in listed(http, "?limit=100")
    for response in (
        http.get(f"{PATH}/{id}"),
        http.get(f"{PATH}/{id}/messages"),
        http.post(f"{PATH}/{id}", json={"metadata": {}}),
        http.delete(f"{PATH}/{id}"),
    ):
        assert response.status_code == 404
        assert id in response.json()["error"]["message"]
    assert listed(own) == [id]


def test_bad_queries_and_bodies(own: httpx.Client) -> None:
    id = add(own)
    assert refused(own.get(f"{PATH}?limit=0"))["param"] == "limit"
    assert refused(own.get(f"{PATH}?order=up"))["param"] == "order"
    assert refused(own.get(f"{PATH}?after=nothing"))["param"] == "after"
    assert refused(own.post(f"{PATH}/{id}", json={}))["param"] == "metadata"
    assert refused(own.post(f"{PATH}/{id}", json={"metadata": {"a": 1}}))["param"] == "metadata.a"
    assert refused(own.post(PATH, json=chat(metadata={"a": "x" * 513})))["param"] == "metadata.a"


def test_what_fails_or_is_left_is_not_kept() -> None:
    driver = make_driver(saying("x"), ending=FinishReason.ERROR)
    with running(driver) as server, httpx.Client(base_url=server.url) as http:
        assert "error" in http.post(PATH, json=chat(stream=True)).text
        assert http.post(PATH, json=chat()).status_code == 500
        assert listed(http) == []
    with (
        running(make_driver(Held("x" * 200, 5))) as server,
        httpx.Client(base_url=server.url) as http,
    ):
        with http.stream("POST", PATH, json=chat(stream=True)) as response:
            next(response.iter_lines())
        wait_for(lambda: server.driver.cancelled)
        assert listed(http) == []


def test_they_outlive_the_server(tmp_path: Path) -> None:
    with (
        running(make_driver(saying("x")), state=State(StateOptions(tmp_path))) as server,
        httpx.Client(base_url=server.url) as http,
    ):
        id = add(http, metadata={"a": "b"})
        reply = http.get(f"{PATH}/{id}").json()
    with (
        running(make_driver(saying("x")), state=State(StateOptions(tmp_path))) as server,
        httpx.Client(base_url=server.url) as http,
    ):
        assert http.get(f"{PATH}/{id}").json() == reply
        assert listed(http, "?metadata[a]=b") == [id]
