"""The server under test: `ortserve serve` as a process of its own, as a user starts it. Knows no client."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

START_S = 120.0
STOP_S = 30.0


class ServerFailedError(Exception):
    """It has ended, or does not answer; the message is the end of what it printed."""


@contextmanager
def serving(*arguments: str) -> Iterator[str]:
    """Its address, until the block ends. Raises `ServerFailedError` unless it answers within `START_S` seconds."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        ortserve = Path(sys.executable).with_name("ortserve")
        command = [str(ortserve), "serve", *arguments, "--port", str(port), "--state-dir", f"{folder}/state"]
        environment = {**os.environ, "XDG_CACHE_HOME": f"{folder}/cache"}  # no export of an earlier run is served
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            wait_until_ready(process, url, log)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            raise ServerFailedError(log.read_text(errors="replace")[-2000:])
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
