"""Conversations: their own endpoints, and responses that belong to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from ortserve.runtime.request import FinishReason
from tests.gateway.conftest import REPLY
from tests.gateway.running import Running
from tests.gateway.test_background import wait_for_status
from tests.gateway.test_kept_responses import num_prompt_tokens, said
from tests.gateway.test_responses import call, events_of, refused

PATH = "/v1/conversations"
RESPONSES = "/v1/responses"


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[OpenAI]:
    """Every reply is validated against the SDK's types."""
    url = f"{server.url}/v1"
    with OpenAI(base_url=url, api_key="any", max_retries=0, _strict_response_validation=True) as client:
        yield client


def ids_of(http: httpx.Client, id: str) -> list[str]:
    page = http.get(f"{PATH}/{id}/items?order=asc&limit=100").json()
    assert not page["has_more"]
    return [item["id"] for item in page["data"]]


def test_by_the_sdk(client: OpenAI) -> None:
    conversation = client.conversations.create(
        items=[{"type": "message", "role": "user", "content": "one"}], metadata={"a": "b"}
    )
    assert conversation.metadata == {"a": "b"}
    assert client.conversations.retrieve(conversation.id) == conversation
    changed = client.conversations.update(conversation.id, metadata={"c": "d"})
    assert changed.metadata == {"c": "d"}
    assert client.conversations.retrieve(conversation.id) == changed
    added = client.conversations.items.create(
        conversation.id,
        items=[
            {"type": "message", "role": "assistant", "content": "two"},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "x"},
        ],
    )
    assert [item.type for item in added.data] == ["message", "function_call", "function_call_output"]
    listed = list(client.conversations.items.list(conversation.id, limit=1, order="asc"))
    assert [item.type for item in listed] == ["message", "message", "function_call", "function_call_output"]
    assert listed[1:] == added.data
    newest = client.conversations.items.list(conversation.id, limit=3)
    assert newest.has_more
    assert [item.id for item in newest.data] == [item.id for item in listed[:0:-1]]
    one = client.conversations.items.retrieve(str(listed[1].id), conversation_id=conversation.id)
    assert one == listed[1]
    assert client.conversations.items.delete(str(listed[1].id), conversation_id=conversation.id) == changed
    with pytest.raises(openai.NotFoundError, match="not found"):
        client.conversations.items.retrieve(str(listed[1].id), conversation_id=conversation.id)
    assert client.conversations.delete(conversation.id).deleted
    with pytest.raises(openai.NotFoundError, match="not found"):
        client.conversations.retrieve(conversation.id)
    empty = client.conversations.create()
    assert client.conversations.items.list(empty.id).data == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("store", [False, True])
def test_responses_grow_it_by_their_turns(http: httpx.Client, stream: bool, store: bool) -> None:
    items = [{"role": "system", "content": "Be brief."}]
    id = http.post(PATH, json={"items": items}).json()["id"]
    turns: list[dict[str, Any]] = [items[0]]
    for number in range(3):
        question = str(number)
        turns.append(said(question))
        body = call(input=question, conversation={"id": id} if number else id, stream=stream, store=store)
        response = http.post(RESPONSES, json=body)
        reply = events_of(response)[-1]["response"] if stream else response.json()
        assert reply["conversation"] == {"id": id}
        assert reply["usage"]["input_tokens"] == num_prompt_tokens(http, turns)
        turns.append({"role": "assistant", "content": REPLY})
        assert ids_of(http, id)[-1] == reply["output"][0]["id"]
        assert len(ids_of(http, id)) == len(turns)
        assert (http.get(f"{RESPONSES}/{reply['id']}").status_code == 200) == store


def test_a_background_response_grows_it_when_it_ends(http: httpx.Client) -> None:
    id = http.post(PATH, json={}).json()["id"]
    response = http.post(RESPONSES, json=call(conversation=id, background=True)).json()
    reply = wait_for_status(http, response["id"], "completed")
    assert ids_of(http, id)[-1] == reply["output"][0]["id"]
    assert len(ids_of(http, id)) == 2


def test_a_failed_response_does_not_grow_it(server: Running, http: httpx.Client) -> None:
    id = http.post(PATH, json={}).json()["id"]
    server.driver.ending = FinishReason.ERROR
    try:
        assert http.post(RESPONSES, json=call(conversation=id)).status_code == 500
        assert events_of(http.post(RESPONSES, json=call(conversation=id, stream=True)))[-1]["type"] == "response.failed"
    finally:
        server.driver.ending = FinishReason.STOP
    assert ids_of(http, id) == []


def test_no_key_sees_another_s(server: Running) -> None:
    def client(key: str) -> httpx.Client:
        return httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {key}"})

    with client("alice") as alice, client("bob") as bob:
        id = alice.post(PATH, json={"items": [said("x")]}).json()["id"]
        (item_id,) = ids_of(alice, id)
        for method, path, body in (
            ("GET", f"{PATH}/{id}", None),
            ("POST", f"{PATH}/{id}", {"metadata": {}}),
            ("DELETE", f"{PATH}/{id}", None),
            ("GET", f"{PATH}/{id}/items", None),
            ("POST", f"{PATH}/{id}/items", {"items": [said("y")]}),
            ("GET", f"{PATH}/{id}/items/{item_id}", None),
            ("DELETE", f"{PATH}/{id}/items/{item_id}", None),
            ("POST", RESPONSES, call(conversation=id)),
        ):
            assert refused(bob.request(method, path, json=body), 404), path
        assert ids_of(alice, id) == [item_id]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"items": [said("x")] * 21}, "items"),
        ({"items": [{"type": "item_reference", "id": "msg_1"}]}, "items[0]"),
        ({"items": [{"role": "user"}]}, "items[0].content"),
        ({"items": []}, "items"),
        ({}, "items"),
        ({"items": [{**said("x"), "id": "same"}, {**said("y"), "id": "same"}]}, "items[1].id"),
    ],
)
def test_wrong_items_are_named(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    id = http.post(PATH, json={}).json()["id"]
    assert refused(http.post(f"{PATH}/{id}/items", json=body))["param"] == param
    assert ids_of(http, id) == []
    assert refused(http.post(f"{PATH}/{id}", json={}))["param"] == "metadata"
