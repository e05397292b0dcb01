"""Whole blocks by exact prefix, least recently used first out, with a time to live. Knows no tiers and no followers."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from ortserve.plugins.api import (
    BlockId,
    CacheMode,
    CacheQuery,
    CacheStats,
    Entry,
    Hit,
    HitChange,
    HitState,
    Part,
    PluginContext,
    Ticket,
)

Prefix = tuple[bytes, tuple[int, ...]]  # the salt, and all tokens up to the end of a block


@dataclass(slots=True)
class Kept:
    """One block."""

    block: BlockId
    used_at: float
    pinned_until: float = 0.0
    num_hits: int = 0


class ExactPrefixCache:
    """The whole prefix is the key: simple, and quadratic in its length. `prefix`, the built-in one, keeps a tree."""

    def __init__(self, context: PluginContext) -> None:
        self._context = context
        self._size = context.block_size
        self._most = context.byte_budget // context.bytes_per_block
        self._ttl_s = float(context.options.get("ttl_s", "600"))
        self._kept: OrderedDict[Prefix, Kept] = OrderedDict()  # least recently used first
        self._readers: Counter[BlockId] = Counter()  # hits that are not released
        self._forgotten: set[BlockId] = set()  # cleared, but still read
        self._hits: dict[int, tuple[BlockId, ...]] = {}
        self._tickets: dict[int, CacheQuery] = {}
        self._ids = count(1)
        self._stats = Counter[str]()

    def lookup(self, query: CacheQuery) -> Hit:
        """Block by block, as long as the exact prefix is there."""
        found: list[Prefix] = []
        if query.mode is not CacheMode.OFF:
            self._stats["lookups"] += 1
            self._stats["query_tokens"] += max(0, query.limit)
            found = self._chain(query, query.limit)
        now = self._context.clock()
        for prefix in reversed(found):  # a chain's beginning is used last, so that its end goes first
            self._kept[prefix].used_at = now
            self._kept[prefix].num_hits += 1
            self._kept.move_to_end(prefix)
        blocks = tuple(self._kept[prefix].block for prefix in found)
        hit = Hit(next(self._ids), HitState.READY, blocks, len(blocks) * self._size)
        self._readers.update(blocks)
        self._hits[hit.id] = blocks
        self._stats["hit_tokens"] += hit.num_tokens
        return hit

    def poll(self) -> Sequence[HitChange]:
        """Every hit is READY at once."""
        return ()

    def release(self, hit: Hit) -> None:
        """What was cleared while it was read can go now."""
        for block in self._hits.pop(hit.id):
            self._readers[block] -= 1
            if not self._readers[block]:
                del self._readers[block]
                if block in self._forgotten:
                    self._forgotten.remove(block)
                    self._context.blocks.give_back((block,))

    def announce(self, query: CacheQuery, start: int) -> Ticket:
        """Remember whose tokens will come."""
        del start  # a part that continues what has gone is kept all the same: it is found once the rest is back
        ticket = Ticket(next(self._ids))
        self._tickets[ticket.id] = query
        return ticket

    def publish(self, ticket: Ticket, part: Part) -> Sequence[BlockId]:
        """Keep whole blocks that are new, while there is room."""
        query = self._tickets[ticket.id]
        last = len(part.tokens)
        if query.mode is CacheMode.OFF:
            last = 0
        elif query.mode is CacheMode.EXPLICIT:
            last = min(last, max((point.num_tokens for point in query.breakpoints), default=0))
        new: list[tuple[Prefix, BlockId]] = []
        for index, block in enumerate(part.blocks):
            end = part.start + (index + 1) * self._size
            prefix = (query.salt, part.tokens[:end])
            if end <= last and prefix not in self._kept:
                new.append((prefix, block))
        # Before any is kept: what is offered may be refused, but is not the cache's to give back until this returns.
        self.evict(len(self._kept) + len(self._forgotten) + len(new) - self._most)
        kept = new[: max(0, self._most - len(self._kept) - len(self._forgotten))]
        for prefix, block in kept:
            self._kept[prefix] = Kept(block, self._context.clock())
        taken = {block for _, block in kept}
        refused = [block for block in part.blocks if block not in taken]
        self._stats["published"] += len(part.blocks) - len(refused)
        self._stats["refused"] += len(refused)
        return refused

    def finish(self, ticket: Ticket, ok: bool) -> None:
        """What has been published is right, however the request ended."""
        del ok
        del self._tickets[ticket.id]

    def evict(self, count: int) -> int:
        """Least recently used first. A chain with a hole is found up to the hole: harmless, and it ages."""
        now = self._context.clock()
        going = [
            prefix for prefix, kept in self._kept.items() if kept.pinned_until <= now and not self._readers[kept.block]
        ][: max(0, count)]
        for prefix in going:
            self._context.blocks.give_back((self._kept.pop(prefix).block,))
        self._stats["evicted"] += len(going)
        return len(going)

    def held(self) -> Iterable[BlockId]:
        """What is kept, and what is still read."""
        return [*(kept.block for kept in self._kept.values()), *self._forgotten]

    def entries(self) -> Iterator[Entry]:
        """Shorter prefixes first, so that parents come before children."""
        now = self._context.clock()
        for prefix in sorted(self._kept, key=lambda prefix: len(prefix[1])):
            kept, (salt, tokens) = self._kept[prefix], prefix
            parent = (salt, tokens[: -self._size])
            yield Entry(
                key=_name(prefix),
                parent=_name(parent) if parent in self._kept else None,
                num_tokens=self._size,
                depth=len(tokens) - self._size,
                tier="memory",
                num_bytes=self._context.bytes_per_block,
                num_hits=kept.num_hits,
                idle_s=now - kept.used_at,
                pinned_s=kept.pinned_until - now if kept.pinned_until > now else None,
            )

    def pin(self, query: CacheQuery, ttl_s: float) -> int:
        """A lifetime for every block of the prefix."""
        found = self._chain(query, len(query.tokens))
        for prefix in found:
            self._kept[prefix].pinned_until = self._context.clock() + ttl_s if ttl_s > 0.0 else 0.0
        return len(found) * self._size

    def clear(self, salt: bytes | None) -> int:
        """Forget at once; give back what nobody reads."""
        going = [prefix for prefix in self._kept if salt is None or prefix[0] == salt]
        self._drop(going)
        return len(going)

    def stats(self) -> CacheStats:
        """A snapshot."""
        return CacheStats(
            num_lookups=self._stats["lookups"],
            num_query_tokens=self._stats["query_tokens"],
            num_hit_tokens=self._stats["hit_tokens"],
            num_blocks=len(self._kept),
            num_bytes=len(self._kept) * self._context.bytes_per_block,
            num_evicted_blocks=self._stats["evicted"],
            num_published_blocks=self._stats["published"],
            num_refused_blocks=self._stats["refused"],
        )

    def close(self) -> None:
        """Nothing runs."""

    def _chain(self, query: CacheQuery, limit: int) -> list[Prefix]:
        """The prefixes of the query that are kept, up to the first one that is not."""
        self._drop_old()
        found = []
        for end in range(self._size, limit + 1, self._size):
            prefix = (query.salt, query.tokens[:end])
            if prefix not in self._kept:
                break
            found.append(prefix)
        return found

    def _drop_old(self) -> None:
        now = self._context.clock()
        self._drop(
            [
                prefix
                for prefix, kept in self._kept.items()
                if kept.used_at + self._ttl_s < now and kept.pinned_until <= now and not self._readers[kept.block]
            ]
        )

    def _drop(self, prefixes: list[Prefix]) -> None:
        for prefix in prefixes:
            block = self._kept.pop(prefix).block
            if self._readers[block]:
                self._forgotten.add(block)
            else:
                self._context.blocks.give_back((block,))


def _name(prefix: Prefix) -> str:
    return f"{hash(prefix) & (2**64 - 1):016x}"
