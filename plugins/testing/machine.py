"""Random requests in every legal order. Knows which calls are legal when; what must hold is in `play`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Protocol

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ortserve.plugins.api import Breakpoint, CacheMode, CacheQuery, HitState, PluginContext, PromptCache
from ortserve.plugins.testing.arena import ModelArena
from ortserve.plugins.testing.play import Clock, Play

_MOST_AT_ONCE = 5
_SALTS = (b"", b"one", b"two")
_TTLS = (1.0, 30.0)
_WHICH = st.integers(0, _MOST_AT_ONCE - 1)
_GENERATED = st.lists(st.integers(0, 1), min_size=1, max_size=4)


class Contract(Protocol):
    """What is tested, and in how much room. `PromptCacheContract` is one."""

    block_size: ClassVar[int]  # tokens
    num_blocks: ClassVar[int]  # of the arena
    options: ClassVar[Mapping[str, str]]

    def make(self, context: PluginContext) -> PromptCache:
        """A new cache."""


@st.composite
def queries(draw: st.DrawFn) -> CacheQuery:
    """Prompts that share beginnings of any length, also within a block; most are as plain as most requests."""
    stem = draw(st.integers(0, 24))
    tokens = (0,) * stem + tuple(draw(st.lists(st.integers(0, 1), min_size=1, max_size=6)))
    limit = max(0, len(tokens) - draw(st.sampled_from((1, 1, 1, 0, 2, 5))))
    mode = draw(st.sampled_from((*[CacheMode.AUTO] * 6, CacheMode.EXPLICIT, CacheMode.OFF)))
    points = st.builds(Breakpoint, st.integers(1, len(tokens)), st.sampled_from(_TTLS))
    breakpoints = draw(st.lists(points, max_size=2)) if draw(st.integers(0, 3)) == 0 else []
    salt, durable = draw(st.sampled_from(_SALTS)), draw(st.integers(0, 2)) > 0
    return CacheQuery(tokens, limit, salt, mode, tuple(breakpoints), durable=durable)


def new_play(contract: Contract) -> Play:
    """The contract's cache on an empty arena."""
    arena, clock = ModelArena(contract.num_blocks, contract.block_size), Clock()
    context = PluginContext(
        options=contract.options,
        block_size=contract.block_size,
        bytes_per_block=arena.bytes_per_block,
        vocab_size=16,
        max_context=256,
        eos_token_ids=(15,),
        digest="the model of the contract",
        byte_budget=arena.bytes_per_block * (contract.num_blocks - 2),  # the engine uses some itself
        clock=clock,
        wall_clock=lambda: clock.now + 1.7e9,
        blocks=arena,
        io=arena,
        wake=arena.woken.set,
        warn=lambda _: None,
    )
    return Play(context, arena, clock, contract.make(context))


class PromptCacheMachine(RuleBasedStateMachine):
    """The requests of one engine, and what happens to them.

    What is drawn never depends on what the cache has answered, for a cache with threads may answer otherwise next time.
    """

    def __init__(self, contract: Contract) -> None:
        super().__init__()
        self._contract = contract
        self._play = new_play(contract)

    @rule(which=_WHICH, tail=st.lists(st.integers(0, 1), min_size=1, max_size=3), durable=st.booleans())
    def follow(self, which: int, tail: list[int], durable: bool) -> None:
        """A request arrives whose prompt another one is computing, and goes on differently."""
        if self._play.computing and len(self._play.asking) < _MOST_AT_ONCE:
            query = self._play.computing[which % len(self._play.computing)].query
            tokens = (*query.tokens, *tail)
            self._play.look_up(CacheQuery(tokens, len(tokens) - 1, query.salt, durable=durable))

    @rule(query=queries())
    def look_up(self, query: CacheQuery) -> None:
        """A request arrives."""
        if len(self._play.asking) < _MOST_AT_ONCE:
            self._play.look_up(query)

    @rule(query=queries(), generated=_GENERATED, num_generated=st.integers(0, 9))
    def serve(self, query: CacheQuery, generated: list[int], num_generated: int) -> None:
        """A request comes and goes before the next one: without this most examples would end with an empty cache."""
        if len(self._play.computing) < _MOST_AT_ONCE:
            self._play.look_up(query)
            self._play.start(self._play.asking[-1])
            one = self._play.computing[-1]
            self._play.compute(one, generated, len(query.tokens) + num_generated - one.num_computed)
            self._play.finish(one, ok=True)

    @rule(which=_WHICH)
    def start(self, which: int) -> None:
        """It gets a row."""
        asking, computing = self._play.asking, self._play.computing
        ready = [one for one in asking if one.hit.state is HitState.READY]
        if asking and len(computing) < _MOST_AT_ONCE:
            self._play.start((ready or asking)[which % len(ready or asking)])

    @rule(which=_WHICH)
    def give_up(self, which: int) -> None:
        """It is cancelled before it gets one."""
        if self._play.asking:
            self._play.let_go(self._play.asking[which % len(self._play.asking)])

    @rule(which=_WHICH, num_tokens=st.integers(1, 12), generated=_GENERATED)
    def compute(self, which: int, num_tokens: int, generated: list[int]) -> None:
        """A step computes some of its tokens."""
        if self._play.computing:
            one = self._play.computing[which % len(self._play.computing)]
            room = self._contract.block_size * self._contract.num_blocks - one.num_computed
            self._play.compute(one, generated, min(num_tokens, room))

    @rule(which=_WHICH, ok=st.booleans())
    def finish(self, which: int, ok: bool) -> None:
        """It ends, is cancelled or loses its row."""
        if self._play.computing:
            self._play.finish(self._play.computing[which % len(self._play.computing)], ok=ok)

    @rule()
    def poll(self) -> None:
        """A step begins."""
        self._play.poll()

    @rule(count=st.integers(0, 12))
    def evict(self, count: int) -> None:
        """The engine needs blocks."""
        self._play.evict(count)

    @rule(query=queries(), ttl_s=st.sampled_from((0.0, *_TTLS)), is_known=st.booleans())
    def pin(self, query: CacheQuery, ttl_s: float, is_known: bool) -> None:
        """Someone wants a prefix kept, perhaps one that has just been offered."""
        known = self._play.last_offered.get(query.salt, ())[: len(query.tokens)]
        self._play.pin(replace(query, tokens=known, limit=len(known)) if is_known and known else query, ttl_s)

    @rule(seconds=st.sampled_from((0.5, 5.0, 60.0)))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self._play.clock.now += seconds

    @rule(salt=st.sampled_from(_SALTS), is_all=st.integers(0, 3), is_meant=st.integers(0, 2))
    def clear(self, salt: bytes, is_all: int, is_meant: int) -> None:
        """An operator wants everything forgotten; not too often, or nothing would ever be found."""
        if is_meant == 0:
            self._play.clear(None if is_all == 0 else salt)

    @rule(is_meant=st.integers(0, 7))
    def restart(self, is_meant: int) -> None:
        """The server is restarted; a slower tier may remember."""
        if is_meant == 0:
            self._play.settle()
            self._play.cache.close()
            self._play.restart(self._contract.make(self._play.context))

    @invariant()
    def check(self) -> None:
        """What holds between any two calls."""
        self._play.check()

    def teardown(self) -> None:
        """Every example ends in order, unless it has failed: what that breaks must not hide why."""
        if sys.exception() is None:
            self._play.close()
        else:
            self._play.cache.close()
