"""Responses that are kept: their object, the items they were made from and answered with, their events. No wire format.

Every method is one transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ortserve.gateway.store import items, records
from ortserve.gateway.store.bounds import Bounds, make_room
from ortserve.gateway.store.database import Database
from ortserve.gateway.store.items import KeptItem
from ortserve.gateway.store.pages import Page, PageRequest
from ortserve.gateway.store.records import NewRecord, Owned, Record

KIND = "response"
CONVERSATION = "conversation"


class StillRunningError(Exception):
    """A response is kept, and its outputs are not there yet."""


@dataclass(frozen=True, slots=True)
class KeptResponse:
    """One response as it is written. `context` and `inputs` in order are what the model was given."""

    id: str
    created_at: int
    body: bytes
    context: Sequence[KeptItem] = ()
    inputs: Sequence[KeptItem] = ()
    outputs: Sequence[KeptItem] = ()
    conversation: str | None = None
    is_running: bool = False


@dataclass(frozen=True, slots=True)
class Responses:
    """The responses of all tenants, each of which sees its own."""

    database: Database
    bounds: Bounds
    clock: Callable[[], float]

    async def add(self, tenant: bytes, response: KeptResponse) -> None:
        """Keep one; one that has ended also adds its items to its conversation.

        Raises `ApiError` (503) when there is no room.
        """
        owned, now = Owned(KIND, tenant), self.clock()
        new = NewRecord(response.id, response.created_at, response.body, self.bounds.ttl_s, is_held=response.is_running)

        def work(connection: sqlite3.Connection) -> None:
            position = records.insert(connection, owned, new, now=now)
            items.append(connection, position, tenant, [*response.context, *response.inputs], are_output=False)
            items.append(connection, position, tenant, response.outputs, are_output=True)
            if response.conversation is not None and not response.is_running:
                self._add_turn(connection, tenant, response.conversation, position, len(response.context))
            make_room(connection, self.bounds, spare=position)

        await self.database.run(work)

    async def end(
        self, tenant: bytes, response: KeptResponse, *, events: bytes | None = None, with_turn: bool = True
    ) -> None:
        """Write how a running one has ended; `with_turn`, its conversation grows by it. Nothing when it was deleted."""
        owned, now = Owned(KIND, tenant), self.clock()

        def work(connection: sqlite3.Connection) -> None:
            record = records.find(connection, owned, response.id, now=now)
            if record is None:
                return
            records.replace_body(connection, record.position, response.body, extra=events)
            records.touch(connection, record.position, now=now, ttl_s=self.bounds.ttl_s)
            items.append(connection, record.position, tenant, response.outputs, are_output=True)
            if response.conversation is not None and with_turn:
                self._add_turn(connection, tenant, response.conversation, record.position, len(response.context))
            make_room(connection, self.bounds, spare=record.position)

        await self.database.run(work)

    async def find(self, tenant: bytes, id: str) -> Record | None:
        """The response; its events are in `extra`."""
        owned, now = Owned(KIND, tenant), self.clock()
        return await self.database.run(lambda connection: records.find(connection, owned, id, now=now))

    async def listed(self, tenant: bytes, id: str) -> tuple[KeptItem, ...] | None:
        """What another one goes on from: all items in order, outputs last; None when it is not kept.

        Raises `StillRunningError` for one whose outputs are still to come.
        """
        owned, now = Owned(KIND, tenant), self.clock()

        def work(connection: sqlite3.Connection) -> tuple[KeptItem, ...] | None:
            record = records.find(connection, owned, id, now=now)
            if record is None:
                return None
            if record.is_held:
                raise StillRunningError
            records.touch(connection, record.position, now=now, ttl_s=self.bounds.ttl_s)
            return items.listed(connection, record.position)

        return await self.database.run(work)

    async def input_items(self, tenant: bytes, id: str, request: PageRequest) -> Page[KeptItem] | None:
        """One page of what the model was given; None when it is not kept. Raises `CursorError`."""
        owned, now = Owned(KIND, tenant), self.clock()

        def work(connection: sqlite3.Connection) -> Page[KeptItem] | None:
            record = records.find(connection, owned, id, now=now)
            return None if record is None else items.page(connection, record.position, request, with_output=False)

        return await self.database.run(work)

    async def find_items(self, tenant: bytes, ids: Sequence[str]) -> list[KeptItem | None]:
        """Items of any response or conversation of a tenant."""
        return await self.database.run(lambda connection: [items.find(connection, tenant, id) for id in ids])

    async def delete(self, tenant: bytes, id: str) -> bool:
        """Whether there was one."""
        owned, now = Owned(KIND, tenant), self.clock()
        return await self.database.run(lambda connection: items.delete_named(connection, owned, id, now=now))

    def end_interrupted(self, ended: Callable[[bytes], bytes]) -> int:
        """Write `ended(body)` for those that a server left running when it ended; how many."""

        def work(connection: sqlite3.Connection) -> int:
            running = records.held(connection, KIND)
            for _, record in running:
                records.replace_body(connection, record.position, ended(record.body), extra=record.extra)
            return len(running)

        return self.database.run_now(work)

    def _add_turn(
        self, connection: sqlite3.Connection, tenant: bytes, conversation: str, response: int, num_before: int
    ) -> None:
        now = self.clock()
        record = records.find(connection, Owned(CONVERSATION, tenant), conversation, now=now)
        if record is None:  # deleted in the meantime
            return
        turn = items.listed(connection, response)[num_before:]
        items.append(connection, record.position, tenant, turn, are_output=False)
        records.touch(connection, record.position, now=now, ttl_s=self.bounds.ttl_s)
