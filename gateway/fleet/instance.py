"""One loaded model and how many use it. Knows no name and no budget."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from time import monotonic
from typing import TypeAlias

from ortserve.gateway.encoders.service import EncoderService
from ortserve.gateway.fleet.daemon import in_daemon
from ortserve.gateway.logs import log
from ortserve.gateway.served.service import ModelService
from ortserve.runtime.host.heap import trim_heap

Service: TypeAlias = ModelService | EncoderService


class Instance:
    """Belongs to the event loop. Whoever works with its service holds it meanwhile."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.num_users = 0
        self.last_used = monotonic()
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    def hold(self) -> Callable[[], None]:
        """Keep it from being closed, up to the bound of `close`, until the result is called; once."""
        self.num_users += 1
        self._is_idle.clear()
        return self._release

    async def close(self, drain_s: float) -> None:
        """Wait up to `drain_s` seconds for those that use it; then cancel what they have left, and let go of it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await self._is_idle.wait()
        driver = self.service.driver
        await in_daemon(driver.close)
        self.service.pool.close()
        await in_daemon(trim_heap)
        if not driver.ended.done():
            log().error("model_not_closed", model=self.service.name, reason="its thread does not end")

    def _release(self) -> None:
        self.num_users -= 1
        self.last_used = monotonic()
        if self.num_users == 0:
            self._is_idle.set()
