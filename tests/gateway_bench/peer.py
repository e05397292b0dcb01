"""A tiny OpenAI-like server for tests of the load generator: fixed replies at a fixed pace. Knows no model.

Tokens are words (one each, plus `overhead` per prompt) or the entries of a token-id array. Run as a script it is the
peer for measuring the generator's own cost per frame.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Peer:
    """What the server does, and what it has seen."""

    delay_s: float = 0.0  # before each frame
    tokens_per_frame: int = 1
    overhead: int = 3  # tokens a text prompt costs beyond its words, of which the first costs one more
    vocab_size: int = 500  # 0: token-id arrays are refused
    refuse_unknown: bool = False  # ignore_eos and min_tokens are a 400
    end_after: int | None = None  # the model stops by itself after that many tokens unless told to ignore it
    fail_every: int = 0  # each so-many-th streamed request is a 503
    cut_every: int = 0  # each so-many-th stream is cut in the middle
    send_usage: bool = True
    hold_until: int = 0  # no stream begins before so many have been asked for
    two_token_words: tuple[str, ...] = ()
    bodies: list[dict[str, Any]] = field(default_factory=list)
    num_streams: int = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until the client closes it."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError), contextlib.closing(writer):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                method, path, _ = head.split(" ", 2)
                length = next(
                    (int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length")), 0
                )
                body = await reader.readexactly(length)
                await self._answer(method, path, body, writer)
                await writer.drain()

    async def _answer(self, method: str, path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        if method == "GET" and path == "/v1/models":
            return _whole(writer, 200, {"object": "list", "data": [{"id": "peer", "object": "model", "note": 7}]})
        if path not in ("/v1/completions", "/v1/chat/completions"):
            return _whole(writer, 404, _error("no such path"))
        request = json.loads(body)
        self.bodies.append(request)
        if self.refuse_unknown and ("ignore_eos" in request or "min_tokens" in request):
            return _whole(writer, 400, _error("unknown field ignore_eos"))
        prompt = request["messages"][0]["content"] if "chat" in path else request["prompt"]
        if isinstance(prompt, list) and (self.vocab_size == 0 or max(prompt) >= self.vocab_size):
            return _whole(writer, 400, _error("bad token ids"))
        num_prompt = self._count(prompt)
        num_output = request["max_tokens"]
        if self.end_after is not None and not request.get("ignore_eos"):
            num_output = min(num_output, self.end_after)
        usage = {"prompt_tokens": num_prompt, "completion_tokens": num_output}
        if not request.get("stream"):
            return _whole(writer, 200, {"choices": [{"text": "a"}], "usage": usage})
        self.num_streams += 1
        if self.fail_every and self.num_streams % self.fail_every == 0:
            return _whole(writer, 503, _error("overloaded"))
        cut = bool(self.cut_every) and self.num_streams % self.cut_every == 0
        await self._stream(writer, "chat" in path, num_output, usage, cut=cut)
        return None

    def _count(self, prompt: str | list[int]) -> int:
        if isinstance(prompt, list):
            return len(prompt) + 1  # a BOS
        return self.overhead + 1 + sum(2 if word in self.two_token_words else 1 for word in prompt.split())

    async def _stream(
        self, writer: asyncio.StreamWriter, chat: bool, num_output: int, usage: dict[str, int], *, cut: bool
    ) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        if chat:
            _frame(writer, {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        while self.num_streams < self.hold_until:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        for number in range(0, num_output, self.tokens_per_frame):
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            if cut and number >= num_output // 2:
                writer.close()
                return
            key = {"delta": {"content": "word "}} if chat else {"text": "word "}
            _frame(writer, {"choices": [{"index": 0, "finish_reason": None, **key}], "usage": None})
        last: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
        _frame(writer, {"choices": [{"index": 0, "finish_reason": "length", **last}]})
        if self.send_usage:
            _frame(writer, {"choices": [], "usage": usage})
        _chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")


@contextlib.asynccontextmanager
async def running(peer: Peer) -> AsyncIterator[str]:
    """Serve on a free port; yields the base address."""
    connections: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.ensure_future(peer.handle(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await asyncio.sleep(0)  # transports close in the loop's next round


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}


def _whole(writer: asyncio.StreamWriter, status: int, value: dict[str, Any]) -> None:
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 {status} X\r\nserver: peer/1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    writer.write(head.encode() + b"\r\n" + body)


def _frame(writer: asyncio.StreamWriter, value: dict[str, Any]) -> None:
    _chunk(writer, b"data: " + json.dumps(value).encode() + b"\n\n")


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


async def _serve_forever(port: int, delay_s: float) -> None:
    server = await asyncio.start_server(Peer(delay_s=delay_s).handle, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8999)
    parser.add_argument("--delay", type=float, default=0.0033)
    arguments = parser.parse_args()
    asyncio.run(_serve_forever(arguments.port, arguments.delay))
