"""When a connection that carries nothing is ended: after a while, or when the server stops. Knows no protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from hypercorn.asyncio.task_group import TaskGroup

FRESH_S = 0.25  # for the first request of a connection that was accepted before the server stopped


class IdleTimer:
    """Takes the place of Hypercorn's `AsyncioSingleTask`: one timer instead of two tasks for every request.

    Those tasks belonged to the connection's group, so that a connection that its client had closed was kept, with its
    file, until its time was over.
    """

    def __init__(self, limit_s: float, is_stopping: Callable[[], bool]) -> None:
        self.is_fresh = True  # nothing has been asked on it yet
        self._limit_s = limit_s
        self._is_stopping = is_stopping
        self._action: Callable[[], Coroutine[Any, Any, None]] | None = None  # while the connection is idle
        self._timer: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None  # not the group's: that may have ended already

    async def restart(self, _: TaskGroup, action: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Part of Hypercorn: the connection is idle now. `action` ends it."""
        self._clear()
        self._action = action
        self._set(self._limit_s)
        if self._is_stopping():
            self.stop_soon()

    async def stop(self) -> None:
        """Part of Hypercorn: it is busy, or has ended."""
        self.is_fresh = False
        self._clear()

    def stop_soon(self) -> None:
        """The server stops: a connection that is idle ends now, or soon if its first request may be on its way."""
        if self._action is not None:
            self._set(FRESH_S if self.is_fresh else 0.0)

    def _end(self) -> None:
        action = self._action
        self._clear()
        if action is not None:
            self._ending = asyncio.create_task(action())

    def _set(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._end)

    def _clear(self) -> None:
        self._action = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
