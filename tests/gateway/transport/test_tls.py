"""TLS from files that change under a running server, clients with certificates, and HTTP/2."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import h2.connection
import h2.events
import httpx
import pytest

from ortserve.gateway.changes import Seen
from ortserve.gateway.logs import configure_logs
from ortserve.gateway.transport.tls import Tls, TlsError, TlsFiles
from tests.gateway.running import Running, running
from tests.gateway.scripted import Held, Script, make_driver, saying
from tests.waiting import PATIENCE_S, wait_for

CERTIFICATES = Path(__file__).parent / "certificates"
CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}


def put(folder: Path, name: str) -> TlsFiles:
    """The server's files of `first` or `second`, renamed into place."""
    for suffix in ("pem", "key"):
        beside = folder / f"new.{suffix}"
        shutil.copy(CERTIFICATES / f"{name}-server.{suffix}", beside)
        beside.replace(folder / f"server.{suffix}")
    return TlsFiles(folder / "server.pem", folder / "server.key")


def trusting(name: str, *, client: str | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(CERTIFICATES / f"{name}-ca.pem"))
    if client is not None:
        context.load_cert_chain(CERTIFICATES / f"{client}-client.pem", CERTIFICATES / f"{client}-client.key")
    return context


@contextmanager
def served(files: TlsFiles, script: Script | None = None) -> Iterator[tuple[Running, Tls]]:
    tls = Tls(files)
    with running(make_driver(script or saying("hello")), tls=tls) as server:
        yield server, tls


def ready(server: Running, context: ssl.SSLContext) -> int:
    return httpx.get(f"https://127.0.0.1:{server.port}/health/ready", verify=context).status_code


def test_a_new_certificate_is_for_new_connections_and_streams_go_on(tmp_path: Path) -> None:
    script = Held("hello " * 10, 1)
    with served(put(tmp_path, "first"), script) as (server, tls):
        first, second = trusting("first"), trusting("second")
        assert ready(server, first) == 200
        with (
            httpx.Client(base_url=f"https://127.0.0.1:{server.port}", verify=first) as http,
            http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as reply,
        ):
            lines = reply.iter_lines()
            next(lines)
            put(tmp_path, "second")
            assert tls.reload()
            assert ready(server, second) == 200
            with pytest.raises(httpx.ConnectError):
                ready(server, first)
            script.release()
            rest = [line for line in lines if line]
            assert "".join(rest).count("hello") == 10
            assert rest[-1] == "data: [DONE]"


def test_files_that_cannot_be_used_leave_the_old_ones_and_are_told_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    configure_logs("info")
    files = put(tmp_path, "first")
    tls = Tls(files)
    looks: list[None] = []
    look = tls._look

    def counted() -> tuple[Seen, ...]:
        looks.append(None)
        return look()

    monkeypatch.setattr(tls, "_look", counted)
    lines: list[str] = []
    beside = tmp_path / "new.pem"

    def refusals() -> list[str]:
        lines.extend(capfd.readouterr().err.splitlines())
        events = map(json.loads, lines)
        return [event["error"] for event in events if event["event"] == "certificates_refused"]

    def is_refused(number: int) -> bool:
        return len(refusals()) == number

    async def watch() -> None:
        watching = asyncio.create_task(tls.watch(every_s=0.01))
        for number, content in enumerate(("no PEM", None, (CERTIFICATES / "second-server.pem").read_text()), 1):
            if content is None:
                files.certificate.unlink()
            else:
                beside.write_text(content)
                beside.replace(files.certificate)
            await asyncio.to_thread(wait_for, partial(is_refused, number))
            looks.clear()
            await asyncio.to_thread(wait_for, lambda: len(looks) > 5)  # at files that have not changed since
        watching.cancel()

    asyncio.run(watch())
    configure_logs("error")
    refused = refusals()
    assert len(refused) == 3
    assert "cannot be read" in refused[1]
    assert refused[2].endswith("cannot be used: key values mismatch")
    assert handshake(tls.context, trusting("first")) == "localhost"


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> str:
    """In memory; the name that was checked."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    done = 0
    for _ in range(10):
        for side in (theirs, ours):
            try:
                side.do_handshake()
                done += 1
            except ssl.SSLWantReadError:
                done = 0
        if done >= 2:
            return "localhost"
    raise AssertionError("no handshake")


def test_clients_need_a_certificate_of_the_authority_of_now(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    configure_logs("info")
    files = put(tmp_path, "first")
    authorities = tmp_path / "clients.pem"
    shutil.copy(CERTIFICATES / "first-ca.pem", authorities)
    with served(TlsFiles(files.certificate, files.key, authorities)) as (server, tls):
        assert ready(server, trusting("first", client="first")) == 200
        for stranger in (None, "second"):
            with pytest.raises(httpx.TransportError):
                ready(server, trusting("first", client=stranger))
        shutil.copy(CERTIFICATES / "second-ca.pem", authorities)
        assert tls.reload()
        assert ready(server, trusting("first", client="second")) == 200
        with pytest.raises(httpx.TransportError):
            ready(server, trusting("first", client="first"))
    configure_logs("error")
    events = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    refused = [line["reason"] for line in events if line["event"] == "tls_refused"]
    assert refused == ["peer did not return a certificate", *["certificate verify failed"] * 2]


def test_plain_http_on_the_port_of_tls_ends_only_its_connection(tmp_path: Path) -> None:
    with served(put(tmp_path, "first")) as (server, _):
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{server.port}/health")
        assert ready(server, trusting("first")) == 200


def test_http2_is_chosen_by_who_speaks_it_and_streams(tmp_path: Path) -> None:
    with served(put(tmp_path, "first")) as (server, _):
        context = trusting("first")
        context.set_alpn_protocols(["h2"])
        body = json.dumps({**CHAT, "stream": True}).encode()
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as wrapped,
        ):
            assert wrapped.selected_alpn_protocol() == "h2"
            connection = h2.connection.H2Connection()
            connection.initiate_connection()
            for stream in (1, 3):
                connection.send_headers(
                    stream,
                    [
                        (":method", "POST"), (":path", "/v1/chat/completions"), (":scheme", "https"),
                        (":authority", "localhost"), ("content-type", "application/json"),
                    ],
                )  # fmt: skip
                connection.send_data(stream, body, end_stream=True)
            wrapped.sendall(connection.data_to_send())
            replies = {1: b"", 3: b""}
            ended: set[int] = set()
            while len(ended) < 2:
                for event in connection.receive_data(wrapped.recv(65536)):
                    if isinstance(event, h2.events.DataReceived):
                        replies[event.stream_id] += event.data
                        connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    elif isinstance(event, h2.events.StreamEnded):
                        ended.add(event.stream_id)
                wrapped.sendall(connection.data_to_send())
        assert all(reply.endswith(b"data: [DONE]\n\n") for reply in replies.values())


@pytest.mark.parametrize(
    ("certificate", "key", "said"),
    [
        ("missing.pem", "first-server.key", "missing.pem cannot be read .*--tls-cert"),
        ("first-server.pem", "missing.key", "missing.key cannot be read .*--tls-key"),
        ("first-server.pem", "second-server.key", "key values mismatch"),
        ("first-server.key", "first-server.key", "cannot be used"),
        ("first-server.pem", "first-server.pem", "cannot be used"),
        ("first-server.pem", "encrypted.key", "encrypted.key is encrypted"),
    ],
)
def test_what_cannot_be_used_is_said_at_the_start(certificate: str, key: str, said: str) -> None:
    with pytest.raises(TlsError, match=said):
        Tls(TlsFiles(CERTIFICATES / certificate, CERTIFICATES / key))


def test_authorities_that_are_none_are_said_at_the_start(tmp_path: Path) -> None:
    files = put(tmp_path, "first")
    with pytest.raises(TlsError, match="no certificates that can be used"):
        Tls(TlsFiles(files.certificate, files.key, files.key))
