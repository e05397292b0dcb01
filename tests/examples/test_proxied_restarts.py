"""Two servers behind a real proxy are restarted in turn, under streams without a pause: none is cut, none refused."""

from __future__ import annotations

import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from ortserve.gateway.http.server import Limits
from ortserve.gateway.transport.listener import listen
from tests.examples.test_proxies import PROXIES, STREAM, Proxy, before
from tests.gateway.running import Running, running
from tests.gateway.scripted import make_driver, saying
from tests.waiting import PATIENCE_S, wait_for

NUM_CLIENTS = 6
SOONER = {  # than is good outside of a test
    "nginx": [("fail_timeout=2s", "fail_timeout=1s")],
    "haproxy": [("check inter 1s", "check inter 100ms")],
    "caddy": [("health_interval 1s", "health_interval 100ms")],
}


class Server:
    """One of the two, and whoever comes after it at its port."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.port = 0
        self.start()

    def start(self) -> None:
        self._own = self._stack.enter_context(ExitStack())
        self._left = threading.Event()
        listener = listen("127.0.0.1", self.port, stall_s=5.0)
        self.running: Running = self._own.enter_context(
            running(
                make_driver(saying("hello " * 10), pace_s=0.002), listener=listener, left=self._left,
                limits=Limits(drain_s=PATIENCE_S, stall_s=5.0),
            )
        )  # fmt: skip
        self.port = self.running.port

    def restart(self, proxy: Proxy) -> None:
        """As `--drain-delay` does it, where that is as long as the proxy needs."""
        self.running.begin_stop()
        num_before = len(self.running.driver.submitted)
        if proxy.program == "nginx":  # which does not ask: the connections that it keeps must have had their last reply
            wait_for(lambda: len(self.running.driver.submitted) >= num_before + 3 * NUM_CLIENTS)
        else:
            wait_for(self._has_told_the_proxy)
        self._left.set()
        self._own.close()
        self.start()
        wait_for(lambda: len(self.running.driver.submitted) >= NUM_CLIENTS, "its successor is not asked")

    def _has_told_the_proxy(self) -> bool:
        scraped = httpx.get(f"{self.running.url}/metrics").text
        counts = re.findall(r'^ortserve_requests_total\{.*"/health/ready".*"503".*\} (.*)$', scraped, re.MULTILINE)
        return sum(map(float, counts)) >= 2


@pytest.mark.parametrize("proxy", PROXIES, ids=lambda proxy: proxy.program)
def test_a_restart_of_each_in_turn_cuts_and_refuses_no_stream(proxy: Proxy, tmp_path: Path) -> None:
    if proxy.path is None:
        pytest.skip(f"{proxy.program} is not installed: apt-get install {proxy.package}")
    is_over = threading.Event()
    with ExitStack() as stack:
        servers = Server(stack), Server(stack)
        http = stack.enter_context(before(proxy, tmp_path, (servers[0].port, servers[1].port), SOONER[proxy.program]))

        def ask() -> Counter[str]:
            told: Counter[str] = Counter()
            while not is_over.is_set():
                try:
                    reply = http.post("/v1/chat/completions", json=STREAM)
                except httpx.TransportError as error:
                    told[f"{error!r}"] += 1
                    continue
                is_whole = reply.text.count("hello") == 10 and reply.text.endswith("data: [DONE]\n\n")
                told[f"{reply.status_code} {'whole' if is_whole else reply.text}"] += 1
            return told

        with ThreadPoolExecutor(NUM_CLIENTS) as clients:
            asked = [clients.submit(ask) for _ in range(NUM_CLIENTS)]
            try:
                for server in servers:
                    server.restart(proxy)
            finally:
                is_over.set()
        told = sum((one.result() for one in asked), Counter[str]())
    assert set(told) == {"200 whole"}, told
