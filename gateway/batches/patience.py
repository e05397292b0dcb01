"""Writes that wait until the disk takes them: a full one costs a batch time, not results. Knows no batch."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from ortserve.gateway.errors import ApiError
from ortserve.gateway.logs import log

FIRST_WAIT_S = 0.5
MAX_WAIT_S = 30.0
UNAVAILABLE = 503

T = TypeVar("T")


class GivenUpError(Exception):
    """The server ends before the disk has taken something: the next one computes it again."""


class Patience:
    """That of one batch, until the server ends."""

    def __init__(self, batch_id: str) -> None:
        self._batch_id = batch_id
        self._has_ended = asyncio.Event()

    def end(self) -> None:
        """The server ends: wait for nothing more."""
        self._has_ended.set()

    async def insist(self, write: Callable[[], Awaitable[T]]) -> T:
        """What `write` gives, called again while the disk or the store refuses. Raises `GivenUpError` at the end.

        Other failures, such as files that have no room among all files (413), are raised at once.
        """
        wait_s = FIRST_WAIT_S
        while True:
            try:
                return await write()
            except (OSError, ApiError) as error:
                if isinstance(error, ApiError) and error.problem.status != UNAVAILABLE:
                    raise
                if self._has_ended.is_set():
                    raise GivenUpError from error
                if wait_s == FIRST_WAIT_S:
                    log().error("batch_waits_for_disk", batch=self._batch_id, error=str(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._has_ended.wait()
            wait_s = min(wait_s * 2, MAX_WAIT_S)
