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
from ortserve.gateway.http.edge import problem_response
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
    """Streams a generation that has already been admitted. Its head waits a second at most for the first piece.

    So what fails before is an error with a status of its own; what fails later is a frame. And a proxy in Go (Caddy,
    Traefik) that is answered over HTTP/1.1 while it still looks whether the request has ended drops the connection: by
    the time of a first token it seldom does.
    """

    def __init__(
        self,
        generation: Generation,
        writer: ChunkWriter,
        patience: Patience,
        keep: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`keep` is awaited before the last frames are sent: a client that has read them finds what it keeps.

        What fails before anything was said is not kept: nobody has heard of it.
        """
        self._keep = keep
        self._generation = generation
        self._writer = writer
        self._patience = patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Part of ASGI."""
        exchange = exchange_of(scope)
        generation, writer = self._generation, self._writer
        first = writer.begin(generation.num_choices)

        async def begin() -> bytes:
            await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
            return first

        watch = Watch(
            receive,
            exchange.send_piece or send,
            ping=lambda: writer.ping,
            patience=self._patience,
            deadline=exchange.begin_stream(),
            begin=begin,
        )
        end: bytes | Problem = b""
        try:
            async with watch:
                end = await self._pump(watch)
            if watch.reason is not None:
                exchange.outcome = watch.reason
                if watch.reason != "late" or watch.is_blocked:
                    return
                end = exchange.deadline.problem(is_streamed=True)
            elif isinstance(end, Problem):
                exchange.outcome = "failed"
            if isinstance(end, Problem) and watch.has_begun:
                end = await self._failed(end, exchange)
        finally:
            generation.close()
            exchange.note(generation)
        if isinstance(end, Problem):
            await problem_response(end, scope)(scope, receive, send)
        else:
            await send({"type": "http.response.body", "body": end, "more_body": False})

    async def _pump(self, watch: Watch) -> bytes | Problem:
        """Send everything but the last frames, which are returned: the body must end in the same write."""
        writer = self._writer
        try:
            async with aclosing(self._generation.batches()) as batches:
                async for batch in batches:
                    await watch.send_body(
                        writer.piece(batch[0]) if len(batch) == 1 else b"".join(map(writer.piece, batch))
                    )
            if writer.include_usage:
                await self._generation.settle()
            await watch.hush()
            last = writer.end(self._generation.usage())
            if self._keep is not None:
                await self._keep()
        except ApiError as error:
            return error.problem
        except Exception:
            log().exception("stream_failed")
            return internal_error()
        return last

    async def _failed(self, problem: Problem, exchange: Exchange) -> bytes:
        """The last frames of a reply that has none of its own."""
        exchange.error_code = problem.code
        last = self._writer.failure(problem)
        if self._keep is not None:
            with contextlib.suppress(ApiError):  # it may be what has failed
                await self._keep()
        return last
