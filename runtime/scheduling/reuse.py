"""Talks to the prompt cache: seeks prefixes for those who wait, saves what has been computed, accounts for blocks.

The cache knows which block holds which tokens; bytes are moved by the steps, so what a step saves is published once
that step has run. A cache that raises or answers what it cannot is switched off for good; requests go on uncached.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Values
from dataclasses import dataclass
from typing import TypeVar

import structlog

from ortserve.plugins.api import (
    CacheMode,
    CacheQuery,
    CacheStats,
    Entry,
    Hit,
    HitChange,
    HitState,
    Part,
    PromptCache,
    Ticket,
)
from ortserve.plugins.none import NoCache
from ortserve.runtime.plan import EnginePlan
from ortserve.runtime.rotary import salt_within
from ortserve.runtime.scheduling.blocks import BlockPool
from ortserve.runtime.scheduling.cache_answers import BrokenLawError, of_type, refused_blocks
from ortserve.runtime.scheduling.cache_blocks import CacheBlocks
from ortserve.runtime.sequence import Sequence
from ortserve.runtime.step import LoadBlocks, Move, SaveBlocks

Answer = TypeVar("Answer")
LOAD_LIMIT_S = 10.0  # a slower tier that has not brought a prefix by then may never do
LOAD_PAUSE_S = 60.0  # in which nobody waits for it again
_MISS = Hit(-1, HitState.READY)  # stand-ins of a cache that has just been switched off
_NOBODY = Ticket(-1)


@dataclass(frozen=True, slots=True)
class _Saving:
    """A part whose bytes are copied by a step that has not run yet."""

    ticket: Ticket
    part: Part
    is_last: bool  # nothing more will come of this request


@dataclass(frozen=True, slots=True)
class _Held:
    """Who waits for a hit that is not READY, and until when (the engine's clock)."""

    sequence: Sequence
    until_s: float


class Reuse:
    """The cache of one engine. Called by the placement and the scheduler, on the engine's thread."""

    def __init__(self, cache: PromptCache, plan: EnginePlan, pool: BlockPool, owned: CacheBlocks) -> None:
        self.cache = cache
        self.pool = pool  # of the cache's blocks; in layout "slots" preempted sequences take theirs from it too
        self.name = type(cache).__name__  # in the log: the operator's name of the plugin, where there is one
        self._plan = plan
        self._owned = owned
        self._is_gone = False  # switched off; its blocks are reclaimed when no step copies them any more
        self._held: dict[int, _Held] = {}  # by id of the hit
        self._no_loads_until_s = -math.inf
        self._loading: list[Hit] = []  # READY hits whose blocks the next step, or the running one, copies
        self._leaving: list[int] = []  # host blocks that the step being planned still reads
        self._queued: list[_Saving] = []  # their moves are not part of a step yet
        self._running: list[_Saving] = []  # their moves are part of the step that is running

    @property
    def owned(self) -> frozenset[int]:
        """Blocks the cache has references to, by the engine's own account."""
        return self._owned.owned

    def poll(self) -> None:
        """Let sequences whose hit has changed look up again."""
        nobody: list[int] = []
        changed = self._ask(lambda cache: [of_type(HitChange, change).hit_id for change in cache.poll()], nobody)
        for hit_id in changed:
            held = self._held.pop(hit_id, None)
            if held is not None:
                self._drop_hit(held.sequence)

    def is_held(self, sequence: Sequence, now_s: float) -> bool:
        """Look up a waiting sequence's prefix, once; True while it should wait for more of it.

        A slower tier that hangs, such as a network's, is waited for so long and no longer: the prefix is computed.
        """
        if sequence.hit is None and not sequence.is_cold and self._is_on(sequence):
            query = self._query(sequence)
            sequence.hit = self._ask(lambda cache: self._sound(cache.lookup(query), query), _MISS)
            if sequence.hit.state in (HitState.LOADING, HitState.COMPUTING):
                limit_s = LOAD_LIMIT_S if sequence.hit.state is HitState.LOADING else math.inf
                is_paused = limit_s < math.inf and now_s < self._no_loads_until_s
                self._held[sequence.hit.id] = _Held(sequence, now_s if is_paused else now_s + limit_s)
        held = None if sequence.hit is None else self._held.get(sequence.hit.id)
        if held is None or now_s < held.until_s:
            return held is not None
        if now_s >= self._no_loads_until_s:
            log = structlog.get_logger("ortserve.cache")
            reason = f"a prefix has not come within {LOAD_LIMIT_S:g} s, and is computed; its disk or network may hang"
            log.warning("the prompt cache does not load", cache=self.name, reason=reason, seconds=LOAD_PAUSE_S)
            self._no_loads_until_s = now_s + LOAD_PAUSE_S
        self._drop_hit(sequence)
        sequence.is_cold = True
        return False

    def num_found(self, sequence: Sequence) -> int:
        """Tokens of a waiting sequence that can be taken now."""
        hit = sequence.hit
        return hit.num_tokens if hit is not None and hit.state is HitState.READY else 0

    def start(self, sequence: Sequence, slot: int) -> Move | None:
        """The sequence has got a row: take what was found, and promise the rest."""
        hit, move = sequence.hit, None
        sequence.hit = None
        if hit is not None and hit.state is HitState.READY and hit.num_tokens > 0:
            move = self._take(sequence, slot, hit)
            sequence.num_computed = hit.num_tokens
            sequence.num_reused = min(hit.num_tokens, sequence.num_prompt_tokens)
            sequence.num_saved = hit.num_tokens // self._plan.block_size * self._plan.block_size
            self._loading.append(hit)
        elif hit is not None:
            self._release(hit)
        self.announce(sequence)
        return move

    def _take(self, sequence: Sequence, slot: int, hit: Hit) -> Move | None:
        """Have the hit's tokens in the sequence's row once the step has made its moves."""
        return LoadBlocks(sequence.request.id, slot, hit.num_tokens, hit.blocks)

    def announce(self, sequence: Sequence) -> None:
        """Promise to compute from here on, so that others may wait instead of computing the same."""
        if self._is_on(sequence):
            query = self._query(sequence)
            start = sequence.num_computed
            sequence.ticket = self._ask(lambda cache: of_type(Ticket, cache.announce(query, start)), _NOBODY)

    def save(self, sequence: Sequence, *, is_last: bool = False) -> Move | None:
        """Offer whole blocks that are computed and not yet saved; at the end also the tail, and end the ticket."""
        end = self._save_end(sequence, is_last=is_last)
        ticket, start = sequence.ticket, sequence.num_saved
        if is_last:
            sequence.ticket = None
        if ticket is None:
            return None
        count = -(-(end - start) // self._plan.block_size) if end > start else 0
        if count == 0 or not self.make_room(count):
            if is_last:
                self._finish(ticket, ok=True)
            return None
        assert sequence.slot is not None
        blocks = tuple(self.pool.allocate(count))
        part = Part(start, tuple(sequence.tokens[:end]), blocks, sequence.seconds_unsaved)
        self._queued.append(_Saving(ticket, part, is_last))
        self._saved(sequence, start, end)
        return SaveBlocks(sequence.request.id, sequence.slot, start, end, blocks)

    def _save_end(self, sequence: Sequence, *, is_last: bool) -> int:
        """Computed tokens that the cache may have: before the end, whole blocks of the prompt."""
        end = min(sequence.num_computed, self._save_limit(sequence))
        if is_last:
            return end
        end = min(end, sequence.num_prompt_tokens)
        return end - end % self._plan.block_size

    def _saved(self, sequence: Sequence, start: int, end: int) -> None:
        sequence.num_saved = end - end % self._plan.block_size
        sequence.num_written += max(0, min(end, sequence.num_prompt_tokens) - start)
        sequence.seconds_unsaved = 0.0

    def abandon(self, sequence: Sequence) -> None:
        """The sequence loses its row or its place in the queue without an end: nobody may wait for it."""
        self._drop_hit(sequence)
        if sequence.ticket is not None:
            self._finish(sequence.ticket, ok=False)
            sequence.ticket = None

    def make_room(self, count: int) -> bool:
        """Whether `count` host blocks are free, after the cache has given some back if need be."""
        missing = count - self.pool.num_free
        if missing > 0:
            self._ask(lambda cache: cache.evict(missing), 0)
        return self.pool.num_free >= count

    def release_after_step(self, blocks: Iterable[int]) -> None:
        """Free host blocks once the step being planned has read them: a cache's thread may write free ones at once."""
        self._leaving += blocks

    def moves_taken(self) -> None:
        """All moves handed out so far are now part of one step."""
        self._running += self._queued
        self._queued = []

    def step_ended(self, *, ok: bool) -> None:
        """The step has run, or was abandoned: publish what it saved, let go of what it loaded."""
        for hit in self._loading:
            self._release(hit)
        self._loading = []
        self.pool.release(self._leaving)
        self._leaving = []
        savings, self._running = self._running, []
        for saving in savings:
            refused = self._publish(saving.ticket, saving.part) if ok else saving.part.blocks
            self.pool.release(refused)
            if saving.is_last:
                self._finish(saving.ticket, ok=ok)
        if self._is_gone:
            self._owned.reclaim()
            self._is_gone = False

    def held(self) -> Iterable[int]:
        """Host blocks whose holder is no sequence, for the audit."""
        yield from self._owned.owned
        yield from self._leaving
        for saving in (*self._queued, *self._running):
            yield from saving.part.blocks

    def pin(self, tokens: Values[int], salt: bytes, ttl_s: float) -> int:
        """Keep what is cached of a prefix for `ttl_s` seconds (0 ends it), in every rotary regime that holds it.

        Returns the tokens that every one of them has.
        """
        regimes = [regime for regime in self._plan.rotary_regimes if regime.max_tokens > len(tokens)]
        queries = [CacheQuery(tuple(tokens), len(tokens), salt_within(regime, salt)) for regime in regimes]
        return self._order(lambda cache: min((of_type(int, cache.pin(query, ttl_s)) for query in queries), default=0))

    def clear(self, salt: bytes | None) -> int:
        """Forget one salt's prefixes, or all; the blocks forgotten."""
        regimes = self._plan.rotary_regimes
        salts = [None] if salt is None else [salt_within(regime, salt) for regime in regimes]
        return self._order(lambda cache: sum(of_type(int, cache.clear(one)) for one in salts))

    def entries(self) -> list[Entry]:
        """What the cache holds."""
        return self._order(lambda cache: [of_type(Entry, entry) for entry in cache.entries()])

    def stats(self) -> CacheStats:
        """The cache's counters."""
        return self._ask(lambda cache: of_type(CacheStats, cache.stats()), CacheStats())

    def close(self) -> None:
        """Stop the cache's threads."""
        self._ask(lambda cache: cache.close(), None)

    def _finish(self, ticket: Ticket, *, ok: bool) -> None:
        self._ask(lambda cache: cache.finish(ticket, ok), None)

    def _drop_hit(self, sequence: Sequence) -> None:
        hit, sequence.hit = sequence.hit, None
        if hit is not None:
            self._held.pop(hit.id, None)
            self._release(hit)

    def _release(self, hit: Hit) -> None:
        self._ask(lambda cache: cache.release(hit), None)

    def _publish(self, ticket: Ticket, part: Part) -> tuple[int, ...]:
        """Returns the refused blocks."""
        refused = self._ask(lambda cache: refused_blocks(cache.publish(ticket, part), part), part.blocks)
        self._owned.accept(set(part.blocks) - set(refused))
        return refused

    def _is_on(self, sequence: Sequence) -> bool:
        if sequence.request.sampling.num_prompt_logprobs is not None:
            return False  # every position is computed for its logits
        # Not `isinstance`: a cache may inherit what it does not override from the null object.
        return sequence.request.cache.mode is not CacheMode.OFF and type(self.cache) is not NoCache

    def _limit(self, sequence: Sequence) -> int:
        """The last token is computed for its logits, in deterministic mode with the one before it."""
        return max(0, len(sequence.tokens) - (2 if self._plan.deterministic else 1))

    def _save_limit(self, sequence: Sequence) -> int:
        hints = sequence.request.cache
        if hints.mode is not CacheMode.EXPLICIT:
            return len(sequence.tokens)
        return max((point.num_tokens for point in hints.breakpoints), default=0)

    def _query(self, sequence: Sequence) -> CacheQuery:
        hints = sequence.request.cache
        return CacheQuery(
            tokens=tuple(sequence.tokens),
            limit=self._limit(sequence),
            salt=salt_within(sequence.regime, hints.salt),
            mode=hints.mode,
            breakpoints=hints.breakpoints,
            affinity=hints.affinity,
            durable=hints.durable,
        )

    def _ask(self, question: Callable[[PromptCache], Answer], otherwise: Answer) -> Answer:
        try:
            return self._order(question)
        except Exception:  # a plugin may raise anything; it must cost nothing but the cache
            return otherwise

    def _order(self, question: Callable[[PromptCache], Answer]) -> Answer:
        """The same for an operator, who is told. Raises `BrokenLawError`."""
        try:
            return question(self.cache)
        except BrokenLawError as error:
            self._switch_off(str(error))
            raise
        except (Exception, SystemExit) as error:
            reason = f"it raised {type(error).__name__}: {error}"
            self._switch_off(reason)
            raise BrokenLawError(reason) from error

    def _sound(self, hit: Hit, query: CacheQuery) -> Hit:
        """The hit itself. Raises `BrokenLawError` where it cannot be: wrong bytes in a row would be a wrong reply."""
        hash(of_type(Hit, hit).id)
        count = -(-hit.num_tokens // self._plan.block_size)
        if 0 <= hit.num_tokens <= query.limit and len(hit.blocks) == count and self.owned.issuperset(hit.blocks):
            return hit
        raise BrokenLawError(f"it found {hit.num_tokens} tokens in blocks {hit.blocks}, which cannot be")

    def _switch_off(self, reason: str) -> None:
        """Forget it and everything it has promised."""
        log = structlog.get_logger("ortserve.cache")
        log.error("the prompt cache is switched off", cache=self.name, reason=reason, exc_info=True)
        self.cache = NoCache()
        self._is_gone = True
        for held in self._held.values():
            held.sequence.hit = None
        self._held = {}
        self._loading = []


def new_reuse(plan: EnginePlan, make: Callable[[CacheBlocks], PromptCache]) -> Reuse:
    """A pool of host blocks as the plan says, and the cache that `make` returns for it."""
    pool = BlockPool(plan.num_host_blocks)
    owned = CacheBlocks(pool)
    return Reuse(make(owned), plan, pool, owned)
