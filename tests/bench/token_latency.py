"""What the gateway adds to a token, from the end of the engine's step to the bytes at the socket, and beyond.

  python -m tests.bench.token_latency --json out.json                     # an engine that costs nothing, paced
  python -m tests.bench.token_latency FOLDER --json out.json              # a model's engine as well

One clock, three moments of each frame: the engine's thread hands its step's tokens over; the frame is given to the
socket (before and after the system call); it has arrived at a client, which is a process of its own. The target is for
the second moment: what comes behind is the kernel's and the client's. Beside the wall, which a busy machine
stretches, stands the processor time of the event loop's thread per frame.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from asyncio import selector_events
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from time import monotonic
from typing import Any

from ortserve.gateway.commands.serve import SWITCH_S
from ortserve.gateway.http.server import Limits
from ortserve.gateway.logs import configure_logs
from ortserve.gateway.served.service import ModelService, open_service
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.drivers.async_engine import AsyncEngine
from ortserve.runtime.opening import open_driver
from tests.bench.measurement import HOST, Goal, finish, script_parser, spread
from tests.gateway.running import serving
from tests.gateway.scripted import make_driver, make_service, saying

TOKENS = 256
SKIPPED = 16  # frames at the beginning: there the connection is new
PACE_S = 0.005
MOST_S = 0.0003
STREAMS = (1, 8)  # at once
BODY = {"stream": True, "max_tokens": TOKENS, "ignore_eos": True, "messages": [{"role": "user", "content": "hi"}]}
FRAME = b'"delta":{"content":'


@dataclass
class Moments:
    """Seconds on the monotonic clock, in order."""

    handed: list[float] = field(default_factory=list)
    writing: list[float] = field(default_factory=list)
    written: list[float] = field(default_factory=list)
    loop_cpu: Callable[[], float] = time.thread_time  # of the event loop's thread


@contextlib.contextmanager
def noted() -> Iterator[Moments]:
    """Note when tokens are handed over, and when frames are given to the socket."""
    moments = Moments()
    deliver = AsyncEngine.deliver
    transport: Any = selector_events._SelectorSocketTransport  # type: ignore[attr-defined]
    write = transport.write

    def deliver_noted(self: AsyncEngine, deltas: Any) -> None:
        moments.handed.append(monotonic())
        deliver(self, deltas)

    def write_noted(self: Any, data: bytes) -> None:
        if FRAME not in data:
            write(self, data)
            return
        moments.writing.append(monotonic())
        write(self, data)
        moments.written.append(monotonic())

    AsyncEngine.deliver = deliver_noted  # type: ignore[method-assign]
    transport.write = write_noted
    try:
        yield moments
    finally:
        AsyncEngine.deliver = deliver  # type: ignore[method-assign]
        transport.write = write


def read_stream(port: int, body: bytes) -> list[float]:
    """When each frame with text arrived: what the client process runs."""
    arrived: list[float] = []
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    with socket.create_connection((HOST, port), 120) as connection:
        connection.sendall(head.encode() + body)
        while piece := connection.recv(65536):
            arrived += [monotonic()] * piece.count(FRAME)
    return arrived


def run_clients(port: int, model: str, num_streams: int) -> list[list[float]]:
    """Arrival times of each of so many streams at once, each in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.token_latency", "--client", str(port), "--model", model]
    clients = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(num_streams)]
    return [json.loads(client.communicate()[0]) for client in clients]


def after(begins: list[float], times: list[float]) -> list[float]:
    """Seconds of each time since the last of `begins` before it."""
    return [moment - begins[bisect_right(begins, moment) - 1] for moment in times if moment >= begins[0]]


def measure(port: int, model: str, moments: Moments, num_streams: int) -> dict[str, Any]:
    """Medians of one round, in seconds."""
    for times in (moments.handed, moments.writing, moments.written):
        times.clear()
    cpu_before = moments.loop_cpu()
    arrivals = run_clients(port, model, num_streams)
    cpu = moments.loop_cpu() - cpu_before
    num_frames = len(moments.writing)
    writing = after(moments.handed, moments.writing)[SKIPPED * num_streams :]
    arrived = [one for arrival in arrivals for one in after(moments.handed, arrival)[SKIPPED:]]
    return {
        "to_socket": median(writing),
        "to_socket_p90": quantiles(writing, n=10)[-1],
        "to_kernel": median(after(moments.handed, moments.written)[SKIPPED * num_streams :]),
        "to_client": median(arrived),
        "loop_cpu_per_write": cpu / num_frames,
        "writes": num_frames,
    }


def rounds(make: Callable[[], ModelService], driver: Any, model: str, num_rounds: int) -> dict[str, Any]:
    """Every number of streams in turns, on one server."""
    found: dict[str, list[dict[str, Any]]] = {str(num): [] for num in STREAMS}
    with noted() as moments:

        def make_noted() -> ModelService:
            clock = time.pthread_getcpuclockid(threading.get_ident())
            moments.loop_cpu = lambda: time.clock_gettime(clock)
            return make()

        with serving(make_noted, driver.close, Limits(drain_s=1.0)) as (port, _):
            run_clients(port, model, 1)
            for _ in range(num_rounds):
                for num in STREAMS:
                    found[str(num)].append(measure(port, model, moments, num))
    return found


def report(name: str, found: dict[str, Any]) -> None:
    for num, values in found.items():
        shown = {key: spread([1e3 * one[key] for one in values]) for key in values[0] if key != "writes"}
        print(f"{name}, {num} streams, ms: " + "; ".join(f"{key} {value}" for key, value in shown.items()))


def main() -> int:
    parser = script_parser(__doc__ or "")
    parser.add_argument("folder", type=Path, nargs="?", metavar="FOLDER", help="exported model, for its engine too")
    parser.add_argument("--client", type=int, metavar="PORT", help="be a client (used by the script itself)")
    parser.add_argument("--model", default="any", help="served name (used by the script itself)")
    arguments = parser.parse_args()
    if arguments.client:
        print(json.dumps(read_stream(arguments.client, json.dumps({**BODY, "model": arguments.model}).encode())))
        return 0
    configure_logs("error")
    sys.setswitchinterval(SWITCH_S)  # as the server does
    driver = make_driver(saying("hello world, ok! " * TOKENS), pace_s=PACE_S)
    details = {"scripted": rounds(lambda: make_service(driver), driver, "scripted", arguments.rounds)}
    report("an engine that costs nothing", details["scripted"])
    if arguments.folder is not None:
        real = open_driver(arguments.folder, EngineConfig(max_rows=8, prompt_cache="none"))
        make = partial(open_service, arguments.folder, real)
        details["real"] = rounds(make, real, real.manifest.name, arguments.rounds)
        report("a model's engine", details["real"])
    goals = [
        Goal(
            f"seconds from a step's end to the socket, {name} engine, {num} streams",
            spread([one["to_socket"] for one in values]),
            at_most=MOST_S,
        )
        for name, found in details.items()
        for num, values in found.items()
        if num == "1"
    ]
    return finish(arguments, goals, details)


if __name__ == "__main__":
    sys.exit(main())
