"""Requests that servers and proxies read in different ways, that never end, or are no HTTP: refused, logged once."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import time
from collections.abc import Iterator

import httpx
import pytest
import structlog

from ortserve.gateway.http.server import Limits
from ortserve.gateway.logs import configure_logs
from ortserve.gateway.options.edge import EdgeOptions
from tests.gateway.running import Running, running
from tests.gateway.scripted import make_driver, saying
from tests.waiting import PATIENCE_S

CHAT = b'{"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}'
SMUGGLED = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(CHAT), CHAT)
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
# Each could make one server end the request where another goes on. What follows must not be taken for a second request.
REFUSED = {
    "CL and TE": (HEAD + b"Content-Length: 4\r\n" + CHUNKED + b"0\r\n\r\n" + SMUGGLED, 400),
    "TE and CL": (HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + SMUGGLED, 400),
    "two CL": (HEAD + b"Content-Length: 0\r\nContent-Length: 44\r\n\r\n" + SMUGGLED, 400),
    "equal CL": (HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", 400),
    "CL list": (HEAD + b"Content-Length: 2, 2\r\n\r\n{}", 400),
    "signed CL": (HEAD + b"Content-Length: +2\r\n\r\n{}", 400),
    "negative CL": (HEAD + b"Content-Length: -1\r\n\r\n" + SMUGGLED, 400),
    "hexadecimal CL": (HEAD + b"Content-Length: 0x2\r\n\r\n{}", 400),
    "huge CL": (HEAD + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n{}", 400),
    "folded TE": (HEAD + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + SMUGGLED, 400),
    "folded header": (HEAD + b"X-A: 1\r\n\tb\r\nContent-Length: 0\r\n\r\n", 400),
    "space before colon": (HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED, 400),
    "unknown TE": (HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED, 501),
    "two TE": (HEAD + b"Transfer-Encoding: chunked\r\n" + CHUNKED + b"0\r\n\r\n" + SMUGGLED, 501),
    "TE list": (HEAD + b"Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n" + SMUGGLED, 501),
    "TE in HTTP/1.0": (HEAD.replace(b"1.1", b"1.0") + CHUNKED + b"0\r\n\r\n" + SMUGGLED, 400),
    "bare CR": (HEAD + b"X-A: 1\rTransfer-Encoding: chunked\r\n\r\n", 400),
    "NUL": (HEAD + b"X-A: \x00\r\n\r\n", 400),
    "no host": (b"GET /health HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "no HTTP": (b"hello\r\n\r\n", 400),
    "HTTP/0.9": (b"GET /health\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "long head": (HEAD + b"X-A: " + b"a" * 300_000 + b"\r\n\r\n", 431),
    "many headers": (HEAD + b"X-A: a\r\n" * 30_000 + b"\r\n", 431),
    "long path": (b"GET /" + b"a" * 300_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
    "bad chunk size": (HEAD + CHUNKED + b"xyz\r\n" + SMUGGLED, 400),
    "signed chunk size": (HEAD + CHUNKED + b"-1\r\n" + SMUGGLED, 400),
    "huge chunk size": (HEAD + CHUNKED + b"f" * 40 + b"\r\n" + SMUGGLED, 400),
    "chunk too long": (HEAD + CHUNKED + b"2\r\n{}xx0\r\n\r\n" + SMUGGLED, 400),
    "space in chunk size": (HEAD + CHUNKED + b"0 1\r\nx\r\n0\r\n\r\n" + SMUGGLED, 400),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(make_driver(saying("hello")), limits=Limits(drain_s=1.0, stall_s=5.0)) as started:
        yield started


@pytest.fixture(scope="module")
def hasty() -> Iterator[Running]:
    """Half a second for a head, and as long for a body."""
    limits = Limits(drain_s=1.0, stall_s=5.0, header_s=0.5)
    with running(make_driver(saying("hello")), limits=limits, edge=EdgeOptions(body_s=0.5)) as started:
        yield started


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """What is logged during the test. pytest's own capture loses what a server's thread writes while it is read."""
    written = io.StringIO()
    configure_logs("info")
    structlog.configure(**structlog.get_config() | {"logger_factory": lambda *_: structlog.WriteLogger(written)})
    yield written
    configure_logs("error")


def lines_of(logged: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in logged.getvalue().splitlines() if line.endswith("}")]


def exchange(port: int, data: bytes) -> bytes:
    """All that is answered until the server closes; "" for a reset."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as client:
        with contextlib.suppress(OSError):  # it may have answered and closed before the end
            client.sendall(data)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := client.recv(65536):
                answer += piece
        return answer


@pytest.mark.parametrize("case", REFUSED)
def test_what_may_be_read_in_two_ways_is_refused(server: Running, case: str, logged: io.StringIO) -> None:
    data, status = REFUSED[case]
    before = len(server.driver.submitted)
    answer = exchange(server.port, data)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]
    assert answer.count(b"HTTP/1.1 ") == 1, "something was taken for a second request"
    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert body["error"]["code"] == "malformed_request"
    assert len(server.driver.submitted) == before
    assert httpx.get(f"{server.url}/health/ready").status_code == 200
    refusals = [line for line in lines_of(logged) if line["event"] == "refused"]
    assert [line["status"] for line in refusals] == [status]
    assert refusals[0]["client"] == "127.0.0.1"
    assert "aaaa" not in json.dumps(refusals)


def test_what_was_sent_is_not_logged(server: Running, logged: io.StringIO) -> None:
    exchange(server.port, HEAD + b"Authorization : Bearer sk-secret\r\n\r\n")
    exchange(server.port, HEAD + CHUNKED + b"sk-secret\r\n")
    err = logged.getvalue()
    assert err.count('"refused"') == 2
    assert "secret" not in err


@pytest.mark.parametrize("sent", [b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: ", b"GET"])
def test_a_head_that_trickles_is_cut_off(hasty: Running, sent: bytes, logged: io.StringIO) -> None:
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=PATIENCE_S) as client:
        client.sendall(sent)
        client.settimeout(0.1)
        answer = b""
        for _ in range(100):
            try:
                answer = client.recv(65536)
                break
            except TimeoutError:
                client.sendall(b"a")
        assert answer.startswith(b"HTTP/1.1 408 ")
    assert [line["status"] for line in lines_of(logged) if line["event"] == "refused"] == [408]


@pytest.mark.parametrize(
    ("path", "begun"),
    [
        ("/v1/chat/completions", b"{"),
        ("/v1/files", b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'),
    ],
)
def test_a_body_that_trickles_is_cut_off(hasty: Running, path: str, begun: bytes) -> None:
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n" % path.encode()
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=PATIENCE_S) as client:
        client.sendall(head + b"Content-Length: 100000\r\n\r\n" + begun)
        client.settimeout(0.1)
        answer = b""
        for _ in range(100):
            try:
                answer = client.recv(65536)
                break
            except TimeoutError:
                client.sendall(b"-")
        client.settimeout(PATIENCE_S)
        with contextlib.suppress(ConnectionResetError):
            while piece := client.recv(65536):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"request_timeout"' in answer
        assert b"connection: close" in answer.lower()


def test_a_slow_body_that_still_comes_is_read(hasty: Running) -> None:
    padded = CHAT[:-1] + b" " * 6000 + b"}"  # worth 12 seconds
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=PATIENCE_S) as client:
        head = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(padded)
        client.sendall(head + padded[:1000])  # worth 2 of them
        for start in range(1000, len(padded), 1000):
            time.sleep(0.12)
            client.sendall(padded[start : start + 1000])
        answer = b""
        while piece := client.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_no_upgrade_leads_past_a_proxy_but_http2_may_begin(server: Running) -> None:
    settings = b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n"
    upgrade = b"Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\n" + settings
    assert exchange(server.port, b"GET /health/live HTTP/1.1\r\nHost: x\r\n" + upgrade).startswith(b"HTTP/1.1 200 ")
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as client:
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        assert client.recv(9)[3] == 4  # a SETTINGS frame


def test_a_path_that_is_no_ascii_ends_only_its_connection(server: Running, logged: io.StringIO) -> None:
    import h2.connection

    connection = h2.connection.H2Connection()
    connection.initiate_connection()
    connection.send_headers(
        1, [(b":method", b"GET"), (b":path", b"/\xff"), (b":scheme", b"http"), (b":authority", b"x")], end_stream=True
    )
    exchange(server.port, connection.data_to_send())
    assert httpx.get(f"{server.url}/health/ready").status_code == 200
    lines = lines_of(logged)
    assert [line["event"] for line in lines].count("refused") == 1
    assert "unhandled" not in [line["event"] for line in lines]


def test_requests_in_a_row_on_one_connection_are_all_answered(server: Running) -> None:
    one = HEAD + b"Content-Length: %d\r\n\r\n" % len(CHAT) + CHAT
    last = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(CHAT) + CHAT
    assert exchange(server.port, one + one + last).count(b"HTTP/1.1 200 ") == 3
