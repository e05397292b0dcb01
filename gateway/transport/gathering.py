"""Lets what arrives gather while most of it is refused: a selector that then looks every 20 ms. Knows no HTTP.

A loop that wakes for each of hundreds of refusals a second takes the cores and their caches from the model every time,
and pays for cold caches itself: one by one, refusals cost twice what they cost together. Replies are the same and come
up to 20 ms later; so do the tokens of those that are served, which leave together too.
"""

from __future__ import annotations

import asyncio
import math
import selectors
import time
from collections.abc import Callable

GATHER_S = 0.02
MANY_PER_S = 50.0  # fewer cost too little to let anybody wait
_MEMORY_S = 0.2  # after so long a refusal counts for a third


class GatheringSelector(selectors.DefaultSelector):
    """The system's own selector, but for the time it takes to look. Belongs to one loop."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        super().__init__()
        self._clock = clock
        self._sleep = sleep
        self._num_refused = 0.0  # lately: each counts for less as time passes
        self._last_s = 0.0

    def refused(self) -> None:
        """One more was refused, because there is more to do than can be done."""
        now_s = self._clock()
        self._num_refused = self._faded(now_s) + 1.0
        self._last_s = now_s

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Part of `selectors`. Nothing waits while the loop has something to do (`timeout` 0)."""
        if self._num_refused and (timeout is None or timeout > 0) and self._is_gathering():
            wait_s = GATHER_S if timeout is None else min(timeout, GATHER_S)
            self._sleep(wait_s)
            timeout = None if timeout is None else timeout - wait_s
        return super().select(timeout)

    def _is_gathering(self) -> bool:
        return self._faded(self._clock()) > MANY_PER_S * _MEMORY_S

    def _faded(self, now_s: float) -> float:
        return self._num_refused * math.exp((self._last_s - now_s) / _MEMORY_S)


def new_loop(selector: GatheringSelector) -> asyncio.AbstractEventLoop:
    """An event loop on it."""
    return asyncio.SelectorEventLoop(selector)
