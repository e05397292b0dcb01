"""The null object of prompt caches: finds nothing, keeps nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ortserve.plugins.api import (
    BlockId,
    CacheQuery,
    CacheStats,
    Entry,
    Hit,
    HitChange,
    HitState,
    Part,
    Ticket,
)


class NoCache:
    """Every lookup misses and every block is refused."""

    def __init__(self, context: object = None) -> None:
        del context

    def lookup(self, query: CacheQuery) -> Hit:
        """A miss."""
        del query
        return Hit(0, HitState.READY)

    def poll(self) -> Sequence[HitChange]:
        """Nothing ever changes."""
        return ()

    def release(self, hit: Hit) -> None:
        """Nothing was pinned."""

    def announce(self, query: CacheQuery, start: int) -> Ticket:
        """A ticket nobody waits for."""
        del query, start
        return Ticket(0)

    def publish(self, ticket: Ticket, part: Part) -> Sequence[BlockId]:
        """All refused."""
        del ticket
        return part.blocks

    def finish(self, ticket: Ticket, ok: bool) -> None:
        """Nothing to end."""

    def evict(self, count: int) -> int:
        """There is nothing to give."""
        del count
        return 0

    def held(self) -> Iterable[BlockId]:
        """Nothing."""
        return ()

    def entries(self) -> Iterable[Entry]:
        """Nothing."""
        return ()

    def pin(self, query: CacheQuery, ttl_s: float) -> int:
        """Covers nothing."""
        del query, ttl_s
        return 0

    def clear(self, salt: bytes | None) -> int:
        """Nothing to forget."""
        del salt
        return 0

    def stats(self) -> CacheStats:
        """All zero."""
        return CacheStats()

    def close(self) -> None:
        """Nothing to stop."""
