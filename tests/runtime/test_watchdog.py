"""A step that does not end: noticed, said to everybody, and no false alarm for one that only takes long."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.drivers.driver import Driver
from ortserve.runtime.drivers.watchdog import FACTOR, Steps, Watchdog
from ortserve.runtime.errors import EngineClosedError, EngineHungError
from ortserve.runtime.request import FinishReason
from tests.runtime.driving import Collector, Gate, greedy
from tests.runtime.synthetic import SyntheticModel
from tests.waiting import PATIENCE_S

LIMIT_S = 0.08


class Bark:
    """Keeps what a watchdog has said."""

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self.heard: Future[float] = Future()
        self.dog = Watchdog(limit_s, self.heard.set_result)


def driver_of(model: SyntheticModel) -> Driver:
    plan = model.plan(EngineConfig(max_rows=2, max_waiting=8, max_context=256))
    return Driver(model.engine(plan), model.manifest, plan, step_limit_s=LIMIT_S)


def test_a_step_that_does_not_end_is_noticed_once() -> None:
    bark = Bark()
    bark.dog.begin()
    assert bark.heard.result(PATIENCE_S) > LIMIT_S


def test_neither_idleness_nor_many_short_steps_are_a_failure() -> None:
    """By a clock of the test's own: on a busy machine a short step may take long."""
    now = 0.0
    steps = Steps(0.08, clock=lambda: now)
    for _ in range(100):
        steps.begin()
        now += 0.01
        assert steps.hung_s() is None
        steps.end()
    for _ in range(100):
        now += 0.01
        assert steps.hung_s() is None
    steps.begin()
    heard = []
    for _ in range(20):
        now += 0.01
        heard.append(steps.hung_s())
    # The first look sees that it runs; its limit is a tenth of a second, ten times the longest one so far.
    assert heard[:11] == [None] * 11
    assert heard[11] == pytest.approx(0.11)


def test_the_limit_grows_with_the_longest_step_there_was() -> None:
    bark = Bark(10.0)
    assert bark.dog.steps.limit_s == 10.0
    bark.dog.steps.longest_s = 7.0  # as the end of a step would note it
    assert bark.dog.steps.limit_s == FACTOR * 7.0
    bark.dog.close()


def test_a_hung_engine_says_so_to_all_and_takes_nothing_more(synthetic: SyntheticModel) -> None:
    driver, collector = driver_of(synthetic), Collector()
    gate = Gate(driver)
    with driver._changed:  # no step begins before all are there
        for number in range(4):  # two would run, two wait
            driver.submit(greedy(f"r{number}", number), collector)
    gate.wait_until_held()
    asked = driver.cache_entries()
    for number in range(4):
        (last,) = collector.wait_for(f"r{number}")
        assert (last.finish, last.is_lost) == (FinishReason.ERROR, True)
        assert "a step has not ended for" in (last.error or "")
    with pytest.raises(EngineHungError, match="a step has not ended"):
        driver.ended.result(PATIENCE_S)
    with pytest.raises(EngineClosedError, match="a step has not ended"):
        asked.result(PATIENCE_S)
    with pytest.raises(EngineClosedError, match="a step has not ended"):
        driver.submit(greedy("late", 1), collector)
    assert (driver.healthy, driver.has_failed) == (False, True)
    closing = threading.Thread(target=driver.close, kwargs={"drain_s": 10 * PATIENCE_S})
    closing.start()
    closing.join(PATIENCE_S)
    assert not closing.is_alive(), "it waits for what does not come"
    gate.open()  # the step ends after all: its deltas are nobody's, and the thread lets go of its engine
    driver._thread.join(PATIENCE_S)
    assert not driver._thread.is_alive()
    assert len(collector.calls) == 1
    assert not hasattr(driver, "_engine")


def test_a_step_that_takes_its_time_is_left_alone(synthetic: SyntheticModel) -> None:
    driver, collector = driver_of(synthetic), Collector()
    driver._watchdog.steps.longest_s = PATIENCE_S  # one before took as long
    gate = Gate(driver)
    driver.submit(greedy("slow", 3), collector)
    gate.wait_until_held()
    threading.Event().wait(2 * LIMIT_S)
    gate.open()
    assert collector.wait_for("slow")[-1].finish is FinishReason.LENGTH
    driver.close()
    assert driver.ended.exception() is None


def test_one_that_follows_another_has_a_limit_of_its_own() -> None:
    now = 0.0
    steps = Steps(0.085, clock=lambda: now)
    steps.begin()
    for _ in range(100):
        now += 0.01
        steps.renew()
        assert steps.hung_s() is None
    assert steps.limit_s == 0.085  # nothing is learnt from how long they have taken
    heard = []
    for _ in range(10):
        now += 0.01
        heard.append(steps.hung_s())
    assert heard[:8] == [None] * 8
    assert heard[8] == pytest.approx(0.09)
