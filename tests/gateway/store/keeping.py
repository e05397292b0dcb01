"""A store with a clock that tests turn, and short ways to fill it. Knows no server."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ortserve.gateway.store.bounds import Totals, totals
from ortserve.gateway.store.items import KeptItem
from ortserve.gateway.store.responses import KeptResponse
from ortserve.gateway.store.state import State, StateOptions

Result = TypeVar("Result")
ALICE, BOB = b"a" * 32, b"b" * 32


@dataclass
class Clock:
    """Seconds that pass when a test says so."""

    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def run(work: Coroutine[Any, Any, Result]) -> Result:
    return asyncio.run(work)


@contextmanager
def opened(folder: Path | None = None, clock: Clock | None = None, **options: Any) -> Iterator[State]:
    state = State(StateOptions(folder, **options), clock=clock or Clock())
    try:
        yield state
    finally:
        asyncio.run(state.close())


def item(id: str, text: str = "x") -> KeptItem:
    return KeptItem(id, msgspec.json.encode({"id": id, "text": text}))


def items(prefix: str, count: int) -> tuple[KeptItem, ...]:
    return tuple(item(f"{prefix}{place}") for place in range(count))


def response(id: str, *, size: int = 0, **fields: Any) -> KeptResponse:
    return KeptResponse(id, 1_700_000_000, msgspec.json.encode({"id": id, "padding": "x" * size}), **fields)


def used(state: State, tenant: bytes = b"") -> Totals:
    return state.database.run_now(lambda connection: totals(connection, tenant))


def counted(state: State) -> Totals:
    """What the totals must say, counted row by row."""
    return state.database.run_now(
        lambda connection: Totals(
            *connection.execute(
                "SELECT count(*), coalesce(sum(num_bytes), 0) FROM"
                " (SELECT num_bytes FROM records UNION ALL SELECT num_bytes FROM items)"
            ).fetchone()
        )
    )


def ids(found: Sequence[KeptItem] | None) -> list[str]:
    assert found is not None
    return [one.id for one in found]
