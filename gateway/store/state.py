"""Everything the server keeps, opened and closed together, and swept while it runs. Knows no wire format."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ortserve.gateway.logs import log
from ortserve.gateway.store import bounds
from ortserve.gateway.store.batches import Batches
from ortserve.gateway.store.bounds import SWEEP_ROWS, Bounds
from ortserve.gateway.store.completions import Completions
from ortserve.gateway.store.conversations import Conversations
from ortserve.gateway.store.database import Database
from ortserve.gateway.store.files import FileBounds, Files
from ortserve.gateway.store.folder import Folder, LastingFolder, PassingFolder
from ortserve.gateway.store.responses import Responses
from ortserve.gateway.store.schema import SCHEMA

MEMORY_BYTES = 64 * 2**20
FOLDER_BYTES = 2**30
TTL_S = 30 * 24 * 3600.0
SWEEP_S = 60.0


@dataclass(frozen=True, slots=True)
class StateOptions:
    """Where state is kept (None: in memory, gone with the process), how much of it, and how long after its last use."""

    folder: Path | None = None
    max_bytes: int | None = None  # None: a size that suits the place
    ttl_s: float = TTL_S
    files: FileBounds = field(default_factory=FileBounds)


class State:
    """The stores of one server."""

    def __init__(self, options: StateOptions | None = None, *, clock: Callable[[], float] = time.time) -> None:
        """Open or create. Raises `StateError`."""
        options = options or StateOptions()
        max_bytes = options.max_bytes or (MEMORY_BYTES if options.folder is None else FOLDER_BYTES)
        self.bounds = Bounds(max_bytes, ttl_s=options.ttl_s)
        self.database = Database(options.folder, SCHEMA)
        self.responses = Responses(self.database, self.bounds, clock)
        self.conversations = Conversations(self.database, self.bounds, clock)
        self.completions = Completions(self.database, self.bounds, clock)
        folder: Folder = PassingFolder() if options.folder is None else LastingFolder(options.folder / "files")
        self.files = Files(self.database, folder, options.files, clock)
        self.batches = Batches(self.database, options.ttl_s, clock)
        self._clock = clock
        self._sweeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to sweep; in the event loop that uses the stores."""
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep_always())

    async def sweep(self) -> int:
        """Delete all that has expired; how many."""
        num_swept = 0
        while True:
            num = await self.database.run(partial(bounds.sweep, now=self._clock()))
            num_swept += num
            await self.files.sweep()
            if num < SWEEP_ROWS:
                return num_swept

    async def close(self) -> None:
        """Stop sweeping and close the database. Safe to call again."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeper
            self._sweeper = None
        await asyncio.to_thread(self.database.close)
        await asyncio.to_thread(self.files.folder.close)

    async def _sweep_always(self) -> None:
        while True:
            try:
                num_swept = await self.sweep()
            except Exception:
                log().exception("state_not_swept")
            else:
                log().debug("state_swept", num_records=num_swept)
            await asyncio.sleep(SWEEP_S)
