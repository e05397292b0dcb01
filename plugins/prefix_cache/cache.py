"""The prompt cache `prefix`: joins the tree in memory, running tickets and the hits of requests. Moves no bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from ortserve.plugins.prefix_cache.disk import Disk
from ortserve.plugins.prefix_cache.keys import TOKEN_BYTES, pack, root_key
from ortserve.plugins.prefix_cache.listing import entries_below
from ortserve.plugins.prefix_cache.memory import Memory
from ortserve.plugins.prefix_cache.options import read_options
from ortserve.plugins.prefix_cache.second_tier import Load, SecondTier
from ortserve.plugins.prefix_cache.tickets import Follower, Running, Tickets
from ortserve.plugins.prefix_cache.tree import Found, Node

_MOST_WRITES = 256  # blocks queued for the disk


class PrefixCache:
    """Keeps prefixes by block, shares them within one salt, and lets requests follow others that compute the same.

    Raises `ValueError` for an option it does not know or cannot read.
    """

    def __init__(self, context: PluginContext) -> None:
        options = read_options(context.options)
        self._context = context
        self._block_size = context.block_size
        self._memory = Memory(context, options.pinned_share)
        self._second: SecondTier | None = None
        if options.path is not None:
            most_writes = max(1, min(_MOST_WRITES, self._memory.budget // 4))  # a block being written cannot be evicted
            disk = Disk(context, options.path, options.max_bytes, most_writes)
            self._second = SecondTier(context, self._memory, disk)
        self._tickets = Tickets(context.block_size)
        self._hit_ids = count(1)
        self._held: dict[int, Node] = {}  # by id of a READY hit: the deepest node, which it holds
        self._loading: dict[int, Load] = {}  # by id of a LOADING hit
        self._following: dict[int, Running] = {}  # by id of a COMPUTING hit
        self._changes: dict[int, HitState] = {}  # since the last poll
        self._last_packed: tuple[tuple[int, ...], bytes] = ((), b"")
        self._num_lookups = self._num_query_tokens = self._num_hit_tokens = 0
        self._num_published = self._num_refused = 0
        self._seconds_saved = 0.0

    def lookup(self, query: CacheQuery) -> Hit:
        """The longest prefix in memory, unless a running ticket will soon have stored more of it."""
        if query.mode is CacheMode.OFF:
            return Hit(next(self._hit_ids), HitState.READY)
        root, packed, limit = self._named(query)
        found = self._memory.find(root, packed, limit)
        load = None if self._second is None else self._second.load(root, packed, limit, found)
        if load is not None:
            hit = Hit(next(self._hit_ids), HitState.LOADING)
            load.hit_ids.append(hit.id)
            self._loading[hit.id] = load
            return hit
        expected = self._tickets.worth_waiting_for(root, packed, limit, found.num_tokens)
        if expected is not None:
            running, num_tokens = expected
            hit = Hit(next(self._hit_ids), HitState.COMPUTING)
            running.followers.append(Follower(hit.id, num_tokens))
            self._following[hit.id] = running
            return hit
        self._num_lookups += 1
        self._num_query_tokens += limit
        return self._ready(root, found, durable=query.durable)

    def poll(self) -> Sequence[HitChange]:
        """Followers whose ticket has published what they wait for, or has ended."""
        self._drain()
        if not self._changes:
            return ()
        changes, self._changes = self._changes, {}
        return [HitChange(hit_id, state) for hit_id, state in changes.items()]

    def release(self, hit: Hit) -> None:
        """Let the hit's blocks go, or end its waiting."""
        node = self._held.pop(hit.id, None)
        if node is not None:
            self._memory.let_go(node)
        self._changes.pop(hit.id, None)
        load = self._loading.pop(hit.id, None)
        if load is not None:
            load.hit_ids.remove(hit.id)
        running = self._following.pop(hit.id, None)
        if running is not None:
            running.followers = [one for one in running.followers if one.hit_id != hit.id]

    def announce(self, query: CacheQuery, start: int) -> Ticket:
        """Register the tokens, and hold the stored blocks before `start`, on which the rest will hang."""
        if query.mode is CacheMode.OFF:
            return Ticket(0)  # never registered: nobody waits for it and nothing of it is kept
        root, packed, _ = self._named(query)
        whole = min(start, len(query.tokens)) // self._block_size * self._block_size
        tip = self._memory.find(root, packed, whole).node or self._memory.root(root)
        if tip.end % self._block_size != 0 or tip.end > whole:
            assert tip.parent is not None
            tip = tip.parent  # used in part: not a whole block of this request
        self._memory.hold(tip)
        running = self._tickets.begin(query, root, packed, tip)
        if tip.end < whole:
            running.break_at(tip.end)  # evicted between lookup and now
        for node in tip.path() if query.breakpoints else ():
            self._keep_until(running, node)
        return Ticket(running.id)

    def publish(self, ticket: Ticket, part: Part) -> Sequence[BlockId]:
        """Store what is new and fits the budget; a part that does not continue what is stored is refused."""
        running = self._tickets.get(ticket.id)
        refused: list[BlockId] = list(part.blocks)
        if running is not None:
            refused = self._store(running, part)
            self._tell(running, self._tickets.satisfied(running))
        self._num_refused += len(refused)
        self._num_published += len(part.blocks) - len(refused)
        return refused

    def finish(self, ticket: Ticket, ok: bool) -> None:
        """End a ticket; its followers look up again, whatever has come of it."""
        del ok  # what has been published is right in either case
        running = self._tickets.get(ticket.id)
        if running is None:
            return
        self._tickets.end(running)
        self._memory.let_go(running.tip)
        self._tell(running, running.followers)
        running.followers = []

    def evict(self, count: int) -> int:
        """Give back up to `count` blocks, the least valuable first."""
        num_given_back = 0 if self._second is None else self._second.let_written_go(count)
        return num_given_back + self._memory.evict(count - num_given_back)

    def held(self) -> Iterator[BlockId]:
        """Blocks stored, blocks forgotten that a hit still reads, and blocks that are being read from disk."""
        yield from self._memory.held()
        if self._second is not None:
            yield from self._second.held()

    def entries(self) -> Iterator[Entry]:
        """What is kept, parents before children."""
        now = self._context.clock()
        for root in self._memory.roots():
            yield from entries_below(root, self._context.bytes_per_block, now)
        if self._second is not None:
            yield from self._second.entries(self._context.wall_clock())

    def pin(self, query: CacheQuery, ttl_s: float) -> int:
        """Give the stored blocks of a prefix a lifetime, from the first on, as far as lifetimes are allowed."""
        root, packed, _ = self._named(query)
        found = self._memory.find(root, packed, len(query.tokens))
        covered = 0
        for node in found.node.path() if found.node is not None else ():
            if ttl_s <= 0.0:
                self._memory.keep_no_longer(node)
            elif not self._memory.keep(node, ttl_s):
                break
            covered = min(node.end, found.num_tokens)
        return covered

    def clear(self, salt: bytes | None) -> int:
        """Forget one salt or all. What was announced before is not kept afterwards either."""
        keys = [root.key for root in self._memory.roots()]
        if salt is not None:
            keys = [root_key(self._context.digest, salt)]
        forgotten = 0
        for key in keys:
            forgotten += self._memory.forget(key)
            for running in self._tickets.of_root(key):
                running.break_at(0)
                self._tell(running, running.followers)
                running.followers = []
        if self._second is not None:
            forgotten += self._second.forget(None if salt is None else root_key(self._context.digest, salt))
        return forgotten

    def stats(self) -> CacheStats:
        """A snapshot."""
        memory = self._memory
        return CacheStats(
            num_lookups=self._num_lookups,
            num_query_tokens=self._num_query_tokens,
            num_hit_tokens=self._num_hit_tokens,
            num_blocks=memory.num_blocks,
            num_bytes=memory.num_blocks * self._context.bytes_per_block,
            num_evicted_blocks=memory.num_evicted,
            num_published_blocks=self._num_published,
            num_refused_blocks=self._num_refused,
            seconds_saved=self._seconds_saved,
            tiers={} if self._second is None else {"disk": self._second.stats()},
        )

    def close(self) -> None:
        """Write what is queued for the disk, for a few seconds at most."""
        if self._second is not None:
            self._second.close()

    def _drain(self) -> None:
        """Take in what the disk has read; hits that waited for it hold it until they are released."""
        for load in () if self._second is None else self._second.finished():
            for hit_id in load.hit_ids:
                del self._loading[hit_id]
                if load.reached is not None:
                    self._memory.hold(load.reached)
                    self._held[hit_id] = load.reached
                self._changes[hit_id] = HitState.FAILED if load.reached is None else HitState.READY
            if self._second is not None:
                self._second.end(load)

    def _named(self, query: CacheQuery) -> tuple[bytes, bytes, int]:
        """The key of the query's root, its packed tokens (kept for the call that follows), and its limit."""
        tokens, packed = self._last_packed
        if tokens is not query.tokens:
            packed = pack(query.tokens)
            self._last_packed = query.tokens, packed
        limit = max(0, min(query.limit, len(query.tokens)))
        return root_key(self._context.digest, query.salt), packed, limit

    def _ready(self, root: bytes, found: Found, *, durable: bool) -> Hit:
        hit = Hit(next(self._hit_ids), HitState.READY, found.blocks, found.num_tokens)
        node = found.node
        if node is not None:
            self._memory.hold(node)
            self._memory.touch(node)
            self._held[hit.id] = node
            self._num_hit_tokens += hit.num_tokens
            unused = (node.end - found.num_tokens) / node.num_tokens
            self._seconds_saved += node.seconds_to_here - unused * node.seconds
            if self._second is not None:
                self._second.used(root, node, durable=durable)
        return hit

    def _store(self, running: Running, part: Part) -> list[BlockId]:
        """Returns the refused blocks."""
        total = len(part.tokens)
        end = total if running.keep_limit is None else min(running.keep_limit, total)
        tip = running.tip
        while tip.end > part.start and tip.parent is not None:
            tip = tip.parent
        running.published = max(running.published, total)
        if running.is_broken:
            return list(part.blocks)
        if tip.end != part.start:
            running.break_at(tip.end)
            return list(part.blocks)
        packed = pack(part.tokens[part.start : end])
        seconds_per_token = part.seconds / max(1, total - part.start)
        stride = self._block_size * TOKEN_BYTES
        refused: list[BlockId] = []
        self._memory.hold(tip)
        for index, block in enumerate(part.blocks):
            tokens = packed[index * stride : (index + 1) * stride]
            node, is_taken = None, False
            if tokens and not running.is_broken:
                seconds = seconds_per_token * len(tokens) / TOKEN_BYTES
                node, is_taken = self._memory.add(tip, tokens, block, seconds)
            if not is_taken:
                refused.append(block)
            if node is None:
                running.break_at(tip.end)
                continue
            self._keep_until(running, node)
            if len(tokens) == stride and node.num_tokens == self._block_size:
                self._memory.hold(node)
                self._memory.let_go(tip)
                tip = node
                if self._second is not None and is_taken and running.is_durable:
                    self._second.write(running.root, node)
        self._move_tip(running, tip)
        return refused

    def _move_tip(self, running: Running, tip: Node) -> None:
        """The ticket now holds `tip`, which the caller holds, if that is deeper."""
        if tip.end > running.tip.end:
            running.tip, tip = tip, running.tip
        self._memory.let_go(tip)

    def _keep_until(self, running: Running, node: Node) -> None:
        """Apply the breakpoints behind the node's first token."""
        lives = [point.ttl_s for point in running.breakpoints if point.num_tokens > node.depth]
        if lives and max(lives) > 0.0:
            self._memory.keep(node, max(lives))

    def _tell(self, running: Running, followers: list[Follower]) -> None:
        for follower in followers:
            del self._following[follower.hit_id]
            is_stored = running.tip.is_attached and follower.num_tokens <= running.tip.end
            self._changes[follower.hit_id] = HitState.READY if is_stored else HitState.FAILED
