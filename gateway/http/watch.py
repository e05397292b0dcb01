"""Ends a handler whose client has gone or has stopped reading, and keeps silent streams alive. Knows no model.

Hypercorn does not cancel handlers by itself. A watch costs one waiting task and one coarse timer per request, and
nothing per chunk but a few assignments.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from starlette.types import Message, Receive, Send

Reason = Literal["disconnected", "stalled", "late"]


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds a stream may be silent before a comment line is sent, and a write may block before it is given up.

    `head_s`: how long its head may wait for a first piece. Not long: clients bound that wait, and ask again after it,
    which they never do in a stream.
    """

    ping_s: float = 15.0
    stall_s: float = 60.0
    head_s: float = 1.0


class Watch:
    """`async with Watch(receive) as watch:` cancels the block when the client leaves, and then swallows the cancel.

    Afterwards `watch.reason` says why. Only one coroutine may use `send`.
    """

    def __init__(
        self,
        receive: Receive,
        send: Send | None = None,
        *,
        ping: Callable[[], bytes] = bytes,
        patience: Patience,
        deadline: float | None = None,
        begin: Callable[[], Awaitable[bytes]] | None = None,
    ) -> None:
        """`deadline`: when the block ends at the latest, on the loop's clock, which is the monotonic one.

        `begin` sends the reply's head, and makes what its body begins with. It is awaited once: before the first piece,
        or after `patience.head_s` with a ping.
        """
        self._receive = receive
        self._send = send
        self._ping = ping
        self._patience = patience
        self._task: asyncio.Task[object] | None = None
        self._listener: asyncio.Task[None] | None = None
        self._pinger: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._busy_since: float | None = None  # a write is waiting for the reader
        self._last_sent = self._loop.time()
        self._deadline = deadline
        self._begin = begin
        self._alarm: asyncio.TimerHandle | None = None
        self._opener: asyncio.TimerHandle | None = None
        self.reason: Reason | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        self._listener = self._loop.create_task(self._listen())
        if self._send is not None:
            self._arm()
            if self._begin is not None:
                self._opener = self._loop.call_later(min(self._patience.head_s, self._patience.ping_s), self._ping_now)
        if self._deadline is not None:
            self._alarm = self._loop.call_at(self._deadline, self._end, "late")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self.stop()
        if isinstance(error, OSError) and self._busy_since is not None:
            self.reason = self.reason or "disconnected"  # the write itself has failed
            return True
        if self.reason is None or self._task is None:
            return False
        self._task.uncancel()
        return kind is asyncio.CancelledError

    @property
    def is_blocked(self) -> bool:
        """A write has not got through."""
        return self._busy_since is not None

    @property
    def has_begun(self) -> bool:
        """The head of the reply has been sent."""
        return self._begin is None

    async def send_body(self, body: bytes) -> None:
        """Write one piece of the body; a reader that blocks it for too long ends the block."""
        self._busy_since = self._loop.time()
        if self._pinger is not None:
            await self._pinger  # it may have to send the head, which no piece can overtake
            self._pinger = None
        await self._write(body if self.has_begun else await self._opening() + body)
        self._busy_since = None
        self._last_sent = self._loop.time()

    async def hush(self) -> None:
        """Send no more signs of life: what comes next is numbered as the last, and may take a while to be kept."""
        if self._timer is not None:
            self._timer.cancel()
        if self._pinger is not None:
            await self._pinger
            self._pinger = None

    def stop(self) -> None:
        """Stop watching; after the last piece, so that the end of the reply is not taken for a disconnect."""
        for task in (self._listener, self._pinger):
            if task is not None:
                task.cancel()
        for timer in (self._timer, self._alarm, self._opener):
            if timer is not None:
                timer.cancel()

    async def _listen(self) -> None:
        while True:
            message: Message = await self._receive()
            if message["type"] == "http.disconnect":
                self._end("disconnected")
                return

    def _end(self, reason: Reason) -> None:
        if self.reason is None and self._task is not None:
            self.reason = reason
            self._task.cancel()

    def _arm(self) -> None:
        interval = min(self._patience.ping_s, self._patience.stall_s) / 4
        self._timer = self._loop.call_later(interval, self._tick)

    def _tick(self) -> None:
        now = self._loop.time()
        if self._busy_since is not None:
            if now - self._busy_since > self._patience.stall_s:
                self._end("stalled")
                return
        elif now - self._last_sent >= self._patience.ping_s:
            self._ping_now()
        self._arm()

    def _ping_now(self) -> None:
        if self._pinger is None or self._pinger.done():
            self._last_sent = self._loop.time()
            self._pinger = self._loop.create_task(self._send_ping())

    async def _send_ping(self) -> None:
        if self._busy_since is None:
            first = b"" if self.has_begun else await self._opening()
            await self._write(first + self._ping())

    async def _opening(self) -> bytes:
        assert self._begin is not None
        begin, self._begin = self._begin, None
        if self._opener is not None:
            self._opener.cancel()
        return await begin()

    async def _write(self, body: bytes) -> None:
        assert self._send is not None
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
