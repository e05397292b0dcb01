"""Engines in processes of their own: the same replies, cancelled, refused, lost and started again as they must be."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from ortserve.plugins.api import Entry
from ortserve.runtime.drivers.engine_driver import EngineDriver
from ortserve.runtime.errors import (
    ContextLengthError,
    EngineClosedError,
    OverloadedError,
    RequestError,
)
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.opening import open_driver
from ortserve.runtime.request import (
    CacheHints,
    FinishReason,
    Grammar,
    GrammarKind,
    Request,
    SamplingParams,
)
from ortserve.runtime.speculation.stats import DraftStats
from ortserve.runtime.workers.balancer import Balancer
from ortserve.runtime.workers.launch import WorkerSpec
from ortserve.runtime.workers.restarts import Restarts
from tests.runtime.driving import ENDLESS, Collector, greedy, prompt_of
from tests.runtime.synthetic import greedy_tokens
from tests.runtime.workers.processes import CONFIG, PLAIN, endless, pids, run, tokens_of
from tests.waiting import PATIENCE_S, wait_for

LONG = tuple(range(1, 99)) * 2  # a prompt of more than one block
FOUR_DIGITS = Grammar(GrammarKind.REGEX, "[0-9]{4}")


@pytest.fixture(scope="module")
def pair(folder: Path, manifest: Manifest) -> Iterator[Balancer]:
    """Two engine processes; whoever kills one waits until both run again. In the end they drain."""
    specs = [WorkerSpec(f"cpu-{number}", folder, manifest, CONFIG) for number in range(2)]
    balancer = Balancer(specs, Restarts(delays_s=(0.0,) * 9))
    yield balancer
    known, collector = pids(balancer), Collector()
    last = Request("last", prompt_of(2), replace(ENDLESS, max_tokens=200), draft=PLAIN)
    balancer.submit(last, collector)
    closer = threading.Thread(target=balancer.close, kwargs={"drain_s": PATIENCE_S})
    closer.start()
    wait_for(lambda: not balancer.healthy)
    with pytest.raises(EngineClosedError, match="shutting down"):
        balancer.submit(greedy("late", 1), collector)
    assert tokens_of(collector.wait_for("last")) == greedy_tokens(last.prompt, last.sampling)
    closer.join(PATIENCE_S)
    assert balancer.ended.done()
    assert balancer.ended.exception() is None
    assert not balancer.has_failed
    assert not any(pid and Path(f"/proc/{pid}").exists() for pid in known)


@pytest.fixture(scope="module")
def alone(folder: Path) -> Iterator[EngineDriver]:
    """The same model in this process."""
    driver = open_driver(folder, CONFIG)
    yield driver
    driver.close()


def _entries(driver: EngineDriver) -> list[Entry]:
    return driver.cache_entries().result(PATIENCE_S)


def test_a_reply_is_the_same_in_every_process_and_in_this_one(pair: Balancer, alone: EngineDriver) -> None:
    seeded = SamplingParams(temperature=1.3, top_p=0.9, seed=7, max_tokens=30, num_logprobs=2, num_prompt_logprobs=1)
    requests = [Request(f"r{number}", prompt_of(number), seeded) for number in range(1, 7)]
    collector = Collector()
    for request in requests:  # three rows each: both have some
        pair.submit(request, collector)
    replies = [collector.wait_for(request.id) for request in requests]
    drivers = [seat.driver for seat in pair._seats]
    assert all(driver.stats().num_finished for driver in drivers)
    for request, reply in zip(requests, replies, strict=True):
        here = run(alone, request)
        assert tokens_of(reply) == tokens_of(here)
        for driver in drivers:
            there = run(driver, request)
            assert tokens_of(there) == tokens_of(here)
            for name in ("logprobs", "prompt_logprobs"):  # bit for bit
                values = [[value for delta in one for value in getattr(delta, name)] for one in (there, here)]
                assert values[0] == values[1]
                assert values[0]


def test_choices_of_one_call_go_to_one_process(pair: Balancer) -> None:
    before = [driver.stats().num_finished for driver in (seat.driver for seat in pair._seats)]
    collector = Collector()
    for choice in range(5):
        sampling = SamplingParams(seed=choice, max_tokens=5, ignore_eos=True)
        pair.submit(Request(f"c{choice}", LONG, sampling, choice=choice, group="call"), collector)
    usages = [collector.wait_for(f"c{choice}")[-1].usage for choice in range(5)]
    grown = [seat.driver.stats().num_finished - old for seat, old in zip(pair._seats, before, strict=True)]
    assert sorted(grown) == [0, 5]
    assert sum(usage.num_cached_tokens > 0 for usage in usages if usage is not None) >= 4


def test_a_prefix_is_asked_for_where_it_is_kept_and_the_operator_reaches_all(pair: Balancer) -> None:
    pair.cache_clear(None).result(PATIENCE_S)
    assert pair.cache_entries().result(PATIENCE_S) == []
    for number, salt in enumerate((b"a", b"b")):  # the second goes where less has been done lately
        run(pair, Request(f"first{number}", LONG, replace(ENDLESS, max_tokens=2), cache=CacheHints(salt)))
    for seat in pair._seats:
        wait_for(partial(_entries, seat.driver))  # published by the step after the last
    for number, salt in enumerate((b"b", b"a", b"a", b"b")):
        last = run(pair, Request(f"again{number}", LONG, replace(ENDLESS, max_tokens=2), cache=CacheHints(salt)))[-1]
        assert last.usage is not None
        assert last.usage.num_cached_tokens >= 128
    assert pair.cache_pin(LONG, b"a", 60.0).result(PATIENCE_S) >= 128
    entries = pair.cache_entries().result(PATIENCE_S)
    assert any(entry.pinned_s is not None for entry in entries)
    stats = pair.cache_stats()
    assert stats.num_hit_tokens >= 4 * 128
    assert stats.num_blocks == sum(entry.tier == "memory" for entry in entries)
    cleared = pair.cache_clear(b"a").result(PATIENCE_S)
    assert 0 < cleared < len(entries)
    assert pair.cache_clear(None).result(PATIENCE_S) == len(entries) - cleared


def test_requests_are_cancelled_across_the_boundary(pair: Balancer) -> None:
    collector = Collector()
    for number in range(4):
        pair.submit(endless(f"e{number}", number), collector)
    for number in range(4):
        collector.wait_for(f"e{number}", num_deltas=3)
        pair.cancel(f"e{number}")
        deltas = collector.wait_for(f"e{number}")
        assert deltas[-1].finish is FinishReason.CANCELLED
        told = tokens_of(deltas)
        assert told == greedy_tokens(prompt_of(number), replace(ENDLESS, max_tokens=len(told)))
    pair.cancel("unknown")
    wait_for(lambda: (pair.stats().num_running, pair.stats().num_waiting) == (0, 0))


def test_what_can_never_run_is_refused_at_once(pair: Balancer) -> None:
    collector = Collector()
    with pytest.raises(ContextLengthError) as caught:
        pair.submit(Request("long", (1,) * pair.max_context), collector)
    assert caught.value.max_context == pair.max_context
    with pytest.raises(RequestError, match="regex") as refused:
        pair.prepare(Grammar(GrammarKind.REGEX, "(unclosed"))
    assert refused.value.parameter is not None
    with pytest.raises(RequestError) as again:  # not prepared before
        pair.submit(Request("bad", (1,), grammar=Grammar(GrammarKind.REGEX, "(unclosed")), collector)
    assert str(again.value) == str(refused.value)
    pair.submit(endless("same", 1), collector)
    with pytest.raises(RequestError, match="request id 'same' is in use"):
        pair.submit(Request("same", (2,), ENDLESS), collector)
    pair.cancel("same")
    collector.wait_for("same")
    assert {delta.request_id for call in collector.calls for delta in call} == {"same"}


def test_a_full_queue_refuses_when_that_of_every_process_is_full(pair: Balancer) -> None:
    collector = Collector()
    names = [f"q{number}" for number in range(2 * (3 + 4))]  # rows and places of both
    for name in names:
        pair.submit(endless(name, 5), collector)
    with pytest.raises(OverloadedError, match="4 requests are waiting, which is the limit") as caught:
        pair.submit(endless("late", 5), collector)
    assert caught.value.limit == ("requests", 4)
    with pytest.raises(OverloadedError):
        pair.check_room()
    assert pair.queue_stats().num_requests == 2 * 4
    for name in names:
        pair.cancel(name)
    for name in names:
        assert collector.wait_for(name)[-1].finish is FinishReason.CANCELLED
    pair.check_room()


def test_a_reply_follows_a_grammar_that_its_process_has_compiled(pair: Balancer, alone: EngineDriver) -> None:
    pair.prepare(FOUR_DIGITS)
    request = Request("digits", (7, 8), SamplingParams(seed=3, max_tokens=20), grammar=FOUR_DIGITS)
    reply = tokens_of(run(pair, request))
    assert bytes(reply).isdigit()
    assert len(reply) == 4
    assert reply == tokens_of(run(alone, request))


def test_drafts_are_counted_in_this_process(pair: Balancer, alone: EngineDriver) -> None:
    prompt = tuple([11, 12, 13, 14] * 12)
    request = Request("drafted", prompt, replace(ENDLESS, max_tokens=80))
    before = pair.draft_stats() or DraftStats()  # before the first step nothing is known
    assert tokens_of(run(pair, request)) == tokens_of(run(alone, request))
    stats, here = pair.draft_stats(), alone.draft_stats()
    assert stats is not None
    assert here is not None
    assert stats.is_on
    assert stats.num_calls > before.num_calls
    assert set(stats.drafts) <= {"ngram"}


def test_what_a_terminal_sends_to_all_is_left_to_the_server(pair: Balancer) -> None:
    known = pids(pair)
    for pid in known:
        assert pid is not None
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    for number in range(4):
        request = greedy(f"s{number}", number)
        assert tokens_of(run(pair, request)) == greedy_tokens(request.prompt, request.sampling)
    assert pids(pair) == known


def test_a_killed_process_loses_its_own_requests_and_comes_back(pair: Balancer) -> None:
    collector = Collector()
    names = [f"k{number}" for number in range(6)]
    for number in range(20):  # more than will end after its death
        run(pair._seats[0].driver, greedy(f"before{number}", number, max_tokens=1))
    for number, name in enumerate(names):
        pair.submit(endless(name, number), collector)
    for name in names:
        collector.wait_for(name, num_deltas=2)
    (first, second), counted = pair._seats, pair.stats().num_finished
    victim = first.driver.workers()[0].pid
    assert victim is not None
    lost = [name for name in names if first.driver.has(name)]
    assert 0 < len(lost) < len(names)
    asked = first.driver.begin_to_prepare(FOUR_DIGITS), first.driver.cache_entries()
    os.kill(victim, signal.SIGKILL)
    for name in lost:
        collector.wait_for(name)
    for number, name in enumerate(names):
        if name not in lost:
            collector.wait_for(name, num_deltas=len(collector.of(name)) + 2)  # it goes on
            pair.cancel(name)
        last = collector.wait_for(name)[-1]
        if name in lost:
            assert (last.finish, last.is_lost) == (FinishReason.ERROR, True)
            assert last.error == "the engine process cpu-0 was killed by SIGKILL"
        else:
            told = tokens_of(collector.of(name))
            assert told == greedy_tokens(prompt_of(number), replace(ENDLESS, max_tokens=len(told)))
            assert last.finish is FinishReason.CANCELLED
    for one in asked:
        error = one.exception(PATIENCE_S)
        assert error is None or "SIGKILL" in str(error)  # it may have been quicker
    assert pair.healthy
    request = greedy("meanwhile", 4)
    assert tokens_of(run(pair, request)) == greedy_tokens(request.prompt, request.sampling)
    wait_for(lambda: pids(pair)[0] not in (None, victim))
    assert [worker.num_restarts for worker in pair.workers()] == [1, 0]
    assert second.driver.healthy
    assert pair.stats().num_finished >= counted  # counters never go back
    assert tokens_of(run(first.driver, replace(request, id="after"))) == greedy_tokens(request.prompt, request.sampling)
