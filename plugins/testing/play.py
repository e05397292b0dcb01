"""The engine's part in the life of requests, and what must hold after each step. Decides nothing at random."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ortserve.plugins.api import (
    BlockId,
    CacheMode,
    CacheQuery,
    Hit,
    HitState,
    Part,
    PluginContext,
    PromptCache,
    Ticket,
)
from ortserve.plugins.testing.arena import Holder, ModelArena, stamps

PATIENCE_S = 10.0  # real seconds for a cache's threads, once nothing else is left to wait for


@dataclass(slots=True)
class Clock:
    """Seconds, moved by hand."""

    now: float = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.now


@dataclass(frozen=True, slots=True)
class Asking:
    """A request between lookup and release."""

    query: CacheQuery
    hit: Hit


@dataclass(slots=True)
class Computing:
    """A request between announce and finish."""

    query: CacheQuery
    ticket: Ticket
    tokens: list[int]  # with generated ones
    num_computed: int
    num_offered: int  # whole blocks


@dataclass(frozen=True, slots=True)
class Lifetime:
    """What a pin has promised."""

    query: CacheQuery
    num_tokens: int
    until: float


@dataclass(slots=True)
class Totals:
    """What the cache's counters must say."""

    num_hit_tokens: int = 0
    num_kept_blocks: int = 0
    num_refused_blocks: int = 0
    stored: dict[bytes, set[bytes]] = field(
        default_factory=dict
    )  # marks of all kept tokens since the last clear, by salt
    durable: dict[bytes, set[bytes]] = field(
        default_factory=dict
    )  # marks of the tokens of durable requests since the last clear, by salt: these alone may survive a restart


class Play:
    """One cache, one arena, and the requests under way. Every broken law is an `AssertionError` that names it."""

    def __init__(self, context: PluginContext, arena: ModelArena, clock: Clock, cache: PromptCache) -> None:
        self.context = context
        self.arena = arena
        self.clock = clock
        self.cache = cache
        self.asking: list[Asking] = []
        self.computing: list[Computing] = []
        self.lifetimes: list[Lifetime] = []
        self.totals = Totals()
        self.last_offered: dict[bytes, tuple[int, ...]] = {}  # by salt

    def look_up(self, query: CacheQuery) -> Hit:
        """Ask, check what is said to be READY, and keep the hit."""
        self._note_durable(query, query.tokens)
        hit = self.cache.lookup(query)
        assert hit.id not in [
            one.hit.id for one in self.asking if one.hit.blocks or one.hit.state is not HitState.READY
        ], f"the id {hit.id} belongs to a hit that is not released"
        assert hit.state is not HitState.FAILED, "a lookup cannot fail: it finds nothing"
        if hit.state is HitState.READY:
            self._check_ready(query, hit)
            self.arena.read(hit.blocks, begins=True)
            self.totals.num_hit_tokens += hit.num_tokens
        self.asking.append(Asking(query, hit))
        return hit

    def let_go(self, asking: Asking) -> None:
        """Release a hit that has been copied, or that nobody waits for any more."""
        self.asking.remove(asking)
        if asking.hit.state is HitState.READY:
            self._check_contents(asking)
            self.arena.read(asking.hit.blocks, begins=False)
        self.cache.release(asking.hit)

    def start(self, asking: Asking) -> None:
        """Compute what the hit does not cover; without waiting, if it is not READY."""
        num_tokens = asking.hit.num_tokens if asking.hit.state is HitState.READY else 0
        ticket = self.cache.announce(asking.query, num_tokens)
        whole = num_tokens // self.context.block_size * self.context.block_size
        self.computing.append(Computing(asking.query, ticket, list(asking.query.tokens), num_tokens, whole))
        self.let_go(asking)

    def compute(self, one: Computing, generated: Sequence[int], num_tokens: int) -> None:
        """Some tokens more, generated ones after the prompt's; then offer what is whole."""
        one.num_computed += num_tokens
        missing = one.num_computed - len(one.tokens)
        one.tokens += [generated[index % len(generated)] for index in range(missing)]
        self._offer(one, one.num_computed - one.num_computed % self.context.block_size)

    def finish(self, one: Computing, *, ok: bool) -> None:
        """End it; a request that ends well offers its tail first."""
        if ok:
            self._offer(one, one.num_computed)
        self.computing.remove(one)
        self.cache.finish(one.ticket, ok)

    def evict(self, count: int) -> None:
        """Ask for blocks."""
        before = self.arena.num_free
        num_evicted = self.cache.evict(count)
        assert num_evicted == self.arena.num_free - before, "evict must return how many blocks it has given back"
        self._check_lifetimes()

    def pin(self, query: CacheQuery, ttl_s: float) -> None:
        """Promise a lifetime, or end it."""
        num_tokens = self.cache.pin(query, ttl_s)
        assert 0 <= num_tokens <= len(query.tokens), "pin returns how many tokens of the query it covers"
        if ttl_s == 0.0:
            self.lifetimes = [one for one in self.lifetimes if one.query.salt != query.salt]
        elif num_tokens:
            self.lifetimes.append(Lifetime(query, num_tokens, self.clock.now + ttl_s))

    def clear(self, salt: bytes | None) -> None:
        """Forget: from now on only what is published later may be found."""
        num_forgotten = self.cache.clear(salt)
        assert num_forgotten >= 0, "clear returns how many blocks it has forgotten"
        self.lifetimes = [one for one in self.lifetimes if salt is not None and one.query.salt != salt]
        for one in list(self.totals.stored) if salt is None else [salt]:
            self.totals.stored[one] = set()
            self.totals.durable[one] = set()
            tokens = self.last_offered.pop(one, ())
            self.look_up(CacheQuery(tokens, len(tokens), one, durable=False))  # finds nothing, or the check fails
            self.let_go(self.asking[-1])

    def poll(self) -> None:
        """Look up again what has changed, as the engine does."""
        for change in self.cache.poll():
            waiting = [
                one for one in self.asking if one.hit.id == change.hit_id and one.hit.state is not HitState.READY
            ]
            if not waiting:
                continue  # released meanwhile
            assert change.state in (HitState.READY, HitState.FAILED), "poll reports READY or FAILED"
            self.let_go(waiting[0])
            self.look_up(waiting[0].query)
        for one in self.asking:
            is_hopeless = one.hit.state is HitState.COMPUTING and not self.computing
            assert not is_hopeless, "a hit is still COMPUTING when no ticket is running: poll must resolve it"

    def check(self) -> None:
        """What holds between any two calls."""
        assert not self.arena.faults, self.arena.faults[0]
        for one in self.asking:
            self._check_contents(one)
        held = Counter(self.cache.held())
        assert all(number == 1 for number in held.values()), "held() names a block twice"
        owned = self.arena.blocks_of(Holder.CACHE)
        assert set(held) == owned, f"held() is {sorted(held)}, but the cache has references to {sorted(owned)}"
        self._check_statistics()

    def settle(self) -> None:
        """End every request and wait for those that wait for threads; afterwards nothing is pinned by hits."""
        while self.computing:
            self.finish(self.computing[0], ok=False)
        deadline = time.monotonic() + PATIENCE_S
        while self.asking:
            for one in [one for one in self.asking if one.hit.state is HitState.READY]:
                self.let_go(one)
            if self.asking:
                assert time.monotonic() < deadline, f"poll never resolves {self.asking[0].hit}"
                self.arena.woken.wait(0.01)
                self.arena.woken.clear()
            self.poll()

    def close(self) -> None:
        """The end: everything comes back."""
        self.settle()
        self.cache.clear(None)
        deadline = time.monotonic() + PATIENCE_S
        while self.arena.num_free < self.arena.num_blocks:  # a thread may still write a block to a slower tier
            assert time.monotonic() < deadline, f"{sorted(self.cache.held())} are held though everything is cleared"
            self.arena.woken.wait(0.01)
            self.arena.woken.clear()
            self.poll()
        self.cache.close()
        assert not self.arena.faults, self.arena.faults[0]

    def restart(self, cache: PromptCache) -> None:
        """The old cache has been settled and closed; a new one finds what a slower tier has kept."""
        self.arena.reclaim()
        self.cache = cache
        self.lifetimes = []
        durable = self.totals.durable
        stored = {salt: marks & durable.get(salt, set()) for salt, marks in self.totals.stored.items()}
        self.totals = Totals(stored=stored, durable=durable)
        for salt, tokens in self.last_offered.items():
            self.look_up(CacheQuery(tokens, len(tokens), salt, durable=False))

    def _offer(self, one: Computing, end: int) -> None:
        """Publish the tokens up to `end` that have not been offered."""
        size, start = self.context.block_size, one.num_offered
        count = -(-(end - start) // size)
        if count > self.arena.num_free:
            self.evict(count - self.arena.num_free)
        if not 0 < count <= self.arena.num_free:
            return
        blocks = tuple(self.arena.allocate(count))
        marks = self._marks(one.query.salt, one.tokens[:end])
        self.arena.write(blocks, marks[start:])
        refused = list(
            self.cache.publish(one.ticket, Part(start, tuple(one.tokens[:end]), blocks, 0.01 * (end - start)))
        )
        self._check_refused(one, blocks, refused, start)
        kept = set(blocks) - set(refused)
        self.arena.hand_over(kept)
        self.arena.release(refused)
        self.totals.num_kept_blocks += len(kept)
        self.totals.num_refused_blocks += len(refused)
        stored = self.totals.stored.setdefault(one.query.salt, set())
        for index, block in enumerate(blocks):
            if block in kept:
                stored.update(marks[start + index * size : start + (index + 1) * size])
        self._note_durable(one.query, one.tokens[:end])
        self.last_offered[one.query.salt] = tuple(one.tokens[:end])
        one.num_offered = end - end % size
        self._check_lifetimes()

    def _check_refused(
        self, one: Computing, blocks: tuple[BlockId, ...], refused: Sequence[BlockId], start: int
    ) -> None:
        assert set(refused) <= set(blocks), "publish may only refuse what it was offered"
        assert len(set(refused)) == len(refused), "publish refuses a block twice"
        allowed = None
        if one.query.mode is CacheMode.OFF:
            allowed = 0
        elif one.query.mode is CacheMode.EXPLICIT:
            last = max((point.num_tokens for point in one.query.breakpoints), default=0)
            allowed = max(0, -(-(last - start) // self.context.block_size))
        kept = [index for index, block in enumerate(blocks) if block not in set(refused)]
        assert allowed is None or not kept or kept[-1] < allowed, f"{one.query.mode} keeps only what it is allowed to"

    def _check_ready(self, query: CacheQuery, hit: Hit) -> None:
        assert query.mode is not CacheMode.OFF or not hit.blocks, "a query with mode OFF reuses nothing"
        assert 0 <= hit.num_tokens <= max(0, query.limit), f"{hit.num_tokens} tokens are reused, {query.limit} may be"
        assert hit.num_tokens <= len(query.tokens), "a hit is longer than its query"
        assert len(hit.blocks) == -(-hit.num_tokens // self.context.block_size), "a hit has a block too many or too few"
        marks = self._marks(query.salt, query.tokens[: hit.num_tokens])
        assert self.arena.contents(hit.blocks, hit.num_tokens) == b"".join(marks), (
            "a hit's blocks do not hold the query's tokens, or hold another salt's"
        )
        stored = self.totals.stored.get(query.salt, set())
        assert set(marks) <= stored, "a hit finds what has been cleared, never kept, or not to outlive a restart"

    def _check_contents(self, asking: Asking) -> None:
        hit = asking.hit
        marks = self._marks(asking.query.salt, asking.query.tokens[: hit.num_tokens])
        assert self.arena.contents(hit.blocks, hit.num_tokens) == b"".join(marks), (
            "the blocks of a hit that is not released have changed"
        )

    def _check_lifetimes(self) -> None:
        self.lifetimes = [one for one in self.lifetimes if one.until > self.clock.now]
        for one in self.lifetimes:
            query = CacheQuery(one.query.tokens[: one.num_tokens], one.num_tokens, one.query.salt, durable=False)
            hit = self.look_up(query)
            assert hit.num_tokens == one.num_tokens, f"{one.num_tokens} tokens are pinned, {hit.num_tokens} are found"
            self.let_go(self.asking[-1])

    def _check_statistics(self) -> None:
        stats, totals = self.cache.stats(), self.totals
        in_memory = [entry for entry in self.cache.entries() if entry.tier == "memory"]
        assert stats.num_blocks == len(in_memory), "num_blocks is the number of entries in memory"
        assert stats.num_bytes == stats.num_blocks * self.context.bytes_per_block, "num_bytes belongs to num_blocks"
        assert stats.num_hit_tokens == totals.num_hit_tokens, "num_hit_tokens is the tokens of all READY hits"
        assert stats.num_published_blocks == totals.num_kept_blocks, "num_published_blocks is the blocks kept"
        assert stats.num_refused_blocks <= totals.num_refused_blocks, "more blocks are counted than were refused"
        known = set()
        for entry in self.cache.entries():
            assert entry.parent is None or entry.parent in known, "entries must list parents before children"
            known.add(entry.key)

    def _note_durable(self, query: CacheQuery, tokens: Sequence[int]) -> None:
        if query.durable:
            self.totals.durable.setdefault(query.salt, set()).update(self._marks(query.salt, tokens))

    def _marks(self, salt: bytes, tokens: Sequence[int]) -> list[bytes]:
        return stamps(self.context.digest, salt, tokens)
