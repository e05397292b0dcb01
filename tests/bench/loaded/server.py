"""`ortserve serve` on cores of its own, and what it and its client use of the machine. Knows no request."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.loaded.client import HOST, NAME

START_S = 300.0  # an export on first use, and loading
END_S = 60.0


@dataclass(slots=True)
class Server:
    """A running one."""

    port: int
    process: subprocess.Popen[bytes]

    def memory(self) -> int:
        """Resident bytes of the server and its children."""
        total = 0
        for pid in self._processes():
            with contextlib.suppress(OSError):
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                total += pages * os.sysconf("SC_PAGE_SIZE")
        return total

    def cpu_seconds(self) -> float:
        """Processor time of the server and its children so far."""
        ticks = 0
        for pid in self._processes():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
                ticks += int(fields[11]) + int(fields[12])  # user and system
        return ticks / os.sysconf("SC_CLK_TCK")

    def _processes(self) -> list[int]:
        found = [self.process.pid]
        for pid in found:
            with contextlib.suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found


@contextlib.contextmanager
def serving(arguments: argparse.Namespace, *options: str) -> Iterator[Server]:
    """Started and ready; what it logs is shown when it does not come up."""
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "ortserve.gateway.cli", "serve", *arguments.model, "--port", str(port)]
    words += ["--served-name", NAME, "--quiet", "--log-level", "warning", "--max-rows", str(arguments.rows)]
    words += ["--allow-unverified", *options]  # random weights fail a proof of their text
    environment = dict(os.environ)
    if arguments.server_path is not None:
        path = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join([str(arguments.server_path), *([path] if path else [])])
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(words, stderr=log, env=environment)
        if arguments.server_cores:  # long before it counts them
            os.sched_setaffinity(process.pid, arguments.server_cores)
        try:
            _wait_until_ready(port, process, log)
            yield Server(port, process)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
            process.kill()


def _wait_until_ready(port: int, process: subprocess.Popen[bytes], log: Any) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=5) as connection:
            connection.sendall(b"GET /health/ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            if connection.recv(64).startswith(b"HTTP/1.1 200"):
                return
        time.sleep(0.1)
    log.seek(0)
    raise RuntimeError(f"the server did not come up: {log.read().decode()[-2000:]}")


@dataclass(slots=True)
class Use:
    """What two sides use of the machine: a sample a second."""

    at_s: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)  # the server's resident bytes
    server_s: list[float] = field(default_factory=list)  # processor time since each began
    client_s: list[float] = field(default_factory=list)

    def cores(self) -> dict[str, float]:
        """Processors in use, on average."""
        seconds = self.at_s[-1] - self.at_s[0]
        used = {"server": self.server_s[-1] - self.server_s[0], "client": self.client_s[-1] - self.client_s[0]}
        return {name: round(value / seconds, 3) for name, value in used.items()}


@contextlib.asynccontextmanager
async def watched(server: Server, *, after_s: float = 0.0) -> AsyncIterator[Use]:
    """Samples from `after_s` seconds after the beginning to the end."""
    use = Use()

    def look() -> None:
        use.at_s.append(time.perf_counter())
        use.memory.append(server.memory())
        use.server_s.append(server.cpu_seconds())
        use.client_s.append(time.process_time())

    async def sample() -> None:
        await asyncio.sleep(after_s)
        while True:
            look()
            await asyncio.sleep(1.0)

    task = asyncio.create_task(sample())
    try:
        yield use
        look()
    finally:
        task.cancel()
