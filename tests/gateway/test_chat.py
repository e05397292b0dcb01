"""Chat replies, whole and streamed: shapes, chunk order, choices, stops, log-probabilities, usage."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from ortserve.runtime.request import Request
from tests.gateway.conftest import REPLY
from tests.gateway.running import Running, running
from tests.gateway.scripted import make_driver, make_tokenizer, saying

PATH = "/v1/chat/completions"
NUM_TOKENS = len(make_tokenizer().encode(REPLY, add_special_tokens=False))


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], **fields}


def frames(text: str) -> list[Any]:
    """Data frames of a stream that ended properly, parsed."""
    lines = text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(line.startswith("data: ") for line in lines[:-1])
    return [json.loads(line[6:]) for line in lines[:-2]]


def stream(http: httpx.Client, **fields: Any) -> list[Any]:
    response = http.post(PATH, json=body(stream=True, **fields))
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["x-request-id"]
    chunks = frames(response.text)
    for chunk in chunks:  # strict clients demand each of these in each chunk
        assert isinstance(chunk["created"], int)
        assert chunk["object"] == "chat.completion.chunk"
        for choice in chunk["choices"]:
            assert set(choice) == {"index", "delta", "logprobs", "finish_reason"}
            assert choice["finish_reason"] in (None, "stop", "length")
    return chunks


def text_of(chunks: list[Any], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def test_a_whole_reply(http: httpx.Client) -> None:
    reply = http.post(PATH, json=body()).json()
    assert reply["object"] == "chat.completion"
    assert reply["id"].startswith("chatcmpl-")
    assert reply["id"] != http.post(PATH, json=body()).json()["id"]
    assert isinstance(reply["created"], int)
    assert reply["model"] == "scripted"
    assert reply["system_fingerprint"].startswith("fp_")
    (choice,) = reply["choices"]
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": REPLY, "refusal": None, "annotations": []},
        "logprobs": None,
        "finish_reason": "stop",
    }
    usage = reply["usage"]
    assert usage["completion_tokens"] == NUM_TOKENS + 1  # the end-of-sequence token was drawn too
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0


def test_the_order_of_chunks(http: httpx.Client) -> None:
    chunks = stream(http)
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    for chunk in chunks[1:-1]:
        (choice,) = chunk["choices"]
        assert set(choice["delta"]) == {"content"}
        assert choice["finish_reason"] is None
        assert choice["logprobs"] is None
    assert chunks[-1]["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
    assert all("usage" not in chunk for chunk in chunks)
    assert text_of(chunks) == REPLY


def test_usage_is_the_last_chunk_when_asked_for(http: httpx.Client) -> None:
    chunks = stream(http, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == http.post(PATH, json=body()).json()["usage"]
    for unasked in ({}, {"include_usage": False}, {"include_usage": None}):
        assert all("usage" not in chunk and chunk["choices"] for chunk in stream(http, stream_options=unasked))


def test_choices_begin_in_order_and_are_all_complete(http: httpx.Client) -> None:
    chunks = stream(http, n=5, stream_options={"include_usage": True})
    order = [choice["index"] for chunk in chunks for choice in chunk["choices"]]
    assert [index for place, index in enumerate(order) if index not in order[:place]] == [0, 1, 2, 3, 4]
    for index in range(5):
        own = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert [choice["finish_reason"] for choice in own] == [None] * (len(own) - 1) + ["stop"]
        assert [choice["delta"].get("role") for choice in own] == ["assistant"] + [None] * (len(own) - 1)
        assert text_of(chunks, index) == REPLY
    usage = chunks[-1]["usage"]
    assert usage["completion_tokens"] == 5 * (NUM_TOKENS + 1)
    assert usage["prompt_tokens"] == http.post(PATH, json=body()).json()["usage"]["prompt_tokens"]


def test_choices_end_each_at_its_own_time() -> None:
    """The longest one last: nothing comes for a choice that has ended, and nothing is lost of one that goes on."""
    lengths = [2, 9, 5]
    driver = make_driver(lambda request: saying("x" * lengths[request.choice])(request))
    with running(driver) as server, httpx.Client(base_url=server.url) as http:
        chunks = stream(http, n=3)
        whole = http.post(PATH, json=body(n=3)).json()["choices"]
    for index, length in enumerate(lengths):
        own = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert [choice["finish_reason"] for choice in own] == [None] * (len(own) - 1) + ["stop"]
        assert text_of(chunks, index) == whole[index]["message"]["content"] == "x" * length


def test_several_whole_choices(http: httpx.Client, server: Running) -> None:
    reply = http.post(PATH, json=body(n=3, seed=7)).json()
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    requests = server.driver.submitted[-3:]
    assert [request.choice for request in requests] == [0, 1, 2]
    assert {request.sampling.seed for request in requests} == {7}


@pytest.mark.parametrize("stop", [["world"], "lo w", [" caf", "world,"], ["\U0001f600"], ["zzz", "é"]])
def test_stop_strings_across_tokens(http: httpx.Client, server: Running, stop: str | list[str]) -> None:
    strings = [stop] if isinstance(stop, str) else stop
    expected = REPLY[: min(REPLY.find(string) for string in strings if string in REPLY)]
    reply = http.post(PATH, json=body(stop=stop)).json()
    assert reply["choices"][0]["message"]["content"] == expected
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert server.driver.submitted[-1].id in {*server.driver.cancelled, *server.driver.finished}
    chunks = stream(http, stop=stop, stream_options={"include_usage": True})
    assert text_of(chunks) == expected
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"] == reply["usage"]
    assert reply["usage"]["completion_tokens"] <= NUM_TOKENS


def test_a_stop_string_that_is_only_begun_takes_nothing(http: httpx.Client) -> None:
    for stop in (["!!"], ["\U0001f600!?", "zzz"]):
        (choice,) = http.post(PATH, json=body(stop=stop)).json()["choices"]
        assert choice["message"]["content"] == text_of(stream(http, stop=stop)) == REPLY


@pytest.mark.parametrize("max_tokens", range(1, NUM_TOKENS + 1))
def test_length_cuts_no_character_in_either_mode(http: httpx.Client, max_tokens: int) -> None:
    reply = http.post(PATH, json=body(max_tokens=max_tokens, logprobs=True)).json()
    (choice,) = reply["choices"]
    assert choice["finish_reason"] == "length"
    assert "\ufffd" not in choice["message"]["content"]
    assert REPLY.startswith(choice["message"]["content"])
    chunks = stream(http, max_completion_tokens=max_tokens, logprobs=True)
    assert text_of(chunks) == choice["message"]["content"]
    streamed = [entry for chunk in chunks for entry in (chunk["choices"][0]["logprobs"] or {}).get("content", [])]
    assert streamed == choice["logprobs"]["content"]
    assert bytes(byte for entry in streamed for byte in entry["bytes"]).decode() == choice["message"]["content"]


def test_logprobs_belong_to_shown_tokens_only(http: httpx.Client) -> None:
    (choice,) = http.post(PATH, json=body(logprobs=True, top_logprobs=2, stop="world")).json()["choices"]
    entries = choice["logprobs"]["content"]
    assert [entry["token"] for entry in entries] == ["hello", " "]
    assert [len(entry["top_logprobs"]) for entry in entries] == [2, 2]
    assert entries[0]["top_logprobs"][0] == {"token": "hello", "logprob": -0.25, "bytes": list(b"hello")}
    for fields in ({}, {"top_logprobs": 0}):
        (choice,) = http.post(PATH, json=body(logprobs=True, **fields)).json()["choices"]
        assert choice["logprobs"]["content"]
        assert all(entry["top_logprobs"] == [] for entry in choice["logprobs"]["content"])
    (choice,) = http.post(PATH, json=body(logprobs=True, top_logprobs=20)).json()["choices"]
    assert len(choice["logprobs"]["content"][0]["top_logprobs"]) == 20


def test_the_rendered_prompt_reaches_the_engine(http: httpx.Client, server: Running) -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "again"},
    ]
    assert http.post(PATH, json=body(messages=messages)).status_code == 200
    expected = (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n<|im_end|>\n<|im_start|>user\nagain<|im_end|>\n<|im_start|>assistant\n"
    )
    assert server.driver.submitted[-1].prompt == make_tokenizer().encode(expected, add_special_tokens=False)


def test_long_prompts_are_prepared_off_the_loop(http: httpx.Client, server: Running) -> None:
    content = "hello world" * 200  # 2,200 characters, 400 tokens
    assert http.post(PATH, json=body(messages=[{"role": "user", "content": content}])).status_code == 200
    assert len(server.driver.submitted[-1].prompt) > 400


def test_max_tokens_is_clamped_to_the_context(http: httpx.Client, server: Running) -> None:
    assert http.post(PATH, json=body(max_tokens=10**9)).status_code == 200
    request: Request = server.driver.submitted[-1]
    assert request.sampling.max_tokens == 512 - len(request.prompt)
    assert http.post(PATH, json=body()).status_code == 200
    assert server.driver.submitted[-1].sampling.max_tokens is None, "the engine goes on to the end of the context"


def test_tokens_of_one_step_make_one_chunk() -> None:
    with (
        running(make_driver(saying(REPLY, tokens_per_step=4))) as server,
        httpx.Client(base_url=server.url) as http,
    ):
        chunks = stream(http)
        logged = stream(http, logprobs=True, stop="zzz")
    assert len(chunks) == 2 + -(-NUM_TOKENS // 4)
    assert text_of(chunks) == text_of(logged) == REPLY
