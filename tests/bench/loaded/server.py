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
    cores: set[int] = field(default_factory=set)  # its own and the client's

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
        return sum(_seconds(f"/proc/{pid}/stat") for pid in self._processes())

    def loop_seconds(self) -> float:
        """That of the event loop's thread, which has all of HTTP."""
        return _seconds(f"/proc/{self.process.pid}/task/{self.process.pid}/stat")

    def busy_seconds(self) -> float:
        """Processor time that these cores have spent on anything."""
        ticks = 0
        for line in Path("/proc/stat").read_text().splitlines():
            name, *fields = line.split()
            if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in self.cores:
                user, nice, system, _, _, interrupts, soft = map(int, fields[:7])
                ticks += user + nice + system + interrupts + soft
        return ticks / os.sysconf("SC_CLK_TCK")

    def _processes(self) -> list[int]:
        found = [self.process.pid]
        for pid in found:
            with contextlib.suppress(OSError):
                # Engine processes are children of the threads that have started them.
                for thread in Path(f"/proc/{pid}/task").iterdir():
                    found += map(int, (thread / "children").read_text().split())
        return found


def _seconds(file: str) -> float:
    """Processor time of a process or thread; 0 when it has ended."""
    try:
        fields = Path(file).read_text().rpartition(") ")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # user and system


@contextlib.contextmanager
def serving(arguments: argparse.Namespace, *options: str) -> Iterator[Server]:
    """Started and ready; what it logs is shown when it does not come up."""
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "ortserve.gateway.cli", "serve", *arguments.model, "--port", str(port)]
    words += ["--served-name", NAME, "--quiet", "--log-level", "warning", "--max-rows", str(arguments.rows)]
    words += ["--allow-unverified", *options, *arguments.serve]  # random weights fail a proof of their text
    words += [] if arguments.threads is None else ["--threads", str(arguments.threads)]
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
            yield Server(port, process, (arguments.server_cores or set()) | os.sched_getaffinity(0))
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
    loop_s: list[float] = field(default_factory=list)  # the part of its event loop
    client_s: list[float] = field(default_factory=list)
    busy_s: list[float] = field(default_factory=list)  # of their cores, whoever it was

    def cores(self) -> dict[str, float]:
        """Processors in use, on average, and of the server's its event loop.

        What others use makes the measurement one of something else.
        """
        seconds = self.at_s[-1] - self.at_s[0]
        samples = self.server_s, self.loop_s, self.client_s, self.busy_s
        server, loop, client, busy = (each[-1] - each[0] for each in samples)
        used = {"server": server, "loop": loop, "client": client, "others": busy - server - client}
        return {name: round(value / seconds, 3) for name, value in used.items()}


@contextlib.asynccontextmanager
async def watched(server: Server, *, after_s: float = 0.0) -> AsyncIterator[Use]:
    """Samples from `after_s` seconds after the beginning to the end."""
    use = Use()

    def look() -> None:
        use.at_s.append(time.perf_counter())
        use.memory.append(server.memory())
        use.server_s.append(server.cpu_seconds())
        use.loop_s.append(server.loop_seconds())
        use.client_s.append(time.process_time())
        use.busy_s.append(server.busy_seconds())

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
