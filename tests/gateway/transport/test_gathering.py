"""When a loop lets what arrives gather, for how long, and what never waits."""

from __future__ import annotations

import asyncio
import os
import selectors
from collections.abc import Iterator

import pytest

from ortserve.gateway.transport.gathering import GATHER_S, MANY_PER_S, GatheringSelector, new_loop


class Bench:
    """A selector whose time is the test's, with a pipe that has something to read."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.slept: list[float] = []
        self.selector = GatheringSelector(clock=lambda: self.now_s, sleep=self._sleep)
        self._ends = os.pipe()
        self.selector.register(self._ends[0], selectors.EVENT_READ)
        os.write(self._ends[1], b"x")

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds

    def refuse(self, per_s: float, seconds: float) -> None:
        for _ in range(round(per_s * seconds)):
            self.now_s += 1 / per_s
            self.selector.refused()

    def select(self, timeout: float | None) -> list[float]:
        """What was slept before what can be read was found."""
        self.slept.clear()
        assert len(self.selector.select(timeout)) == 1
        return list(self.slept)

    def close(self) -> None:
        self.selector.close()
        for end in self._ends:
            os.close(end)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


@pytest.mark.parametrize(("timeout", "slept"), [(None, [GATHER_S]), (1.0, [GATHER_S]), (GATHER_S / 4, [GATHER_S / 4])])
def test_under_many_refusals_a_loop_with_nothing_to_do_looks_later(
    bench: Bench, timeout: float | None, slept: list[float]
) -> None:
    bench.refuse(3 * MANY_PER_S, 1.0)
    assert bench.select(timeout) == slept


def test_a_loop_with_something_to_do_looks_at_once(bench: Bench) -> None:
    bench.refuse(3 * MANY_PER_S, 1.0)
    assert bench.select(0) == []


@pytest.mark.parametrize("per_s", [0.0, MANY_PER_S / 2])
def test_few_refusals_let_nobody_wait(bench: Bench, per_s: float) -> None:
    bench.refuse(per_s, 5.0)
    assert bench.select(None) == []


def test_a_burst_is_no_flood(bench: Bench) -> None:
    for _ in range(5):
        bench.selector.refused()
    assert bench.select(None) == []


def test_gathering_ends_with_the_flood(bench: Bench) -> None:
    bench.refuse(10 * MANY_PER_S, 1.0)
    assert bench.select(None) == [GATHER_S]
    bench.now_s += 1.0
    assert bench.select(None) == []


def test_timers_and_other_threads_are_served_by_such_a_loop() -> None:
    async def main() -> float:
        loop, told = asyncio.get_running_loop(), asyncio.Event()
        for _ in range(100):
            selector.refused()
        await asyncio.to_thread(loop.call_soon_threadsafe, told.set)
        await told.wait()
        begun_s = loop.time()
        await asyncio.sleep(GATHER_S / 2)
        return loop.time() - begun_s

    selector = GatheringSelector()
    with asyncio.Runner(loop_factory=lambda: new_loop(selector)) as runner:
        assert runner.run(main()) >= GATHER_S / 2
