"""One connection to the server and one streamed request on it, timed. Knows no load, no statistics and no prompts.

Every frame is decoded (1 us with msgspec), so that frames which carry text are told from role, finish and usage frames.
The number of tokens always comes from the server's `usage`: a frame may carry several tokens, or part of one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter

import msgspec

from ortserve.gateway.bench.events import EventScanner
from ortserve.gateway.bench.http1 import ProtocolError, ReplyParser
from ortserve.gateway.bench.workload import Target

USER_AGENT = "ortserve-bench"
Sink = Callable[[bytes, float], None]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request did not complete. Kinds: connect, timeout, disconnect, protocol, stream, no_usage, http_<status>."""

    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """One request as the client saw it; times are `time.perf_counter` seconds.

    `arrivals` has one entry per frame that carried text; frames that came in one read share their time.
    """

    start_s: float
    end_s: float
    arrivals: tuple[float, ...] = ()
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    finish: str | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply that was not streamed."""

    status: int
    body: bytes


class Connection(asyncio.Protocol):
    """One keep-alive connection that carries one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = ReplyParser()
        self._sink: Sink | None = None
        self._done: asyncio.Future[None] | None = None
        self.usable = False
        self.num_bytes = 0  # received since the last request was sent

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of `asyncio.Protocol`."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.usable = True

    def data_received(self, data: bytes) -> None:
        """Part of `asyncio.Protocol`. The clock is read first: what follows is the client's own time."""
        now = perf_counter()
        if self._done is None or self._done.done():
            self.close()  # bytes nobody asked for
            return
        self.num_bytes += len(data)
        try:
            body = self._parser.feed(data)
            if body and self._sink is not None:
                self._sink(body, now)
        except ProtocolError as error:
            self._done.set_exception(error)
            self.close()
            return
        if self._parser.complete:
            self.usable = self._parser.can_reuse
            self._done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of `asyncio.Protocol`."""
        self.usable = False
        if self._done is None or self._done.done():
            return
        try:
            if exc is not None:
                raise ProtocolError(f"the connection broke: {exc}")
            self._parser.end_of_file()
        except ProtocolError as error:
            self._done.set_exception(error)
        else:
            self._done.set_result(None)

    async def exchange(self, request: bytes, sink: Sink) -> int:
        """Send `request`, hand the body's pieces with their arrival times to `sink`, and return the status.

        Raises `ProtocolError` when the reply is malformed or cut short. Cancelling it closes the connection.
        """
        assert self._transport is not None
        assert self._done is None or self._done.done(), "one request at a time"
        self._parser = ReplyParser()
        self._sink = sink
        self.num_bytes = 0
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            await self._done
        except BaseException:
            self.close()
            raise
        return self._parser.status

    @property
    def status(self) -> int:
        """Status of the current reply; 0 before its head is complete."""
        return self._parser.status

    def close(self) -> None:
        """Close at once: an unfinished stream is given up, which is how a client cancels."""
        self.usable = False
        if self._transport is not None:
            self._transport.abort()


class Client:
    """Sends requests one after another over one connection, which it opens again when the server has closed it."""

    def __init__(self, target: Target, timeout_s: float) -> None:
        self._target = target
        self._timeout_s = timeout_s
        self._connection: Connection | None = None
        self._tls = ssl.create_default_context() if target.tls else None

    async def get(self, path: str) -> Reply:
        """GET `path` under the target's prefix. Raises `OSError`, `TimeoutError` or `ProtocolError`."""
        return await self._whole(self._request("GET", path, b""))

    async def post(self, path: str, body: bytes) -> Reply:
        """POST a JSON body. Raises as `get` does."""
        return await self._whole(self._request("POST", path, body))

    async def stream(self, path: str, body: bytes, start_s: float | None = None) -> Timeline:
        """POST a streamed request and time its frames. Never raises for what the server or the network does.

        `start_s` is when the request was due, if that was earlier than now: waiting to be sent counts as latency.
        """
        reading = _StreamReading()
        request = self._request("POST", path, body)
        start = perf_counter() if start_s is None else start_s
        failure: Failure | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                status = await self._exchange(request, reading.feed)
            if status != 200:
                failure = Failure(f"http_{status}", _error_message(reading.raw_body()))
        except TimeoutError:
            failure = Failure("timeout", f"no complete reply within {self._timeout_s:g} s")
        except OSError as error:
            failure = Failure("connect", _one_line(str(error)))
        except ProtocolError as error:
            failure = Failure("disconnect" if "clos" in str(error) or "broke" in str(error) else "protocol", str(error))
        return reading.timeline(start, perf_counter(), failure)

    def close(self) -> None:
        """Close the connection, if any."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _whole(self, request: bytes) -> Reply:
        pieces: list[bytes] = []
        async with asyncio.timeout(self._timeout_s):
            status = await self._exchange(request, lambda piece, _: pieces.append(piece))
        return Reply(status, b"".join(pieces))

    async def _exchange(self, request: bytes, sink: Sink) -> int:
        connection = self._connection
        if connection is not None and connection.usable:
            try:
                return await connection.exchange(request, sink)
            except ProtocolError:
                if connection.num_bytes:
                    raise
                # The server closed an idle connection while the request was on its way: send it again on a new one.
        self._connection = connection = await self._connect()
        return await connection.exchange(request, sink)

    async def _connect(self) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(
            Connection, self._target.host, self._target.port, ssl=self._tls
        )
        return connection

    def _request(self, method: str, path: str, body: bytes) -> bytes:
        target = self._target
        host = f"[{target.host}]" if ":" in target.host else target.host
        lines = [
            f"{method} {target.prefix}{path} HTTP/1.1",
            f"host: {host}:{target.port}",
            f"user-agent: {USER_AGENT}",
            "accept: text/event-stream, application/json",
            "accept-encoding: identity",
        ]
        if target.api_key is not None:
            lines.append(f"authorization: Bearer {target.api_key}")
        if method == "POST":
            lines += ["content-type: application/json", f"content-length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: msgspec.Raw | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None

    def has_text(self) -> bool:
        if self.text:
            return True
        delta = self.delta
        return delta is not None and bool(
            delta.content or delta.reasoning_content or delta.reasoning or delta.tool_calls not in _NO_CALLS
        )


_NO_CALLS = (None, msgspec.Raw(b"null"), msgspec.Raw(b"[]"))


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None


class _Frame(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: msgspec.Raw | None = None


class _StreamReading:
    """What the frames of one streamed reply have said so far."""

    def __init__(self) -> None:
        self._scanner = EventScanner()
        self._decoder = msgspec.json.Decoder(_Frame)
        self._raw: list[bytes] = []  # of a reply that has no events: an error body
        self._arrivals: list[float] = []
        self._usage: _Usage | None = None
        self._finish: str | None = None
        self._failure: Failure | None = None
        self._done = False

    def feed(self, piece: bytes, now: float) -> None:
        events = self._scanner.feed(piece)
        if not events and not self._arrivals:
            self._raw.append(piece)
        for data in events:
            if data == b"[DONE]":
                self._done = True
            else:
                self._frame(data, now)

    def _frame(self, data: bytes, now: float) -> None:
        try:
            frame = self._decoder.decode(data)
        except msgspec.MsgspecError as error:
            self._failure = Failure("protocol", _one_line(f"a frame is not a completion chunk: {error}"))
            return
        if frame.error is not None and bytes(frame.error) != b"null":
            self._failure = Failure("stream", _error_message(data))
            return
        has_text = False
        for choice in frame.choices:
            has_text = has_text or choice.has_text()
            self._finish = choice.finish_reason or self._finish
        if has_text:
            self._arrivals.append(now)
        if frame.usage is not None:
            self._usage = frame.usage

    def raw_body(self) -> bytes:
        return b"".join(self._raw)

    def timeline(self, start_s: float, end_s: float, failure: Failure | None) -> Timeline:
        failure = self._failure or failure
        if failure is None and self._usage is None:
            failure = (
                Failure("no_usage", "the server sends no usage although stream_options.include_usage asks for it")
                if self._done or self._finish is not None
                else Failure("disconnect", "the stream ended without a finish reason or [DONE]")
            )
        timeline = Timeline(start_s, end_s, tuple(self._arrivals), finish=self._finish, failure=failure)
        usage = self._usage
        if usage is None:
            return timeline
        details = usage.prompt_tokens_details
        return replace(
            timeline,
            num_prompt_tokens=usage.prompt_tokens,
            num_cached_tokens=(details.cached_tokens or 0) if details else 0,
            num_output_tokens=usage.completion_tokens,
        )


class _ErrorText(msgspec.Struct):
    message: str = ""


class _ErrorBody(msgspec.Struct):
    error: _ErrorText | str | None = None
    message: str = ""
    detail: msgspec.Raw | None = None


def _error_message(body: bytes) -> str:
    """The message of an OpenAI error envelope, or the beginning of whatever else came; one line."""
    with contextlib.suppress(msgspec.MsgspecError):
        decoded = msgspec.json.decode(body, type=_ErrorBody)
        text = decoded.error.message if isinstance(decoded.error, _ErrorText) else decoded.error
        if text or decoded.message:
            return _one_line(text or decoded.message)
    return _one_line(body.decode("utf-8", "replace")) or "(empty body)"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
