"""One HTTP connection by Hypercorn, stricter than it: heads that servers read differently are refused, slow ones cut.

Knows no application. What is refused is logged once, with the reason and never with what was sent.
"""

from __future__ import annotations

import asyncio
import re
import sys
from dataclasses import replace
from typing import Any

import h11
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import Response
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H2ProtocolAssumedError, H11Protocol

from ortserve.gateway.errors import Problem
from ortserve.gateway.logs import log
from ortserve.gateway.transport.http2 import patient
from ortserve.gateway.transport.idle import IdleTimer

LINGER_S = 1.0  # what a refused client still sends is dropped that long, or a reset would overtake the refusal
_END_OF_HEAD = re.compile(rb"\n\r?\n")


class ConnectionConfig(Config):
    """Hypercorn's options, and `header_s`: seconds from the first byte of a request's head to its last."""

    header_s: float = 20.0
    is_leaving: bool = False  # the server will stop: its connections end after their reply


class StrictConnection(h11.Connection):
    """h11's parser, and no two ways to read where a request ends (RFC 9112, sections 5.2 and 6).

    A proxy that reads such a request in the other way could be made to smuggle a second one past itself.
    """

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Part of h11. Raises `h11.RemoteProtocolError`."""
        if self.their_state is h11.IDLE:
            check_head(self.trailing_data[0])
        return super().next_event()


def check_head(data: bytes) -> None:
    """Check the head that `data` begins with, once it is whole. Raises `h11.RemoteProtocolError`."""
    end = _END_OF_HEAD.search(data)
    if end is None:
        return
    first, *lines = data[: end.start()].split(b"\n")
    if any(line[:1] in (b" ", b"\t") for line in lines):
        raise h11.RemoteProtocolError("obsolete line folding")
    fields = [(name.strip().lower(), value) for name, _, value in (line.partition(b":") for line in lines)]
    lengths = [value for name, value in fields if name == b"content-length"]
    codings = [value for name, value in fields if name == b"transfer-encoding"]
    if len(lengths) > 1 or any(b"," in value for value in lengths):
        raise h11.RemoteProtocolError("more than one Content-Length")
    if lengths and codings:
        raise h11.RemoteProtocolError("both Content-Length and Transfer-Encoding")
    if codings and first.rstrip().endswith(b"HTTP/1.0"):
        raise h11.RemoteProtocolError("Transfer-Encoding in HTTP/1.0")


class StrictHttp1(H11Protocol):
    """Hypercorn's HTTP/1.1 on a `StrictConnection`, with a clock for heads and refusals that say why.

    A head that tells its body's length waits for that body: one write and one packet instead of two, which was a
    fifth of what a short reply cost. Heads of streams go out at once.
    """

    config: ConnectionConfig

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.connection: Any = StrictConnection(
            h11.SERVER, max_incomplete_event_size=self.config.h11_max_incomplete_size
        )
        self.has_refused = False
        self._clock: asyncio.TimerHandle | None = None
        self._cutting: asyncio.Task[None] | None = None
        self._write, self.send = self.send, self._send_together
        self._held = b""  # a head that waits for its body
        self._is_holding = False

    async def stream_send(self, event: StreamEvent) -> None:
        """Part of Hypercorn."""
        if isinstance(event, Response) and (self.config.is_leaving or self.context.terminated.is_set()):
            # Said, or a proxy would send the next request on a connection that ends at this moment.
            event = replace(event, headers=[*event.headers, (b"connection", b"close")])
        self._is_holding = isinstance(event, Response) and any(name == b"content-length" for name, _ in event.headers)
        await super().stream_send(event)

    async def _send_together(self, event: Event) -> None:
        held, self._held = self._held, b""
        if not isinstance(event, RawData):
            if held:
                await self._write(RawData(held))
            await self._write(event)
        elif self._is_holding:
            self._is_holding = False
            self._held = held + event.data
        elif held or event.data:
            await self._write(RawData(held + event.data))

    async def handle(self, event: Event) -> None:
        """Part of Hypercorn."""
        if isinstance(event, Closed):
            self._stop_clock()
        elif isinstance(event, RawData) and event.data and self._awaits_head:
            self._clock = asyncio.get_running_loop().call_later(self.config.header_s, self._begin_to_cut_off)
        await super().handle(event)

    @property
    def _awaits_head(self) -> bool:
        return self._clock is None and self.connection.their_state is h11.IDLE

    async def _create_stream(self, request: h11.Request) -> None:
        self._stop_clock()
        await super()._create_stream(request)

    async def _check_protocol(self, event: h11.Request) -> None:
        """HTTP/2 for who begins with it; never by an upgrade, which would lead past a proxy that passes it on."""
        if event.method == b"PRI" and event.target == b"*" and event.http_version == b"2.0":
            self._stop_clock()
            raise H2ProtocolAssumedError(b"PRI * HTTP/2.0\r\n\r\n" + self.connection.trailing_data[0])

    def _begin_to_cut_off(self) -> None:
        self._clock = None
        self._cutting = asyncio.create_task(self._cut_off())

    async def _cut_off(self) -> None:
        await self._refuse(408, f"its head took longer than {self.config.header_s:g} s")
        await self.send(Closed())

    async def _send_error_response(self, status_code: int) -> None:
        # h11's words, up to where they repeat what was sent: that may be a key.
        reason = str(sys.exception() or "malformed request").split(":")[0]
        if not self.connection.trailing_data[1]:  # else the client has gone in the middle, and hears nothing
            self.has_refused = True
            await self._refuse(status_code, reason)

    async def _refuse(self, status: int, reason: str) -> None:
        self._stop_clock()
        log().warning("refused", status=status, reason=reason, client=self.client[0] if self.client else None)
        body = Problem(status, f"The request cannot be read: {reason}.", code="malformed_request").body()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            *self.config.response_headers("h11"),
        ]
        await self._send_h11_event(h11.Response(status_code=status, headers=headers))
        await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None


class Protocols(ProtocolWrapper):
    """Hypercorn's choice between HTTP/1.1 and HTTP/2, with ours in the place of its own."""

    def __init__(self, given: ProtocolWrapper) -> None:
        vars(self).update({name: value for name, value in vars(given).items() if name != "protocol"})
        self.protocol = given.protocol

    @property
    def protocol(self) -> H11Protocol | H2Protocol:
        """Part of Hypercorn, which sets another one for who begins with HTTP/2."""
        return self._protocol

    @protocol.setter
    def protocol(self, given: H11Protocol | H2Protocol) -> None:
        self._protocol = strict(given) if isinstance(given, H11Protocol) else patient(given)


def strict(given: H11Protocol) -> StrictHttp1:
    """Hypercorn's protocol of a connection on which nothing has been said yet, as one of ours."""
    return StrictHttp1(
        given.app, given.config, given.context, given.task_group, given.connection_state,
        given.ssl, given.client, given.server, given.send,
    )  # fmt: skip


class Connection(TCPServer):
    """Hypercorn's connection with the stricter HTTP/1.1. Awaiting it serves until it is closed."""

    _wrapper: ProtocolWrapper
    config: ConnectionConfig

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.idle_task: Any = IdleTimer(self.config.keep_alive_timeout, self.context.terminated.is_set)

    @property
    def is_fresh(self) -> bool:
        """Its first request is still to come."""
        return bool(self.idle_task.is_fresh)

    def stop_soon(self) -> None:
        """The server stops: what carries nothing is ended, what is busy ends after its reply."""
        self.idle_task.stop_soon()

    @property
    def protocol(self) -> ProtocolWrapper:
        """Part of Hypercorn, which sets it once the connection is known to be HTTP/1.1 or HTTP/2."""
        return self._wrapper

    @protocol.setter
    def protocol(self, wrapper: ProtocolWrapper) -> None:
        self._wrapper = Protocols(wrapper)

    async def run(self) -> None:
        """Part of Hypercorn."""
        try:
            await super().run()
        except* UnicodeDecodeError:  # a path in HTTP/2 that is not ASCII
            log().warning("refused", reason="a path with bytes that are not ASCII")

    async def _idle_timeout(self) -> None:
        """Part of Hypercorn."""
        await self._initiate_server_close()

    async def protocol_send(self, event: Event) -> None:
        """Part of Hypercorn."""
        if isinstance(event, Closed):
            inner = self.protocol.protocol
            if isinstance(inner, StrictHttp1) and inner.has_refused:
                inner.has_refused = False
                await self._linger()
        await super().protocol_send(event)

    async def _linger(self) -> None:
        """Called by the only reader, between two reads."""
        try:
            self.writer.write_eof()
            async with asyncio.timeout(LINGER_S):
                while await self.reader.read(2**16):
                    pass
        except (TimeoutError, OSError, NotImplementedError, RuntimeError):
            return
