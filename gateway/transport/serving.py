"""Connections of one listening socket until they shall end: Hypercorn's worker, with connections of our own.

Hypercorn's own makes its connections itself and waits, from Python 3.12 on, for idle ones too before it ends them.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Mapping
from typing import Any

from hypercorn.asyncio.lifespan import Lifespan
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.typing import LifespanState
from hypercorn.utils import wrap_app

from ortserve.gateway.transport.connection import Connection, ConnectionConfig
from ortserve.gateway.transport.idle import FRESH_S
from ortserve.gateway.transport.listener import BACKLOG, Listener
from ortserve.gateway.transport.tls import Tls

HANDSHAKE_S = 10.0  # of TLS


async def serve_connections(
    app: Any,
    config: ConnectionConfig,
    listener: Listener,
    stop: asyncio.Event,
    *,
    tls: Tls | None = None,
    settled: asyncio.Event | None = None,
) -> None:
    """Serve until `stop`, then accept nothing more and give what runs `config.graceful_timeout` seconds.

    `settled` is set once every connection that was accepted before has brought its first request, or has had the time
    to: until then they must be served, as nobody else can.
    """
    loop = asyncio.get_running_loop()
    wrapped = wrap_app(app, config.wsgi_max_body_size, "asgi")
    state: LifespanState = {}
    lifespan = Lifespan(wrapped, config, loop, state)
    living = loop.create_task(lifespan.handle_lifespan())
    await lifespan.wait_for_startup()
    if living.done():
        living.result()
    context = WorkerContext(None)
    connections: dict[asyncio.Task[None], Connection] = {}

    def ended(task: asyncio.Task[None]) -> None:
        del connections[task]
        error = None if task.cancelled() else task.exception()
        if error is not None:
            loop.call_exception_handler({"message": "a connection failed", "exception": error})

    def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(wrapped, loop, config, context, state, reader, writer)
        task = loop.create_task(connection.run())
        connections[task] = connection  # at once: also what has been accepted in the last moment is waited for
        task.add_done_callback(ended)

    listener.socket.setblocking(False)
    server = await asyncio.start_server(
        connect,
        sock=listener.socket,
        backlog=config.backlog,
        ssl=None if tls is None else tls.context,
        ssl_handshake_timeout=None if tls is None else HANDSHAKE_S,
    )
    try:
        await stop.wait()
    finally:
        await context.terminated.set()  # ends busy connections after their reply
        for connection in connections.values():
            connection.stop_soon()
        loop.remove_reader(listener.socket)
        for _ in range(4):  # turns from accepting to `connect`: asyncio loses what is between them at `close`
            await asyncio.sleep(0)
        last = accept_all(listener.socket)
        server.close()
        listener.close()
        deadline = loop.time() + FRESH_S
        if last:
            await asyncio.wait([loop.create_task(_welcome(one, connect, tls)) for one in last], timeout=FRESH_S)
        # Connections in the middle of a TLS handshake are known to asyncio alone.
        while loop.time() < deadline and (tls is not None or _has_fresh(connections)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        if settled is not None:
            settled.set()
        if connections:
            _, late = await asyncio.wait(connections, timeout=config.graceful_timeout)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await lifespan.wait_for_shutdown()
        living.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await living


def accept_all(listener: socket.socket) -> list[socket.socket]:
    """What the kernel has accepted by now, and would reset with the listening socket's end."""
    accepted: list[socket.socket] = []
    with contextlib.suppress(OSError):  # most often: there is nothing more
        while len(accepted) < BACKLOG:
            accepted.append(listener.accept()[0])
    return accepted


async def _welcome(
    accepted: socket.socket, connect: Callable[[asyncio.StreamReader, asyncio.StreamWriter], None], tls: Tls | None
) -> None:
    """As `asyncio.start_server` does it."""
    loop = asyncio.get_running_loop()
    accepted.setblocking(False)
    with contextlib.suppress(OSError):  # it has gone, or cannot speak TLS
        await loop.connect_accepted_socket(
            lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader(loop=loop), connect, loop=loop),
            accepted,
            ssl=None if tls is None else tls.context,
            ssl_handshake_timeout=None if tls is None else HANDSHAKE_S,
        )


def _has_fresh(connections: Mapping[asyncio.Task[None], Connection]) -> bool:
    return any(one.is_fresh for one in connections.values())
