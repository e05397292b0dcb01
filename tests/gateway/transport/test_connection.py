"""How connections write and end: short replies in one piece, and nothing kept of what has been closed."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import h2.connection
import h2.events
import httpx
import pytest

from ortserve.gateway.http.server import Limits
from ortserve.gateway.options.edge import EdgeOptions
from ortserve.gateway.transport import idle, serving
from tests.gateway.running import Running, running
from tests.gateway.scripted import Held, make_driver, saying
from tests.waiting import PATIENCE_S, wait_for

REQUEST = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
STREAM = (
    b'{"model": "scripted", "stream": true, "max_tokens": 3, "messages": [{"role": "user", "content": "hi"}]}'
)  # fmt: skip
CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}
NUM_CONNECTIONS = 20


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(make_driver(saying("hello world"))) as started:
        yield started


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Everything that is written to connections."""
    found: list[bytes] = []
    write = asyncio.StreamWriter.write

    def noted(self: asyncio.StreamWriter, data: bytes) -> None:
        found.append(bytes(data))
        write(self, data)

    monkeypatch.setattr(asyncio.StreamWriter, "write", noted)
    return found


def asked(port: int, request: bytes, end: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as connection:
        connection.sendall(request)
        reply = b""
        while not reply.endswith(end):
            piece = connection.recv(65536)
            assert piece, f"closed after {reply!r}"
            reply += piece
        return reply


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_a_reply_that_tells_its_length_is_one_write(server: Running, writes: list[bytes], method: bytes) -> None:
    end = b"}" if method == b"GET" else b"\r\n\r\n"
    reply = asked(server.port, REQUEST.replace(b"GET", method), end)
    assert writes == [reply]


def test_the_head_of_a_stream_does_not_wait(server: Running, writes: list[bytes]) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(STREAM)
    asked(server.port, head + STREAM, b"0\r\n\r\n")
    assert writes[0].startswith(b"HTTP/1.1 200")
    assert writes[0].endswith(b"\r\n\r\n")
    assert all(writes)


def test_who_was_accepted_before_the_server_stops_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (idle, serving):
        monkeypatch.setattr(module, "FRESH_S", 10.0)
    with running(make_driver(saying("hello"))) as server:
        early = socket.create_connection(("127.0.0.1", server.port), PATIENCE_S)
        kept = socket.create_connection(("127.0.0.1", server.port), PATIENCE_S)
        kept.sendall(REQUEST)
        assert kept.recv(65536)  # and so the one before it has been accepted
        server.begin_stop()
        assert kept.recv(65536) == b""  # the server stops, and what has been used is closed at once
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(STREAM)
        early.sendall(head + STREAM)
        reply = b""
        while piece := early.recv(65536):
            reply += piece
        assert reply.startswith(b"HTTP/1.1 200")
        assert reply.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        early.close()
        kept.close()


def test_a_connection_that_its_client_has_closed_is_gone(server: Running) -> None:
    connections = [socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) for _ in range(NUM_CONNECTIONS)]
    for connection in connections:
        connection.sendall(REQUEST)
        assert connection.recv(65536)
    wanted = _num_files() - 2 * NUM_CONNECTIONS  # both ends are files of this process
    for connection in connections:
        connection.close()
    wait_for(lambda: _num_files() <= wanted)


def _num_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_request_on_a_connection_of_a_server_that_ends_cuts_no_other_stream_of_it() -> None:
    held = Held("hello world", 1)
    with (
        running(make_driver(held), limits=Limits(drain_s=PATIENCE_S)) as server,
        httpx.Client(http1=False, http2=True, base_url=server.url, timeout=PATIENCE_S) as http,
        http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as reply,
    ):
        lines = reply.iter_lines()
        next(lines)
        server.begin_stop()
        wait_for(lambda: not server.driver.healthy)
        late = http.post("/v1/chat/completions", json=CHAT)  # on the same connection: there is no other
        assert (late.http_version, late.status_code) == ("HTTP/2", 503)
        assert late.json()["error"]["code"] == "server_unavailable"
        held.release()
        assert [line for line in lines if line][-1] == "data: [DONE]"


def test_what_still_comes_of_a_body_after_its_reply_cuts_no_other_stream_either() -> None:
    head = [
        (":method", "POST"), (":path", "/v1/chat/completions"), (":scheme", "http"), (":authority", "localhost"),
        ("content-type", "application/json"),
    ]  # fmt: skip
    connection, ended, reply = h2.connection.H2Connection(), set[int](), b""
    connection.initiate_connection()
    connection.send_headers(1, head)
    connection.send_data(1, b"x" * 1000)
    with (
        running(make_driver(saying("hello")), edge=EdgeOptions(body_s=0.2)) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as client,
    ):
        client.sendall(connection.data_to_send())
        while 3 not in ended:
            data = client.recv(65536)
            assert data, "the connection was cut"
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.DataReceived) and event.stream_id == 3:
                    reply += event.data or b""
                elif isinstance(event, h2.events.StreamEnded):
                    ended.add(event.stream_id or 0)
                    if event.stream_id == 1:  # a 408: the rest of its body has not come in time
                        connection.send_headers(3, head)
                        connection.send_data(1, b"x" * 1000)
                        connection.send_data(3, json.dumps({**CHAT, "stream": True}).encode(), end_stream=True)
            client.sendall(connection.data_to_send())
    assert reply.endswith(b"data: [DONE]\n\n")


def test_who_was_accepted_in_the_last_moment_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client connects after the event loop has looked for the last time, and before the socket is closed."""
    late: list[socket.socket] = []
    remove_reader = asyncio.SelectorEventLoop.remove_reader
    with running(make_driver(saying("hello"))) as server:

        def connected(loop: asyncio.SelectorEventLoop, file: int | socket.socket) -> bool:
            was_there = remove_reader(loop, file)
            if isinstance(file, socket.socket) and not late:
                late.append(socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S))
                late[0].sendall(REQUEST)
            return was_there

        monkeypatch.setattr(asyncio.SelectorEventLoop, "remove_reader", connected)
        server.begin_stop()
        wait_for(lambda: late)
        assert late[0].recv(4096).startswith(b"HTTP/1.1 200")
        late[0].close()
