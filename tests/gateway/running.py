"""A real server on loopback over a scripted driver, for tests of streams. Knows no test."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from ortserve.gateway.app import build_app
from ortserve.gateway.server import Limits, listen, run_server
from tests.gateway.scripted import ScriptedDriver, make_service


@dataclass(frozen=True)
class Running:
    """Address of a running server and the driver behind it."""

    port: int
    driver: ScriptedDriver
    loop: asyncio.AbstractEventLoop
    stop: asyncio.Event

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def begin_stop(self) -> None:
        """What SIGTERM does."""
        self.loop.call_soon_threadsafe(self.stop.set)


@contextmanager
def running(driver: ScriptedDriver, *, limits: Limits | None = None, **options: Any) -> Iterator[Running]:
    """Serve until the block ends; fails if the server does not end by itself."""
    bounds = limits or Limits(drain_s=1.0, stall_s=5.0)
    listener = listen("127.0.0.1", 0, bounds)
    port = listener.getsockname()[1]
    started = threading.Event()
    handles: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
    failures: list[BaseException] = []

    async def main() -> None:
        service = make_service(driver)
        stop = asyncio.Event()
        handles.append((asyncio.get_running_loop(), stop))
        started.set()
        app = build_app(service, **options)
        drain = partial(driver.close, drain_s=bounds.drain_s)
        await run_server(app, listener, limits=bounds, stop=stop, drain=drain)
        service.pool.close()

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failures.append(error)
            started.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(10)
    loop, stop = handles[0]
    server = Running(port, driver, loop, stop)
    try:
        yield server
    finally:
        if thread.is_alive():
            server.begin_stop()
        thread.join(bounds.drain_s + 15)
        driver.close()
    assert not thread.is_alive(), "the server did not end"
    if failures:
        raise failures[0]
