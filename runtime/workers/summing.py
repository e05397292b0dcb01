"""What several engines say of themselves, as one. Knows no process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import fields, replace
from functools import reduce
from operator import add
from threading import Lock
from typing import TypeVar

from ortserve.plugins.api import CacheStats, Entry, TierStats
from ortserve.runtime.engine import EngineStats
from ortserve.runtime.errors import EngineClosedError
from ortserve.runtime.plan import EnginePlan
from ortserve.runtime.scheduling.backlog import QueueStats
from ortserve.runtime.speculation.stats import DraftStats

Value = TypeVar("Value")
Stats = TypeVar("Stats", EngineStats, TierStats, CacheStats)

STATES = ("num_running", "num_waiting", "num_swapped", "num_free_blocks")  # of `EngineStats`: not counters
CACHE_STATES = ("num_blocks", "num_bytes")
SHARED = ("num_blocks", "num_bytes")  # of a slower tier: a folder that all of them see
MEMORY = "memory"  # the tier that each has of its own


def sum_stats(stats: Iterable[EngineStats]) -> EngineStats:
    """Of all engines together."""
    return _sum(EngineStats(), stats)


def sum_cache_stats(stats: Sequence[CacheStats]) -> CacheStats:
    """Of all engines together. Slower tiers are one folder for all: of their sizes the largest is the latest."""
    names = {name for one in stats for name in one.tiers}
    tiers = {}
    for name in sorted(names):
        own = [one.tiers[name] for one in stats if name in one.tiers]
        sizes = {word: max(getattr(one, word) for one in own) for word in SHARED}
        tiers[name] = replace(_sum(TierStats(), own), **sizes)
    return replace(_sum(CacheStats(), [replace(one, tiers={}) for one in stats]), tiers=tiers)


def sum_draft_stats(stats: Iterable[DraftStats | None]) -> DraftStats | None:
    """Of all engines together; None where none has a drafter. It is on while any of them is."""
    known = [one for one in stats if one is not None]
    if not known:
        return None
    total = DraftStats(is_on=any(one.is_on for one in known))
    for one in known:
        total.num_calls += one.num_calls
        total.num_missed_deadlines += one.num_missed_deadlines
        total.drafting_s += one.drafting_s
        total.verifying_s += one.verifying_s
        total.drafts += one.drafts
        total.proposed += one.proposed
        total.accepted += one.accepted
        total.lengths += one.lengths
    return total


def sum_queues(queues: Sequence[QueueStats]) -> QueueStats:
    """Whoever comes now waits for the engine that is free first."""
    return QueueStats(
        sum(one.num_requests for one in queues),
        sum(one.num_tokens for one in queues),
        min((one.wait_s for one in queues), default=0.0),
    )


def sum_plans(plans: Sequence[EnginePlan]) -> EnginePlan:
    """Rows, memory and queues together; of what holds for one request the smallest."""
    totals = ("num_rows", "num_blocks", "num_host_blocks", "cache_bytes", "max_waiting", "max_waiting_tokens",
              "drafter_keep_bytes", "drafter_bytes")  # fmt: skip
    sums = {name: sum(getattr(plan, name) for plan in plans) for name in totals}
    return replace(plans[0], **sums, max_context=min(plan.max_context for plan in plans))


def join_entries(answers: Iterable[list[Entry]]) -> list[Entry]:
    """Everything kept; what lies in a folder that all see, once."""
    seen: set[tuple[str, str]] = set()
    entries = []
    for entry in (entry for answer in answers for entry in answer):
        name = (entry.tier, entry.key)
        if entry.tier == MEMORY or name not in seen:
            seen.add(name)
            entries.append(entry)
    return entries


def gather(asked: Sequence[Future[Value]], combine: Callable[[list[Value]], Value]) -> Future[Value]:
    """The answers of all that live, combined; an `EngineClosedError` when none has answered, or another's error."""
    answer: Future[Value] = Future()
    answer.set_running_or_notify_cancel()
    lock = Lock()
    num_left = len(asked)

    def settle(_: Future[Value]) -> None:
        nonlocal num_left
        with lock:
            num_left -= 1
            if num_left:
                return
        errors = [error for one in asked if (error := one.exception()) is not None]
        results = [one.result() for one in asked if one.exception() is None]
        worst = next((error for error in errors if not isinstance(error, EngineClosedError)), None)
        if worst is None and results:
            answer.set_result(combine(results))
        else:
            answer.set_exception(worst or errors[0])

    if not asked:
        answer.set_exception(EngineClosedError("no engine process runs"))
    for one in asked:
        one.add_done_callback(settle)
    return answer


def counters_of(stats: EngineStats) -> EngineStats:
    """What an engine that has ended leaves behind: its states are gone with it."""
    return replace(stats, **dict.fromkeys(STATES, 0))


def cache_counters_of(stats: CacheStats) -> CacheStats:
    """The same of its prompt cache."""
    tiers = {name: replace(one, **dict.fromkeys(SHARED, 0)) for name, one in stats.tiers.items()}
    return replace(stats, tiers=tiers, **dict.fromkeys(CACHE_STATES, 0))


def _sum(nothing: Stats, stats: Iterable[Stats]) -> Stats:
    """Field by field."""
    names = [one.name for one in fields(nothing) if one.name != "tiers"]

    def plus(one: Stats, other: Stats) -> Stats:
        return replace(one, **{name: add(getattr(one, name), getattr(other, name)) for name in names})

    return reduce(plus, stats, nothing)
