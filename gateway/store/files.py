"""Files that clients upload and batches write: their objects in the database, their bytes in a folder. No wire format.

A file's bytes are complete before its object exists, and its object is gone before its bytes are: a crash leaves bytes
that nothing names, which the next start removes.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ortserve.gateway.errors import ApiError, Problem
from ortserve.gateway.store import items, records
from ortserve.gateway.store.database import Database
from ortserve.gateway.store.folder import Folder
from ortserve.gateway.store.pages import Page, PageRequest
from ortserve.gateway.store.records import NewRecord, Owned, Record

KIND = "file"
PARTIAL = ".part"


@dataclass(frozen=True, slots=True)
class FileBounds:
    """Bytes of one upload, and of all files of all tenants. Files never give way: an upload is refused instead."""

    max_file_bytes: int = 200 * 2**20
    max_bytes: int = 2 * 2**30


@dataclass(frozen=True, slots=True)
class NewFile:
    """What is to be kept; its bytes are in the partial file of its id. `ttl_s` None: until it is deleted."""

    id: str
    created_at: int
    body: bytes
    num_bytes: int
    ttl_s: float | None


@dataclass(frozen=True, slots=True)
class Files:
    """The files of all tenants, each of which sees its own."""

    database: Database
    folder: Folder
    bounds: FileBounds
    clock: Callable[[], float]

    def path(self, id: str) -> Path:
        """Where a file's bytes are."""
        return self.folder.path / id

    def partial_path(self, id: str) -> Path:
        """Where they are until they are complete."""
        return self.folder.path / f"{id}{PARTIAL}"

    async def add(self, tenant: bytes, new: NewFile) -> None:
        """Keep a file whose bytes are complete. Raises `ApiError` (413) when there is no room for it."""
        owned, now = Owned(KIND, tenant), self.clock()
        record = NewRecord(new.id, new.created_at, new.body, new.ttl_s, extra=b"%d" % new.num_bytes)

        def work(connection: sqlite3.Connection) -> None:
            used = connection.execute("SELECT total(CAST(extra AS INTEGER)) FROM records WHERE kind = ?", (KIND,))
            if used.fetchone()[0] + new.num_bytes > self.bounds.max_bytes:
                message = f"Files of all callers may have {self.bounds.max_bytes} bytes in all. Delete some first."
                raise ApiError(Problem(413, message, param="file", code="file_storage_full"))
            records.insert(connection, owned, record, now=now)
            self.partial_path(new.id).rename(self.path(new.id))

        try:
            await self.database.run(work)
        except ApiError:
            # Where a full disk has not taken the object, the caller may try again.
            if self.path(new.id).exists():
                self.path(new.id).rename(self.partial_path(new.id))
            raise

    async def find(self, tenant: bytes, id: str) -> Record | None:
        """Its object."""
        owned, now = Owned(KIND, tenant), self.clock()
        return await self.database.run(partial(records.find, owned=owned, id=id, now=now))

    async def page(self, tenant: bytes, request: PageRequest, purpose: str | None) -> Page[Record]:
        """Files in order of creation. Raises `CursorError`."""
        owned, now = Owned(KIND, tenant), self.clock()
        matching = None if purpose is None else {"$.purpose": purpose}
        return await self.database.run(partial(records.page, owned=owned, request=request, now=now, matching=matching))

    async def delete(self, tenant: bytes, id: str) -> bool:
        """Whether there was one."""
        owned, now = Owned(KIND, tenant), self.clock()

        def work(connection: sqlite3.Connection) -> bool:
            record = records.find(connection, owned, id, now=now)
            if record is None:
                return False
            items.delete_record(connection, record.position)
            return True

        was_there = await self.database.run(work)
        if was_there:
            await asyncio.to_thread(self.path(id).unlink, missing_ok=True)
        return was_there

    async def sweep(self) -> None:
        """Delete files that have expired."""
        now = self.clock()

        def work(connection: sqlite3.Connection) -> list[str]:
            rows = connection.execute(
                "SELECT position, id FROM records WHERE kind = ? AND expires_at <= ?", (KIND, now)
            ).fetchall()
            for position, _ in rows:
                items.delete_record(connection, position)
            return [id for _, id in rows]

        for id in await self.database.run(work):
            await asyncio.to_thread(self.path(id).unlink, missing_ok=True)

    def remove_strays(self, spared: Sequence[str] = ()) -> None:
        """Delete bytes that nothing names; at the start. `spared` are ids of files that are still written."""
        known = self.database.run_now(
            lambda connection: {
                row[0] for row in connection.execute("SELECT id FROM records WHERE kind = ?", (KIND,)).fetchall()
            }
        )
        kept = known | {f"{id}{PARTIAL}" for id in spared} | set(spared)
        for path in self.folder.entries():
            if path.name not in kept:
                path.unlink()
