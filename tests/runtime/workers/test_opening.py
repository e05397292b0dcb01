"""An engine in this process, in one of its own, and in two: which options mean which, and that replies are the same."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ortserve.runtime.drivers.driver import Driver
from ortserve.runtime.drivers.engine_driver import EngineDriver
from ortserve.runtime.errors import ConfigurationError, EngineClosedError
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.request import FinishReason, Request, SamplingParams
from ortserve.runtime.workers.balancer import Balancer
from ortserve.runtime.workers.opening import open_engines, open_workers
from ortserve.runtime.workers.restarts import Restarts
from tests.runtime.driving import Collector, greedy, prompt_of
from tests.runtime.synthetic import greedy_tokens
from tests.runtime.workers.processes import CONFIG, endless, is_down, pids, run, tokens_of
from tests.waiting import PATIENCE_S, wait_for


@pytest.fixture(scope="module")
def here(folder: Path) -> Iterator[EngineDriver]:
    driver = open_engines(folder, CONFIG)
    yield driver
    driver.close()


@pytest.fixture(scope="module")
def there(folder: Path) -> Iterator[EngineDriver]:
    driver = open_engines(folder, CONFIG, num_engines=1)
    yield driver
    driver.close()


def test_one_engine_is_a_process_where_that_is_asked_for(here: EngineDriver, there: EngineDriver) -> None:
    assert isinstance(here, Driver)
    assert here.workers() == ()
    assert isinstance(there, Balancer)
    (worker,) = there.workers()
    assert worker.name == "cpu-0"
    assert worker.pid not in (None, os.getpid())
    assert there.plan == here.plan  # nothing is divided


def test_replies_are_the_same_alone_batched_drafted_and_across_the_boundary(
    here: EngineDriver, there: EngineDriver
) -> None:
    seeded = SamplingParams(temperature=1.2, top_p=0.9, seed=5, max_tokens=40, num_logprobs=2)
    requests = [Request(f"s{number}", prompt_of(number), seeded) for number in range(1, 6)]
    requests.append(Request("drafted", (11, 12, 13, 14) * 12, SamplingParams(temperature=0, max_tokens=60)))
    alone = [run(here, request) for request in requests]
    collector = Collector()
    for request in requests:  # more than there are rows
        there.submit(request, collector)
    for request, expected in zip(requests, alone, strict=True):
        reply = collector.wait_for(request.id)
        assert tokens_of(reply) == tokens_of(expected)
        values = [[value for delta in one for value in delta.logprobs] for one in (reply, expected)]
        assert values[0] == values[1]  # bit for bit


def test_the_only_engine_dies_and_comes_back(there: EngineDriver) -> None:
    assert isinstance(there, Balancer)
    collector = Collector()
    there.submit(endless("lost", 3), collector)
    collector.wait_for("lost", num_deltas=2)
    (victim,) = pids(there)
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    last = collector.wait_for("lost")[-1]
    assert (last.finish, last.is_lost) == (FinishReason.ERROR, True)
    wait_for(lambda: pids(there)[0] not in (None, victim))
    request = greedy("after", 4)
    assert tokens_of(run(there, request)) == greedy_tokens(request.prompt, request.sampling)
    assert [worker.num_restarts for worker in there.workers()] == [1]
    assert not there.has_failed


def test_requests_are_refused_until_the_only_engine_is_back(folder: Path, manifest: Manifest) -> None:
    balancer = open_workers(folder, manifest, CONFIG, ("cpu",), restarts=Restarts(delays_s=(2 * PATIENCE_S,)))
    try:
        (victim,) = pids(balancer)
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: is_down(balancer, 0))
        with pytest.raises(EngineClosedError, match=r"^the engine process has died and is being started"):
            balancer.submit(greedy("meanwhile", 1), Collector())
        assert (balancer.healthy, balancer.has_failed) == (False, False)
    finally:
        balancer.close()


def test_threads_beyond_the_cores_are_refused(folder: Path) -> None:
    too_many = len(os.sched_getaffinity(0)) + 1
    with pytest.raises(ConfigurationError, match=f"--threads {too_many} for 1 engine exceed"):
        open_engines(folder, replace(CONFIG, num_threads=too_many), num_engines=1)
