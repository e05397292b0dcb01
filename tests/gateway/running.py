"""A real server on loopback over a scripted driver, for tests of streams. Knows no test."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from ortserve.gateway.app import build_app
from ortserve.gateway.fleet.fleet import Fleet
from ortserve.gateway.fleet.instance import Service
from ortserve.gateway.http.server import Limits, run_server
from ortserve.gateway.transport.listener import Listener, listen
from ortserve.gateway.transport.tls import Tls
from tests.gateway.fleets import fleet_of
from tests.gateway.scripted import CHATML, ScriptedDriver, make_service
from tests.waiting import PATIENCE_S


@dataclass(frozen=True)
class Running:
    """Address of a running server and the driver behind it."""

    port: int
    driver: ScriptedDriver
    stop: Callable[[], None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def begin_stop(self) -> None:
        """What SIGTERM does."""
        self.stop()


@contextmanager
def running(
    driver: ScriptedDriver,
    *,
    limits: Limits | None = None,
    template: str = CHATML,
    tls: Tls | None = None,
    listener: Listener | None = None,
    **options: Any,
) -> Iterator[Running]:
    """Serve a scripted driver until the block ends."""
    bounds = limits or Limits(drain_s=1.0, stall_s=5.0)
    made = lambda: make_service(driver, template)  # noqa: E731
    with serving(made, driver.close, bounds, tls=tls, listener=listener, **options) as (port, stop):
        yield Running(port, driver, stop)


@contextmanager
def serving(
    make: Callable[[], Service | Sequence[Service] | Fleet],
    close: Callable[..., None],
    limits: Limits,
    *,
    tls: Tls | None = None,
    listener: Listener | None = None,
    left: threading.Event | None = None,
    **options: Any,
) -> Iterator[tuple[int, Callable[[], None]]]:
    """Serve one model or several until the block ends; fails if the server does not end. Yields port and stop.

    A fleet is started while the server already answers. One that stops goes on taking requests until `left` is set.
    """
    listener = listener or listen("127.0.0.1", 0, stall_s=limits.stall_s)
    port = 0 if listener.unix else listener.socket.getsockname()[1]
    started = threading.Event()
    handles: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
    failures: list[BaseException] = []

    async def main() -> None:
        made = make()
        if isinstance(made, Fleet):
            fleet, starting = made, asyncio.create_task(made.start())
        else:
            fleet, starting = await fleet_of(*(made if isinstance(made, Sequence) else [made])), None
        stop = asyncio.Event()
        handles.append((asyncio.get_running_loop(), stop))
        started.set()
        drain = partial(close, drain_s=limits.drain_s)

        async def leave() -> None:
            fleet.is_leaving = left is not None
            if left is not None:
                await asyncio.to_thread(left.wait, PATIENCE_S)

        app = build_app(fleet, **options)
        await run_server(app, listener, limits=limits, stop=stop, drain=drain, leave=leave, tls=tls)
        if starting is not None:
            starting.cancel()
        await fleet.close()

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failures.append(error)
            started.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(PATIENCE_S)

    def begin_stop() -> None:
        loop, stop = handles[0]
        loop.call_soon_threadsafe(stop.set)

    try:
        yield port, begin_stop
    finally:
        if left is not None:
            left.set()
        if thread.is_alive() and handles:
            begin_stop()
        thread.join(limits.drain_s + 15)
        close()
    assert not thread.is_alive(), "the server did not end"
    if failures:
        raise failures[0]
