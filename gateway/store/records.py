"""Records of every kind in one table: kept per tenant, found by id, listed in pages. Knows no wire format.

Functions run inside a transaction of `Database.run`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

from ortserve.gateway.store.pages import CursorError, Page, PageRequest, page_query
from ortserve.gateway.store.schema import RECORD_OVERHEAD

COLUMNS = "position, id, created_at, body, extra, expires_at, is_held"
# Not a JSON path with the key in it: paths cannot quote every key.
PAIR = "SELECT 1 FROM json_each(CAST(body AS TEXT), '$.metadata') AS pair WHERE pair.key = ? AND pair.value = ?"


@dataclass(frozen=True, slots=True)
class Owned:
    """A kind of record of one tenant: no statement here reaches another's."""

    kind: str
    tenant: bytes


@dataclass(frozen=True, slots=True)
class Record:
    """One row. `body` is what clients see as JSON, `extra` what else belongs to it."""

    position: int
    id: str
    created_at: int
    body: bytes
    extra: bytes | None = None
    expires_at: float | None = None
    is_held: bool = False


@dataclass(frozen=True, slots=True)
class NewRecord:
    """What is to be kept. `ttl_s` None: until it is deleted. A held one is neither evicted nor expired."""

    id: str
    created_at: int
    body: bytes
    ttl_s: float | None
    extra: bytes | None = None
    is_held: bool = False


def insert(connection: sqlite3.Connection, owned: Owned, new: NewRecord, *, now: float) -> int:
    """Keep one more; its position."""
    expires_at = None if new.ttl_s is None else now + new.ttl_s
    cursor = connection.execute(
        "INSERT INTO records(kind, id, tenant, created_at, used_at, expires_at, is_held, num_bytes, body, extra)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            owned.kind, new.id, owned.tenant, new.created_at, now, expires_at, new.is_held,
            _size(new.body, new.extra), new.body, new.extra,
        ),
    )  # fmt: skip
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def find(connection: sqlite3.Connection, owned: Owned, id: str, *, now: float) -> Record | None:
    """The record, None when it is not kept, has expired, or is another tenant's."""
    row = connection.execute(
        f"SELECT {COLUMNS} FROM records WHERE id = ? AND kind = ? AND tenant = ?"
        " AND (is_held OR expires_at IS NULL OR expires_at > ?)",
        (id, owned.kind, owned.tenant, now),
    ).fetchone()
    return None if row is None else _record(row)


def replace_body(
    connection: sqlite3.Connection,
    position: int,
    body: bytes,
    *,
    extra: bytes | None = None,
    is_held: bool = False,
) -> None:
    """Write a record's contents anew."""
    connection.execute(
        "UPDATE records SET body = ?1, extra = ?2, is_held = ?3,"
        " num_bytes = num_bytes - length(body) - length(coalesce(extra, x'')) + ?4 WHERE position = ?5",
        (body, extra, is_held, len(body) + len(extra or b""), position),
    )


def touch(connection: sqlite3.Connection, position: int, *, now: float, ttl_s: float | None) -> None:
    """It has been used: its time begins again."""
    expires_at = None if ttl_s is None else now + ttl_s
    connection.execute("UPDATE records SET used_at = ?, expires_at = ? WHERE position = ?", (now, expires_at, position))


def page(
    connection: sqlite3.Connection,
    owned: Owned,
    request: PageRequest,
    *,
    now: float,
    matching: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Page[Record]:
    """Records in order of creation whose bodies have these values at these JSON paths, and these metadata.

    Raises `CursorError`.
    """
    matches = tuple((matching or {}).items())
    pairs = tuple((metadata or {}).items())
    words = [word for match in (*matches, *pairs) for word in match]

    def position_of(parameter: str, id: str | None) -> int | None:
        if id is None:
            return None
        record = find(connection, owned, id, now=now)
        if record is None:
            raise CursorError(parameter)
        return record.position

    query = page_query(
        request, "position", after=position_of("after", request.after), before=position_of("before", request.before)
    )
    rows = connection.execute(
        f"SELECT {COLUMNS} FROM records WHERE kind = ? AND tenant = ?"
        f" AND (is_held OR expires_at IS NULL OR expires_at > ?) AND {query.condition}"
        f"{' AND json_extract(CAST(body AS TEXT), ?) = ?' * len(matches)}"
        f"{f' AND EXISTS ({PAIR})' * len(pairs)}"
        f" ORDER BY {query.order} LIMIT ?",
        (
            owned.kind,
            owned.tenant,
            now,
            *query.values,
            *words,
            request.limit + 1,
        ),
    ).fetchall()
    return query.page([_record(row) for row in rows], request.limit)


def held(connection: sqlite3.Connection, kind: str) -> list[tuple[bytes, Record]]:
    """Records of all tenants that were being worked on, with their tenants."""
    rows = connection.execute(
        f"SELECT tenant, {COLUMNS} FROM records WHERE kind = ? AND is_held ORDER BY position",
        (kind,),
    ).fetchall()
    return [(row[0], _record(row[1:])) for row in rows]


def _record(row: tuple[int, str, int, bytes, bytes | None, float | None, int]) -> Record:
    return Record(*row[:6], is_held=bool(row[6]))


def _size(body: bytes, extra: bytes | None) -> int:
    return len(body) + len(extra or b"") + RECORD_OVERHEAD
