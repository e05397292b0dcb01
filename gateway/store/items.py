"""Items of conversations, each kept once however many responses go on from it. Knows no wire format.

A response keeps the whole list it was made from, so deleting or losing an earlier one never breaks a later one; an item
is gone once nothing lists it any more. Functions run inside a transaction of `Database.run`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from ortserve.gateway.store import records
from ortserve.gateway.store.pages import CursorError, Page, PageRequest, page_query
from ortserve.gateway.store.records import Owned
from ortserve.gateway.store.schema import ITEM_OVERHEAD, PLACE_OVERHEAD

JOINED = "FROM places JOIN items ON items.number = places.item WHERE places.record = ?"


@dataclass(frozen=True, slots=True)
class KeptItem:
    """One item as JSON. `number` is its row, None when it is not kept yet."""

    id: str
    body: bytes
    number: int | None = None


def append(
    connection: sqlite3.Connection, record: int, tenant: bytes, items: Sequence[KeptItem], *, are_output: bool
) -> None:
    """List items at the end of a record, keeping those that are not kept, or not any more.

    An id is listed once: pages are found by ids.
    """
    if not items:
        return
    place = _num_places(connection, record)
    ids = {row[0] for row in connection.execute(f"SELECT id {JOINED}", (record,))}
    for item in items:
        if item.id not in ids:
            ids.add(item.id)
            number = _kept(connection, tenant, item)
            connection.execute("INSERT INTO places VALUES (?, ?, ?, ?)", (record, place, number, are_output))
            _resize(connection, record, PLACE_OVERHEAD)
            place += 1


def listed(connection: sqlite3.Connection, record: int) -> tuple[KeptItem, ...]:
    """Everything a record lists, in order."""
    rows = connection.execute(f"SELECT id, body, number {JOINED} ORDER BY place", (record,))
    return tuple(KeptItem(*row) for row in rows)


def count(connection: sqlite3.Connection, record: int) -> int:
    """How many items a record lists."""
    return int(connection.execute("SELECT count(*) FROM places WHERE record = ?", (record,)).fetchone()[0])


def find(connection: sqlite3.Connection, tenant: bytes, id: str) -> KeptItem | None:
    """The newest item of a tenant with that id."""
    row = connection.execute(
        "SELECT id, body, number FROM items WHERE tenant = ? AND id = ? ORDER BY number DESC LIMIT 1", (tenant, id)
    ).fetchone()
    return None if row is None else KeptItem(*row)


def find_listed(connection: sqlite3.Connection, record: int, id: str) -> KeptItem | None:
    """The item of that id in a record's list."""
    row = connection.execute(f"SELECT id, body, number {JOINED} AND items.id = ?", (record, id)).fetchone()
    return None if row is None else KeptItem(*row)


def page(connection: sqlite3.Connection, record: int, request: PageRequest, *, with_output: bool) -> Page[KeptItem]:
    """One page of a record's list, with or without what it was answered with. Raises `CursorError`."""

    def place_of(parameter: str, id: str | None) -> int | None:
        if id is None:
            return None
        row = connection.execute(f"SELECT max(place) {JOINED} AND items.id = ?", (record, id)).fetchone()
        if row[0] is None:
            raise CursorError(parameter)
        return int(row[0])

    query = page_query(
        request, "place", after=place_of("after", request.after), before=place_of("before", request.before)
    )
    rows = connection.execute(
        f"SELECT id, body, number {JOINED} AND is_output <= ? AND {query.condition} ORDER BY {query.order} LIMIT ?",
        (record, with_output, *query.values, request.limit + 1),
    ).fetchall()
    return query.page([KeptItem(*row) for row in rows], request.limit)


def unlist(connection: sqlite3.Connection, record: int, number: int) -> None:
    """Take one item off a record's list."""
    connection.execute("DELETE FROM places WHERE record = ? AND item = ?", (record, number))
    _resize(connection, record, -PLACE_OVERHEAD)
    _drop_orphans(connection, [number])


def delete_record(connection: sqlite3.Connection, record: int) -> None:
    """Delete a record, and the items that nothing else lists."""
    numbers = [row[0] for row in connection.execute("SELECT item FROM places WHERE record = ?", (record,))]
    connection.execute("DELETE FROM records WHERE position = ?", (record,))
    _drop_orphans(connection, numbers)


def delete_named(connection: sqlite3.Connection, owned: Owned, id: str, *, now: float) -> bool:
    """Delete the record of that id with its items; whether there was one."""
    record = records.find(connection, owned, id, now=now)
    if record is not None:
        delete_record(connection, record.position)
    return record is not None


def _drop_orphans(connection: sqlite3.Connection, numbers: Sequence[int]) -> None:
    connection.executemany(
        "DELETE FROM items WHERE number = ?1 AND NOT EXISTS (SELECT 1 FROM places WHERE item = ?1)",
        [(number,) for number in numbers],
    )


def _resize(connection: sqlite3.Connection, record: int, num_bytes: int) -> None:
    connection.execute("UPDATE records SET num_bytes = num_bytes + ? WHERE position = ?", (num_bytes, record))


def _num_places(connection: sqlite3.Connection, record: int) -> int:
    row = connection.execute("SELECT max(place) FROM places WHERE record = ?", (record,)).fetchone()
    return 0 if row[0] is None else int(row[0]) + 1


def _kept(connection: sqlite3.Connection, tenant: bytes, item: KeptItem) -> int:
    if item.number is not None:
        row = connection.execute(
            "SELECT 1 FROM items WHERE number = ? AND tenant = ?", (item.number, tenant)
        ).fetchone()
        if row is not None:
            return item.number
    cursor = connection.execute(
        "INSERT INTO items(id, tenant, num_bytes, body) VALUES (?, ?, ?, ?)",
        (item.id, tenant, len(item.body) + ITEM_OVERHEAD, item.body),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid
