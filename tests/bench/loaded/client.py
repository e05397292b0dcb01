"""Streamed completions as their clients see them, and loads of many of them. Knows no server's process and no goals."""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ortserve.gateway.bench.client import Connection
from ortserve.gateway.bench.http1 import ProtocolError

HOST, PATH = "127.0.0.1", "/v1/completions"
NAME = "loaded"  # what the model is called here
MAX_RETRY_AFTER_S = 60

Body = dict[str, Any]
_ENCODE = msgspec.json.Encoder().encode  # what the client takes of shared cores, the server lacks


class _Choice(msgspec.Struct, gc=False):
    text: str
    finish_reason: str | None


class _Usage(msgspec.Struct, gc=False):
    completion_tokens: int


class _Failure(msgspec.Struct, gc=False):
    message: str


class _Event(msgspec.Struct, gc=False):
    """What is read of one."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Failure | None = None


_DECODE = msgspec.json.Decoder(_Event).decode


@dataclass(slots=True)
class Reply:
    """One request as its client saw it; times in seconds."""

    sent_s: float
    status: int = 0
    first_s: float | None = None  # when the first text came
    end_s: float = 0.0
    text: str = ""
    num_tokens: int = 0
    finish: str | None = None
    failure: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def is_whole(self) -> bool:
        return self.status == 200 and self.failure is None and self.finish is not None

    def feed(self, data: bytes) -> None:
        """One event."""
        if data == b"[DONE]":
            return
        event = _DECODE(data)
        if event.error is not None:
            self.failure = event.error.message
            return
        for choice in event.choices:
            if choice.text and self.first_s is None:
                self.first_s = time.perf_counter()
            self.text += choice.text
            self.finish = choice.finish_reason or self.finish
        if event.usage is not None:
            self.num_tokens = event.usage.completion_tokens


class Caller:
    """Sends requests one after another on one connection, opened again when the server has closed it."""

    def __init__(self, port: int, key: str | None = None) -> None:
        self._port, self._key = port, key
        self.connection: Connection | None = None

    async def ask(self, body: Body) -> Reply:
        """A streamed completion. Raises nothing for what the server or the network does."""
        data = _ENCODE({**body, "stream": True, "stream_options": {"include_usage": True}})
        reply, rest = Reply(time.perf_counter()), bytearray()

        def take(piece: bytes, _: float) -> None:
            reply.body += piece if len(reply.body) < 4096 else b""
            rest.extend(piece)
            while (end := rest.find(b"\n\n")) >= 0:
                for line in bytes(rest[:end]).split(b"\n"):
                    if line.startswith(b"data: "):
                        reply.feed(line[6:])
                del rest[: end + 2]

        try:
            reply.status = await self._send(b"POST", PATH.encode(), data, take)
        except (OSError, ProtocolError) as error:
            reply.failure = f"{type(error).__name__}: {error}"
        reply.end_s = time.perf_counter()
        if self.connection is not None and reply.status not in (0, 200):
            reply.headers = dict(self.connection.headers)
        return reply

    async def stream(self, body: Body, sink: Callable[[bytes, float], None]) -> int:
        """A completion whose pieces go to `sink` with their times; the status. Raises `OSError` and `ProtocolError`."""
        return await self._send(b"POST", PATH.encode(), msgspec.json.encode(body), sink)

    async def get(self, path: str) -> bytes:
        pieces: list[bytes] = []
        status = await self._send(b"GET", path.encode(), b"", lambda piece, _: pieces.append(piece))
        if status != 200:
            raise OSError(f"{path} answered {status}")
        return b"".join(pieces)

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()

    async def _send(self, method: bytes, path: bytes, data: bytes, sink: Callable[[bytes, float], None]) -> int:
        head = [b"%b %b HTTP/1.1" % (method, path), b"host: x", b"content-length: %d" % len(data)]
        head += [b"content-type: application/json"] if data else []
        head += [] if self._key is None else [b"authorization: Bearer " + self._key.encode()]
        if self.connection is None or not self.connection.usable:
            loop = asyncio.get_running_loop()
            _, self.connection = await loop.create_connection(Connection, HOST, self._port)
        return await self.connection.exchange(b"\r\n".join([*head, b"", data]), sink)


@dataclass(frozen=True, slots=True)
class Shape:
    """What is asked, in tokens."""

    prompt_tokens: int
    output_tokens: int
    last_id: int  # of those that prompts are made of

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Shape:
        """As the command line says."""
        return cls(arguments.prompt_tokens, arguments.output_tokens, arguments.last_id)

    def body(self, number: int) -> Body:
        """Request `number`: ids that no other has, so that nothing is cached."""
        ids = range(self.last_id // 10, self.last_id + 1)
        prompt = random.Random(number).choices(ids, k=self.prompt_tokens)
        limits = {"max_tokens": self.output_tokens, "min_tokens": self.output_tokens, "ignore_eos": True}
        return {"model": NAME, "prompt": prompt, "temperature": 0, **limits}


async def closed_loop(
    callers: Sequence[Caller], make: Callable[[int], Body], until_s: float, numbers: Iterator[int]
) -> list[Reply]:
    """Each caller sends its next request when its last one is done."""
    replies: list[Reply] = []

    async def work(caller: Caller) -> None:
        while time.perf_counter() < until_s:
            replies.append(await caller.ask(make(next(numbers))))

    await asyncio.gather(*map(work, callers))
    return replies


async def open_loop(
    port: int, rate: float, duration_s: float, make: Callable[[int], Body], numbers: Iterator[int]
) -> tuple[list[Reply], list[float]]:
    """Poisson arrivals that nobody holds back: the replies as they were sent, and how late each was, in seconds.

    Lateness is the client's own: where it grows, the client is what is measured.
    """
    replies: list[Reply] = []
    idle: list[Caller] = []
    late_s: list[float] = []
    dice, begin = random.Random(7), time.perf_counter()

    async def send(due: float) -> None:
        caller = idle.pop() if idle else Caller(port)
        reply = await caller.ask(make(next(numbers)))
        replies.append(reply)
        late_s.append(reply.sent_s - due)
        idle.append(caller)

    due = begin
    async with asyncio.TaskGroup() as group:
        while due < begin + duration_s:
            await asyncio.sleep(max(due - time.perf_counter(), 0.0))
            group.create_task(send(due))
            due += dice.expovariate(rate)
    for caller in idle:
        caller.close()
    return sorted(replies, key=lambda one: one.sent_s), late_s


def goodput(replies: Sequence[Reply], begin_s: float, end_s: float) -> float:
    """Output tokens a second of replies that have ended whole in that time."""
    ended = [one for one in replies if one.is_whole and begin_s <= one.end_s < end_s]
    return sum(one.num_tokens for one in ended) / (end_s - begin_s)


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def is_proper(reply: Reply) -> bool:
    """A refusal that a client understands: status, when to return, and the error's envelope."""
    try:
        error = msgspec.json.decode(reply.body)["error"]
        wait_s = int(reply.headers["retry-after"])
    except (ValueError, KeyError, TypeError):
        return False
    return reply.status in (429, 503) and 0 < wait_s <= MAX_RETRY_AFTER_S and bool(error["code"])
