"""/tokenize, /detokenize and /tokenizer_info: the tokens the model is really given, in vLLM's and llama.cpp's words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from ortserve.gateway.http.server import Limits
from ortserve.gateway.prompts.tokenizer import TextTokenizer
from tests.gateway.pocket import CONVERSATION, chat, serving_pocket
from tests.gateway.running import Running, running, serving
from tests.gateway.scripted import (
    IM_END,
    IM_START,
    MAX_CONTEXT,
    make_driver,
    make_service,
    make_tokenizer,
    saying,
    tokenizer_json,
)

TEXT = f"hello world, caf\u00e9 \U0001f600{IM_END}"
REFERENCE = Tokenizer.from_buffer(tokenizer_json())


@pytest.fixture(scope="module")
def real(pocket: Path) -> Iterator[httpx.Client]:
    with serving_pocket(pocket) as url, httpx.Client(base_url=url) as client:
        yield client


def post(http: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    response = http.post(path, json=body)
    assert response.status_code == 200, response.text
    reply: dict[str, Any] = response.json()
    return reply


def test_a_prompt_in_the_words_of_one_server(http: httpx.Client) -> None:
    reply = post(http, "/tokenize", model="scripted", prompt=TEXT)
    ids = REFERENCE.encode(TEXT).ids
    assert reply == {"count": len(ids), "max_model_len": MAX_CONTEXT, "tokens": ids, "token_strs": None}
    named = post(http, "/v1/tokenize", prompt=TEXT, return_token_strs=True)
    assert named["token_strs"] == REFERENCE.encode(TEXT).tokens
    assert named["token_strs"][-1] == IM_END
    shown = post(http, "/detokenize", tokens=ids)
    assert shown == {"prompt": TEXT, "content": TEXT}


def test_a_content_in_the_words_of_the_other(http: httpx.Client) -> None:
    reply = post(http, "/tokenize", content=TEXT, with_pieces=True)
    assert [token["id"] for token in reply["tokens"]] == REFERENCE.encode(TEXT).ids
    pieces = [token["piece"] for token in reply["tokens"]]
    assert pieces[:2] == ["hello", " world"]
    assert pieces[-1] == IM_END
    joined = b"".join(piece.encode() if isinstance(piece, str) else bytes(piece) for piece in pieces)
    assert joined.decode() == TEXT
    assert any(isinstance(piece, list) for piece in pieces), "half an emoji is no text"


def test_the_beginning_of_sequence_is_added_where_it_is_asked_for() -> None:
    bos = REFERENCE.token_to_id(IM_START)
    tokenizer = TextTokenizer(tokenizer_json(), bos_token_id=bos, add_bos=True)
    driver = make_driver(saying("x"))
    without = REFERENCE.encode("The sky").ids
    made = lambda: make_service(driver, tokenizer=tokenizer)  # noqa: E731
    with (
        serving(made, driver.close, Limits(drain_s=1.0)) as (port, _),
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as http,
    ):
        assert post(http, "/tokenize", prompt="The sky")["tokens"] == [bos, *without]
        assert post(http, "/tokenize", prompt="The sky", add_special_tokens=False)["tokens"] == without
        assert post(http, "/tokenize", content="The sky")["tokens"] == without
        assert post(http, "/tokenize", content="The sky", add_special=True)["tokens"] == [bos, *without]
        post(http, "/v1/completions", model="scripted", prompt="The sky")
    assert list(driver.submitted[-1].prompt) == [bos, *without]


def post_info(http: httpx.Client) -> dict[str, Any]:
    response = http.get("/tokenizer_info")
    assert response.status_code == 200
    info: dict[str, Any] = response.json()
    return info


def test_a_conversation_is_the_prompt_that_a_chat_would_be(real: httpx.Client) -> None:
    reply = post(real, "/tokenize", model="pocket", messages=CONVERSATION)
    assert reply["count"] == len(reply["tokens"]) == chat(real)["usage"]["prompt_tokens"]
    closed = post(real, "/tokenize", messages=CONVERSATION, add_generation_prompt=False)["tokens"]
    assert reply["tokens"][: len(closed)] == closed
    assert len(closed) < reply["count"]
    text = post(real, "/detokenize", tokens=reply["tokens"])["prompt"]
    assert CONVERSATION[-1]["content"] in text
    assert post(real, "/tokenize", content=text)["tokens"] == reply["tokens"]
    begun = [*CONVERSATION, {"role": "assistant", "content": "Well"}]
    unfinished = post(real, "/tokenize", messages=begun, continue_final_message=True)["tokens"]
    assert post(real, "/detokenize", tokens=unfinished)["prompt"].endswith("Well")


def test_tools_are_part_of_it(real: httpx.Client) -> None:
    tools = [{"type": "function", "function": {"name": "frobnicate", "parameters": {"type": "object"}}}]

    def shown(**fields: Any) -> str:
        ids = post(real, "/tokenize", messages=CONVERSATION, tools=tools, **fields)["tokens"]
        return str(post(real, "/detokenize", tokens=ids)["prompt"])

    assert "frobnicate" in shown()
    assert "frobnicate" not in shown(tool_choice="none")


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_a_text_survives(text: str) -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode_whole(ids) == text
    assert REFERENCE.decode(list(ids), skip_special_tokens=False) == text


def test_any_ids_have_a_text(http: httpx.Client) -> None:
    """Also those that no text is tokenized to, and none at all."""
    (emoji,) = [token for token, piece in enumerate(make_pieces()) if piece == "\u00f0\u0141\u013a"]
    assert post(http, "/detokenize", tokens=[emoji])["prompt"] == "\ufffd"
    assert post(http, "/detokenize", tokens=[])["prompt"] == ""


def make_pieces() -> list[str | None]:
    return [REFERENCE.id_to_token(token) for token in range(REFERENCE.get_vocab_size())]


def test_a_text_may_be_longer_than_the_context(http: httpx.Client) -> None:
    assert post(http, "/tokenize", prompt="hello" * 5000)["count"] == 5000
    response = http.post("/tokenize", json={"messages": [{"role": "user", "content": "hello" * 5000}]})
    assert response.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("path", "body", "param", "code"),
    [
        ("/tokenize", {}, "prompt", "missing_required_parameter"),
        ("/tokenize", {"prompt": "a", "content": "b"}, "content", "invalid_value"),
        ("/tokenize", {"prompt": "a" * 1_100_000}, "prompt", "string_above_max_length"),
        ("/tokenize", {"messages": []}, "messages", "empty_array"),
        ("/tokenize", {"messages": [{"role": "user", "content": "a"}], "add_special_tokens": True},
         "add_special_tokens", "unsupported_parameter"),
        ("/tokenize", {"prompt": "a", "model": "other"}, "model", "model_not_found"),
        ("/detokenize", {}, "tokens", "missing_required_parameter"),
        ("/detokenize", {"tokens": [5, -1]}, "tokens[1]", "invalid_value"),
        ("/detokenize", {"tokens": [5, 10_000]}, "tokens[1]", "invalid_value"),
        ("/detokenize", {"tokens": [True]}, "tokens[0]", "invalid_type"),
        ("/detokenize", {"tokens": [5], "model": "other"}, "model", "model_not_found"),
    ],
)  # fmt: skip
def test_mistakes_are_named(http: httpx.Client, path: str, body: dict[str, Any], param: str, code: str) -> None:
    error = http.post(path, json=body).json()["error"]
    assert (error["param"], error["code"]) == (param, code)


def test_what_a_remote_tokenizer_needs(http: httpx.Client) -> None:
    """lm-evaluation-harness asks for these four before it sends token ids."""
    info = post_info(http)
    assert (info["eos_token"], info["bos_token"], info["pad_token"]) == (IM_END, None, None)
    assert IM_START in info["chat_template"]
    assert info["model_max_length"] == MAX_CONTEXT


def test_nothing_is_generated() -> None:
    with running(make_driver(saying("hi"))) as server:
        check_nothing_is_generated(server)


def check_nothing_is_generated(server: Running) -> None:
    with httpx.Client(base_url=server.url) as client:
        post(client, "/tokenize", messages=[{"role": "user", "content": "hi"}])
    assert server.driver.submitted == []
