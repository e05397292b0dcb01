"""Conversations: lists of items that clients and responses add to. Knows no wire format.

Every method is one transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ortserve.gateway.errors import bad_request
from ortserve.gateway.store import items, records
from ortserve.gateway.store.bounds import Bounds, make_room
from ortserve.gateway.store.database import Database
from ortserve.gateway.store.items import KeptItem
from ortserve.gateway.store.pages import Page, PageRequest
from ortserve.gateway.store.records import NewRecord, Owned, Record
from ortserve.gateway.store.responses import CONVERSATION

MAX_ITEMS = 10_000

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Conversations:
    """The conversations of all tenants, each of which sees its own. None means: there is no such conversation."""

    database: Database
    bounds: Bounds
    clock: Callable[[], float]

    async def add(self, tenant: bytes, id: str, created_at: int, body: bytes, first: Sequence[KeptItem]) -> None:
        """Begin one."""
        now = self.clock()

        def work(connection: sqlite3.Connection) -> None:
            new = NewRecord(id, created_at, body, self.bounds.ttl_s)
            position = records.insert(connection, Owned(CONVERSATION, tenant), new, now=now)
            items.append(connection, position, tenant, first, are_output=False)
            make_room(connection, self.bounds, spare=position)

        await self.database.run(work)

    async def find(self, tenant: bytes, id: str) -> Record | None:
        """Its object."""
        return await self._in(tenant, id, lambda _, record: record)

    async def replace(self, tenant: bytes, id: str, body: bytes) -> bool:
        """Write its object anew; whether there is one."""

        def work(connection: sqlite3.Connection, record: Record) -> bool:
            records.replace_body(connection, record.position, body)
            return True

        return bool(await self._in(tenant, id, work))

    async def delete(self, tenant: bytes, id: str) -> bool:
        """Whether there was one."""

        def work(connection: sqlite3.Connection, record: Record) -> bool:
            items.delete_record(connection, record.position)
            return True

        return bool(await self._in(tenant, id, work))

    async def listed(self, tenant: bytes, id: str) -> tuple[KeptItem, ...] | None:
        """All its items in order."""
        return await self._in(tenant, id, lambda connection, record: items.listed(connection, record.position))

    async def append(self, tenant: bytes, id: str, new: Sequence[KeptItem]) -> bool:
        """Add items at its end; whether there is one. Raises `ApiError` (400) when it is full."""

        def work(connection: sqlite3.Connection, record: Record) -> bool:
            if items.count(connection, record.position) + len(new) > MAX_ITEMS:
                message = f"This conversation would have more than {MAX_ITEMS} items. Begin another one."
                raise bad_request(message, param="items", code="conversation_full")
            items.append(connection, record.position, tenant, new, are_output=False)
            make_room(connection, self.bounds, spare=record.position)
            return True

        return bool(await self._in(tenant, id, work))

    async def page(self, tenant: bytes, id: str, request: PageRequest) -> Page[KeptItem] | None:
        """One page of its items. Raises `CursorError`."""
        return await self._in(
            tenant, id, lambda connection, record: items.page(connection, record.position, request, with_output=True)
        )

    async def find_item(self, tenant: bytes, id: str, item_id: str) -> KeptItem | None:
        """One of its items."""
        return await self._in(
            tenant, id, lambda connection, record: items.find_listed(connection, record.position, item_id)
        )

    async def delete_item(self, tenant: bytes, id: str, item_id: str) -> bool:
        """Take one item out; whether it was there."""

        def work(connection: sqlite3.Connection, record: Record) -> bool:
            item = items.find_listed(connection, record.position, item_id)
            if item is None or item.number is None:
                return False
            items.unlist(connection, record.position, item.number)
            return True

        return bool(await self._in(tenant, id, work))

    async def _in(self, tenant: bytes, id: str, work: Callable[[sqlite3.Connection, Record], Result]) -> Result | None:
        """Run `work` on a conversation, which thereby has been used."""
        owned, now = Owned(CONVERSATION, tenant), self.clock()

        def transaction(connection: sqlite3.Connection) -> Result | None:
            record = records.find(connection, owned, id, now=now)
            if record is None:
                return None
            records.touch(connection, record.position, now=now, ttl_s=self.bounds.ttl_s)
            return work(connection, record)

        return await self.database.run(transaction)
