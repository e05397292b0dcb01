"""Chat completions that are kept: their object, and the messages they answer. Knows no wire format.

Every method is one transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from ortserve.gateway.store import items, records
from ortserve.gateway.store.bounds import Bounds, make_room
from ortserve.gateway.store.database import Database
from ortserve.gateway.store.pages import Page, PageRequest
from ortserve.gateway.store.records import NewRecord, Owned, Record

KIND = "completion"


@dataclass(frozen=True, slots=True)
class Completions:
    """The chat completions of all tenants, each of which sees its own. Their records' `extra` are the messages."""

    database: Database
    bounds: Bounds
    clock: Callable[[], float]

    async def add(self, tenant: bytes, id: str, created_at: int, body: bytes, messages: bytes) -> None:
        """Keep one that has ended. Raises `ApiError` (503) when there is no room."""
        now = self.clock()
        new = NewRecord(id, created_at, body, self.bounds.ttl_s, extra=messages)

        def work(connection: sqlite3.Connection) -> None:
            position = records.insert(connection, Owned(KIND, tenant), new, now=now)
            make_room(connection, self.bounds, spare=position)

        await self.database.run(work)

    async def find(self, tenant: bytes, id: str) -> Record | None:
        """None when it is not kept."""
        owned, now = Owned(KIND, tenant), self.clock()
        return await self.database.run(partial(records.find, owned=owned, id=id, now=now))

    async def page(
        self, tenant: bytes, request: PageRequest, *, model: str | None, metadata: Mapping[str, str]
    ) -> Page[Record]:
        """Those of one model (None: of any) that have all these pairs, in order of creation. Raises `CursorError`."""
        owned, now = Owned(KIND, tenant), self.clock()
        matching = {} if model is None else {"$.model": model}
        return await self.database.run(
            partial(records.page, owned=owned, request=request, now=now, matching=matching, metadata=metadata)
        )

    async def replace(self, tenant: bytes, id: str, change: Callable[[bytes], bytes]) -> bytes | None:
        """Write `change(body)` in place of a body, and return it; None when it is not kept."""
        owned, now = Owned(KIND, tenant), self.clock()

        def work(connection: sqlite3.Connection) -> bytes | None:
            record = records.find(connection, owned, id, now=now)
            if record is None:
                return None
            body = change(record.body)
            records.replace_body(connection, record.position, body, extra=record.extra)
            make_room(connection, self.bounds, spare=record.position)
            return body

        return await self.database.run(work)

    async def delete(self, tenant: bytes, id: str) -> bool:
        """Whether there was one."""
        owned, now = Owned(KIND, tenant), self.clock()
        return await self.database.run(lambda connection: items.delete_named(connection, owned, id, now=now))
