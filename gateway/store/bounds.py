"""How much is kept and how long: expired records go, and the biggest tenant's oldest ones when room is needed.

Knows no kind but which ones may be evicted. Functions run inside a transaction of `Database.run`.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from ortserve.gateway.errors import ApiError, unavailable
from ortserve.gateway.store.items import delete_record
from ortserve.gateway.store.schema import ALL_TENANTS

EVICTABLE = ("response", "conversation", "completion")
SWEEP_ROWS = 1000  # per transaction: others wait for it


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bytes and rows of all tenants together, and seconds since the last use."""

    max_bytes: int
    max_rows: int = 1_000_000
    ttl_s: float = 30 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Totals:
    """Rows and bytes that count against the bounds."""

    num_rows: int
    num_bytes: int


def totals(connection: sqlite3.Connection, tenant: bytes = ALL_TENANTS) -> Totals:
    """Of one tenant, or of all."""
    row = connection.execute("SELECT num_rows, num_bytes FROM totals WHERE tenant = ?", (tenant,)).fetchone()
    return Totals(0, 0) if row is None else Totals(*row)


def make_room(connection: sqlite3.Connection, bounds: Bounds, *, spare: int) -> None:
    """Evict until the bounds hold, never the record at position `spare`, which has just been written.

    The tenant that uses most gives first, so that no tenant can push the others out. Raises `ApiError` (503) when what
    is left is being worked on.
    """
    while _is_over(totals(connection), bounds):
        position = _next_victim(connection, spare)
        if position is None:
            message = 'The state store is full, and all of it is in use. Send "store": false, or try again later.'
            raise ApiError(unavailable(message, retry_after_s=30.0))
        delete_record(connection, position)


def sweep(connection: sqlite3.Connection, *, now: float) -> int:
    """Delete what has expired, a bounded number at a time; how many."""
    rows = connection.execute(
        "SELECT position FROM records WHERE expires_at <= ? AND NOT is_held AND kind != 'file' LIMIT ?",
        (now, SWEEP_ROWS),
    ).fetchall()
    for (position,) in rows:
        delete_record(connection, position)
    connection.execute("DELETE FROM totals WHERE num_rows = 0")
    return len(rows)


def _is_over(used: Totals, bounds: Bounds) -> bool:
    return used.num_bytes > bounds.max_bytes or used.num_rows > bounds.max_rows


def _next_victim(connection: sqlite3.Connection, spare: int) -> int | None:
    kinds = ", ".join(f"'{kind}'" for kind in EVICTABLE)
    tenants = connection.execute("SELECT tenant FROM totals WHERE tenant != x'' ORDER BY num_bytes DESC")
    for (tenant,) in tenants.fetchall():
        row = connection.execute(
            f"SELECT position FROM records WHERE tenant = ? AND kind IN ({kinds}) AND NOT is_held"
            " AND position != ? ORDER BY used_at, position LIMIT 1",
            (tenant, spare),
        ).fetchone()
        if row is not None:
            return int(row[0])
    return None
