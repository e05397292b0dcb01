"""Clients that leave, that stop reading, that wait: against a real server, and hand-driven ASGI for exact timing."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from starlette.types import Message

from ortserve.gateway.app import build_app
from ortserve.gateway.http.server import Limits
from ortserve.gateway.http.watch import Patience, Watch
from tests.gateway.fleets import fleet_of
from tests.gateway.running import Running, running
from tests.gateway.scripted import Held, ScriptedDriver, make_driver, make_service, saying
from tests.gateway.test_chat import body
from tests.waiting import PATIENCE_S, wait_for

PATH = "/v1/chat/completions"
ENDLESS = Held("xxxxxx", 5)  # which nobody releases


def raw_request(**fields: Any) -> bytes:
    data = json.dumps(body(**fields)).encode()
    return b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (PATH.encode(), len(data), data)


@pytest.mark.parametrize("num_choices", [1, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_leaving_cancels_every_choice(stream: bool, num_choices: int) -> None:
    driver = make_driver(ENDLESS)
    with running(driver) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(raw_request(stream=stream, n=num_choices))
            wait_for(lambda: len(driver.submitted) == num_choices)
            if stream:
                assert b"200" in connection.recv(4096)
        wait_for(lambda: len(driver.cancelled) == num_choices)


def test_the_others_go_on_when_one_leaves() -> None:
    script = Held("x" * 30, 1)
    driver = make_driver(script)
    with running(driver) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(raw_request(stream=True))
            wait_for(lambda: len(driver.submitted) == 1)
            with httpx.stream("POST", server.url + PATH, json=body(stream=True)) as response:
                lines = response.iter_lines()
                next(lines)
                connection.close()
                wait_for(lambda: len(driver.cancelled) == 1)
                script.release()
                rest = list(lines)
        assert rest[-2:] == ["data: [DONE]", ""]
        assert (len(driver.finished), len(driver.cancelled)) == (1, 1)


def test_closing_an_sdk_style_stream_early_cancels() -> None:
    driver = make_driver(ENDLESS)
    with running(driver) as server:
        with httpx.stream("POST", server.url + PATH, json=body(stream=True)) as response:
            next(response.iter_lines())
        wait_for(lambda: len(driver.cancelled) == 1)
        assert httpx.get(server.url + "/health").json()["running"] == 0


def test_http2_streams_and_their_cancellation() -> None:
    driver = make_driver(saying("x" * 40))
    with running(driver) as server:
        with httpx.Client(http1=False, http2=True, base_url=server.url) as http:
            assert http.post(PATH, json=body(stream=True)).text.endswith("data: [DONE]\n\n")
            reply = http.post(PATH, json=body())
            assert reply.http_version == "HTTP/2"
            assert reply.json()["choices"][0]["message"]["content"] == "x" * 40
            driver.script = ENDLESS
            with http.stream("POST", PATH, json=body(stream=True)) as response:
                next(response.iter_lines())
                http.close()  # httpx resets no single stream; leaving means closing the connection
        wait_for(lambda: len(driver.cancelled) == 1)


def test_a_reader_that_stops_is_cancelled_and_blocks_nobody() -> None:
    """Megabytes of log-probabilities fill every buffer; the reader takes none of them, and the script never ends.

    The pace leaves the driver's lock free: without one its thread takes it again before the server's loop gets it.
    """
    driver = make_driver(lambda _: itertools.repeat([64] * 16), pace_s=0.005, max_context=10**9)
    limits = Limits(drain_s=1.0, stall_s=600.0)  # the kernel's own bound, which must not be what ends it here
    with running(driver, limits=limits, patience=Patience(stall_s=0.3)) as server:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(raw_request(stream=True, logprobs=True, top_logprobs=20, n=8, max_tokens=10**8))
            wait_for(lambda: len(driver.submitted) == 8)
            response = httpx.post(server.url + PATH, json=body(max_tokens=3))
            assert response.json()["usage"]["completion_tokens"] == 3
            wait_for(lambda: len(driver.cancelled) == 8)
        assert len(driver.finished) == 1
        assert httpx.get(server.url + "/health").json()["running"] == 0


def test_silence_is_filled_with_comment_lines() -> None:
    script, text = Held("ab", 1), ""
    with (
        running(make_driver(script), patience=Patience(ping_s=0.05)) as server,
        httpx.stream("POST", server.url + PATH, json=body(stream=True)) as response,
    ):
        for piece in response.iter_text():
            text += piece
            if text.count(": ping\n") >= 2:
                script.release()
    assert text.endswith("data: [DONE]\n\n")
    for event in text.split("\n\n")[:-1]:
        lines = event.split("\n")
        assert lines[-1].startswith("data: "), "a comment must not make an event of its own"
        assert all(line == ": ping" for line in lines[:-1])


def test_a_busy_stream_has_no_comment_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of the test's own: a busy machine makes silence where none was meant."""
    sent: list[bytes] = []
    now = 0.0

    async def receive() -> Message:
        await asyncio.Event().wait()
        return {}

    async def send(message: Message) -> None:
        sent.append(message["body"])

    async def passing(seconds: float) -> None:
        nonlocal now
        for _ in range(round(seconds * 100)):
            now += 0.01
            for _ in range(3):  # a timer, what it starts, and that
                await asyncio.sleep(0)

    async def main() -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
        async with Watch(receive, send, ping=lambda: b": ping\n", patience=Patience(ping_s=0.2)) as watch:
            for _ in range(20):
                await watch.send_body(b"x")
                await passing(0.12)
            assert sent == [b"x"] * 20
            await passing(0.2)
            assert sent == [b"x"] * 20 + [b": ping\n"]
            await passing(0.25)
            assert sent == [b"x"] * 20 + [b": ping\n"] * 2

    asyncio.run(main())


# Stopping


def drained(server: Running, driver: ScriptedDriver, refused: Callable[[], None]) -> str:
    """What a stream that runs at the stop gets. `refused` is called when nobody else is answered any more."""
    with httpx.stream("POST", server.url + PATH, json=body(stream=True)) as response:
        lines = response.iter_lines()
        next(lines)
        server.begin_stop()
        wait_for(lambda: not driver.healthy)
        with pytest.raises(httpx.HTTPError):
            httpx.get(server.url + "/health")
        refused()
        return "\n".join(lines)


def test_short_requests_finish_while_draining() -> None:
    script = Held("x" * 20, 1)
    driver = make_driver(script)
    began = time.monotonic()
    with running(driver, limits=Limits(drain_s=PATIENCE_S)) as server:
        assert "[DONE]" in drained(server, driver, script.release)
    assert time.monotonic() - began < PATIENCE_S, "it waited although all had finished"
    assert driver.drained[0] == PATIENCE_S


def test_long_requests_end_with_an_error_at_the_bound() -> None:
    driver = make_driver(ENDLESS)
    with running(driver, limits=Limits(drain_s=0.3)) as server:
        text = drained(server, driver, lambda: None)
    assert driver.drained[0] == 0.3
    assert "[DONE]" not in text
    assert "shutting down" in text
    assert '"type":"server_error"' in text


# Hand-driven: the order of events is exact


class Client:
    """The server's side of one ASGI exchange."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.incoming.put_nowait({"type": "http.request", "body": json.dumps(data).encode(), "more_body": False})
        self.sent: list[Any] = []
        self.started = asyncio.Event()
        self.blocks: asyncio.Event | None = None

    async def receive(self) -> Any:
        return await self.incoming.get()

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        self.started.set()
        if self.blocks is not None:
            await self.blocks.wait()

    def leave(self) -> None:
        self.incoming.put_nowait({"type": "http.disconnect"})

    def scope(self) -> dict[str, Any]:
        return {
            "type": "http", "method": "POST", "path": PATH, "raw_path": PATH.encode(), "query_string": b"",
            "headers": [], "http_version": "1.1", "scheme": "http", "asgi": {"version": "3.0"}, "state": {},
        }  # fmt: skip


def drive(driver: ScriptedDriver, client_body: dict[str, Any], act: Callable[[Client], None], **options: Any) -> Client:
    """Run one exchange; `act` is called once the first byte has been sent, or the request submitted."""

    async def main() -> Client:
        app = build_app(await fleet_of(make_service(driver)), **options)
        num_tasks = len(asyncio.all_tasks())
        client = Client(client_body)
        task = asyncio.create_task(app(client.scope(), client.receive, client.send))
        async with asyncio.timeout(PATIENCE_S):
            while not client.started.is_set() and not driver.submitted:  # noqa: ASYNC110  # the driver has a thread
                await asyncio.sleep(0.001)
        act(client)
        async with asyncio.timeout(PATIENCE_S):
            await task
        async with asyncio.timeout(PATIENCE_S):  # cancelled helpers need one more turn of the loop
            while len(asyncio.all_tasks()) > num_tasks:  # noqa: ASYNC110
                await asyncio.sleep(0)
        return client

    try:
        return asyncio.run(main())
    finally:
        driver.close()


def test_a_whole_reply_is_not_sent_to_nobody() -> None:
    driver = make_driver(ENDLESS)
    drive(driver, body(), Client.leave)
    assert len(driver.cancelled) == 1


def test_a_stream_ends_without_a_last_frame_when_the_client_has_left() -> None:
    driver = make_driver(ENDLESS)
    client = drive(driver, body(stream=True), Client.leave)
    assert len(driver.cancelled) == 1
    assert all(message.get("more_body", True) for message in client.sent)


def test_a_blocked_write_ends_the_stream() -> None:
    driver = make_driver(ENDLESS)

    def stop_reading(client: Client) -> None:
        client.blocks = asyncio.Event()

    drive(driver, body(stream=True), stop_reading, patience=Patience(stall_s=0.05))
    assert len(driver.cancelled) == 1


def test_a_disconnect_after_the_end_is_nothing() -> None:
    driver = make_driver(saying("x"))
    client = drive(driver, body(stream=True), lambda _: None)
    assert client.sent[-1]["more_body"] is False
    assert not driver.cancelled
