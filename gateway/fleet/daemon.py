"""Work of minutes on a thread that does not keep the process from ending. Knows nothing of the work."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")

_running: set[threading.Thread] = set()


async def in_daemon(work: Callable[[], Result], *, drop: Callable[[Result], None] | None = None) -> Result:
    """Its result. Cancelled, the work goes on and `drop` gets what it made, on its thread.

    Not `asyncio.to_thread`, whose threads are waited for at the end of the loop and of the process.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = work()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
        finally:
            _running.discard(threading.current_thread())

    thread = threading.Thread(target=run, name="ortserve-model", daemon=True)
    _running.add(thread)
    thread.start()
    waiting = asyncio.wrap_future(future)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        waiting.add_done_callback(_ignore)
        if drop is not None:
            future.add_done_callback(lambda done: None if done.exception() else drop(done.result()))
        raise


def is_running() -> bool:
    """Whether some work goes on: the process cannot end in the ordinary way beside libraries that still compute."""
    return bool(_running)


def _ignore(done: asyncio.Future[Result]) -> None:
    """Nobody asks any more: what went wrong is no news."""
    if not done.cancelled():
        done.exception()
