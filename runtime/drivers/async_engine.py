"""A driver as one event loop sees it: a stream of deltas per request, one wake-up per step. Knows no text."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from ortserve.runtime.drivers.engine_driver import EngineDriver
from ortserve.runtime.drivers.outlets import id_in_use
from ortserve.runtime.request import Delta, Request


class AsyncEngine:
    """The driver as one event loop sees it: all deltas of a step arrive in one wake-up."""

    def __init__(self, driver: EngineDriver) -> None:
        """Must be called in the loop that will read the streams."""
        self.driver = driver
        self._loop = asyncio.get_running_loop()
        self._streams: dict[str, DeltaStream] = {}

    def submit(self, request: Request) -> DeltaStream:
        """Queue a request. Raises as `Driver.submit` does, before anything is streamed."""
        if request.id in self._streams:  # also when its last deltas are still on their way
            raise id_in_use(request)
        stream = DeltaStream(request.id, self.driver)
        self._streams[request.id] = stream
        try:
            self.driver.submit(request, self)
        except BaseException:
            del self._streams[request.id]
            raise
        return stream

    def deliver(self, deltas: Sequence[Delta]) -> None:
        """Part of `Outlet`: called on the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._dispatch, deltas)
        except RuntimeError:  # the loop is closed: nobody is left to read
            for delta in deltas:
                if delta.finish is None:
                    self.driver.cancel(delta.request_id)

    def _dispatch(self, deltas: Sequence[Delta]) -> None:
        for delta in deltas:
            stream = self._streams[delta.request_id]
            if delta.finish is not None:
                del self._streams[delta.request_id]
            stream.put(delta)


class DeltaStream:
    """The deltas of one request, in order; the last one carries `finish`. One reader."""

    __slots__ = ("_deltas", "_driver", "_is_read", "_waiter", "is_finished", "request_id")

    def __init__(self, request_id: str, driver: EngineDriver) -> None:
        self.request_id = request_id
        self.is_finished = False  # the last delta has arrived, read or not
        self._driver = driver
        self._deltas: deque[Delta] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._is_read = False

    def put(self, delta: Delta) -> None:
        """Called by `AsyncEngine` in the loop."""
        self._deltas.append(delta)
        self.is_finished = delta.finish is not None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> DeltaStream:
        return self

    async def __anext__(self) -> Delta:
        if self._is_read:
            raise StopAsyncIteration
        while not self._deltas:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._taken()

    def take_waiting(self) -> Delta | None:
        """The next delta if it has arrived already; None otherwise, and after the last one."""
        return self._taken() if self._deltas else None

    def _taken(self) -> Delta:
        delta = self._deltas.popleft()
        self._is_read = delta.finish is not None
        return delta

    def close(self) -> None:
        """Cancel the request unless it has finished. What has arrived can still be read."""
        if not self.is_finished:
            self._driver.cancel(self.request_id)
