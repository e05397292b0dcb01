"""The contract catches caches that are broken in the ways that matter, by the name of the law."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ortserve.plugins.api import BlockId, CacheQuery, Hit, HitChange, HitState, Part, PluginContext, PromptCache, Ticket
from ortserve.plugins.prefix_cache import PrefixCache
from ortserve.plugins.testing import PromptCacheContract


class IgnoresSalt(PrefixCache):
    def lookup(self, query: CacheQuery) -> Hit:
        return super().lookup(replace(query, salt=b""))

    def announce(self, query: CacheQuery, start: int) -> Ticket:
        return super().announce(replace(query, salt=b""), start)


class ForgetsPins(PrefixCache):
    def lookup(self, query: CacheQuery) -> Hit:
        hit = super().lookup(query)
        if hit.state is HitState.READY:
            self.release(hit)
        return hit


class FindsWrongTokens(PrefixCache):
    """Compares only how long a prefix is, as a table of hashes with collisions would."""

    def lookup(self, query: CacheQuery) -> Hit:
        return super().lookup(replace(query, tokens=(0,) * len(query.tokens)))


class LeaksBlocks(PrefixCache):
    """Neither keeps nor refuses what it has no use for."""

    def publish(self, ticket: Ticket, part: Part) -> Sequence[BlockId]:
        refused = super().publish(ticket, part)
        return refused if len(refused) == len(part.blocks) else ()


class ReusesEverything(PrefixCache):
    def lookup(self, query: CacheQuery) -> Hit:
        return super().lookup(replace(query, limit=len(query.tokens)))


class NeverWakes(PrefixCache):
    def poll(self) -> Sequence[HitChange]:
        super().poll()
        return ()


class ForgetsLifetimes(PrefixCache):
    def pin(self, query: CacheQuery, ttl_s: float) -> int:
        covered = super().pin(query, ttl_s)
        super().pin(query, 0.0)
        return covered


class KeepsWhatItMustNot(PrefixCache):
    def announce(self, query: CacheQuery, start: int) -> Ticket:
        return super().announce(replace(query, breakpoints=(), mode=type(query.mode).AUTO), start)


class Resurrects(PrefixCache):
    """Clears nothing, but says so."""

    def clear(self, salt: bytes | None) -> int:
        return 3 if salt is not None else super().clear(salt)


class CountsTwice(PrefixCache):
    def lookup(self, query: CacheQuery) -> Hit:
        hit = super().lookup(query)
        if hit.state is HitState.READY and hit.blocks:
            self.release(hit)
            return super().lookup(query)
        return hit


class KeepsEverythingForEver(PrefixCache):
    """Takes what may be kept in memory only for what may outlive the process."""

    def announce(self, query: CacheQuery, start: int) -> Ticket:
        return super().announce(replace(query, durable=True), start)


@pytest.mark.parametrize(
    ("broken", "law"),
    [
        (IgnoresSalt, "another salt"),
        (ForgetsPins, "while a hit that is not released has it"),
        (FindsWrongTokens, "do not hold the query's tokens"),
        (LeaksBlocks, "held|keeps only what it is allowed to"),
        (ReusesEverything, "tokens are reused"),
        (NeverWakes, "resolve"),
        (ForgetsLifetimes, "tokens are pinned"),
        (KeepsWhatItMustNot, "keeps only what it is allowed to"),
        (Resurrects, "what has been cleared"),
        (CountsTwice, "num_hit_tokens"),
    ],
)
def test_a_broken_cache_is_caught(broken: Callable[[PluginContext], PromptCache], law: str) -> None:
    class Contract(PromptCacheContract):
        max_examples = 400
        is_random = False
        shrinks = False

        def make(self, context: PluginContext) -> PromptCache:
            return broken(context)

    with pytest.raises(AssertionError, match=law):
        Contract().test_the_laws_of_prompt_caches()


def test_a_cache_that_keeps_on_disk_what_it_must_not_is_caught(tmp_path: Path) -> None:
    class Contract(PromptCacheContract):
        num_blocks = 40  # a quarter may wait to be written

        def make(self, context: PluginContext) -> PromptCache:
            return KeepsEverythingForEver(replace(context, options={"path": str(tmp_path)}))

    with pytest.raises(AssertionError, match="not to outlive a restart"):
        Contract().test_what_may_be_kept_in_memory_only_does_not_outlive_the_process()
