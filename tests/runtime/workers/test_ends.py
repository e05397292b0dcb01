"""Engine processes that do not start, that die, and that are the last to die."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.errors import (
    EngineClosedError,
    MemoryBudgetError,
)
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.testing import write_paged_synthetic_model
from ortserve.runtime.workers.balancer import Balancer
from ortserve.runtime.workers.launch import WorkerProcess, WorkerSpec
from ortserve.runtime.workers.restarts import Restarts
from tests.runtime.driving import Collector, greedy
from tests.runtime.synthetic import greedy_tokens
from tests.runtime.workers.openers import EMULATED
from tests.runtime.workers.processes import CONFIG, is_down, pids, tokens_of
from tests.waiting import PATIENCE_S, wait_for


def has_given_up(balancer: Balancer, number: int) -> bool:
    return balancer._seats[number].has_given_up


def test_emulated_engines_of_a_gpu_and_the_end_of_the_last(tmp_path: Path) -> None:
    manifest = write_paged_synthetic_model(tmp_path, max_context=512)
    config = EngineConfig(max_rows=3, num_threads=1, kv_memory=2**20, swap_memory=0)
    specs = [WorkerSpec(f"cuda:{number}", tmp_path, manifest, config, EMULATED) for number in range(2)]
    balancer = Balancer(specs, Restarts(delays_s=()))
    try:
        collector = Collector()
        requests = [greedy(f"p{number}", number) for number in range(6)]
        for request in requests:
            balancer.submit(request, collector)
        for request in requests:
            assert tokens_of(collector.wait_for(request.id)) == greedy_tokens(request.prompt, request.sampling)
        assert all(seat.driver.stats().num_finished for seat in balancer._seats)
        assert balancer.plan.num_rows == 6
        for number, pid in enumerate(pids(balancer)):
            assert (balancer.healthy, balancer.has_failed) == (True, False)
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            wait_for(partial(has_given_up, balancer, number))  # or the reason of the end would be either's
            assert is_down(balancer, number)
        with pytest.raises(EngineClosedError, match="cuda:1 was killed by SIGKILL"):
            balancer.ended.result(PATIENCE_S)
        assert (balancer.healthy, balancer.has_failed) == (False, True)
        with pytest.raises(EngineClosedError, match="was killed by SIGKILL"):
            balancer.submit(greedy("late", 1), collector)
        with pytest.raises(EngineClosedError):
            balancer.cache_clear(None).result(PATIENCE_S)
    finally:
        balancer.close()


def test_what_keeps_a_process_from_starting_arrives_as_it_was(folder: Path, manifest: Manifest) -> None:
    with pytest.raises(MemoryBudgetError, match=r"^cpu-1: 0\.0 MiB for the KV cache hold not even its smallest part"):
        Balancer([WorkerSpec("cpu-1", folder, manifest, replace(CONFIG, kv_memory=3))])


def test_a_process_dies_with_the_thread_that_has_started_it(folder: Path, manifest: Manifest) -> None:
    begun: list[WorkerProcess] = []

    def begin() -> None:
        begun.append(WorkerProcess(WorkerSpec("cpu-0", folder, manifest, CONFIG)))
        assert begun[0].channel.receive()  # it has asked the system for that before it says hello

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join(PATIENCE_S)
    assert begun[0]._process.wait(PATIENCE_S) == -signal.SIGKILL  # not by `end`, which kills what lives too long
    assert begun[0].end() == "was killed by SIGKILL"
