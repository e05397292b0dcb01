"""The ASGI response of events that come whether or not anybody reads them. Knows no field and ends nothing."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.types import Receive, Scope, Send

from ortserve.gateway.exchange import exchange_of
from ortserve.gateway.http.watch import Patience, Watch
from ortserve.gateway.streams.sse import PING
from ortserve.gateway.streams.stream import HEADERS


class FollowedRun:
    """Streams frames to one reader, who may leave and come back."""

    def __init__(self, frames: AsyncGenerator[bytes, None], patience: Patience) -> None:
        self._frames = frames
        self._patience = patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Part of ASGI."""
        exchange = exchange_of(scope)
        exchange.begin_stream()  # which ends by itself, and what it follows has no deadline
        async with Watch(receive, exchange.send_piece or send, ping=lambda: PING, patience=self._patience) as watch:
            await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
            async with aclosing(self._frames) as frames:
                async for frame in frames:
                    await watch.send_body(frame)
        if watch.reason is not None:
            exchange.outcome = watch.reason
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})
