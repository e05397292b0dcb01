"""Paths, methods, keys, CORS, sizes: what is around every endpoint."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import tempfile
import threading
from pathlib import Path

import httpx
import pytest

from ortserve.gateway.app import build_app
from ortserve.gateway.documentation.operations import OPERATIONS
from ortserve.gateway.http.edge import canonical_path
from ortserve.gateway.options.edge import MAX_BODY_BYTES, EdgeOptions
from ortserve.gateway.routes import bodies
from ortserve.gateway.schema.fields import Fields, parse_object
from ortserve.gateway.store.state import State
from tests.gateway.fleets import fleet_of
from tests.gateway.running import Running, running
from tests.gateway.scripted import make_driver, make_service, saying
from tests.waiting import PATIENCE_S

BODY = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/v1/chat/completions/",
        "//v1//chat/completions",
        "/v1/v1/chat/completions",
        "/chat/completions",
        "/v1/chat/completions?api-version=1",
    ],
)
def test_spellings_of_a_path(server: Running, http: httpx.Client, path: str) -> None:
    response = http.post(f"{server.url}{path}", json=BODY, follow_redirects=False)  # a bare // would name a host
    assert response.status_code == 200, response.text


def test_canonical_paths_are_fixed_points() -> None:
    for operation in OPERATIONS:
        path = operation.path.replace("{id}", "org/name")
        bare = path.removeprefix("/v1")  # of clients whose base URL ends before it
        doubled = f"/v1{path}" if bare != path else path
        for spelling in (path, f"{path}/", path.replace("/", "//"), bare, doubled):
            assert canonical_path(spelling) == path


@pytest.mark.parametrize("path", ["/v1/foo", "/v1", "/v1/moderations", "/v1/threads", "/v1/chat", "/nope", "/v1//foo/"])
def test_unknown_paths(server: Running, http: httpx.Client, path: str) -> None:
    response = http.post(f"{server.url}{path}", json={})
    assert response.status_code == 404
    assert response.json()["error"]["message"] == f"Invalid URL (POST {path})", "as the client has written it"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/completions", "POST"),
        ("DELETE", "/v1/models", "GET, HEAD"),
        ("PUT", "/health", "GET, HEAD"),
        ("DELETE", "/v1/chat/completions", "GET, HEAD, POST"),  # of two routes
    ],
)
def test_wrong_methods(http: httpx.Client, method: str, path: str, allowed: str) -> None:
    response = http.request(method, path)
    assert response.status_code == 405
    assert response.headers["allow"] == allowed
    assert response.json()["error"]["code"] == "method_not_supported"


def test_models(http: httpx.Client) -> None:
    listed = http.get("/v1/models").json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert model["id"] == "scripted"
    assert isinstance(model["created"], int)
    assert model["max_model_len"] == 512
    assert model["generation_defaults"] == {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
    assert http.get("/v1/models/scripted").json() == model
    for missing in ("other", "org/name", "org%2Fname"):
        response = http.get(f"/v1/models/{missing}")
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"
        assert f"`{missing.replace('%2F', '/')}`" in response.json()["error"]["message"]


def test_health(http: httpx.Client) -> None:
    for path in ("/health", "/"):
        assert http.get(path).json()["status"] == "ok"
        assert http.head(path).status_code == 200


def test_request_ids(http: httpx.Client) -> None:
    first, second = (http.get("/health").headers["x-request-id"] for _ in range(2))
    assert first != second
    assert http.get("/health", headers={"x-request-id": "mine-7"}).headers["x-request-id"] == "mine-7"
    assert http.get("/health", headers={"x-request-id": "x" * 500}).headers["x-request-id"] != "x" * 500


def test_cors_preflight_and_reply(http: httpx.Client) -> None:
    headers = {
        "origin": "http://app",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-os",
    }
    preflight = http.options("/v1/chat/completions", headers=headers)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "*"
    assert preflight.headers["access-control-allow-headers"] == headers["access-control-request-headers"]
    assert preflight.headers["access-control-allow-methods"] == "GET, POST, DELETE, OPTIONS"
    assert preflight.headers["x-request-id"]
    reply = http.post("/v1/chat/completions", json={}, headers={"origin": "http://app"})
    assert reply.status_code == 400
    assert reply.headers["access-control-allow-origin"] == "*"
    assert "x-request-id" in reply.headers["access-control-expose-headers"]
    assert http.options("/v1/models").status_code == 204


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 200, None),
        ({"content-type": "application/json; charset=UTF-8"}, 200, None),
        ({"content-type": "application/problem+json"}, 200, None),
        ({"content-type": "text/plain"}, 400, "unsupported_content_type"),
        ({"content-type": "application/x-www-form-urlencoded"}, 400, "unsupported_content_type"),
        ({"content-type": "multipart/form-data; boundary=x"}, 400, "unsupported_content_type"),
        ({"content-type": "application/json; charset=utf-16"}, 400, "unsupported_content_type"),
        ({"content-encoding": "gzip"}, 415, "unsupported_content_encoding"),
        ({"content-encoding": "identity"}, 200, None),
    ],
)
def test_content_types(http: httpx.Client, headers: dict[str, str], status: int, code: str | None) -> None:
    data = b'{"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}'
    response = http.post("/v1/chat/completions", content=data, headers=headers)
    assert response.status_code == status
    assert code is None or response.json()["error"]["code"] == code


def test_keys() -> None:
    with running(make_driver(saying("x")), api_key="s\u00e9cret") as server, httpx.Client(base_url=server.url) as http:
        for headers in ({}, {"authorization": "Bearer"}, {"authorization": "Bearer wrong"}, {"x-api-key": "wrong"}):
            response = http.post("/v1/chat/completions", json=BODY, headers=headers)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["code"] == "invalid_api_key"
        assert http.get("/v1/models").status_code == 401
        assert http.get("/health").status_code == http.get("/").status_code == 200
        for given in ([(b"authorization", b"Bearer s\xc3\xa9cret")], [(b"x-api-key", b"s\xc3\xa9cret")]):
            assert http.post("/v1/chat/completions", json=BODY, headers=given).status_code == 200


def test_without_a_key_every_key_is_accepted(http: httpx.Client) -> None:
    for value in ("Bearer", "Bearer x", "Basic eDp5"):
        assert http.get("/v1/models", headers={"authorization": value}).status_code == 200


def test_bodies_have_a_bound() -> None:
    assert MAX_BODY_BYTES >= 16 * 1024 * 1024, "agents begin with tens of kilobytes of tools, and go on with more"
    limit = 1_000_000
    with (
        running(make_driver(saying("x")), edge=EdgeOptions(max_body_bytes=limit)) as server,
        httpx.Client(base_url=server.url) as http,
    ):
        response = http.post("/v1/chat/completions", content=b"x" * (4 * limit))
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "request_too_large"
        padded = {**BODY, "padding": "x" * (limit - 1000)}
        assert http.post("/v1/chat/completions", json=padded).status_code == 200
        refused = http.post("/nope", content=b"x" * limit)
        assert refused.status_code == 404
        assert http.get("/health").status_code == 200


@pytest.mark.parametrize("method", ["GET", "OPTIONS", "HEAD"])
def test_bodies_nobody_asked_for_are_read_and_dropped(http: httpx.Client, method: str) -> None:
    headers = {"origin": "http://app", "access-control-request-method": "POST"}
    for _ in range(2):  # the second shows that the connection is still good
        assert http.request(method, "/v1/models", content=b"x" * 3_000_000, headers=headers).status_code == 200


def test_large_bodies_are_parsed_off_the_loop(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    def parse(body: bytes) -> Fields:
        threads.append(threading.get_ident())
        return parse_object(body)

    monkeypatch.setattr(bodies, "parse_object", parse)
    body = {**BODY, "metadata": None, "padding": ["x" * 100] * 5000}
    for small in (BODY, {**BODY, "user": "me"}):
        assert http.post("/v1/chat/completions", json=small).status_code == 200
    assert http.post("/v1/chat/completions", json=body).status_code == 200
    assert http.post("/v1/chat/completions", content=b"[" * 200_000).status_code == 400
    loop = threads[0]
    assert [thread == loop for thread in threads] == [True, True, False, False]


def test_two_requests_in_one_connection(server: Running) -> None:
    """Pipelined requests are answered in order."""
    request = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as connection:
        connection.sendall(request * 2)
        received = b""
        while received.count(b'"status":"ok"') < 2:
            data = connection.recv(65536)
            assert data, "the connection was closed"
            received += data


def test_an_application_that_never_begins_leaves_no_thread_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    driver = make_driver(saying("x"))
    before = set(threading.enumerate())

    def files() -> list[Path]:
        return list(tmp_path.iterdir())

    async def build() -> None:
        state = State()
        state.files.partial_path("file_1").write_bytes(b"as an upload would")
        build_app(await fleet_of(make_service(driver)), state=state)
        assert set(threading.enumerate()) - before
        assert files()

    asyncio.run(build())
    gc.collect()
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE_S)
    assert set(threading.enumerate()) <= before
    assert files() == []
    driver.close()


def talk(server: Running, data: bytes) -> tuple[bytes, bytes]:
    """Head and body of what a connection is answered until it is closed."""
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(PATIENCE_S)
        connection.sendall(data)
        received = b""
        while piece := connection.recv(65536):
            received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    return head, body


@pytest.mark.parametrize("target", ["http://elsewhere/health", "HTTPS://elsewhere:8000//health/", "http://elsewhere"])
def test_a_whole_url_in_the_request_line_is_its_path(server: Running, target: str) -> None:
    head, body = talk(server, f"GET {target} HTTP/1.1\r\nhost: elsewhere\r\nconnection: close\r\n\r\n".encode())
    assert head.split()[1] == b"200"
    assert json.loads(body)["status"] == "ok"


def test_a_websocket_is_refused(server: Running) -> None:
    """Not 403, by which clients blame their key."""
    handshake = (
        b"GET /v1/responses HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
    )
    head, body = talk(server, handshake)
    assert head.split()[1] == b"404"
    assert b"x-request-id: req_" in head.lower()
    assert "this server answers by HTTP" in json.loads(body)["error"]["message"]
