"""One connection to the server and one streamed request on it, timed. Knows no load, no statistics and no prompts."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter

from ortserve.gateway.bench.frames import Failure, StreamReading, Timeline, error_message, one_line
from ortserve.gateway.bench.http1 import DisconnectedError, ProtocolError, ReplyParser
from ortserve.gateway.bench.workload import Target

USER_AGENT = "ortserve-bench"
READ_BYTES = 65_536
Sink = Callable[[bytes, float], None]


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply that was not streamed."""

    status: int
    body: bytes
    headers: Mapping[str, str]


class Connection(asyncio.BufferedProtocol):
    """One keep-alive connection that carries one request at a time.

    Buffered, because for a plain protocol asyncio allocates 256 KiB for every read: measured at 16 streams and 4,000
    frames a second, the client's processor time per frame fell from 63 to 40 us.
    """

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._parser = ReplyParser()
        self._sink: Sink | None = None
        self._done: asyncio.Future[None] | None = None
        self.usable = False
        self.num_bytes = 0  # received since the last request was sent

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of `asyncio.BufferedProtocol`."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.usable = True

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Part of `asyncio.BufferedProtocol`: where the next bytes go."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Part of `asyncio.BufferedProtocol`. The clock is read first: what follows is the client's own time."""
        now = perf_counter()
        data = bytes(self._buffer[:nbytes])
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
        """Part of `asyncio.BufferedProtocol`."""
        self.usable = False
        if self._done is None or self._done.done():
            return
        try:
            if exc is not None:
                raise DisconnectedError(f"the connection broke: {exc}")
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

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers of the current reply, names in lower case."""
        return self._parser.headers

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

    async def stream(self, path: str, body: bytes, due_s: float | None = None) -> Timeline:
        """POST a streamed request and time its frames. Never raises for what the server or the network does.

        `due_s` is when the request should have been sent, if that was earlier than now: being late counts as latency.
        """
        reading = StreamReading()
        request = self._request("POST", path, body)
        sent = perf_counter()
        failure: Failure | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                status = await self._exchange(request, reading.feed)
            if status != 200:
                failure = Failure(f"http_{status}", error_message(reading.raw_body()))
        except TimeoutError:
            failure = Failure("timeout", f"no complete reply within {self._timeout_s:g} s")
        except OSError as error:
            failure = Failure("connect", one_line(str(error)))
        except DisconnectedError as error:
            failure = Failure("disconnect", str(error))
        except ProtocolError as error:
            failure = Failure("protocol", str(error))
        start = sent if due_s is None else due_s
        return reading.timeline(start_s=start, sent_s=sent, end_s=perf_counter(), failure=failure)

    def close(self) -> None:
        """Close the connection, if any."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def _whole(self, request: bytes) -> Reply:
        pieces: list[bytes] = []
        async with asyncio.timeout(self._timeout_s):
            status = await self._exchange(request, lambda piece, _: pieces.append(piece))
        assert self._connection is not None
        return Reply(status, b"".join(pieces), self._connection.headers)

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
