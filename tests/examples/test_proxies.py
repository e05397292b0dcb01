"""The configurations of examples/proxies in real proxies before two servers: streams, disconnects, drain, retries.

Also requests that could be read in two ways: no proxy and server may together take one for two.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from ortserve.gateway.http.server import Limits
from ortserve.gateway.http.watch import Patience
from ortserve.runtime.request import FinishReason, Request
from tests.e2e.server import free_port
from tests.gateway.running import Running, running
from tests.gateway.scripted import Held, make_driver, saying
from tests.gateway.transport.test_raw_requests import REFUSED, SMUGGLED
from tests.waiting import PATIENCE_S, wait_for

FOLDER = Path(__file__).parents[2] / "examples" / "proxies"
CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**CHAT, "stream": True}
NGINX = """daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
include {folder}/site; }}
"""
HAPROXY = "global\n    maxconn 256\n"
CADDY = "{\n\tadmin off\n\tauto_https off\n}\n"


@dataclass(frozen=True)
class Proxy:
    """How one is started: its configuration, what a test puts before it, and where it listens there."""

    program: str
    package: str
    file: str
    listens: tuple[str, str]  # as written, and as the test needs it
    words: tuple[str, ...]

    @property
    def path(self) -> str | None:
        return shutil.which(self.program) or shutil.which(self.program, path="/usr/sbin")

    def write(self, site: str, folder: Path) -> None:
        """`folder/main` is what the program reads."""
        if self.program == "nginx":
            (folder / "site").write_text(site)
            (folder / "main").write_text(NGINX.format(folder=folder))
        else:
            (folder / "main").write_text((HAPROXY if self.program == "haproxy" else CADDY) + site)


PROXIES = [
    Proxy(
        "nginx",
        "nginx-light",
        "nginx.conf",
        ("listen 8080", "listen 127.0.0.1:{port}"),
        ("-p", "{folder}", "-c", "{folder}/main"),
    ),
    Proxy("haproxy", "haproxy", "haproxy.cfg", ("bind :8080", "bind 127.0.0.1:{port}"), ("-db", "-f", "{folder}/main")),
    Proxy(
        "caddy",
        "caddy",
        "Caddyfile",
        (":8080 {{", ":{port} {{\n\tbind 127.0.0.1"),
        ("run", "--config", "{folder}/main", "--adapter", "caddyfile"),
    ),
]


@dataclass(frozen=True)
class Proxied:
    """A client of a proxy, and the servers behind it, which hold the reply to the first request after a token."""

    http: httpx.Client
    servers: tuple[Running, Running]
    port: int
    held: Held

    @property
    def num_submitted(self) -> int:
        return sum(len(server.driver.submitted) for server in self.servers)


@pytest.fixture(params=PROXIES, ids=lambda proxy: proxy.program)
def proxied(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Proxied]:
    proxy: Proxy = request.param
    if proxy.path is None:
        pytest.skip(f"{proxy.program} is not installed: apt-get install {proxy.package}")
    with ExitStack() as stack:
        limits = Limits(drain_s=10.0, stall_s=5.0)
        held, numbers = Held("hello " * 10, 1), itertools.count()

        def script(request: Request) -> Iterable[Sequence[int]]:
            return held(request) if next(numbers) == 0 else saying("hello " * 10)(request)

        first, second = (stack.enter_context(running(make_driver(script), limits=limits)) for _ in range(2))
        http = stack.enter_context(before(proxy, tmp_path, (first.port, second.port)))
        yield Proxied(http, (first, second), http.base_url.port or 0, held)


@contextmanager
def before(
    proxy: Proxy, folder: Path, ports: tuple[int, int], changes: Sequence[tuple[str, str]] = ()
) -> Iterator[httpx.Client]:
    """Run a proxy before two servers, by its example with `changes`, until the block ends. Yields a client of it."""
    assert proxy.path is not None
    port = free_port()
    site = (FOLDER / proxy.file).read_text()
    written, here = (text.format(port=port) for text in proxy.listens)
    for old, new in (("8000", str(ports[0])), ("8001", str(ports[1])), (written, here), *changes):
        assert old in site
        site = site.replace(old, new)
    proxy.write(site, folder)
    words = [word.format(folder=folder) for word in proxy.words]
    home = {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([proxy.path, *words], cwd=folder, env=home, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as http:
            wait_for(lambda: answers(http), lambda: f"no answer ({process.poll()}): {(folder / 'log').read_text()}")
            yield http
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def answers(http: httpx.Client) -> bool:
    try:
        return http.get("/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def test_events_come_as_they_are_made(proxied: Proxied) -> None:
    with proxied.http.stream("POST", "/v1/chat/completions", json=STREAM) as reply:
        lines = reply.iter_lines()
        assert next(lines).startswith("data: ")
        assert not any(server.driver.finished for server in proxied.servers), "the proxy has kept the events back"
        proxied.held.release()
        assert [line for line in lines if line][-1] == "data: [DONE]"


def test_who_leaves_is_noticed_behind_the_proxy(proxied: Proxied) -> None:
    with proxied.http.stream("POST", "/v1/chat/completions", json=STREAM) as reply:
        lines = reply.iter_lines()
        next(lines)
    wait_for(lambda: any(server.driver.cancelled for server in proxied.servers), "the generation was not cancelled")


def test_a_server_that_drains_loses_no_token_and_no_new_request(proxied: Proxied) -> None:
    http = proxied.http
    with http.stream("POST", "/v1/chat/completions", json=STREAM) as reply:
        lines = reply.iter_lines()
        next(lines)
        draining = next(server for server in proxied.servers if server.driver.submitted)
        draining.begin_stop()
        for _ in range(4):
            assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
        proxied.held.release()
        rest = [line for line in lines if line]
    assert "".join(rest).count("hello") >= 9
    assert rest[-1] == "data: [DONE]"
    assert proxied.num_submitted == 5  # each was run once


@pytest.fixture(params=PROXIES, ids=lambda proxy: proxy.program)
def proxy(request: pytest.FixtureRequest) -> Proxy:
    found: Proxy = request.param
    if found.path is None:
        pytest.skip(f"{found.program} is not installed: apt-get install {found.package}")
    return found


def test_what_fails_before_the_first_token_has_its_status_behind_the_proxy_and_is_sent_once(
    proxy: Proxy, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        drivers = [make_driver(lambda _: [], ending=FinishReason.ERROR) for _ in range(2)]
        patience = Patience(head_s=PATIENCE_S, ping_s=PATIENCE_S)
        first, second = (stack.enter_context(running(driver, patience=patience)) for driver in drivers)
        http = stack.enter_context(before(proxy, tmp_path, (first.port, second.port)))
        reply = http.post("/v1/chat/completions", json=STREAM)
        assert (reply.status_code, reply.headers["content-type"]) == (500, "application/json")
        assert "the graph failed" in reply.json()["error"]["message"]
        assert sum(len(driver.submitted) for driver in drivers) == 1


def test_a_stream_without_a_token_is_begun_by_its_first_sign_of_life_behind_the_proxy(
    proxy: Proxy, tmp_path: Path
) -> None:
    script, text = Held("hello"), ""
    with ExitStack() as stack:
        patience = Patience(ping_s=0.05)
        first, second = (stack.enter_context(running(make_driver(script), patience=patience)) for _ in range(2))
        http = stack.enter_context(before(proxy, tmp_path, (first.port, second.port)))
        with http.stream("POST", "/v1/chat/completions", json=STREAM) as reply:
            assert reply.status_code == 200
            for piece in reply.iter_text():
                text += piece
                if text.count(": ping") >= 3:
                    script.release()
    assert text.count("hello") == 1
    assert text.endswith("data: [DONE]\n\n")


def test_large_bodies_reach_the_server_and_its_own_bound_holds(proxied: Proxied) -> None:
    http = proxied.http
    for size, status in ((20, 400), (40, 413)):
        body = {"model": "scripted", "prompt": "x" * (size * 2**20)}
        reply = http.post("/v1/completions", json=body)
        assert reply.status_code == status
        assert reply.json()["error"]["code"] in ("context_length_exceeded", "request_too_large")
    assert proxied.num_submitted == 0


def test_a_post_that_was_sent_is_not_sent_again(proxied: Proxied) -> None:
    http = proxied.http
    for server in proxied.servers:
        server.driver.close()  # both answer, with a refusal
    assert http.post("/v1/chat/completions", json=CHAT).status_code == 503
    scraped = "".join(httpx.get(f"{server.url}/metrics").text for server in proxied.servers)
    counts = re.findall(r'^ortserve_requests_total{.*"/v1/chat/completions".*} (.*)$', scraped, re.MULTILINE)
    assert sum(map(float, counts)) == 1


def heard(proxied: Proxied, data: bytes) -> bytes:
    """All that is answered until the proxy closes or is silent: for a while in which it answers others."""
    with socket.create_connection(("127.0.0.1", proxied.port), timeout=0.2) as client:
        answer, num_silent = b"", 0
        with suppress(ConnectionError):
            client.sendall(data)
            while num_silent < (2 if answer else 4):
                try:
                    piece = client.recv(65536)
                except TimeoutError:
                    num_silent += 1
                    assert proxied.http.get("/health/ready").status_code == 200
                    continue
                if not piece:
                    break
                answer, num_silent = answer + piece, 0
        return answer


def test_no_request_is_smuggled_past_the_proxy(proxied: Proxied) -> None:
    second = b"GET /v1/models/smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    cases = {case: data.replace(SMUGGLED, second) for case, (data, _) in REFUSED.items() if SMUGGLED in data}
    cases["long head"] = REFUSED["long head"][0]
    with ExitStack() as stack:
        direct = [stack.enter_context(httpx.Client(base_url=server.url)) for server in proxied.servers]

        def num_smuggled() -> int:
            """How many requests for the model that only smuggled ones name the servers have answered."""
            scraped = "".join(http.get("/metrics").text for http in direct)
            counts = re.findall(r'^ortserve_errors_total{.*"model_not_found".*} (\d+)', scraped, re.MULTILINE)
            return sum(map(int, counts))

        heard(proxied, second)
        assert num_smuggled() == 1  # it would be seen
        for case, data in cases.items():
            before = num_smuggled()
            answer = heard(proxied, data)
            # What a server has taken for a request the proxy knows of as one: it has passed the reply on.
            assert num_smuggled() - before == answer.count(b"model_not_found"), f"{case}: {answer[:300]!r}"
            # And no connection that the proxy keeps is out of step.
            assert all(proxied.http.get("/health/ready").json() == {"status": "ok"} for _ in range(2)), case
