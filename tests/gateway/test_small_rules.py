"""What clients rely on in any request or reply, in one line each: headers, nulls, roles, precedence, frames."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from ortserve.gateway.errors import ApiError, too_many, unavailable
from ortserve.gateway.http.server import Limits, server_config
from ortserve.gateway.request_fields.endpoints import BODIES, BodyContract
from ortserve.gateway.schema.fields import Fields
from ortserve.gateway.schema.sampling import SamplingDefaults, Vocabulary, read_sampling
from ortserve.gateway.served.service import ModelService
from ortserve.runtime.request import SamplingParams
from tests.gateway.bodies import READERS
from tests.gateway.conftest import REPLY
from tests.gateway.running import Running, running, serving
from tests.gateway.scripted import IM_END, IM_START, Held, make_driver, make_service, make_tokenizer, saying
from tests.gateway.test_chat import body, stream
from tests.gateway.test_verdicts import OWN, names, smallest, top_level
from tests.waiting import PATIENCE_S

CHAT = "/v1/chat/completions"
BASES: dict[str, dict[str, Any]] = {
    "/admin/cache/clear": {"api_key": "k"},
    "/admin/models/load": {"model": "m"},
    "/admin/models/unload": {"model": "m"},
    "/admin/models/swap": {"model": "m", "source": "s"},
    "/v1/responses": {"input": [{"id": "msg_1", "type": "message", "role": "user", "content": "hi"}]},
}


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream", "*/*", "image/png", ""])
@pytest.mark.parametrize("streams", [False, True])
def test_nothing_is_negotiated(http: httpx.Client, accept: str, *, streams: bool) -> None:
    response = http.post(CHAT, json=body(stream=streams), headers={"accept": accept})
    assert response.status_code == 200
    kind = "text/event-stream; charset=utf-8" if streams else "application/json"
    assert response.headers["content-type"] == kind
    assert "content-encoding" not in response.headers


@pytest.mark.parametrize("contract", OWN, ids=names)
def test_null_is_absent_in_every_field(contract: BodyContract) -> None:
    read = READERS[contract.path]
    base = BASES.get(contract.path, smallest(contract))
    plain = read(Fields(base))
    for rule in top_level(contract):
        if not rule.is_required and base.get(rule.path) is None:
            assert read(Fields({**base, rule.path: None})) == plain, rule.path


def test_required_fields_are_missed_by_name() -> None:
    for contract in BODIES:
        if contract not in OWN:
            continue
        base = BASES.get(contract.path, smallest(contract))
        for rule in top_level(contract):
            if rule.is_required:
                with pytest.raises(ApiError) as caught:
                    READERS[contract.path](Fields({key: base[key] for key in base if key != rule.path}))
                problem = caught.value.problem
                assert (problem.param, problem.code) == (rule.path, "missing_required_parameter")


def test_idle_connections_outlive_those_of_clients() -> None:
    """httpx drops an idle connection after five seconds: a server that does so too loses requests."""
    config = server_config(Limits())
    assert config.keep_alive_timeout >= 75
    assert config.keep_alive_max_requests >= 10**9
    assert config.h2_max_concurrent_streams >= 1024
    assert config.backlog >= 2048


@pytest.mark.parametrize("seconds", [0.0, 1.5, 59.9, 3600.0])
def test_no_client_is_told_to_wait_longer_than_it_obeys(seconds: float) -> None:
    for problem in (too_many("x", retry_after_s=seconds), unavailable("x", retry_after_s=seconds)):
        assert 0 <= int(problem.headers["retry-after"]) <= 60
        assert int(problem.headers["retry-after-ms"]) <= 60_000


def test_the_newer_limit_wins(http: httpx.Client) -> None:
    for limits, expected in (
        ({"max_tokens": 2}, 2),
        ({"max_completion_tokens": 3}, 3),
        ({"max_tokens": 2, "max_completion_tokens": 4}, 4),
        ({"max_tokens": 5, "max_completion_tokens": None}, 5),
    ):
        reply = http.post(CHAT, json=body(**limits)).json()
        assert reply["usage"]["completion_tokens"] == expected
        assert reply["choices"][0]["finish_reason"] == "length"


def test_zero_is_a_value_and_not_the_authors_default() -> None:
    author = SamplingDefaults(temperature=0.7, top_p=0.9, top_k=40, repetition_penalty=1.3)

    def read(**fields: Any) -> SamplingParams:
        return read_sampling(Fields(fields), author, Vocabulary(10, 100), max_tokens=None, num_logprobs=None)

    absent = read(temperature=None)
    assert (absent.temperature, absent.top_p, absent.top_k, absent.repetition_penalty) == (0.7, 0.9, 40, 1.3)
    zero = read(temperature=0, top_p=0, top_k=0)
    assert (zero.temperature, zero.top_p, zero.top_k) == (0, 0, 0)


def given_to_the_model(http: httpx.Client, server: Running, *messages: dict[str, Any]) -> str:
    response = http.post(CHAT, json=body(messages=messages))
    assert response.status_code == 200, response.text
    return make_tokenizer().decode_whole(server.driver.submitted[-1].prompt)


CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize("role", ["developer", "system", "user", "assistant", "tool", "function"])
def test_every_role_takes_a_text_and_parts(http: httpx.Client, server: Running, role: str) -> None:
    is_result = role in ("tool", "function")  # in words: this template knows no tools
    shown = "user\nResult of the call:" if is_result else {"developer": "system"}.get(role, role)
    extra = {"tool_call_id": "nobody's", "name": "f"} if is_result else {}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    user = {"role": "user", "content": "hi"}
    for content in ("ab", parts):
        text = given_to_the_model(http, server, user, {"role": role, "content": content, **extra})
        assert f"{IM_START}{shown}\nab{IM_END}" in text


@pytest.mark.parametrize(
    "message",
    [
        {"content": None}, {"content": ""}, {}, {"content": None, "tool_calls": []},
        {"content": None, "tool_calls": [CALL]},
        {"tool_calls": [CALL], "refusal": None, "audio": None, "annotations": [], "reasoning": None},
    ],
)  # fmt: skip
def test_an_earlier_reply_needs_no_content(http: httpx.Client, server: Running, message: dict[str, Any]) -> None:
    user = {"role": "user", "content": "hi"}
    text = given_to_the_model(http, server, user, {"role": "assistant", **message}, user)
    assert text.count(f"{IM_START}user\nhi{IM_END}") == 2
    assert "None" not in text


def test_an_earlier_refusal_is_what_the_assistant_said(http: httpx.Client, server: Running) -> None:
    user, part = {"role": "user", "content": "hi"}, {"type": "refusal", "refusal": "No."}
    for message in ({"content": [part]}, {"content": None, "refusal": "No."}):
        text = given_to_the_model(http, server, user, {"role": "assistant", **message}, user)
        assert f"{IM_START}assistant\nNo.{IM_END}" in text
    error = http.post(CHAT, json=body(messages=[{"role": "user", "content": [part]}])).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "messages[0].content[0].type")


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"reasoning_effort": "very"}, "invalid_value", "reasoning_effort"),
        ({"verbosity": "loud"}, "invalid_value", "verbosity"),
        ({"service_tier": "slow"}, "invalid_value", "service_tier"),
        ({"metadata": {"k" * 65: "v"}}, "invalid_value", "metadata"),
        ({"metadata": {str(index): "v" for index in range(17)}}, "object_above_max_properties", "metadata"),
        ({"metadata": {"k": "v" * 513}}, "string_above_max_length", "metadata.k"),
        ({"user": 7}, "invalid_type", "user"),
        ({"prompt_cache_retention": "1y"}, "invalid_value", "prompt_cache_retention"),
        ({"frequency_penalty": 2.1}, "decimal_above_max_value", "frequency_penalty"),
        ({"presence_penalty": -2.1}, "decimal_below_min_value", "presence_penalty"),
        ({"seed": -(2**63) - 1}, "integer_below_min_value", "seed"),
        ({"n": 129}, "integer_above_max_value", "n"),
        ({"stop": ["x"] * 65}, "array_above_max_length", "stop"),
        ({"response_format": {"type": "json_schema"}}, "missing_required_parameter", "response_format.json_schema"),
    ],
)
def test_values_outside_their_range(http: httpx.Client, fields: dict[str, Any], code: str, param: str) -> None:
    response = http.post(CHAT, json=body(**fields))
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, code), error
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert "Traceback" not in error["message"]
    assert len(error["message"]) > 20


def test_more_than_four_stops_are_taken(http: httpx.Client) -> None:
    reply = http.post(CHAT, json=body(stop=["#", "$", "%", "&", "world"])).json()
    assert reply["choices"][0]["message"]["content"] == REPLY.partition("world")[0]


def test_the_tier_is_always_the_one_there_is(http: httpx.Client) -> None:
    assert http.post(CHAT, json=body(service_tier="flex")).json()["service_tier"] == "default"
    chunks = stream(http, service_tier="flex")
    assert {chunk["service_tier"] for chunk in chunks} == {"default"}
    assert len({chunk["system_fingerprint"] for chunk in chunks}) == 1


def test_every_frame_is_one_data_line_and_one_write() -> None:
    """No `id:`, `retry:` or `event:` lines on chat, and no frame that is cut over two pieces of the chunked body."""
    payload, script = json.dumps(body(stream=True)).encode(), Held("hello world! " * 3, 1)
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(payload)}\r\nconnection: close\r\n\r\n"
    with (
        running(make_driver(script)) as server,
        socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as client,
    ):
        client.sendall(head.encode() + payload)
        data = b""
        while piece := client.recv(65536):  # each token is sent before there is another
            data += piece
            script.allow()
    _, _, chunked = data.partition(b"\r\n\r\n")
    pieces = []
    while chunked:
        size, _, rest = chunked.partition(b"\r\n")
        pieces.append(rest[: int(size, 16)])
        chunked = rest[int(size, 16) + 2 :]
    assert len(pieces) > len(script.ids) > 5
    for piece in pieces[:-1]:
        frames = piece.decode().split("\n\n")
        assert frames[-1] == "", "a frame is cut"
        assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames[:-1])
    assert pieces[-1] == b""


def test_a_model_s_id_may_be_a_path() -> None:
    driver = make_driver(saying("x"))

    def make() -> ModelService:
        service = make_service(driver)
        service.name = "org/name"
        return service

    with (
        serving(make, driver.close, Limits(drain_s=1.0)) as (port, _),
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as http,
    ):
        (model,) = http.get("/v1/models").json()["data"]
        assert (model["id"], model["object"], model["owned_by"]) == ("org/name", "model", "ortserve")
        for id_ in ("org/name", "org%2Fname"):
            assert http.get(f"/v1/models/{id_}").json() == model
        assert "`org/other`" in http.get("/v1/models/org/other").json()["error"]["message"]
        assert http.delete("/v1/models/org/name").status_code == 405
        for name in ("org/name", driver.manifest.name):  # whichever it is called by
            assert http.post(CHAT, json=body(model=name)).json()["model"] == "org/name"
            assert {chunk["model"] for chunk in stream(http, model=name)} == {"org/name"}


def test_the_readme_says_that_clients_need_some_key() -> None:
    assert "any non-empty key" in (Path(__file__).parents[2] / "README.md").read_text()
