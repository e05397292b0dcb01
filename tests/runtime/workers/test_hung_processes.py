"""An engine process that hangs, of two: its requests are told, the other's go on, and another one takes its place."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from ortserve.runtime.errors import EngineClosedError
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.request import FinishReason, Request
from ortserve.runtime.workers.balancer import Balancer
from ortserve.runtime.workers.launch import WorkerSpec
from ortserve.runtime.workers.restarts import Restarts
from tests.runtime.driving import ENDLESS, Collector, greedy, prompt_of
from tests.runtime.synthetic import greedy_tokens
from tests.runtime.workers.openers import HANGING, HOLDS, SLEEPS
from tests.runtime.workers.processes import CONFIG, PLAIN, endless, pids, run, tokens_of
from tests.waiting import PATIENCE_S, wait_for

LIMIT_S = 1.0  # of the one that will hang: on a busy machine a step of the other may take as long
SILENCE = r"the engine process cpu-0 has said nothing for \d s"
STEP = r"a step has not ended for \d s"
MANY = (7,) * 2**21  # more than a socket takes


@pytest.fixture(scope="module")
def pair(folder: Path, manifest: Manifest) -> Iterator[Balancer]:
    """Whoever makes one hang waits until both run again."""
    specs = [
        WorkerSpec("cpu-0", folder, manifest, replace(CONFIG, step_limit_s=LIMIT_S), HANGING),
        WorkerSpec("cpu-1", folder, manifest, CONFIG),
    ]
    balancer = Balancer(specs, Restarts(delays_s=(0.0,) * 9))
    yield balancer
    balancer.close()


def num_sockets() -> int:
    """Of this process."""
    number = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the folder's own, closed by now
            number += str(link.readlink()).startswith("socket:")
    return number


def num_threads() -> int:
    """Readers and watchdogs of engine processes, in this one."""
    return sum(thread.name.startswith("ortserve-w") for thread in threading.enumerate())


def hang(pair: Balancer, how: str, collector: Collector) -> str:
    """The first process; what it has been asked last, if it was that which made it hang."""
    driver = pair._seats[0].driver
    if how == "stopped":
        pid = driver.workers()[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        return ""
    prompt = SLEEPS if how == "a step sleeps" else HOLDS
    driver.submit(Request("culprit", prompt, ENDLESS, draft=PLAIN), collector)
    return "culprit"


@pytest.mark.parametrize(
    ("how", "reason"),
    [("stopped", SILENCE), ("a step sleeps", STEP), ("a step holds the interpreter", SILENCE)],
    ids=["stopped", "sleeps", "holds"],
)
def test_a_hung_process_is_replaced(pair: Balancer, how: str, reason: str) -> None:
    known_threads, known_sockets, collector = num_threads(), num_sockets(), Collector()
    first, second = (seat.driver for seat in pair._seats)
    victim, restarts = pids(pair)[0], pair.workers()[0].num_restarts
    names = [f"r{number}" for number in range(4)]
    for number, name in enumerate(names):
        pair.submit(endless(name, number), collector)
    for name in names:
        collector.wait_for(name, num_deltas=2)
    lost = {name for name in names if first.has(name)}
    assert 0 < len(lost) < len(names)
    lost |= {hang(pair, how, collector)} - {""}
    asked = [first.cache_pin(MANY, b"", 1.0) for _ in range(3)]  # nobody reads that
    meanwhile = greedy("meanwhile", 4)
    assert tokens_of(run(second, meanwhile)) == greedy_tokens(meanwhile.prompt, meanwhile.sampling)

    for name in lost:
        last = collector.wait_for(name)[-1]
        assert (last.finish, last.is_lost) == (FinishReason.ERROR, True)
        assert re.fullmatch(reason, last.error or ""), last.error
    for one in asked:
        with pytest.raises(EngineClosedError, match=reason):
            one.result(PATIENCE_S)
    for number, name in enumerate(names):  # the other's go on
        if name not in lost:
            pair.cancel(name)
            told = tokens_of(collector.wait_for(name))
            assert collector.of(name)[-1].finish is not FinishReason.ERROR
            assert told == greedy_tokens(prompt_of(number), replace(ENDLESS, max_tokens=len(told)))
    now = greedy("now", 5)
    assert tokens_of(run(pair, now)) == greedy_tokens(now.prompt, now.sampling)

    wait_for(lambda: pids(pair)[0] not in (None, victim))
    assert not Path(f"/proc/{victim}").exists()  # and its memory and sockets with it
    assert [worker.num_restarts for worker in pair.workers()] == [restarts + 1, 0]
    wait_for(lambda: num_threads() <= known_threads)
    assert num_sockets() <= known_sockets
    again = greedy("again", 6)
    assert tokens_of(run(pair._seats[0].driver, again)) == greedy_tokens(again.prompt, again.sampling)
