"""Clients that say how long they wait: told in time that it is too late, and their rows given to others."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from starlette.datastructures import Headers

from ortserve.gateway.deadline import read_deadline
from ortserve.gateway.errors import ApiError
from ortserve.gateway.http.server import Limits
from ortserve.runtime.errors import OverloadedError, WaitTooLongError
from tests.gateway.encoders import open_encoders, write_encoder
from tests.gateway.running import Running, running, serving
from tests.gateway.scripted import make_driver, saying
from tests.gateway.test_chat import body
from tests.gateway.test_disconnect import ENDLESS, PATH
from tests.waiting import PATIENCE_S, wait_for

MESSAGE = {"model": "scripted", "max_tokens": 400, "messages": [{"role": "user", "content": "hi"}]}


def read(**headers: str) -> tuple[float, float]:
    deadline = read_deadline(Headers({name.replace("_", "-"): value for name, value in headers.items()}), 100.0)
    return deadline.whole, deadline.streamed


def test_what_headers_mean() -> None:
    assert read() == (math.inf, math.inf)
    assert read(x_ortserve_timeout="1.5") == (101.5, 101.5)
    assert read(x_request_timeout="2", x_ortserve_timeout="3") == (102.0, 102.0)
    assert read(x_stainless_read_timeout="600") == (700.0, math.inf)
    assert read(x_stainless_timeout="4", x_request_timeout="5") == (104.0, 105.0)


@pytest.mark.parametrize("value", ["", "soon", "0", "-1", "nan", "inf"])
def test_what_is_no_time_is_refused_where_it_was_asked_for(value: str) -> None:
    assert read(x_stainless_timeout=value) == (math.inf, math.inf)
    with pytest.raises(ApiError, match="Invalid header 'x-request-timeout'"):
        read(x_request_timeout=value)


def test_a_whole_reply_past_its_deadline_is_a_504_and_frees_its_row() -> None:
    driver = make_driver(ENDLESS)
    with running(driver) as server, httpx.Client(base_url=server.url) as http:
        for number, header in enumerate(("x-ortserve-timeout", "x-stainless-read-timeout"), 1):
            reply = http.post(PATH, json=body(n=2), headers={header: "0.3"})
            assert (reply.status_code, reply.json()["error"]["code"]) == (504, "deadline_exceeded")
            assert reply.json()["error"]["message"].endswith("within the 0.3 s that the request's timeout allows.")
            assert reply.headers["x-should-retry"] == "false"
            wait_for(lambda number=number: len(driver.cancelled) == 2 * number)  # type: ignore[misc]
        told = http.post("/v1/messages", json=MESSAGE, headers={"x-request-timeout": "0.2"})
        assert (told.status_code, told.json()["error"]["type"]) == (504, "timeout_error")
        assert http.get("/health").json()["running"] == 0
        metrics = http.get("/metrics").text
        assert 'ortserve_errors_total{code="deadline_exceeded",route="/v1/chat/completions"} 2.0' in metrics
        assert 'ortserve_requests_total{outcome="late",route="/v1/chat/completions",status="504"} 2.0' in metrics


def test_a_stream_past_its_deadline_ends_with_an_error_event() -> None:
    driver = make_driver(ENDLESS)
    with running(driver) as server, httpx.Client(base_url=server.url) as http:
        for seconds in ("0.4", "1.6", "6.4", "25.6"):  # in which a busy machine says all five
            events = http.post(PATH, json=body(stream=True), headers={"x-ortserve-timeout": seconds}).text.split("\n\n")
            assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
            if sum('"content":"x"' in event for event in events) == 5:
                break
        assert sum('"content":"x"' in event for event in events) == 5
        for path, call in (("/v1/messages", MESSAGE), ("/v1/responses", {"model": "scripted", "input": "hi"})):
            for seconds in ("0.3", "1.2", "4.8", "19.2"):  # in which a busy machine says the first
                reply = http.post(path, json={**call, "stream": True}, headers={"x-request-timeout": seconds})
                if reply.status_code == 200:
                    break
            name = "error" if path == "/v1/messages" else "response.failed"
            last = reply.text.split("\n\n")[-2]
            assert last.startswith(f"event: {name}\n")
            assert ("timeout_error" if name == "error" else "not complete within") in last
        wait_for(lambda: len(driver.cancelled) == len(driver.submitted))


def test_a_librarys_own_timeout_does_not_bound_streams_and_background_runs() -> None:
    driver = make_driver(saying("x" * 20), pace_s=0.02)  # longer than the library waits
    headers = {"x-stainless-read-timeout": "0.1"}
    with running(driver) as server, httpx.Client(base_url=server.url) as http:
        text = http.post(PATH, json=body(stream=True), headers=headers).text
        assert text.endswith("data: [DONE]\n\n")
        call = {"model": "scripted", "input": "hi", "background": True}
        id = http.post("/v1/responses", json=call, headers={"x-ortserve-timeout": "0.2"}).json()["id"]
        wait_for(lambda: http.get(f"/v1/responses/{id}").json()["status"] == "completed")
    assert driver.cancelled == []


def test_the_libraries_say_how_long_they_wait() -> None:
    driver = make_driver(saying("hello"))
    with running(driver) as server:
        client = openai.OpenAI(base_url=server.url + "/v1", api_key="x", timeout=77, max_retries=0)
        client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "hi"}])
        other = anthropic.Anthropic(base_url=server.url, api_key="x", timeout=88, max_retries=0)
        other.messages.create(model="scripted", max_tokens=9, messages=[{"role": "user", "content": "hi"}])
        list(client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "a"}], stream=True))
    waits = [request.max_wait_s for request in driver.submitted]
    assert waits[0] is not None
    assert waits[1] is not None
    assert 77 - PATIENCE_S < waits[0] <= 77 < waits[1] <= 88
    assert waits[2] is None


@pytest.fixture(name="busy", scope="module")
def _busy() -> Any:
    with running(make_driver(saying("x"))) as server:
        yield server


def test_who_would_wait_too_long_is_told_when_to_come_back(busy: Running) -> None:
    busy.driver.refusal = WaitTooLongError("it would wait about 9.0 s", retry_after_s=2.25)
    reply = httpx.post(busy.url + PATH, json=body(), headers={"x-ortserve-timeout": "5"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "server_overloaded")
    assert (reply.headers["retry-after"], reply.headers["retry-after-ms"]) == ("3", "2250")
    reply = httpx.post(busy.url + "/v1/messages", json=MESSAGE)
    assert (reply.status_code, reply.json()["error"]["type"]) == (503, "overloaded_error")


def test_a_full_queue_says_what_is_full(busy: Running) -> None:
    busy.driver.refusal = OverloadedError("prompts wait", retry_after_s=75.5, limit=("tokens", 4000))
    reply = httpx.post(busy.url + PATH, json=body(stream=True))
    told = {name: value for name, value in reply.headers.items() if "ratelimit" in name or "retry" in name}
    assert reply.status_code == 429
    assert told == {
        "retry-after": "60", "retry-after-ms": "60000",  # longer ones are not followed
        "x-ratelimit-limit-tokens": "4000", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1m0s",
    }  # fmt: skip
    reply = httpx.post(busy.url + "/v1/messages", json=MESSAGE)
    assert reply.headers["anthropic-ratelimit-tokens-limit"] == "4000"


def test_embeddings_have_deadlines_too(tmp_path: Path) -> None:
    encoders = open_encoders([write_encoder(tmp_path)])
    driver, encode = encoders.drivers[0], encoders.drivers[0]._encoder.encode
    is_open = threading.Event()

    def held(inputs: Any) -> Any:
        is_open.wait(PATIENCE_S)
        return encode(inputs)

    driver._encoder.encode = held  # type: ignore[method-assign]
    limits = Limits(drain_s=1.0, stall_s=5.0)
    call = {"model": driver.manifest.name, "input": ["one two", "three"]}
    with serving(encoders.services, encoders.close, limits) as (port, _):
        http = httpx.Client(base_url=f"http://127.0.0.1:{port}")
        with http:
            reply = http.post("/v1/embeddings", json=call, headers={"x-ortserve-timeout": "0.2"})
            assert (reply.status_code, reply.json()["error"]["code"]) == (504, "deadline_exceeded")
            is_open.set()
            assert http.post("/v1/embeddings", json=call).status_code == 200
            wait_for(lambda: driver.stats().num_waiting == 0)
            is_open.clear()
            driver._counts.seconds = 100.0 * driver._counts.num_batches
            waiting = threading.Thread(target=http.post, args=("/v1/embeddings",), kwargs={"json": call})
            waiting.start()
            wait_for(lambda: driver.stats().num_waiting == 2)
            late = http.post("/v1/embeddings", json=call, headers={"x-ortserve-timeout": "9"})
            assert (late.status_code, late.json()["error"]["code"]) == (503, "server_overloaded")
            assert late.headers["retry-after"] == "60"
            is_open.set()
            waiting.join(PATIENCE_S)
