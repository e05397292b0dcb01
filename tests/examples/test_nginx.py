"""examples/proxies/nginx.conf in a real nginx before two servers: streams, disconnects, drain, bodies, no retries."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from ortserve.gateway.server import Limits
from tests.e2e.server import free_port
from tests.gateway.running import Running, running
from tests.gateway.scripted import make_driver, saying

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
CONFIGURATION = Path(__file__).parents[2] / "examples" / "proxies" / "nginx.conf"
CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**CHAT, "stream": True}
MAIN = """daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
include {folder}/site.conf; }}
"""

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed: apt-get install nginx-light")


@dataclass(frozen=True)
class Proxied:
    """A client of nginx, and the servers behind it."""

    http: httpx.Client
    servers: tuple[Running, Running]

    @property
    def num_submitted(self) -> int:
        return sum(len(server.driver.submitted) for server in self.servers)


@pytest.fixture
def proxied(tmp_path: Path) -> Iterator[Proxied]:
    assert NGINX is not None
    with ExitStack() as stack:
        limits = Limits(drain_s=10.0, stall_s=5.0)
        first, second = (
            stack.enter_context(running(make_driver(saying("hello " * 10), pace_s=0.05), limits=limits))
            for _ in range(2)
        )
        port = free_port()
        site = CONFIGURATION.read_text()
        for written, here in (("8000", first.port), ("8001", second.port), ("listen 8080", f"listen 127.0.0.1:{port}")):
            assert written in site
            site = site.replace(written, str(here))
        (tmp_path / "site.conf").write_text(site)
        (tmp_path / "nginx.conf").write_text(MAIN.format(folder=tmp_path))
        process = subprocess.Popen([NGINX, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")])
        stack.callback(process.wait, 10)
        stack.callback(process.terminate)
        http = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20))
        eventually(lambda: answers(http), f"nginx does not answer ({process.poll()})")
        yield Proxied(http, (first, second))


def answers(http: httpx.Client) -> bool:
    try:
        return http.get("/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def eventually(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_events_come_as_they_are_made(proxied: Proxied) -> None:
    with proxied.http.stream("POST", "/v1/chat/completions", json=STREAM) as reply:
        lines = reply.iter_lines()
        assert next(lines).startswith("data: ")
        assert not any(server.driver.finished for server in proxied.servers), "nginx has kept the events back"
        assert [line for line in lines if line][-1] == "data: [DONE]"


def test_who_leaves_is_noticed_behind_the_proxy(proxied: Proxied) -> None:
    with proxied.http.stream("POST", "/v1/chat/completions", json=STREAM) as reply:
        lines = reply.iter_lines()
        next(lines)
    eventually(lambda: any(server.driver.cancelled for server in proxied.servers), "the generation was not cancelled")


def test_a_server_that_drains_loses_no_token_and_no_new_request(proxied: Proxied) -> None:
    http = proxied.http
    with http.stream("POST", "/v1/chat/completions", json=STREAM) as reply:
        lines = reply.iter_lines()
        next(lines)
        draining = next(server for server in proxied.servers if server.driver.submitted)
        draining.begin_stop()
        for _ in range(4):
            assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
        rest = [line for line in lines if line]
    assert "".join(rest).count("hello") >= 9
    assert rest[-1] == "data: [DONE]"
    assert proxied.num_submitted == 5  # each was run once


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
