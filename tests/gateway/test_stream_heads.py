"""When the head of a stream is sent: with its first token, or after a while. What fails before has a status."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest
from starlette.types import Message

from ortserve.gateway.http.watch import Patience, Watch
from ortserve.runtime.request import FinishReason, Request
from tests.gateway.running import running
from tests.gateway.scripted import Held, make_driver
from tests.gateway.test_chat import body
from tests.gateway.test_disconnect import PATH, Client, drive
from tests.waiting import PATIENCE_S, wait_for

PATIENT = Patience(ping_s=10 * PATIENCE_S, head_s=10 * PATIENCE_S)  # on a busy machine a second is not enough
CALLS: dict[str, dict[str, Any]] = {
    PATH: body(stream=True),
    "/v1/completions": {"model": "scripted", "prompt": "hi", "stream": True},
    "/v1/messages": {"model": "scripted", "max_tokens": 9, "stream": True, "messages": body()["messages"]},
    "/v1/responses": {"model": "scripted", "input": "hi", "stream": True},
}


class Failing:
    """A script that fails once it may, without a word."""

    def __init__(self) -> None:
        self.may_fail = threading.Event()

    def __call__(self, _: Request) -> Iterator[Sequence[int]]:
        while not self.may_fail.is_set():
            yield ()


def test_the_head_and_the_role_come_in_one_piece_with_the_first_token() -> None:
    script = Held("x")
    sent_before: list[Message] = []

    def release(client: Client) -> None:
        sent_before.extend(client.sent)
        script.release()

    client = drive(make_driver(script), body(stream=True), release, patience=PATIENT)
    assert sent_before == []
    start, first = client.sent[:2]
    assert (start["type"], start["status"]) == ("http.response.start", 200)
    assert first["body"].index(b'"role":"assistant"') < first["body"].index(b'"content":"x"')


def test_where_no_token_comes_the_head_comes_long_before_streams_are_kept_alive() -> None:
    script = Held("x")
    with (
        running(make_driver(script), patience=Patience(ping_s=10 * PATIENCE_S, head_s=0.05)) as server,
        httpx.stream("POST", server.url + PATH, json=body(stream=True), timeout=PATIENCE_S) as response,
    ):
        lines = response.iter_lines()
        assert '"role":"assistant"' in next(lines)
        script.release()
        assert list(lines)[-2] == "data: [DONE]"
    assert Patience().head_s < Patience().ping_s / 10


@pytest.mark.parametrize("path", CALLS)
def test_a_stream_that_has_begun_without_a_token_is_kept_alive(path: str) -> None:
    script, text = Held("hello"), ""
    with (
        running(make_driver(script), patience=Patience(ping_s=0.05)) as server,
        httpx.stream("POST", server.url + path, json=CALLS[path]) as response,
    ):
        assert response.status_code == 200
        for piece in response.iter_text():
            text += piece
            if sum(map(text.count, (": ping\n", "event: ping\n", "response.in_progress"))) >= 3:
                script.release()
    assert text.count("hello") >= 1
    assert "error" not in text.replace('"error":null', "")


@pytest.mark.parametrize("path", CALLS)
def test_a_failure_before_the_first_token_has_a_status_of_its_own(path: str) -> None:
    script = Failing()
    script.may_fail.set()
    with (
        running(make_driver(script, ending=FinishReason.ERROR), patience=PATIENT) as server,
        httpx.Client(base_url=server.url) as http,
    ):
        reply = http.post(path, json=CALLS[path] | {"store": True} if path == PATH else CALLS[path])
        assert (reply.status_code, reply.headers["content-type"]) == (500, "application/json")
        assert "the graph failed" in reply.json()["error"]["message"]
        assert http.get("/v1/chat/completions").json()["data"] == [], "nobody has heard of it"
        wanted = f'ortserve_requests_total{{outcome="failed",route="{path}",status="500"}} 1.0'
        assert wanted in http.get("/metrics").text


@pytest.mark.parametrize("path", CALLS)
def test_a_failure_after_the_first_sign_of_life_is_the_last_event(path: str) -> None:
    script, text = Failing(), ""
    driver = make_driver(script, ending=FinishReason.ERROR)
    with (
        running(driver, patience=Patience(ping_s=0.05)) as server,
        httpx.stream("POST", server.url + path, json=CALLS[path]) as response,
    ):
        assert response.status_code == 200
        script.may_fail.set()
        text = response.read().decode()
    assert "the graph failed" in text.strip().split("\n\n")[-1]


def test_a_deadline_before_the_first_token_is_a_504() -> None:
    driver = make_driver(lambda _: itertools.repeat(()))
    with running(driver, patience=PATIENT) as server, httpx.Client(base_url=server.url) as http:
        for path, call in CALLS.items():
            reply = http.post(path, json=call, headers={"x-ortserve-timeout": "0.2"})
            assert (reply.status_code, reply.headers["x-should-retry"]) == (504, "false")
            assert "within the 0.2 s" in reply.json()["error"]["message"]
        wait_for(lambda: len(driver.cancelled) == len(CALLS))
        assert http.get("/health").json()["running"] == 0
        metrics = http.get("/metrics").text
        assert f'ortserve_requests_total{{outcome="late",route="{PATH}",status="504"}} 1.0' in metrics


def test_a_deadline_after_the_first_sign_of_life_is_an_event() -> None:
    driver = make_driver(lambda _: itertools.repeat(()))
    with running(driver, patience=Patience(ping_s=0.05)) as server:
        for seconds in ("0.5", "2", "8", "32"):  # in which a busy machine gives one
            reply = httpx.post(server.url + PATH, json=body(stream=True), headers={"x-ortserve-timeout": seconds})
            if reply.status_code == 200:
                break
    last = reply.text.split("\n\n")[-2].split("\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"


def test_no_piece_overtakes_a_head_that_is_being_sent() -> None:
    """Hypercorn would send the head twice if the first piece came while the first ping waits to be sent."""
    sent: list[bytes] = []

    async def receive() -> Message:
        await asyncio.Event().wait()
        return {}

    async def main() -> None:
        begins, goes_on = asyncio.Event(), asyncio.Event()

        async def send(message: Message) -> None:
            sent.append(message["body"])
            begins.set()
            await goes_on.wait()

        async def begin() -> bytes:
            return b"head "

        watch = Watch(receive, send, ping=lambda: b"ping ", patience=Patience(ping_s=0.01), begin=begin)
        async with asyncio.timeout(PATIENCE_S), watch:
            await begins.wait()
            piece = asyncio.create_task(watch.send_body(b"piece"))
            for _ in range(10):
                await asyncio.sleep(0)
            assert sent == [b"head ping "]
            goes_on.set()
            await piece

    asyncio.run(main())
    assert sent == [b"head ping ", b"piece"]
