"""A context and short ways to play one request, for tests of single behaviours. Knows the arena of the contract."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ortserve.plugins.api import (
    Breakpoint,
    CacheMode,
    CacheQuery,
    Hit,
    HitState,
    Part,
    PluginContext,
    PromptCache,
    TierStats,
)
from ortserve.plugins.prefix_cache import PrefixCache
from ortserve.plugins.testing import ModelArena
from ortserve.plugins.testing.arena import stamps
from ortserve.plugins.testing.play import Clock
from tests.waiting import PATIENCE_S


@dataclass
class Engine:
    """One cache and its arena of `num_blocks` blocks of four tokens."""

    num_blocks: int = 32
    options: Mapping[str, str] = field(default_factory=dict)
    digest: str = "model"
    budget: int | None = None
    wall: Clock = field(default_factory=lambda: Clock(1.7e9))

    def __post_init__(self) -> None:
        self.arena = ModelArena(self.num_blocks, 4)
        self.clock = Clock()
        self.warnings: list[str] = []
        self.context = PluginContext(
            options=self.options,
            block_size=4,
            bytes_per_block=self.arena.bytes_per_block,
            vocab_size=100,
            max_context=400,
            eos_token_ids=(),
            digest=self.digest,
            byte_budget=(self.num_blocks if self.budget is None else self.budget) * self.arena.bytes_per_block,
            clock=self.clock,
            wall_clock=self.wall,
            blocks=self.arena,
            io=self.arena,
            wake=self.arena.woken.set,
            warn=self.warnings.append,
        )
        self.cache: PromptCache = PrefixCache(self.context)

    def query(
        self,
        tokens: tuple[int, ...],
        salt: bytes = b"",
        *,
        mode: CacheMode = CacheMode.AUTO,
        breakpoints: tuple[Breakpoint, ...] = (),
        limit: int | None = None,
        durable: bool = True,
    ) -> CacheQuery:
        return CacheQuery(tokens, len(tokens) if limit is None else limit, salt, mode, breakpoints, durable=durable)

    def found(self, tokens: tuple[int, ...], salt: bytes = b"", *, durable: bool = True) -> int:
        """Look up until READY, check the bytes, release: how many tokens are reused."""
        query = self.query(tokens, salt, durable=durable)
        hit = self.ready(query)
        expected = b"".join(stamps(self.digest, salt, tokens[: hit.num_tokens]))
        assert self.arena.contents(hit.blocks, hit.num_tokens) == expected
        self.cache.release(hit)
        return hit.num_tokens

    def ready(self, query: CacheQuery) -> Hit:
        """A READY hit, after waiting for the disk."""
        deadline = time.monotonic() + PATIENCE_S
        while (hit := self.cache.lookup(query)).state is not HitState.READY:
            while not [change for change in self.cache.poll() if change.hit_id == hit.id]:
                assert time.monotonic() < deadline, f"{hit} is never resolved"
                self.arena.woken.wait(0.01)
                self.arena.woken.clear()
            self.cache.release(hit)
        return hit

    def part(self, tokens: tuple[int, ...], salt: bytes = b"", *, start: int = 0, seconds: float = 1.0) -> Part:
        """Computed tokens from `start` on, in new blocks."""
        count = -(-(len(tokens) - start) // 4)
        self.cache.evict(max(0, count - self.arena.num_free))
        blocks = tuple(self.arena.allocate(count))
        self.arena.write(blocks, stamps(self.digest, salt, tokens)[start:])
        return Part(start, tokens, blocks, seconds)

    def serve(self, query: CacheQuery, *, seconds: float = 1.0) -> int:
        """One request from lookup to finish, whose prompt is all it computes. Returns how many blocks were refused."""
        hit = self.ready(query)
        start = hit.num_tokens // 4 * 4
        ticket = self.cache.announce(query, hit.num_tokens)
        self.cache.release(hit)
        refused = 0
        if len(query.tokens) > start:
            part = self.part(query.tokens, query.salt, start=start, seconds=seconds)
            returned = self.cache.publish(ticket, part)
            self.arena.hand_over(set(part.blocks) - set(returned))
            self.arena.release(returned)
            refused = len(returned)
        self.cache.finish(ticket, True)
        return refused

    def keep(self, tokens: tuple[int, ...], salt: bytes = b"", *, seconds: float = 1.0) -> None:
        self.serve(self.query(tokens, salt), seconds=seconds)

    def restart(self) -> None:
        """Close, and open again on what the disk has."""
        self.cache.close()
        self.arena.reclaim()
        self.cache = PrefixCache(self.context)


def disk_engine(folder: Path, **options: str) -> Engine:
    return Engine(options={"path": str(folder), **options})


def numbers(first: int, count: int) -> tuple[int, ...]:
    """Distinct tokens."""
    return tuple(range(first, first + count))


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.kv"))


def tier(engine: Engine) -> TierStats:
    return engine.cache.stats().tiers["disk"]
