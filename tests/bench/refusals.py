"""Processor time of one refusal by a full queue, beside bare Hypercorn that answers the same bytes.

Each server is a child process and is asked in turns by the same raw client, on connections that are kept. The gateway
stands on an engine whose step never ends: its rows and its queue are full, so that nothing but refusals takes time.

  python -m tests.bench.refusals --json out.json [--server-path OTHER/.types]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ortserve.gateway.access.access import Access
from ortserve.gateway.app import build_app
from ortserve.gateway.http.server import Limits, run_server
from ortserve.gateway.logs import configure_logs
from ortserve.gateway.served.service import open_service
from ortserve.gateway.transport.listener import listen
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.manifest import read_manifest
from ortserve.runtime.opening import open_engine
from ortserve.runtime.request import Delta, Request, SamplingParams
from tests.bench.measurement import HOST, Goal, Server, finish, script_parser, spread
from tests.gateway.fleets import fleet_of
from tests.gateway.synthetic import write_synthetic_text_model

KINDS = ("gateway", "hypercorn")
KEY = "sk-refused"
ROWS, WAITING = 16, 64
CALLERS = 16
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "completions": ("/v1/completions", {"prompt": [1 + place % 90 for place in range(64)], "max_tokens": 64}),
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Say it again. " * 8}]}),
}


def serve(kind: str) -> None:
    """Run one server until the process ends; prints its port."""
    limits = Limits()
    listener = listen(HOST, 0, stall_s=limits.stall_s)
    configure_logs("info")
    with tempfile.TemporaryDirectory() as folder:
        write_synthetic_text_model(Path(folder))

        async def main() -> None:
            app: Any = _bare if kind == "hypercorn" else await _gateway(Path(folder))
            print(listener.socket.getsockname()[1], flush=True)
            await run_server(app, listener, limits=limits, stop=asyncio.Event(), drain=lambda: None)

        asyncio.run(main())


async def _gateway(folder: Path) -> Any:
    from ortserve.runtime.drivers.driver import Driver

    manifest = read_manifest(folder)
    engine, plan = open_engine(folder, manifest, EngineConfig(max_rows=ROWS, max_waiting=WAITING, num_threads=1))
    engine.step = _never  # type: ignore[method-assign]
    driver = Driver(engine, manifest, plan)
    for number in range(ROWS + WAITING):
        driver.submit(Request(f"held-{number}", (1, 2, 3), SamplingParams(max_tokens=8)), _Nobody())
    fleet = await fleet_of(open_service(folder, driver, name="refusing"))
    return build_app(fleet, access=Access(api_key=KEY))


def _never() -> list[Delta]:
    threading.Event().wait()
    raise AssertionError("nobody sets it")


class _Nobody:
    def deliver(self, deltas: Sequence[Delta]) -> None:
        pass


async def _bare(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body", False):
        pass
    body = b'{"error": {"message": "%b", "type": "rate_limit_error", "param": null, "code": "x"}}' % (b"-" * 100)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), (b"retry-after", b"1")]
    await send({"type": "http.response.start", "status": 429, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


@contextmanager
def child(kind: str, path: Path | None) -> Iterator[tuple[int, Server]]:
    """Port and process; its log goes nowhere, but is written."""
    environment = dict(os.environ)
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(path), *environment.get("PYTHONPATH", "").split(os.pathsep)])
    command = [sys.executable, "-m", "tests.bench.refusals", "--serve", kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        try:
            yield port, Server(f"http://{HOST}:{port}", 0.0, process.pid)
        finally:
            process.kill()


async def refuse(port: int, shape: str, count: int) -> None:
    """Have so many requests refused."""
    path, fields = SHAPES[shape]
    body = json.dumps({"model": "refusing", "stream": True, **fields}).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"
    head += f"user-agent: OpenAI/Python\r\naccept: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    request = head.encode() + body

    async def one() -> None:
        reader, writer = await asyncio.open_connection(HOST, port)
        for _ in range(count // CALLERS):
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert b" 429 " in answer[:16], answer
            length = next(line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length"))
            await reader.readexactly(int(length.partition(b":")[2]))
        writer.close()

    await asyncio.gather(*(one() for _ in range(CALLERS)))


def measure(kind: str, path: Path | None, shape: str, count: int) -> float:
    """Seconds of a processor for one refusal."""
    with child(kind, path) as (port, server):
        asyncio.run(refuse(port, shape, count // 4))  # warm
        before = server.cpu_seconds()
        asyncio.run(refuse(port, shape, count))
        return (server.cpu_seconds() - before) / count


def _parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__ or "")
    parser.add_argument("--count", type=int, default=3200, help="refusals in a round (default %(default)s)")
    parser.add_argument("--serve", choices=KINDS, help="run one server (used by the script itself)")
    parser.add_argument("--server-path", type=Path, help="another checkout's .types: measured in turns with this one")
    return parser


def main() -> int:
    arguments = _parser().parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return 0
    sides: dict[str, tuple[str, Path | None]] = {kind: (kind, None) for kind in KINDS}
    if arguments.server_path is not None:
        sides["other gateway"] = ("gateway", arguments.server_path)
    found: dict[str, list[float]] = {f"{side}, {shape}": [] for side in sides for shape in SHAPES}
    for _ in range(arguments.rounds):
        for shape in SHAPES:
            for side, (kind, path) in sides.items():
                found[f"{side}, {shape}"].append(measure(kind, path, shape, arguments.count))
    for name, values in found.items():
        print(f"{name}: {spread([1e6 * value for value in values])} us of a processor")
    goals = []
    for shape in SHAPES:
        for side in sides:
            if side != "hypercorn":
                pairs = zip(found[f"{side}, {shape}"], found[f"hypercorn, {shape}"], strict=True)
                ratios = [own / bare for own, bare in pairs]
                goals.append(Goal(f"a refusal by the {side} over bare Hypercorn, {shape}", spread(ratios), at_most=2.0))
    return finish(arguments, goals, {"seconds": found})


if __name__ == "__main__":
    sys.exit(main())
