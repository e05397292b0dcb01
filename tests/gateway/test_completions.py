"""Text completions, whole and streamed."""

from __future__ import annotations

from typing import Any

import httpx

from tests.gateway.conftest import REPLY
from tests.gateway.running import Running, running
from tests.gateway.scripted import make_driver, make_tokenizer, saying
from tests.gateway.test_chat import frames

PATH = "/v1/completions"


def post(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = http.post(PATH, json={"model": "scripted", "prompt": "say", "max_tokens": 100, **fields})
    assert response.status_code == 200, response.text
    reply: dict[str, Any] = response.json()
    return reply


def stream(http: httpx.Client, **fields: Any) -> list[Any]:
    response = http.post(PATH, json={"model": "scripted", "prompt": "say", "max_tokens": 100, "stream": True, **fields})
    return frames(response.text)


def test_a_whole_reply(http: httpx.Client) -> None:
    reply = post(http)
    assert reply["object"] == "text_completion"
    assert reply["id"].startswith("cmpl-")
    assert reply["choices"] == [{"index": 0, "text": REPLY, "logprobs": None, "finish_reason": "stop"}]
    assert reply["usage"]["prompt_tokens"] == 3


def test_sixteen_tokens_by_default(http: httpx.Client, server: Running) -> None:
    http.post(PATH, json={"model": "scripted", "prompt": "say", "max_tokens": None})
    assert server.driver.submitted[-1].sampling.max_tokens == 16


def test_the_stream_ends_with_an_empty_text(http: httpx.Client) -> None:
    chunks = stream(http, stream_options={"include_usage": True})
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks[:-1]) == REPLY
    assert chunks[-2]["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] > 0


def test_every_kind_of_prompt(http: httpx.Client, server: Running) -> None:
    ids = list(make_tokenizer().encode("say", add_special_tokens=False))
    for prompt in ("say", ["say"], ids, [ids]):
        post(http, prompt=prompt)
        assert list(server.driver.submitted[-1].prompt) == ids
    several: list[list[Any]] = [["s", "say"], [ids[:1], ids], ["s", ids]]
    for prompts in several:
        assert [choice["index"] for choice in post(http, prompt=prompts)["choices"]] == [0, 1]
        assert [list(request.prompt) for request in server.driver.submitted[-2:]] == [ids[:1], ids]
    post(http, prompt=None)
    assert server.driver.submitted[-1].prompt == server.driver.manifest.eos_token_ids  # no beginning-of-sequence token


def test_choices_of_several_prompts_are_numbered_by_prompt(http: httpx.Client, server: Running) -> None:
    reply = post(http, prompt=["a", "bb"], n=2, echo=True)
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in reply["choices"]] == ["a" + REPLY] * 2 + ["bb" + REPLY] * 2
    assert reply["usage"]["prompt_tokens"] == 3
    assert [request.choice for request in server.driver.submitted[-4:]] == [0, 1, 0, 1]


def test_echo_of_ids_and_echo_alone(http: httpx.Client, server: Running) -> None:
    ids = list(make_tokenizer().encode("say caf\u00e9", add_special_tokens=False))
    assert post(http, prompt=ids, echo=True)["choices"][0]["text"] == "say caf\u00e9" + REPLY
    before = len(server.driver.submitted)
    assert post(http, prompt=ids, echo=True, max_tokens=0)["choices"] == [
        {"index": 0, "text": "say caf\u00e9", "logprobs": None, "finish_reason": "length"}
    ]
    chunks = stream(http, prompt=["x", "y"], echo=True, max_tokens=0)
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["x", "y", "", ""]
    finishes = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert finishes == [None, None, "length", "length"]
    assert len(server.driver.submitted) == before


def test_echo_comes_first_in_a_stream(http: httpx.Client) -> None:
    chunks = stream(http, echo=True)
    assert chunks[0]["choices"][0]["text"] == "say"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "say" + REPLY


def test_logprobs(http: httpx.Client) -> None:
    (choice,) = post(http, logprobs=2)["choices"]
    logprobs = choice["logprobs"]
    count = len(logprobs["tokens"])
    assert {len(values) for values in logprobs.values()} == {count}
    assert logprobs["tokens"][:2] == ["hello", " world"]
    for token, logprob, top in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert top[token] == logprob == max(top.values())
    plain = [place for place, token in enumerate(logprobs["tokens"]) if token.isascii()]
    for place in plain:
        token, offset = logprobs["tokens"][place], logprobs["text_offset"][place]
        assert REPLY[offset : offset + len(token)] == token
    streamed = [chunk["choices"][0]["logprobs"] for chunk in stream(http, logprobs=2)]
    joined = {name: [value for entry in streamed if entry for value in entry[name]] for name in logprobs}
    assert joined == logprobs


def test_zero_logprobs_name_the_drawn_token(http: httpx.Client) -> None:
    (choice,) = post(http, logprobs=0, max_tokens=1)["choices"]
    assert choice["logprobs"] == {
        "tokens": ["hello"], "token_logprobs": [-0.25], "top_logprobs": [{"hello": -0.25}], "text_offset": [0],
    }  # fmt: skip


def test_many_choices_stream_together() -> None:
    driver = make_driver(saying("hello world"), pace_s=0.001)
    with running(driver) as server, httpx.Client(base_url=server.url) as http:
        chunks = stream(http, prompt=["a"] * 8, n=4)
    texts = [""] * 32
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == ["hello world"] * 32
    assert not driver.cancelled
