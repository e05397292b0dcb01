"""Chunks per second of the gateway over an engine that costs nothing, beside bare servers that stream the same bytes.

Each server is a child process and is asked in turns by the same raw client: 64 streams of text chunks at once. The bare
applications send one reply of the gateway, recorded before, write by write. uvicorn is a side experiment, run only
where it is installed.

  python -m tests.bench.null_engine --json out.json
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import httpx

from ortserve.gateway.app import build_app
from ortserve.gateway.http.server import Limits, run_server
from ortserve.gateway.logs import configure_logs
from ortserve.gateway.transport.listener import listen
from tests.bench.measurement import HOST, Goal, finish, script_parser, spread
from tests.gateway.fleets import fleet_of
from tests.gateway.scripted import make_driver, make_service, saying

TOKENS = 256
KINDS = ("gateway", "hypercorn", "uvicorn")
WAITING = "waiting"  # the gateway over an engine that makes no step
IDLE_STREAMS = 256
BODY = {
    "model": "scripted", "stream": True, "max_tokens": TOKENS, "ignore_eos": True,
    "messages": [{"role": "user", "content": "hi"}],
}  # fmt: skip


def serve(kind: str, recording: Path) -> None:
    """Run one server until the process ends; prints its port."""
    limits = Limits()
    listener = listen(HOST, 0, stall_s=limits.stall_s)
    print(listener.socket.getsockname()[1], flush=True)
    if kind == "uvicorn":
        uvicorn: Any = importlib.import_module("uvicorn")
        config = uvicorn.Config(_bare(recording), log_level="error", http="httptools", lifespan="off")
        asyncio.run(uvicorn.Server(config).serve(sockets=[listener.socket]))
        return

    async def main() -> None:
        app: Any = _bare(recording) if kind == "hypercorn" else await _gateway(kind)
        await run_server(app, listener, limits=limits, stop=asyncio.Event(), drain=lambda: None)

    asyncio.run(main())


async def _gateway(kind: str) -> Any:
    configure_logs("error")
    driver = make_driver(saying("hello world, ok! " * TOKENS), pace_s=3600.0 if kind == WAITING else 0.0)
    return build_app(await fleet_of(make_service(driver)))


def _bare(recording: Path) -> Any:
    writes = [write.encode() for write in json.loads(recording.read_text())]
    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for write in writes:
            await send({"type": "http.response.body", "body": write, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return app


@contextmanager
def child(kind: str, recording: Path) -> Iterator[tuple[int, int]]:
    """Port and process id."""
    command = [sys.executable, "-m", "tests.bench.null_engine", "--serve", kind, "--recording", str(recording)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        try:
            yield port, process.pid
        finally:
            process.kill()


def record(port: int, recording: Path) -> int:
    """Keep the writes of one reply; returns its number of chunks."""
    with httpx.Client(base_url=f"http://{HOST}:{port}", timeout=30) as client:
        text = client.post("/v1/chat/completions", json=BODY).text
    frames = [f"{frame}\n\n" for frame in text.split("\n\n") if frame]
    recording.write_text(json.dumps(frames))
    return len(frames)


async def drive(port: int, num_streams: int) -> tuple[int, float]:
    """Chunks and seconds of so many streams at once."""
    body = json.dumps(BODY).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"

    async def one() -> int:
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(head.encode() + body)
        count, rest = 0, b""
        while data := await reader.read(65536):
            rest += data
            count += rest.count(b"data: ")
            rest = rest[-5:]
        writer.close()
        return count

    begun = perf_counter()
    counts = await asyncio.gather(*(one() for _ in range(num_streams)))
    return sum(counts), perf_counter() - begun


async def hold_streams(port: int, pid: int, num_streams: int) -> float:
    """Resident bytes per stream that has begun and waits for its engine."""
    body = json.dumps(BODY).encode()
    request = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
    writers = []

    async def open_one() -> None:
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(request)
        await reader.readuntil(b'"role":"assistant"')
        writers.append(writer)

    for _ in range(8):
        await open_one()  # whatever is allocated once
    before = _resident_bytes(pid)
    for _ in range(num_streams):
        await open_one()
    after = _resident_bytes(pid)
    for writer in writers:
        writer.close()
    return (after - before) / num_streams


def _resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    parser = script_parser(__doc__ or "")
    parser.add_argument("--streams", type=int, default=64, help="at once (default %(default)s)")
    parser.add_argument("--serve", choices=(*KINDS, WAITING), help="run one server (used by the script itself)")
    parser.add_argument("--recording", type=Path, default=Path("null_engine.json"), help="where a reply is kept")
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.recording)
        return 0
    kinds = [kind for kind in KINDS if kind != "uvicorn" or importlib.util.find_spec("uvicorn")]
    with child("gateway", arguments.recording) as (port, _):
        num_chunks = record(port, arguments.recording)
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    memory: list[float] = []
    for _ in range(arguments.rounds):
        for kind in kinds:
            with child(kind, arguments.recording) as (port, _):
                sleep(0.2)
                asyncio.run(drive(port, arguments.streams))  # warm
                count, elapsed = asyncio.run(drive(port, arguments.streams))
                assert count == num_chunks * arguments.streams, f"{kind}: {count} chunks"
                rates[kind].append(count / elapsed)
    for _ in range(arguments.rounds):
        with child(WAITING, arguments.recording) as (port, pid):
            memory.append(asyncio.run(hold_streams(port, pid, IDLE_STREAMS)))
    for kind in kinds:
        print(f"{kind}: {spread(rates[kind])} chunks/s at {arguments.streams} streams")
    ratios = [own / bare for own, bare in zip(rates["gateway"], rates["hypercorn"], strict=True)]
    goals = [
        Goal("gateway over bare Hypercorn, chunks per second", spread(ratios), at_least=1 / 3),
        Goal("bytes per stream that waits", spread(memory), at_most=100_000),
    ]
    arguments.recording.unlink(missing_ok=True)
    return finish(arguments, goals, {"rates": rates, "memory": memory, "chunks_per_stream": num_chunks})


if __name__ == "__main__":
    sys.exit(main())
