"""Responses that are kept: going on from them, listing, deleting, the background, and what another key sees of them."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from tests.gateway.conftest import REPLY
from tests.gateway.running import Running
from tests.gateway.test_responses import PATH, call, events_of, refused

COUNT = f"{PATH}/input_tokens"
CHAT = "/v1/chat/completions"


def said(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def num_prompt_tokens(http: httpx.Client, messages: list[dict[str, Any]]) -> int:
    reply = http.post(CHAT, json={"model": "scripted", "messages": messages, "max_tokens": 1}).json()
    return int(reply["usage"]["prompt_tokens"])


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_can_be_gone_on_from(http: httpx.Client, stream: bool) -> None:
    turns = [said("hi")]
    previous = None
    for question in ("hi", "why", "so"):
        fields = {"input": question, "previous_response_id": previous, "stream": stream}
        response = http.post(PATH, json=call(**fields))
        reply = events_of(response)[-1]["response"] if stream else response.json()
        assert reply["usage"]["input_tokens"] == num_prompt_tokens(http, turns)
        assert reply["previous_response_id"] == previous
        assert http.get(f"{PATH}/{reply['id']}").json() == reply
        previous = reply["id"]
        turns += [
            {"role": "assistant", "content": REPLY},
            {"role": "user", "content": "why" if len(turns) < 3 else "so"},
        ]


def test_instructions_are_not_inherited(http: httpx.Client) -> None:
    first = http.post(PATH, json=call(instructions="Be very brief indeed.")).json()
    second = http.post(PATH, json=call(previous_response_id=first["id"])).json()
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": REPLY},
        {"role": "user", "content": "hi"},
    ]
    assert second["usage"]["input_tokens"] == num_prompt_tokens(http, turns)
    assert second["instructions"] is None


def test_what_is_not_stored_is_not_found(http: httpx.Client) -> None:
    reply = http.post(PATH, json=call(store=False)).json()
    for path in (reply["id"], f"{reply['id']}/input_items", "resp_nonsense"):
        error = refused(http.get(f"{PATH}/{path}"), 404)
        assert "not found" in error["message"]
    assert refused(http.delete(f"{PATH}/{reply['id']}"), 404)
    assert refused(http.post(f"{PATH}/{reply['id']}/cancel"), 404)
    error = refused(http.post(PATH, json=call(previous_response_id=reply["id"])))
    assert error["code"] == "previous_response_not_found"
    assert error["message"] == f"Previous response with id '{reply['id']}' not found."


def test_no_key_sees_another_s(server: Running) -> None:
    def client(key: str) -> httpx.Client:
        return httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {key}"})

    with client("alice") as alice, client("bob") as bob:
        reply = alice.post(PATH, json=call(input=[{"role": "user", "content": "hi", "id": "msg_mine"}])).json()
        id = reply["id"]
        assert alice.get(f"{PATH}/{id}").status_code == 200
        assert refused(bob.get(f"{PATH}/{id}"), 404)
        assert refused(bob.get(f"{PATH}/{id}/input_items"), 404)
        assert refused(bob.delete(f"{PATH}/{id}"), 404)
        assert refused(bob.post(f"{PATH}/{id}/cancel"), 404)
        assert refused(bob.post(PATH, json=call(previous_response_id=id)))
        assert refused(bob.post(COUNT, json=call(previous_response_id=id)))
        reference = call(input=[{"type": "item_reference", "id": "msg_mine"}])
        assert refused(bob.post(PATH, json=reference), 404)["param"] == "input[0]"
        assert alice.post(PATH, json=reference).status_code == 200
        assert alice.get(f"{PATH}/{id}").json() == reply


def test_references_and_repeated_items(http: httpx.Client) -> None:
    first = http.post(PATH, json=call()).json()
    (said,) = first["output"]
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": REPLY},
        {"role": "user", "content": "hi"},
    ]
    expected = num_prompt_tokens(http, turns)
    question = {"role": "user", "content": "hi"}
    for items in ([question, {"id": said["id"]}, question], [question, said, question]):
        reply = http.post(PATH, json=call(input=items)).json()
        assert reply["usage"]["input_tokens"] == expected
        listed = http.get(f"{PATH}/{reply['id']}/input_items?order=asc").json()["data"]
        assert [item["role"] for item in listed] == ["user", "assistant", "user"]
        assert listed[1]["id"] == said["id"]
    # An item of the list that is referred to is there once; one that is sent again is a turn of its own.
    again = http.post(PATH, json=call(previous_response_id=first["id"], input=[{"id": said["id"]}, question])).json()
    assert again["usage"]["input_tokens"] == expected
    doubled = http.post(PATH, json=call(previous_response_id=first["id"], input=[said, question])).json()
    assert doubled["usage"]["input_tokens"] > expected
    page = http.get(f"{PATH}/{doubled['id']}/input_items").json()
    assert len({item["id"] for item in page["data"]}) == 4


def test_input_items_by_the_sdk(client: OpenAI) -> None:
    first = client.responses.create(model="scripted", input="hi", instructions="Be brief.")
    second = client.responses.create(
        model="scripted",
        previous_response_id=first.id,
        input=[
            {"role": "developer", "content": "Go on."},
            {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "call_1", "output": "7"},
            {"role": "user", "content": "hi"},
        ],
    )
    newest = client.responses.input_items.list(second.id, limit=2)
    assert newest.has_more
    listed = list(
        client.responses.input_items.list(second.id, limit=2, order="asc", include=["reasoning.encrypted_content"])
    )
    assert [item.type for item in listed] == [
        "message", "message", "message", "function_call", "function_call_output", "message",
    ]  # fmt: skip
    ids = [listed[-1].id, listed[-2].id]
    assert [item.id for item in newest.data] == ids
    shown = newest.to_dict()
    assert [shown["first_id"], shown["last_id"]] == ids
    rest = client.responses.input_items.list(second.id, order="asc", after=str(listed[3].id)).data
    assert [item.id for item in rest] == [item.id for item in listed[4:]]
    assert client.responses.retrieve(second.id).output_text == REPLY
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError, match="not found"):
        client.responses.retrieve(first.id)
    # What was made from it is whole all the same.
    assert client.responses.create(model="scripted", input="hi", previous_response_id=second.id).output_text == REPLY


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"), ("limit=101", "limit"), ("limit=x", "limit"), ("order=up", "order"),
        ("after=nobody", "after"), ("before=nobody", "before"), ("include[]=all", "include"),
    ],
)  # fmt: skip
def test_wrong_queries_name_the_parameter(http: httpx.Client, query: str, param: str) -> None:
    id = http.post(PATH, json=call()).json()["id"]
    assert refused(http.get(f"{PATH}/{id}/input_items?{query}"))["param"] == param


def test_a_synchronous_one_is_neither_cancelled_nor_streamed_again(http: httpx.Client) -> None:
    id = http.post(PATH, json=call()).json()["id"]
    assert refused(http.post(f"{PATH}/{id}/cancel"))["message"] == "Cannot cancel a synchronous response."
    assert refused(http.get(f"{PATH}/{id}?stream=true"))["param"] == "stream"
    assert refused(http.get(f"{PATH}/{id}?starting_after=1"))["param"] == "starting_after"
    assert refused(http.get(f"{PATH}/{id}?stream=maybe"))["param"] == "stream"


def test_truncation_drops_the_oldest(http: httpx.Client) -> None:
    long = [{"role": "system", "content": "Be brief."}]
    long += [{"role": "user", "content": f"{number} " + "x" * 100} for number in range(8)]
    assert refused(http.post(PATH, json=call(input=long)))["code"] == "context_length_exceeded"
    reply = http.post(PATH, json=call(input=long, truncation="auto", max_output_tokens=40)).json()
    # One token per character: as many of the newest as leave 40 of 512, and not one more dropped.
    kept = next(
        count for count in range(7, 0, -1) if num_prompt_tokens_or_0(http, [long[0], *long[-count:]]) in range(1, 473)
    )
    assert reply["usage"]["input_tokens"] == num_prompt_tokens(http, [long[0], *long[-kept:]])
    assert reply["truncation"] == "auto"
    # What is kept is the whole conversation.
    page = http.get(f"{PATH}/{reply['id']}/input_items?limit=100").json()
    assert len(page["data"]) == 9
    single = call(input="x" * 600, truncation="auto")
    assert refused(http.post(PATH, json=single))["code"] == "context_length_exceeded"


def num_prompt_tokens_or_0(http: httpx.Client, messages: list[dict[str, Any]]) -> int:
    body = {"model": "scripted", "messages": messages, "max_tokens": 1}
    reply = http.post(CHAT, json=body).json()
    return int(reply["usage"]["prompt_tokens"]) if "usage" in reply else 0


def test_a_dropped_call_takes_its_output_along(http: httpx.Client) -> None:
    call_item = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c1", "output": "y" * 50}
    question = {"role": "user", "content": "x" * 310}
    items = [{"role": "user", "content": "z" * 200}, call_item, output, question]
    reply = http.post(PATH, json=call(input=items, truncation="auto", max_output_tokens=100)).json()
    # Without the first item it is still too long; without the call but with its output it would fit.
    called = {"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": "{}"}}]}
    result = {"role": "tool", "tool_call_id": "c1", "content": "y" * 50}
    assert num_prompt_tokens(http, [result, question]) <= 412 < num_prompt_tokens(http, [called, result, question])
    assert reply["usage"]["input_tokens"] == num_prompt_tokens(http, [question])
