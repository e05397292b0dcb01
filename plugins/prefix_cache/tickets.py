"""Who computes what right now, and who waits for it. Knows no blocks: a ticket's place in the tree is the cache's."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

from ortserve.plugins.api import Breakpoint, CacheMode, CacheQuery
from ortserve.plugins.prefix_cache.keys import TOKEN_BYTES, num_shared
from ortserve.plugins.prefix_cache.tree import Node


@dataclass(frozen=True, slots=True)
class Follower:
    """A hit that waits until a ticket has published so many tokens."""

    hit_id: int
    num_tokens: int


@dataclass(slots=True, eq=False)
class Running:
    """One ticket that has not finished."""

    id: int
    root: bytes
    packed: bytes  # the tokens it announced
    tip: Node  # the deepest whole block of its prefix that is stored; the ticket holds it
    keep_limit: int | None  # only the first so many tokens are kept; None: all, also those generated later
    coverage: int  # tokens that others can expect of it
    breakpoints: tuple[Breakpoint, ...]
    is_durable: bool  # what it stores may go to a tier that outlives the process
    is_broken: bool = False  # nothing more will be stored
    published: int = 0  # tokens offered so far: what is not stored by now will not be
    followers: list[Follower] = field(default_factory=list)

    def break_at(self, num_tokens: int) -> None:
        """A block after so many tokens is not stored: what comes later has nothing to hang on."""
        self.is_broken = True
        self.coverage = min(self.coverage, num_tokens)


class Tickets:
    """Running tickets by id and by salt."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._ids = count(1)
        self._running: dict[int, Running] = {}
        self._by_root: dict[bytes, dict[int, Running]] = {}

    def begin(self, query: CacheQuery, root: bytes, packed: bytes, tip: Node) -> Running:
        """A request starts. Of an EXPLICIT one only what lies before its last breakpoint can be expected."""
        limit = None
        if query.mode is not CacheMode.AUTO:
            limit = max((point.num_tokens for point in query.breakpoints), default=0)
        coverage = len(query.tokens) if limit is None else min(limit, len(query.tokens))
        running = Running(
            next(self._ids),
            root,
            packed,
            tip,
            limit,
            coverage,
            query.breakpoints,
            query.durable,
            published=tip.end,
        )
        self._running[running.id] = running
        self._by_root.setdefault(root, {})[running.id] = running
        return running

    def get(self, ticket_id: int) -> Running | None:
        """The ticket, unless it has finished."""
        return self._running.get(ticket_id)

    def end(self, running: Running) -> None:
        """It has finished."""
        del self._running[running.id]
        same = self._by_root[running.root]
        del same[running.id]
        if not same:
            del self._by_root[running.root]

    def of_root(self, root: bytes) -> list[Running]:
        """All running ones of one salt."""
        return list(self._by_root.get(root, {}).values())

    def worth_waiting_for(self, root: bytes, packed: bytes, limit: int, ready: int) -> tuple[Running, int] | None:
        """The ticket that will store most whole blocks of `packed` beyond the `ready` tokens, and how many tokens."""
        best: tuple[Running, int] | None = None
        most = ready + self._block_size - 1
        for running in self._by_root.get(root, {}).values():
            whole = min(running.coverage, limit) // self._block_size * self._block_size
            if whole <= max(most, running.published):
                continue
            # Equal up to one token beyond the best so far, or comparing the rest is in vain.
            begin = (most + 1) * TOKEN_BYTES
            if running.packed[:begin] != packed[:begin]:
                continue
            shared = most + 1 + num_shared(running.packed[begin : whole * TOKEN_BYTES], packed[begin:])
            whole = shared // self._block_size * self._block_size
            if whole > max(most, running.published):
                best, most = (running, whole), whole
        return best

    def satisfied(self, running: Running) -> list[Follower]:
        """Take out the followers whose tokens have been published."""
        if not running.followers:
            return []
        done = [one for one in running.followers if one.num_tokens <= running.published]
        running.followers = [one for one in running.followers if one.num_tokens > running.published]
        return done
