"""The ASGI response of a streamed reply: one write per engine step, cancelled when nobody reads. Knows no field.

Bare ASGI instead of starlette's StreamingResponse, which starts a task group per response and re-encodes each chunk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from contextlib import aclosing

from starlette.types import Receive, Scope, Send

from ortserve.gateway.errors import ApiError, Problem, internal_error
from ortserve.gateway.exchange import Exchange, exchange_of
from ortserve.gateway.http.watch import Patience, Watch
from ortserve.gateway.logs import log
from ortserve.gateway.replies.generation import Generation
from ortserve.gateway.streams.sse import ChunkWriter

HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class EventStream:
    """Streams a generation that has already been admitted: from here on, failures are frames."""

    def __init__(
        self,
        generation: Generation,
        writer: ChunkWriter,
        patience: Patience,
        keep: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`keep` is awaited before the last frames are sent: a client that has read them finds what it keeps."""
        self._keep = keep
        self._generation = generation
        self._writer = writer
        self._patience = patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Part of ASGI."""
        exchange = exchange_of(scope)
        generation = self._generation
        last = b""
        deadline = exchange.begin_stream()
        try:
            send_piece, writer = exchange.send_piece or send, self._writer
            async with Watch(
                receive, send_piece, ping=lambda: writer.ping, patience=self._patience, deadline=deadline
            ) as watch:
                await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
                last = await self._pump(watch, exchange)
            if watch.reason is not None:
                exchange.outcome = watch.reason
                if watch.reason != "late" or watch.is_blocked:
                    return
                last = await self._failed(exchange.deadline.problem(is_streamed=True), exchange)
        finally:
            generation.close()
            exchange.note(generation)
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _pump(self, watch: Watch, exchange: Exchange) -> bytes:
        """Send everything but the last frames, which are returned: the body must end in the same write."""
        writer = self._writer
        try:
            await watch.send_body(writer.begin(self._generation.num_choices))
            async with aclosing(self._generation.batches()) as batches:
                async for batch in batches:
                    await watch.send_body(
                        writer.piece(batch[0]) if len(batch) == 1 else b"".join(map(writer.piece, batch))
                    )
            if writer.include_usage:
                await self._generation.settle()
            last = writer.end(self._generation.usage())
            if self._keep is not None:
                await self._keep()
        except ApiError as error:
            problem = error.problem
        except Exception:
            log().exception("stream_failed")
            problem = internal_error()
        else:
            return last
        exchange.outcome = "failed"
        return await self._failed(problem, exchange)

    async def _failed(self, problem: Problem, exchange: Exchange) -> bytes:
        """The last frames of a reply that has none of its own."""
        exchange.error_code = problem.code
        last = self._writer.failure(problem)
        if self._keep is not None:
            with contextlib.suppress(ApiError):  # it may be what has failed
                await self._keep()
        return last
