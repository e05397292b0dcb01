"""Proxies that are believed and those that are not, base paths taken off or not, and pages of other origins."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from ortserve.gateway.logs import configure_logs
from ortserve.gateway.options.edge import EdgeOptions
from ortserve.gateway.transport.forwarded import Forwarded
from tests.gateway.running import running
from tests.gateway.scripted import make_driver, saying

TRUSTED = tuple(ipaddress.ip_network(text) for text in ("10.0.0.0/8", "2001:db8::/32"))
CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}
PEER = ("10.0.0.1", 1234)


def seen(peer: tuple[str, int] | None, path: str = "/", *, base_path: str = "", **headers: str) -> Scope:
    """What the application is told."""
    scopes: list[Scope] = []

    async def app(scope: Scope, _: Receive, __: Send) -> None:
        scopes.append(scope)

    async def nothing(*_: Any) -> Any:
        raise AssertionError

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "client": peer, "scheme": "http", "path": path, "headers": raw}
    asyncio.run(Forwarded(app, trusted=TRUSTED, base_path=base_path)(scope, nothing, nothing))
    return scopes[0]


@pytest.mark.parametrize(
    ("peer", "headers", "client", "scheme"),
    [
        (("192.0.2.1", 1), {"x_forwarded_for": "198.51.100.7", "x_forwarded_proto": "https"}, "192.0.2.1", "http"),
        (("192.0.2.1", 1), {"forwarded": "for=198.51.100.7;proto=https"}, "192.0.2.1", "http"),
        (PEER, {}, "10.0.0.1", "http"),
        (PEER, {"x_forwarded_for": "198.51.100.7", "x_forwarded_proto": "https"}, "198.51.100.7", "https"),
        (PEER, {"x_forwarded_proto": "HTTPS"}, "10.0.0.1", "https"),
        (PEER, {"x_forwarded_proto": "gopher"}, "10.0.0.1", "http"),
        # What the client has made up stands before what the proxies add.
        (PEER, {"x_forwarded_for": "1.1.1.1, 198.51.100.7"}, "198.51.100.7", "http"),
        (PEER, {"x_forwarded_for": "1.1.1.1, 198.51.100.7, 10.2.3.4"}, "198.51.100.7", "http"),
        (PEER, {"x_forwarded_for": "10.9.9.9, 10.2.3.4"}, "10.9.9.9", "http"),
        (PEER, {"x_forwarded_for": "198.51.100.7, unknown"}, "10.0.0.1", "http"),
        (PEER, {"x_forwarded_for": "198.51.100.7, not an address, 10.2.3.4"}, "10.2.3.4", "http"),
        (PEER, {"x_forwarded_for": "198.51.100.7:4711"}, "198.51.100.7", "http"),
        (PEER, {"x_forwarded_for": "[2001:db9::1]:4711"}, "2001:db9::1", "http"),
        (("::ffff:10.0.0.1", 1), {"x_forwarded_for": "198.51.100.7"}, "198.51.100.7", "http"),
        (("2001:db8::5", 1), {"x_forwarded_for": "2001:db9::1"}, "2001:db9::1", "http"),
        (None, {"x_forwarded_for": "198.51.100.7"}, "198.51.100.7", "http"),
        (PEER, {"forwarded": 'for="[2001:db9::1]:80";proto=https;by=10.0.0.1'}, "2001:db9::1", "https"),
        (PEER, {"forwarded": "for=1.1.1.1;proto=ftp, For=198.51.100.7; Proto=https"}, "198.51.100.7", "https"),
        (PEER, {"forwarded": 'for="_hidden, name";proto=https'}, "10.0.0.1", "https"),
        # A proxy that writes only X-Forwarded-For lets the client's own Forwarded through.
        (PEER, {"x_forwarded_for": "198.51.100.7", "forwarded": "for=1.1.1.1;proto=https"}, "198.51.100.7", "http"),
    ],
)
def test_only_trusted_proxies_are_believed(
    peer: tuple[str, int] | None, headers: dict[str, str], client: str, scheme: str
) -> None:
    scope = seen(peer, **headers)
    assert scope["client"][0] == client
    assert scope["scheme"] == scheme


@pytest.mark.parametrize(
    ("path", "served"),
    [
        ("/llm/v1/models", "/v1/models"),
        ("/llm", "/"),
        ("/llm/", "/"),
        ("/v1/models", "/v1/models"),
        ("/llms/v1/models", "/llms/v1/models"),
        ("/v1/llm/models", "/v1/llm/models"),
    ],
)
def test_a_base_path_is_taken_off_where_the_proxy_has_not(path: str, served: str) -> None:
    assert seen(PEER, path, base_path="/llm")["path"] == served


def test_a_server_below_a_path_answers_both_ways_and_says_its_address() -> None:
    edge = EdgeOptions(base_path="/llm", trusted_proxies=(ipaddress.ip_network("127.0.0.1"),))
    with (
        running(make_driver(saying("hello")), api_key="k", edge=edge) as server,
        httpx.Client(base_url=server.url, headers={"authorization": "Bearer k"}) as http,
    ):
        for base in ("", "/llm"):
            assert http.post(f"{base}/v1/chat/completions", json=CHAT).status_code == 200
            assert http.get(f"{base}/health/ready").status_code == 200
            assert http.get(f"{base}/openapi.json").json()["servers"] == [{"url": "/llm"}]
            assert httpx.get(f"{server.url}{base}/v1/models").status_code == 401
        page = http.get("/llm/docs").text
        assert "<code>/llm/v1/chat/completions</code>" in page
        assert "href=openapi.json" in page  # relative: right below any path
        assert http.get("/llm/llm/v1/models").status_code == 404


def test_the_log_names_who_asked_the_proxy(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logs("info")
    edge = EdgeOptions(trusted_proxies=(ipaddress.ip_network("127.0.0.1"),))
    with running(make_driver(saying("hello")), edge=edge) as server:
        httpx.get(f"{server.url}/health/live", headers={"x-forwarded-for": "198.51.100.7"})
    with running(make_driver(saying("hello"))) as server:
        httpx.get(f"{server.url}/health/live", headers={"x-forwarded-for": "198.51.100.7"})
    configure_logs("error")
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    assert [line["client"] for line in lines if line["event"] == "request"] == ["198.51.100.7", "127.0.0.1"]


def preflight(url: str, origin: str) -> httpx.Response:
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type",
    }
    return httpx.options(f"{url}/v1/chat/completions", headers=headers)


def test_pages_of_allowed_origins_may_call_and_stream_and_read_what_limits_say() -> None:
    edge = EdgeOptions(cors_origins=("https://chat.example",))
    with running(make_driver(saying("hello")), api_key="k", edge=edge) as server:
        allowed = preflight(server.url, "https://chat.example")
        assert allowed.status_code == 200  # and nobody has asked for a key
        assert allowed.headers["access-control-allow-origin"] == "https://chat.example"
        assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
        refused = preflight(server.url, "https://evil.example")
        assert refused.status_code == 400
        assert "access-control-allow-origin" not in refused.headers
        for origin, told in (("https://chat.example", "https://chat.example"), ("https://evil.example", None)):
            headers = {"origin": origin, "authorization": "Bearer k"}
            reply = httpx.post(f"{server.url}/v1/chat/completions", json={**CHAT, "stream": True}, headers=headers)
            assert reply.text.endswith("data: [DONE]\n\n")
            assert reply.headers.get("access-control-allow-origin") == told
            assert "origin" in reply.headers["vary"].lower()
        exposed = httpx.get(f"{server.url}/v1/models", headers={"origin": "https://chat.example"})
        assert exposed.status_code == 401  # also a refusal is readable
        names = {name.strip() for name in exposed.headers["access-control-expose-headers"].lower().split(",")}
        assert names >= {"x-request-id", "retry-after", "x-ratelimit-remaining-requests", "x-ratelimit-reset-tokens"}


def test_no_origin_may_be_allowed() -> None:
    with running(make_driver(saying("hello")), edge=EdgeOptions(cors_origins=())) as server:
        assert "access-control-allow-origin" not in preflight(server.url, "https://chat.example").headers
