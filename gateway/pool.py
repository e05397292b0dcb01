"""A bounded pool of threads for work that would stall the event loop. Knows nothing of what it runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from ortserve.gateway.errors import ApiError, Problem, unavailable

Result = TypeVar("Result")


class WorkPool:
    """Runs functions of up to `limit_s` seconds; refuses with a 503 when `max_pending` are running or waiting.

    A thread cannot be stopped: a function past its limit keeps its place until it returns, so runaway work makes the
    pool refuse instead of growing it.
    """

    def __init__(self, *, num_threads: int = 1, max_pending: int = 64, limit_s: float = 30.0) -> None:
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix="ortserve-prompt")
        self._max_pending = max_pending
        self._limit_s = limit_s
        self._num_pending = 0
        self._lock = threading.Lock()

    async def run(self, function: Callable[[], Result]) -> Result:
        """The function's result, or what it raised; `ApiError` 503 when full, 408 past the time limit."""
        with self._lock:
            if self._num_pending >= self._max_pending:
                raise ApiError(unavailable("Too many long prompts are being prepared.", retry_after_s=2.0))
            self._num_pending += 1
        future = self._executor.submit(function)
        future.add_done_callback(self._release)
        try:
            async with asyncio.timeout(self._limit_s):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            if future.done() and not future.cancelled():
                raise  # the function's own TimeoutError
            message = f"Preparing the prompt took longer than {self._limit_s:g} s. Please shorten it."
            raise ApiError(Problem(408, message, code="prompt_timeout")) from None

    def close(self) -> None:
        """Drop what waits; running functions end by themselves."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _release(self, _: Future[Result]) -> None:
        with self._lock:
            self._num_pending -= 1
