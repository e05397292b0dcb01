"""The batches that run on one server: begun, found, cancelled, gone on with after a restart. Knows no HTTP."""

from __future__ import annotations

import asyncio

import msgspec

from ortserve.gateway.answers.batches import BatchReply
from ortserve.gateway.batches.dispatch import Dispatcher
from ortserve.gateway.batches.job import BatchJob, BatchParts
from ortserve.gateway.directory import Task
from ortserve.gateway.errors import ApiError, too_many
from ortserve.gateway.store.state import State

MAX_JOBS = 100
MAX_REQUESTS = 4  # at once, of all batches: enough to fill idle rows, few enough to let others in
CLOSE_S = 5.0


class BatchJobs:
    """The jobs of one server, each a task of its event loop."""

    def __init__(self, state: State, dispatcher: Dispatcher) -> None:
        self._parts = BatchParts(state, dispatcher, asyncio.Semaphore(MAX_REQUESTS))
        self._jobs: dict[str, BatchJob] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def can_run(self, endpoint: str) -> bool:
        """Whether this server has it, and a model for it."""
        dispatcher = self._parts.dispatcher
        task: Task = "embeddings" if endpoint == "/v1/embeddings" else "generate"
        return endpoint in dispatcher.handlers and dispatcher.directory().default(task) is not None

    def check_room(self) -> None:
        """Raise `ApiError` (429) when no more may run."""
        if len(self._jobs) >= MAX_JOBS:
            raise ApiError(too_many(f"{MAX_JOBS} batches are running", retry_after_s=60.0))

    async def begin(self, tenant: bytes, reply: BatchReply, output_ttl_s: int | None) -> None:
        """Keep a new one and let it run; its results are kept for so many seconds (None: as long as other files)."""
        extra = None if output_ttl_s is None else msgspec.json.encode(output_ttl_s)
        await self._parts.state.batches.add(tenant, reply.id, reply.created_at, msgspec.json.encode(reply), extra)
        self._start(tenant, reply, output_ttl_s)

    def _start(self, tenant: bytes, reply: BatchReply, output_ttl_s: int | None) -> None:
        job = BatchJob(self._parts, tenant, reply, output_ttl_s)
        self._jobs[reply.id] = job
        task = asyncio.get_running_loop().create_task(job.run())
        self._tasks.add(task)

        def forget(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._jobs.pop(reply.id, None)

        task.add_done_callback(forget)

    def find(self, id: str) -> BatchJob | None:
        """One that runs. Whose it is the caller has checked."""
        return self._jobs.get(id)

    def resume(self) -> None:
        """Go on with what the last server left; results that were written are not computed again."""
        spared: list[str] = []
        for tenant, record in self._parts.state.batches.running():
            output_ttl_s = None if record.extra is None else msgspec.json.decode(record.extra, type=int)
            self._start(tenant, msgspec.json.decode(record.body, type=BatchReply), output_ttl_s)
            spared.extend(self._jobs[record.id].partial_ids)
        self._parts.state.files.remove_strays(spared)

    async def close(self) -> None:
        """Run nothing more; what is unfinished is the next server's."""
        for job in self._jobs.values():
            job.stop()
        tasks = list(self._tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
