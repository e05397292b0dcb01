"""Every refusal has the envelope, the right status and the path of the field."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from ortserve.runtime.errors import EngineClosedError, EngineError, OverloadedError
from ortserve.runtime.request import FinishReason
from tests.gateway.running import Running, running
from tests.gateway.scripted import IM_END, make_driver, make_tokenizer, saying

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
NUM_TOKENS = make_tokenizer().num_tokens


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "scripted", "messages": MESSAGES, **fields}


def text(**fields: Any) -> dict[str, Any]:
    return {"model": "scripted", "prompt": "hi", **fields}


def check(response: httpx.Response, status: int, code: str | None, param: str | None) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param), error
    assert "Traceback" not in error["message"]
    return str(error["message"])


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"messages": MESSAGES}, "missing_required_parameter", "model"),
        ({"model": "scripted"}, "missing_required_parameter", "messages"),
        (chat(model=7), "invalid_type", "model"),
        (chat(messages="hi"), "invalid_type", "messages"),
        (chat(messages=[]), "empty_array", "messages"),
        (chat(messages=["hi"]), "invalid_type", "messages[0]"),
        (chat(messages=[{"content": "hi"}]), "missing_required_parameter", "messages[0].role"),
        (chat(messages=[{"role": "robot", "content": "hi"}]), "invalid_value", "messages[0].role"),
        (chat(messages=[{"role": "user"}]), "missing_required_parameter", "messages[0].content"),
        (chat(messages=[{"role": "user", "content": 1}]), "invalid_type", "messages[0].content"),
        (
            chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
            "invalid_value",
            "messages[0].content[0].type",
        ),
        (chat(temperature="hot"), "invalid_type", "temperature"),
        (chat(temperature=200), "decimal_above_max_value", "temperature"),
        (chat(temperature=-1), "decimal_below_min_value", "temperature"),
        (chat(top_p=1.5), "decimal_above_max_value", "top_p"),
        (chat(n=0), "integer_below_min_value", "n"),
        (chat(n=True), "invalid_type", "n"),
        (chat(max_tokens=0), "integer_below_min_value", "max_tokens"),
        (chat(max_completion_tokens=1.5), "invalid_type", "max_completion_tokens"),
        (chat(seed=2**63), "integer_above_max_value", "seed"),
        (chat(stop=[1]), "invalid_type", "stop[0]"),
        (chat(stop=[""]), "invalid_value", "stop[0]"),
        (chat(logit_bias={"x": 1}), "invalid_value", "logit_bias"),
        (chat(logit_bias={"99999": 1}), "invalid_value", "logit_bias.99999"),
        (chat(logit_bias={"1": 101}), "decimal_above_max_value", "logit_bias.1"),
        (chat(top_logprobs=3), "invalid_value", "top_logprobs"),
        (chat(logprobs=True, top_logprobs=21), "integer_above_max_value", "top_logprobs"),
        (chat(stream="yes"), "invalid_type", "stream"),
        (chat(stream_options={"include_usage": True}), "invalid_value", "stream_options"),
        (chat(response_format={"type": "xml"}), "invalid_value", "response_format.type"),
        (chat(modalities=["audio"]), "unsupported_value", "modalities"),
        (chat(chat_template_kwargs={"messages": []}), "invalid_value", "chat_template_kwargs"),
        (chat(messages=[{"role": "user", "content": "x" * 600}]), "context_length_exceeded", "messages"),
        (chat(messages=[{"role": "user", "content": "x" * 600}], stream=True), "context_length_exceeded", "messages"),
        (chat(messages=[{"role": "user", "content": "x" * 50_000}]), "context_length_exceeded", "messages"),
    ],
)
def test_chat_refusals(http: httpx.Client, body: dict[str, Any], code: str, param: str) -> None:
    check(http.post(CHAT, json=body), 400, code, param)


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (text(prompt=7), "invalid_type", "prompt"),
        (text(prompt=[]), "empty_array", "prompt"),
        (text(prompt=[1, "a"]), "invalid_type", "prompt[1]"),
        (text(prompt=[5, NUM_TOKENS]), "invalid_value", "prompt[1]"),
        (text(prompt=[-1]), "invalid_value", "prompt[0]"),
        (text(prompt=[[1], []]), "empty_array", "prompt[1]"),
        (text(max_tokens=0), "integer_below_min_value", "max_tokens"),
        (text(max_tokens=0, logprobs=1), "integer_below_min_value", "max_tokens"),
        (text(logprobs=21), "integer_above_max_value", "logprobs"),
        (text(suffix="x"), "unsupported_parameter", "suffix"),
        (text(prompt=["x"] * 100, n=11), "integer_above_max_value", "n"),
        (text(best_of=21), "integer_above_max_value", "best_of"),
        (text(best_of=2, n=3), "integer_below_min_value", "best_of"),
        (text(best_of=2, stream=True), "invalid_value", "best_of"),
        (text(prompt=["x"] * 100, best_of=11), "integer_above_max_value", "best_of"),
        (text(suffix="x", echo=True, logprobs=1), "invalid_value", "logprobs"),
        (text(prompt="x" * 600), "context_length_exceeded", "prompt"),
        (text(prompt=[5] * 600), "context_length_exceeded", "prompt"),
    ],
)
def test_completion_refusals(http: httpx.Client, body: dict[str, Any], code: str, param: str) -> None:
    check(http.post(TEXT, json=body), 400, code, param)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"{}x", b'{"a": NaN}', b"\xff", b'{"a": "\xff"}', b'{"a": "\\ud800"}', b"[" * 100_000, b'{"a": 1e999}'],
)
def test_bodies_that_are_not_json(http: httpx.Client, body: bytes) -> None:
    message = check(http.post(CHAT, content=body), 400, None, None)
    assert "could not parse the JSON body" in message


@pytest.mark.parametrize("body", [b"[]", b"7", b'"x"', b"null"])
def test_bodies_that_are_not_objects(http: httpx.Client, body: bytes) -> None:
    assert "expected a JSON object" in check(http.post(CHAT, content=body), 400, "invalid_type", None)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, chat(messages=[7] * 600), "messages"),
        (TEXT, text(prompt=[5] * 600 + ["x"]), "prompt"),
        (TEXT, text(prompt=[[5], [5] * 600 + ["x"]]), "prompt[1]"),
        ("/v1/messages", chat(max_tokens=5, messages=[{"role": "user"}, {"role": "assistant"}] * 300), "messages"),
        ("/v1/responses", {"input": [{"role": "user"}] * 600}, "input"),
        ("/v1/tokenize", {"messages": [7] * 600}, "messages"),
    ],
)
def test_what_is_too_long_is_refused_before_it_is_read(
    http: httpx.Client, path: str, body: dict[str, Any], param: str
) -> None:
    """Each of these is also wrong in what it is made of: nobody has looked."""
    error = http.post(path, json=body).json()["error"]
    assert "maximum context length is 512 tokens" in error["message"]
    if path != "/v1/messages":  # Anthropic's envelope names no field
        assert (error["code"], error["param"]) == ("context_length_exceeded", param)


def test_a_conversation_that_may_be_cut_is_read_whatever_its_length(http: httpx.Client) -> None:
    error = http.post("/v1/responses", json={"input": [{"role": "user"}] * 600, "truncation": "auto"}).json()["error"]
    assert error["param"] == "input[0].content"


def test_the_overflow_message_has_the_words_clients_look_for(http: httpx.Client) -> None:
    message = check(http.post(TEXT, json=text(prompt="x" * 600)), 400, "context_length_exceeded", "prompt")
    assert "maximum context length is 512 tokens" in message
    assert "prompt is too long" in message
    assert "600 tokens" in message


@pytest.mark.parametrize("prompt", ["x" * 512, [5] * 512])
def test_a_prompt_must_leave_room_for_one_token(http: httpx.Client, prompt: str | list[int]) -> None:
    check(http.post(TEXT, json=text(prompt=prompt)), 400, "context_length_exceeded", "prompt")
    reply = http.post(TEXT, json=text(prompt=prompt[1:])).json()
    assert (reply["usage"]["completion_tokens"], reply["choices"][0]["finish_reason"]) == (1, "length")


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_an_unknown_model_is_404(http: httpx.Client, path: str) -> None:
    body = {"model": "gpt-9", "prompt": "hi", "messages": MESSAGES}
    message = check(http.post(path, json=body), 404, "model_not_found", "model")
    assert "`gpt-9`" in message
    assert "`scripted`" in message


def test_an_overloaded_engine_is_429_with_a_time() -> None:
    driver = make_driver(saying("x"), refusal=OverloadedError("9 requests are waiting", retry_after_s=1.25))
    with running(driver) as server:
        response = httpx.post(f"{server.url}{CHAT}", json=chat(stream=True))
    message = check(response, 429, "rate_limit_exceeded", None)
    assert "try again in 1.2s" in message
    assert response.headers["retry-after"] == "2"
    assert response.headers["retry-after-ms"] == "1250"


@pytest.mark.parametrize(
    ("refusal", "status"), [(EngineClosedError("it has been closed"), 503), (EngineError("a step failed"), 500)]
)
def test_engine_failures_before_the_first_byte(refusal: EngineError, status: int) -> None:
    with running(make_driver(saying("x"), refusal=refusal)) as server:
        response = httpx.post(f"{server.url}{CHAT}", json=chat(stream=True))
    assert response.status_code == status
    assert response.json()["error"]["type"] == "server_error"
    assert ("retry-after" in response.headers) == (status == 503)


def test_a_failure_in_a_whole_reply_is_500() -> None:
    with running(make_driver(saying("x"), ending=FinishReason.ERROR)) as server:
        response = httpx.post(f"{server.url}{CHAT}", json=chat())
    assert "the graph failed" in check(response, 500, "internal_error", None)


def test_a_failure_in_a_stream_is_its_last_frame() -> None:
    with running(make_driver(saying("x"), ending=FinishReason.ERROR)) as server:
        response = httpx.post(f"{server.url}{CHAT}", json=chat(stream=True))
    frames = response.text.strip().split("\n\n")
    assert frames[-1].startswith('data: {"error":{"message":"The engine failed')
    assert "[DONE]" not in response.text


def test_an_unexpected_exception_is_a_500_without_details() -> None:
    driver = make_driver(saying("x"))
    driver.refusal = RuntimeError("secret path /etc")  # type: ignore[assignment]
    with running(driver) as server:
        response = httpx.post(f"{server.url}{CHAT}", json=chat())
    assert "secret" not in check(response, 500, "internal_error", None)


def test_unknown_fields_and_nulls_are_ignored(http: httpx.Client) -> None:
    extra: dict[str, Any] = {
        "client_metadata": {"a": 1},
        "temperature": None,
        "tools": [],
        "stop": None,
        "stop_token_ids": [],
    }
    body = chat(**extra, stream=True, stream_options={"continuous_usage_stats": True})
    assert http.post(CHAT, json=body).status_code == 200


def test_special_tokens_in_a_conversation_do_not_end_the_server(server: Running, http: httpx.Client) -> None:
    assert http.post(CHAT, json=chat(messages=[{"role": "user", "content": IM_END * 3}])).status_code == 200
    assert server.driver.healthy
