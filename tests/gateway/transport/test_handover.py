"""A server that is replaced while it serves: no refusal, no lost token, and failures that change nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.gateway.synthetic import write_synthetic_text_model
from tests.gateway.test_serve import process, read_greeting
from tests.waiting import PATIENCE_S, wait_for

NUM_CORES = len(os.sched_getaffinity(0))
CERTIFICATES = Path(__file__).parent / "certificates"
BODY = {"model": "synthetic", "messages": [{"role": "user", "content": "abc"}], "temperature": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_text_model(tmp_path_factory.mktemp("synthetic"))


class Log:
    """The lines of a server and of its successors, as they come."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        assert child.stderr is not None
        self._file = child.stderr
        self.lines: list[dict[str, object]] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._file:
            if line.startswith("{"):
                self.lines.append(json.loads(line))

    def find(self, event: str) -> list[dict[str, object]]:
        return [line for line in list(self.lines) if line["event"] == event]

    def wait(self, event: str) -> dict[str, object]:
        wait_for(lambda: bool(self.find(event)), lambda: f"no {event} in {self.lines}")
        return self.find(event)[0]

    def join(self) -> None:
        self._thread.join(PATIENCE_S)


def test_the_successor_takes_over_without_a_refusal_or_a_lost_token(model: Path, tmp_path: Path) -> None:
    """With TLS; over plain TCP, behind a proxy, see the tests of the proxies."""
    path = tmp_path / "s.sock"
    words = ("--unix", str(path), "--threads", "1")
    tls = ("--tls-cert", str(CERTIFICATES / "first-server.pem"), "--tls-key", str(CERTIFICATES / "first-server.key"))
    trusted = ssl.create_default_context(cafile=str(CERTIFICATES / "first-ca.pem"))
    with process("serve", str(model), *words, *tls) as child:
        assert "over" in read_greeting(child)
        log = Log(child)
        limits = httpx.Limits(max_keepalive_connections=0)
        transport = httpx.HTTPTransport(uds=str(path), verify=trusted, limits=limits)
        try:
            with httpx.Client(transport=transport, base_url="https://localhost") as http:
                take_over(child, log, http)
                assert path.exists()
        finally:
            for line in log.find("handover_begun"):
                os.kill(int(str(line["successor"])), signal.SIGTERM)
        wait_for(lambda: not path.exists(), "the successor has not ended, or left its socket")
        log.join()  # both have closed it
    assert {line["status"] for line in log.find("request")} == {200}


@pytest.mark.skipif(NUM_CORES < 2, reason="two engines need two cores")
def test_engine_processes_are_replaced_with_their_server(model: Path) -> None:
    with process("serve", str(model), "--port", "0", "--engines", "2", "--threads", "2") as child:
        match = re.search(r"http://[^/\s]+", read_greeting(child))
        assert match is not None
        log, old = Log(child), engines_of(child.pid)
        assert len(old) == 2
        successor = 0
        try:
            fresh = httpx.Limits(max_keepalive_connections=0)  # each request by a connection of its own
            with httpx.Client(base_url=match[0], limits=fresh, timeout=PATIENCE_S) as http:
                take_over(child, log, http)
                assert not any(Path(f"/proc/{pid}").exists() for pid in old)
                successor = int(str(log.find("handover_begun")[0]["successor"]))
                new = engines_of(successor)
                assert len(new) == 2
                assert [one["status"] for one in http.get("/health").json()["workers"]] == ["ok", "ok"]
        finally:
            if successor:
                os.kill(successor, signal.SIGTERM)
        log.join()  # both have closed it
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in new), "engine processes are left")
    assert {line["status"] for line in log.find("request")} == {200}
    assert not log.find("worker_restarting")


def engines_of(server: int) -> list[int]:
    """The processes that a server's threads have started, but for a successor."""
    children = [
        int(word)
        for thread in Path(f"/proc/{server}/task").iterdir()
        for word in (thread / "children").read_text().split()
    ]
    return [pid for pid in children if b"runtime.workers.process" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def take_over(child: subprocess.Popen[str], log: Log, http: httpx.Client) -> None:
    """Replace the server while two clients stream without a pause: whenever it happens, it is in the middle of some."""
    long = {**BODY, "max_tokens": 240, "ignore_eos": True}
    whole = http.post("/v1/chat/completions", json=long).json()["choices"][0]["message"]["content"]
    is_over = threading.Event()

    def ask() -> list[str]:
        texts = []
        while not is_over.is_set():
            reply = http.post("/v1/chat/completions", json={**long, "stream": True}).raise_for_status()
            chunks = [json.loads(line[6:]) for line in reply.text.split("\n\n") if line.startswith("data: {")]
            texts.append("".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks))
        return texts

    with ThreadPoolExecutor(2) as clients:
        asked = [clients.submit(ask) for _ in range(2)]
        try:
            child.send_signal(signal.SIGUSR2)
            log.wait("handover_done")
            assert child.wait(PATIENCE_S) == 0
            assert http.get("/health/ready").status_code == 200  # by the successor
        finally:
            is_over.set()
    assert {text for one in asked for text in one.result()} == {whole}


def test_a_successor_that_cannot_start_changes_nothing(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[server]\nport = 0\n")
    with process("serve", str(model), "--config", str(file), "--threads", "1") as child:
        match = re.search(r"http://[^/\s]+", read_greeting(child))
        assert match is not None
        log = Log(child)
        file.write_text("[server]\nprot = 0\n")
        child.send_signal(signal.SIGUSR2)
        log.wait("handover_failed")
        assert httpx.get(f"{match[0]}/health/ready").status_code == 200
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE_S) == 0


def test_a_folder_of_kept_responses_is_not_handed_over(model: Path, tmp_path: Path) -> None:
    words = ("--port", "0", "--threads", "1", "--state-dir", str(tmp_path / "state"))
    with process("serve", str(model), *words) as child:
        read_greeting(child)
        log = Log(child)
        child.send_signal(signal.SIGUSR2)
        assert "--state-dir belongs to one process" in str(log.wait("handover_refused")["error"])
        child.send_signal(signal.SIGHUP)  # which only reads files
        log.wait("reloading")
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE_S) == 0
