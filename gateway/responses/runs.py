"""Responses that run in the background: generated, followed and cancelled whether or not a client stays. No HTTP.

Each is a task of the event loop that pumps one generation. What it has said is in memory until it ends, then kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from ortserve.gateway.answers.responses import ResponseReply
from ortserve.gateway.errors import ApiError, internal_error, too_many, unavailable
from ortserve.gateway.exchange import Exchange
from ortserve.gateway.logs import log
from ortserve.gateway.replies.generation import Generation
from ortserve.gateway.responses.draft import ResponseDraft
from ortserve.gateway.responses.record import ResponseRecord
from ortserve.gateway.responses.sse import ResponseEvents

MAX_RUNS = 256
CLOSE_S = 5.0


class Run:
    """One response being generated, and its events for those that follow it when `with_events`."""

    def __init__(
        self,
        draft: ResponseDraft,
        generation: Generation,
        record: ResponseRecord,
        *,
        with_events: bool,
        started: float,
    ) -> None:
        """`started`: when its request came, on the monotonic clock in seconds."""
        self.with_events = with_events
        self._started = started
        self._draft = draft
        self._generation = generation
        self._record = record
        self._events = ResponseEvents(draft)
        self._frames: list[bytes] = []
        self._changed = asyncio.Event()
        self._has_ended = False
        self._is_generating = True
        self._is_cancelled = False
        self._task: asyncio.Task[None] | None = None

    @property
    def reply(self) -> ResponseReply:
        """Its object now."""
        return self._draft.reply

    def start(self) -> asyncio.Task[None]:
        """Begin to generate; the task ends when all is kept."""
        self._note(self._events.begin(1))
        self._task = asyncio.get_running_loop().create_task(self._pump())
        return self._task

    async def cancel(self) -> ResponseReply:
        """End it now, keeping what it has said; its object. One that has ended stays as it is."""
        if self._task is not None:
            if self._is_generating:
                self._is_cancelled = True
                self._task.cancel()
            await asyncio.wait((self._task,))
        return self.reply

    def exchange(self) -> Exchange:
        """Its counts, for a request that has been answered long ago."""
        exchange = Exchange(started=self._started, model=self.reply.model)
        exchange.note(self._generation)
        return exchange

    async def follow(self, starting_after: int) -> AsyncGenerator[bytes, None]:
        """Events whose number is above `starting_after`, as they come, up to the last one."""
        place = starting_after + 1
        while True:
            changed, has_ended = self._changed, self._has_ended
            while place < len(self._frames):
                yield self._frames[place]
                place += 1
            if has_ended:
                return
            await changed.wait()

    async def _pump(self) -> None:
        try:
            last = await self._generate()
        except asyncio.CancelledError:
            if not self._is_cancelled:
                last = self._events.failure(unavailable("The server is shutting down."))
            else:
                last = self._events.cancelled(self._generation.usage())
        finally:
            self._is_generating = False
            self._generation.close()
        events = b"".join((*self._frames, last)) if self.with_events else None
        try:
            await self._record.end(self.reply, events=events)
        except Exception:
            log().exception("response_not_kept")
        self._has_ended = True
        self._note(last)

    async def _generate(self) -> bytes:
        """Every event but the last, which is returned: it is shown once it is kept."""
        events, generation = self._events, self._generation
        try:
            async with aclosing(generation.batches()) as batches:
                async for batch in batches:
                    self._note(b"".join(map(events.piece, batch)))
            await generation.settle()
            return events.end(generation.usage())
        except ApiError as error:
            return events.failure(error.problem)
        except Exception:
            log().exception("run_failed")
            return events.failure(internal_error())

    def _note(self, frames: bytes) -> None:
        if self.with_events:
            self._frames.extend(split_frames(frames))
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class Runs:
    """The runs of one server."""

    def __init__(self, count: Callable[[Exchange, float], None], *, max_runs: int = MAX_RUNS) -> None:
        """`count` takes the tokens of each run, and its seconds, when it has ended."""
        self._count = count
        self._runs: dict[str, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._max_runs = max_runs

    def check_room(self) -> None:
        """Raise `ApiError` (429) when no more may run."""
        if len(self._runs) >= self._max_runs:
            raise ApiError(too_many(f"{self._max_runs} responses are running in the background", retry_after_s=5.0))

    def start(self, run: Run, settle: Callable[[], None]) -> None:
        """Let it run; `settle` is called when it has ended, however it ends."""
        id = run.reply.id
        self._runs[id] = run
        task = run.start()
        self._tasks.add(task)

        def forget(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._runs.pop(id, None)
            settle()
            exchange = run.exchange()
            self._count(exchange, time.monotonic() - exchange.started)

        task.add_done_callback(forget)

    def find(self, id: str) -> Run | None:
        """A run that has not ended. Whose it is the caller has checked."""
        return self._runs.get(id)

    async def close(self) -> None:
        """Wait a little for those whose engine has ended; fail the others."""
        tasks = list(self._tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_S)
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


def split_frames(data: bytes) -> list[bytes]:
    """Server-sent events one by one; the place in a stream is the sequence number."""
    return [frame + b"\n\n" for frame in data.split(b"\n\n")[:-1]]
