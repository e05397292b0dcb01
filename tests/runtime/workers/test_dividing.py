"""What several engines get of one host, and what they say together."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace

import pytest

from ortserve.plugins.api import CacheStats, Entry, TierStats
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.engine import EngineStats
from ortserve.runtime.errors import ConfigurationError, EngineClosedError
from ortserve.runtime.request import Grammar, GrammarKind
from ortserve.runtime.scheduling.backlog import QueueStats
from ortserve.runtime.speculation.stats import DraftStats
from ortserve.runtime.workers.dividing import divide_config
from ortserve.runtime.workers.known_grammars import KnownGrammars
from ortserve.runtime.workers.restarts import Restarts
from ortserve.runtime.workers.summing import (
    cache_counters_of,
    counters_of,
    gather,
    join_entries,
    sum_cache_stats,
    sum_draft_stats,
    sum_queues,
    sum_stats,
)


def divide(config: EngineConfig, *devices: str, cores: int = 8) -> list[EngineConfig]:
    return divide_config(config, devices, num_cores=cores, available_bytes=3000, weight_bytes=500)


def test_threads_are_divided_and_never_more_than_the_cores() -> None:
    assert [one.num_threads for one in divide(EngineConfig(), "cpu", "cpu", "cpu")] == [3, 3, 2]
    assert [one.num_threads for one in divide(EngineConfig(num_threads=5), "cpu", "cpu")] == [3, 2]
    with pytest.raises(ConfigurationError, match="3 engines need a thread each, and there are 2"):
        divide(EngineConfig(), "cpu", "cpu", "cpu", cores=2)
    with pytest.raises(ConfigurationError, match="--threads 9 for 2 engines exceed the 8 cores"):
        divide(EngineConfig(num_threads=9), "cpu", "cpu")
    with pytest.raises(ConfigurationError, match="--threads 9 for 1 engine exceed the 8 cores"):
        divide(EngineConfig(num_threads=9), "cpu")


def test_one_engine_process_has_what_an_engine_in_the_server_would_have() -> None:
    config = EngineConfig(
        num_threads=3, memory=1000, kv_memory=100, swap_memory=50, prompt_cache_memory=31, max_waiting=5
    )
    assert divide(config, "cpu") == [replace(config, device="cpu")]
    assert divide(EngineConfig(), "cpu")[0].num_threads == 8


def test_host_memory_is_divided_with_the_weights_of_each_set_aside() -> None:
    assert [one.memory for one in divide(EngineConfig(), "cpu", "cpu")] == [(3000 - 2 * 650) // 2] * 2
    assert [one.memory for one in divide(EngineConfig(memory=1650), "cpu", "cpu")] == [500] * 2
    assert [one.memory for one in divide(EngineConfig(), "cuda:0", "cuda:1")] == [1500] * 2
    assert divide(EngineConfig(memory=10), "cpu", "cpu")[0].memory == 0
    config = EngineConfig(kv_memory=100, swap_memory=50, prompt_cache_memory=31, max_waiting=5, max_waiting_tokens=9)
    for one in divide(config, "cpu", "cpu"):
        assert (one.kv_memory, one.swap_memory, one.prompt_cache_memory) == (50, 25, 15)
        assert (one.max_waiting, one.max_waiting_tokens) == (3, 5)
    for one in divide(config, "cuda:0", "cuda:1"):  # a GPU's memory is its own
        assert (one.kv_memory, one.swap_memory, one.prompt_cache_memory) == (100, 25, 31)
    assert [one.device for one in divide(config, "cuda:0", "cuda:1")] == ["cuda:0", "cuda:1"]


def test_counters_add_up_and_outlive_their_engine() -> None:
    one = EngineStats(num_running=1, num_free_blocks=7, num_steps=10, num_finished=3)
    assert sum_stats([one, one]) == EngineStats(num_running=2, num_free_blocks=14, num_steps=20, num_finished=6)
    assert counters_of(one) == EngineStats(num_steps=10, num_finished=3)
    assert sum_stats([]) == EngineStats()


def test_a_folder_that_all_see_is_counted_once() -> None:
    first = CacheStats(num_blocks=1, num_hit_tokens=5, tiers={"disk": TierStats(10, 1000, num_reads=2)})
    second = CacheStats(num_blocks=2, num_hit_tokens=6, tiers={"disk": TierStats(12, 1200, num_reads=3)})
    total = sum_cache_stats([first, second])
    assert total == CacheStats(num_blocks=3, num_hit_tokens=11, tiers={"disk": TierStats(12, 1200, num_reads=5)})
    assert cache_counters_of(first) == CacheStats(num_hit_tokens=5, tiers={"disk": TierStats(num_reads=2)})
    memory = Entry("k", None, 1, 0, "memory", 1, 0, 0.0, None)
    disk = Entry("k", None, 1, 0, "disk", 1, 0, 0.0, None)
    assert join_entries([[memory, disk], [memory, disk]]) == [memory, disk, memory]


def test_drafts_and_queues() -> None:
    first, second = DraftStats(is_on=False, num_calls=1), DraftStats(num_calls=2)
    first.add("ngram", 3, 2, 0.5)
    second.add("ngram", 3, 3, 0.25)
    total = sum_draft_stats([first, None, second])
    assert total is not None
    assert (total.is_on, total.num_calls, total.num_drafts, total.num_accepted, total.verifying_s) == (
        True, 3, 2, 5, 0.75,
    )  # fmt: skip
    assert first.num_accepted == 2  # as it was
    assert sum_draft_stats([None, None]) is None
    assert sum_queues([QueueStats(1, 10, 5.0), QueueStats(2, 20, 3.0)]) == QueueStats(3, 30, 3.0)


def settled(value: int | Exception) -> Future[int]:
    future: Future[int] = Future()
    if isinstance(value, Exception):
        future.set_exception(value)
    else:
        future.set_result(value)
    return future


def test_answers_of_those_that_live_are_enough() -> None:
    dead = EngineClosedError("dead")
    assert gather([settled(1), settled(dead), settled(2)], sum).result(0) == 3
    late: Future[int] = Future()
    answer = gather([settled(1), late], sum)
    assert not answer.done()
    late.set_result(5)
    assert answer.result(0) == 6
    for asked in ([], [settled(dead)]):
        assert isinstance(gather(asked, sum).exception(0), EngineClosedError)
    assert isinstance(gather([settled(1), settled(ValueError())], sum).exception(0), ValueError)


def test_restarts_are_bounded_within_their_window() -> None:
    restarts = Restarts(delays_s=(0.0, 2.0), window_s=100.0)
    assert restarts.delay_after([5.0], 5.0) == 0.0
    assert restarts.delay_after([5.0, 6.0], 6.0) == 2.0
    assert restarts.delay_after([5.0, 6.0, 7.0], 7.0) is None
    assert restarts.delay_after([5.0, 6.0, 106.5], 106.5) == 0.0
    assert Restarts(delays_s=()).delay_after([1.0], 1.0) is None


def test_the_latest_grammars_are_known() -> None:
    known = KnownGrammars()
    grammars = [Grammar(GrammarKind.REGEX, str(number)) for number in range(300)]
    for grammar in grammars:
        known.add(grammar)
    assert grammars[-1] in known
    assert grammars[0] not in known
