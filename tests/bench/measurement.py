"""What the benchmark scripts share: spreads, reports, and `ortserve` as a child process. Measures nothing itself."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any

import msgspec

from ortserve.runtime.host.machine import cpu_facts, memory_budget

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Spread:
    """Of repeated measurements."""

    median: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g}, {self.count})"


def spread(values: Sequence[float]) -> Spread:
    """Raises nothing for one value; there must be one."""
    assert values, "nothing was measured"
    return Spread(median(values), min(values), max(values), len(values))


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure with what it should be."""

    name: str
    measured: Spread
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool:
        """The median is within the bounds."""
        high_enough = self.at_least is None or self.measured.median >= self.at_least
        return high_enough and (self.at_most is None or self.measured.median <= self.at_most)

    def __str__(self) -> str:
        wanted = f"at least {self.at_least:g}" if self.at_least is not None else f"at most {self.at_most:g}"
        return f"{'met   ' if self.met else 'missed'} {self.name}: {self.measured}, wanted {wanted}"


def script_parser(description: str) -> argparse.ArgumentParser:
    """With the options that every script has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions, in turns (default %(default)s)")
    return parser


def finish(arguments: argparse.Namespace, goals: Sequence[Goal], details: dict[str, Any]) -> int:
    """Print the goals, write the JSON, return 0 if all are met and 1 otherwise."""
    for goal in goals:
        print(goal)
    write_json(arguments, goals, details)
    return 0 if all(goal.met for goal in goals) else 1


def write_json(arguments: argparse.Namespace, goals: Sequence[Goal], details: dict[str, Any]) -> None:
    """Where it was asked for; long scripts do it after every round, so that one that is stopped leaves what it had."""
    if arguments.json is not None:
        cpu = cpu_facts()
        report = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": sys.argv,
            "machine": {
                "cpu": cpu.model,
                "features": cpu.features,
                "num_cores": cpu.num_usable,
                "memory": memory_budget().total,
                "load_average": os.getloadavg(),
            },
            "goals": [
                {
                    "name": goal.name,
                    "measured": goal.measured,
                    "at_least": goal.at_least,
                    "at_most": goal.at_most,
                    "met": goal.met,
                }
                for goal in goals
            ],
            "details": details,
        }
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")


def command(*words: str | Path) -> list[str]:
    """The console script with `words`, by this interpreter: also where ortserve is on PYTHONPATH and not installed."""
    return [sys.executable, "-m", "ortserve.gateway.cli", *map(str, words)]


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server((HOST, 0)) as server:
        port: int = server.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True)
class Server:
    """A running `ortserve serve`."""

    url: str
    ready_s: float  # from process start to the first 200 of /health
    process_id: int

    def cpu_seconds(self) -> float:
        """Processor time of all its threads so far: what a busy machine distorts least."""
        nanoseconds = 0
        for task in Path(f"/proc/{self.process_id}/task").iterdir():
            with contextlib.suppress(FileNotFoundError):  # threads that have ended are not counted
                nanoseconds += int((task / "schedstat").read_text().split()[0])
        return nanoseconds / 1e9


@contextlib.contextmanager
def serving(*words: str | Path, limit_s: float = 120.0) -> Iterator[Server]:
    """`ortserve serve` with `words`, once it is ready.

    The child is stopped at the end. Raises `RuntimeError` with the end of its log when it does not come up.
    """
    port = free_port()
    options = ["--host", HOST, "--port", str(port), "--quiet", "--log-level", "warning", "--allow-unverified"]
    arguments = command("serve", *words, *options)
    start = perf_counter()
    with tempfile.TemporaryFile() as log, subprocess.Popen(arguments, stderr=log) as child:
        try:
            while not healthy(port):
                if child.poll() is not None or perf_counter() - start > limit_s:
                    log.seek(0)
                    raise RuntimeError(f"the server did not come up: {log.read().decode()[-2000:]}")
                sleep(0.01)
            yield Server(f"http://{HOST}:{port}", perf_counter() - start, child.pid)
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(60)
            except subprocess.TimeoutExpired:
                child.kill()


def healthy(port: int) -> bool:
    """One GET /health: 503 while the models are being loaded."""
    try:
        with socket.create_connection((HOST, port), timeout=30) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            return connection.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False
