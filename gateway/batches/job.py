"""One batch while it runs: its requests through the ordinary routes, below everything else. Knows no HTTP and no table.

What has a result is not run again after a restart: results are appended to partial files, which the next server reads.
While the disk refuses, a batch waits: neither results nor its end are lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from ortserve.gateway.answers.batches import (
    BatchCounts,
    BatchErrors,
    BatchProblem,
    BatchReply,
    BatchResult,
    BatchStatus,
    LineError,
    LineResponse,
    is_over,
)
from ortserve.gateway.answers.files import FileReply
from ortserve.gateway.batches.dispatch import Answer, Dispatcher
from ortserve.gateway.batches.files import append_result, check_lines, read_lines, read_results
from ortserve.gateway.batches.patience import GivenUpError, Patience
from ortserve.gateway.batches.tally import BatchTally
from ortserve.gateway.errors import ApiError
from ortserve.gateway.ids import new_id
from ortserve.gateway.logs import log
from ortserve.gateway.schema.batches import BatchLine
from ortserve.gateway.schema.files import BATCH_TTL_S
from ortserve.gateway.store.files import PARTIAL, NewFile
from ortserve.gateway.store.state import State

PRIORITY = -10  # below every request that somebody waits for
MAX_WAIT_S = 30.0  # between two tries of a request that the engine has no room for
SAVE_S = 1.0
BUSY = (429, 503)


@dataclass(frozen=True, slots=True)
class BatchParts:
    """What every batch of a server uses: `slots` bounds the requests of all of them together."""

    state: State
    dispatcher: Dispatcher
    slots: asyncio.Semaphore


class BatchJob:
    """One batch of one tenant. Its object is in `reply`, ahead of what is kept by at most a second."""

    def __init__(self, parts: BatchParts, tenant: bytes, reply: BatchReply, output_ttl_s: int | None = None) -> None:
        self.reply = reply
        self.tenant = tenant
        self._parts = parts
        self._output_ttl_s = output_ttl_s
        self._tally = BatchTally()
        files = parts.state.files
        # Named by the batch, so that the next server finds them.
        self._output = files.partial_path(f"file_{reply.id}_output")
        self._errors = files.partial_path(f"file_{reply.id}_errors")
        self._write_lock = asyncio.Lock()
        self._saved_at = 0.0
        self._is_stopping = False  # the server ends: keep everything for the next one
        self._patience = Patience(reply.id)
        self._workers: set[asyncio.Task[None]] = set()
        self._notes: set[asyncio.Task[None]] = set()  # results being written

    @property
    def partial_ids(self) -> tuple[str, str]:
        """Names of its partial files, without their suffix."""
        return self._output.name.removesuffix(PARTIAL), self._errors.name.removesuffix(PARTIAL)

    async def run(self) -> None:
        """From wherever it is to its end."""
        try:
            if await self._validate():
                await self._run_lines()
                if not self._is_stopping:
                    await self._finish()
        except asyncio.CancelledError:
            raise
        except GivenUpError:
            return
        except Exception as error:
            log().exception("batch_failed", batch=self.reply.id)
            problem = BatchProblem("server_error", f"The server could not run this batch: {error}")
            with suppress(GivenUpError):
                await self._fail([problem])

    async def cancel(self) -> None:
        """Run nothing more of it; what runs is ended without a result."""
        if is_over(self.reply) or self.reply.status == "cancelling":
            return
        self._change(status="cancelling", cancelling_at=_now())
        await self._try_to_save()
        for worker in self._workers:
            worker.cancel()

    def stop(self) -> None:
        """The server ends: run nothing more, and leave it to the next one."""
        self._is_stopping = True
        self._patience.end()
        for worker in self._workers:
            worker.cancel()

    async def _validate(self) -> bool:
        path = self._parts.state.files.path(self.reply.input_file_id)
        if not await asyncio.to_thread(path.exists):
            await self._fail([BatchProblem("file_not_found", "The input file has been deleted.")])
            return False
        if self.reply.status != "validating":
            return True
        num_lines, problems = await asyncio.to_thread(check_lines, path, self.reply.endpoint)
        if problems:
            await self._fail(problems)
            return False
        if self.reply.status == "validating":  # nobody has cancelled it meanwhile
            counts = BatchCounts(total=num_lines)
            await self._save(status="in_progress", in_progress_at=_now(), request_counts=counts)
        return True

    async def _run_lines(self) -> None:
        self._count(*await asyncio.to_thread(self._read_written))
        done = set(self._tally.ids)
        lines = read_lines(self._parts.state.files.path(self.reply.input_file_id))
        try:
            while self._may_go_on() and (line := await asyncio.to_thread(_next_line, lines, done)) is not None:
                await self._parts.slots.acquire()
                if not self._may_go_on():
                    self._parts.slots.release()
                    break
                worker = asyncio.create_task(self._run_line(line))
                self._workers.add(worker)
                worker.add_done_callback(self._workers.discard)
                worker.add_done_callback(lambda _: self._parts.slots.release())
            for tasks in (self._workers, self._notes):
                if tasks:
                    await asyncio.wait(tuple(tasks))
        finally:
            lines.close()  # type: ignore[attr-defined]  # a generator, with the file open

    def _read_written(self) -> tuple[int, int]:
        """Of an earlier server, which may have published them: how many results and errors there are."""
        published = self._parts.state.files.path
        output, errors = (
            path if path.exists() else published(path.name.removesuffix(PARTIAL))
            for path in (self._output, self._errors)
        )
        return read_results(output, self._tally.add), read_results(errors, self._tally.add)

    def _may_go_on(self) -> bool:
        return self.reply.status == "in_progress" and not self._is_stopping and not self._is_late

    @property
    def _is_late(self) -> bool:
        return time.time() >= self.reply.expires_at

    async def _run_line(self, line: BatchLine) -> None:
        try:
            async with asyncio.timeout(max(self.reply.expires_at - time.time(), 0.0)):
                answer = await self._answer(line)
        except TimeoutError:
            return
        result = BatchResult(
            new_id("batch_req"),
            line.custom_id,
            LineResponse(answer.status, answer.request_id, msgspec.Raw(answer.body)),
        )
        # A task of its own: a result that is being written is written whole, and counted, whatever becomes of us.
        note = asyncio.create_task(self._note(result, is_good=answer.status == 200))
        self._notes.add(note)
        note.add_done_callback(self._notes.discard)
        await asyncio.shield(note)

    async def _answer(self, line: BatchLine) -> Answer:
        wait_s = 0.5
        while True:
            answer = await self._parts.dispatcher.call(
                line.url, bytes(line.body), tenant=self.tenant, priority=PRIORITY
            )
            if answer.status not in BUSY or answer.is_final:
                return answer
            await asyncio.sleep(min(answer.retry_after_s or wait_s, MAX_WAIT_S))
            wait_s = min(wait_s * 2, MAX_WAIT_S)

    async def _note(self, result: BatchResult, *, is_good: bool) -> None:
        async with self._write_lock:
            path = self._output if is_good else self._errors
            try:
                await self._patience.insist(partial(asyncio.to_thread, self._append, path, result))
            except GivenUpError:
                return
            old = self.reply.request_counts
            self._count(old.completed + is_good, old.failed + (not is_good))
            if time.monotonic() - self._saved_at >= SAVE_S:
                await self._try_to_save()

    def _append(self, path: Path, result: BatchResult) -> None:
        append_result(path, result)
        self._tally.add(result)

    def _count(self, num_completed: int, num_failed: int) -> None:
        counts, tally = BatchCounts(self.reply.request_counts.total, num_completed, num_failed), self._tally
        self.reply = msgspec.structs.replace(self.reply, request_counts=counts, usage=tally.usage, model=tally.model)

    async def _finish(self) -> None:
        ended: tuple[BatchStatus, str] = ("completed", "completed_at")
        if self.reply.status == "cancelling":
            ended = ("cancelled", "cancelled_at")
        elif self._is_late and self.reply.request_counts.total > _num_done(self.reply):
            ended = ("expired", "expired_at")
            await self._patience.insist(partial(asyncio.to_thread, self._expire_rest))
        if ended[0] == "completed":
            await self._save(status="finalizing", finalizing_at=_now())
        output_id = await self._patience.insist(partial(self._publish, self._output, "output"))
        error_id = await self._patience.insist(partial(self._publish, self._errors, "error"))
        status, at = ended
        await self._save(status=status, output_file_id=output_id, error_file_id=error_id, **{at: _now()})

    def _expire_rest(self) -> None:
        error = LineError("batch_expired", "This request could not be run before the batch expired.")
        for line in read_lines(self._parts.state.files.path(self.reply.input_file_id)):
            if line.custom_id not in self._tally.ids:
                self._append(self._errors, BatchResult(new_id("batch_req"), line.custom_id, error=error))

    async def _publish(self, path: Path, word: str) -> str | None:
        """Turn a partial file into one that its owner finds; None when there are no such results."""
        files, id = self._parts.state.files, path.name.removesuffix(PARTIAL)
        if not await asyncio.to_thread(path.exists):
            if await files.find(self.tenant, id) is not None:  # published by a server that ended right after it
                return id
            if not await asyncio.to_thread(files.path(id).exists):
                return None
            await asyncio.to_thread(files.path(id).rename, path)  # of one that ended while it published it
        size = (await asyncio.to_thread(path.stat)).st_size
        created_at, ttl_s = _now(), self._output_ttl_s or BATCH_TTL_S
        reply = FileReply(id, size, created_at, f"{self.reply.id}_{word}.jsonl", "batch_output", created_at + ttl_s)
        await files.add(self.tenant, NewFile(id, created_at, msgspec.json.encode(reply), size, ttl_s))
        return id

    async def _fail(self, problems: list[BatchProblem]) -> None:
        await self._save(status="failed", failed_at=_now(), errors=BatchErrors(problems))

    def _change(self, **changes: object) -> None:
        self.reply = msgspec.structs.replace(self.reply, **changes)

    async def _save(self, **changes: object) -> None:
        """What the next server must know, however long it takes. Raises `GivenUpError`."""
        self._change(**changes)
        await self._patience.insist(self._write)

    async def _try_to_save(self) -> None:
        """What is written again soon: the store has logged why it refuses."""
        with suppress(ApiError):
            await self._write()

    async def _write(self) -> None:
        self._saved_at = time.monotonic()
        body = msgspec.json.encode(self.reply)
        await self._parts.state.batches.write(self.tenant, self.reply.id, body, is_over=is_over(self.reply))


def _next_line(lines: Iterator[BatchLine], done: set[str]) -> BatchLine | None:
    return next((line for line in lines if line.custom_id not in done), None)


def _num_done(reply: BatchReply) -> int:
    return reply.request_counts.completed + reply.request_counts.failed


def _now() -> int:
    return int(time.time())
