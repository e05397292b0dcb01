"""Batches that are kept: their objects. Knows no wire format and no line. Every method is one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ortserve.gateway.store import records
from ortserve.gateway.store.database import Database
from ortserve.gateway.store.pages import Page, PageRequest
from ortserve.gateway.store.records import NewRecord, Owned, Record

KIND = "batch"


@dataclass(frozen=True, slots=True)
class Batches:
    """The batches of all tenants, each of which sees its own. One that runs is held: it outlives a restart."""

    database: Database
    ttl_s: float
    clock: Callable[[], float]

    async def add(self, tenant: bytes, id: str, created_at: int, body: bytes, extra: bytes | None) -> None:
        """Keep one that begins; `extra` is what the next server must know beside its object."""
        new = NewRecord(id, created_at, body, self.ttl_s, extra, is_held=True)
        await self.database.run(partial(records.insert, owned=Owned(KIND, tenant), new=new, now=self.clock()))

    async def find(self, tenant: bytes, id: str) -> Record | None:
        """Its object as it was last written."""
        owned, now = Owned(KIND, tenant), self.clock()
        return await self.database.run(partial(records.find, owned=owned, id=id, now=now))

    async def page(self, tenant: bytes, request: PageRequest) -> Page[Record]:
        """Batches in order of creation. Raises `CursorError`."""
        owned, now = Owned(KIND, tenant), self.clock()
        return await self.database.run(partial(records.page, owned=owned, request=request, now=now))

    async def write(self, tenant: bytes, id: str, body: bytes, *, is_over: bool) -> None:
        """Write its object anew; its time begins when it is over."""
        owned, now = Owned(KIND, tenant), self.clock()

        def work(connection: sqlite3.Connection) -> None:
            record = records.find(connection, owned, id, now=now)
            if record is not None:
                records.replace_body(connection, record.position, body, extra=record.extra, is_held=not is_over)
                records.touch(connection, record.position, now=now, ttl_s=self.ttl_s)

        await self.database.run(work)

    def running(self) -> list[tuple[bytes, Record]]:
        """Those that were not over when the last server ended, with their tenants."""
        return self.database.run_now(partial(records.held, kind=KIND))
