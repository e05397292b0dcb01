"""Whose a call is, how urgent, and how long it may wait for its turn. Knows no request."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Turn:
    """Of two requests that wait, the one of larger `priority` runs first; tenants take turns by their `weight`.

    `max_wait_s`: a call that would wait longer is refused at once; None: it has time.
    """

    tenant: bytes
    priority: int = 0
    weight: int = 1
    max_wait_s: float | None = None
