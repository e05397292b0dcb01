"""A server on its listening socket, and a bounded end. Knows no model, no route and no command line."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from ortserve.gateway.logs import log
from ortserve.gateway.transport.connection import ConnectionConfig
from ortserve.gateway.transport.listener import BACKLOG, Listener
from ortserve.gateway.transport.serving import serve_connections
from ortserve.gateway.transport.tls import Tls

KEEP_ALIVE_S = 120.0  # longer than clients keep idle connections, or they would write into a closing one
MAX_FILES = 65_536
UNBOUNDED = 2**62
LAST_FRAMES_S = 5.0  # after the drain bound, for the frames that tell clients of it


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds: how long running requests may go on after SIGTERM, a reader may block a write, and a head may take."""

    drain_s: float = 30.0
    stall_s: float = 60.0
    header_s: float = 20.0
    leave_s: float = 0.0  # before that, in which requests are still taken


def raise_file_limit() -> None:
    """Every stream is a file: lift the soft limit as far as the hard one and reason allow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def server_config(limits: Limits) -> ConnectionConfig:
    """Hypercorn with every default that matters here said aloud."""
    config = ConnectionConfig()
    config.header_s = limits.header_s
    config.backlog = BACKLOG
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.keep_alive_max_requests = UNBOUNDED
    config.graceful_timeout = limits.drain_s + LAST_FRAMES_S
    config.shutdown_timeout = LAST_FRAMES_S
    config.h2_max_concurrent_streams = 1024
    config.h11_max_incomplete_size = 64 * 1024
    config.include_server_header = False
    config.accesslog = None  # the application writes one line per request
    config.errorlog = logging.getLogger("hypercorn.error")
    return config


async def run_server(
    app: Any,
    listener: Listener,
    *,
    limits: Limits,
    stop: asyncio.Event,
    drain: Callable[[], None],
    leave: Callable[[], Awaitable[None]] | None = None,
    tls: Tls | None = None,
) -> None:
    """Serve until `stop` is set and `leave` is over; then refuse new connections, and `drain` (in a thread) what runs.

    During `leave` requests are answered as before, and each connection ends with its reply.

    Returns once every connection has ended, at most a few seconds after `drain` has. Closes the listener.
    """
    asyncio.get_running_loop().set_exception_handler(_log_failure)
    config, stopping, settled = server_config(limits), asyncio.Event(), asyncio.Event()
    serving = serve_connections(app, config, listener, stopping, tls=tls, settled=settled)
    server = asyncio.create_task(serving)
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((server, stopped), return_when=asyncio.FIRST_COMPLETED)
        if stopped.done():
            if leave is not None:
                config.is_leaving = True
                leaving = asyncio.ensure_future(leave())
                await asyncio.wait((server, leaving), return_when=asyncio.FIRST_COMPLETED)
            stopping.set()
            log().info("draining", limit_s=limits.drain_s)
            waiting = asyncio.create_task(settled.wait())
            await asyncio.wait((server, waiting), return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            await asyncio.to_thread(drain)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_FRAMES_S):  # what is left are connections that nobody reads
                    await asyncio.shield(server)
        if server.done():
            server.result()
    finally:
        stopped.cancel()
        server.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await server


def stop_on_signals(stop: asyncio.Event) -> None:
    """The first SIGTERM or SIGINT drains; a second one ends the process in the ordinary way."""
    loop = asyncio.get_running_loop()

    def begin_stop() -> None:
        stop.set()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, begin_stop)


def _log_failure(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Failures nobody waits for: broken connections are ordinary, the rest is a bug to be seen."""
    error = context.get("exception")
    if _is_connection_failure(error):
        log().debug("connection_failed", error=str(error))
    else:
        log().error("unhandled", message=context.get("message"), exc_info=error)


def _is_connection_failure(error: BaseException | None) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_is_connection_failure(inner) for inner in error.exceptions)
    return isinstance(error, OSError | asyncio.CancelledError)
