"""How a driver ends: closed, drained, or by a defect; nobody waits forever and nothing is kept."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest

from ortserve.runtime.drivers.driver import Driver
from ortserve.runtime.errors import EngineClosedError
from ortserve.runtime.grammar.constraint import Constraint
from ortserve.runtime.request import Delta, FinishReason, Request
from tests.runtime.driving import ENDLESS, Collector, Gate, driving, greedy, prompt_of, tokens_of
from tests.runtime.synthetic import SyntheticModel, greedy_tokens
from tests.waiting import PATIENCE_S, wait_for


@pytest.mark.parametrize("num_waiting", [0, 3])
def test_closing_cancels_whatever_is_unfinished_with_its_usage(synthetic: SyntheticModel, num_waiting: int) -> None:
    collector = Collector()
    with driving(synthetic, max_rows=1) as driver:
        driver.submit(Request("running", (1, 2), ENDLESS), collector)
        for number in range(num_waiting):
            driver.submit(greedy(f"r{number}", number), collector)
        collector.wait_for("running", num_deltas=3)
        driver.close()
        for name in ("running", *(f"r{number}" for number in range(num_waiting))):
            last = collector.of(name)[-1]
            assert last.finish is FinishReason.CANCELLED
            assert last.usage is not None
            assert last.usage.num_output_tokens == len(tokens_of(collector.of(name)))


def test_what_arrives_just_before_closing_is_answered_too(synthetic: SyntheticModel) -> None:
    collector = Collector()
    with driving(synthetic) as driver:
        gate = Gate(driver)
        driver.submit(Request("running", (1,), ENDLESS), collector)
        gate.wait_until_held()
        driver.submit(greedy("late", 1), collector)  # stays in the inbox until the thread looks again
        closing = threading.Thread(target=driver.close)
        closing.start()
        wait_for(lambda: not driver.healthy)
        gate.open()
        closing.join(PATIENCE_S)
        assert collector.of("late")[-1].finish is FinishReason.CANCELLED
        assert collector.of("late")[-1].usage is not None


def test_closing_with_a_drain_lets_requests_finish_and_takes_no_more(synthetic: SyntheticModel) -> None:
    collector = Collector()
    with driving(synthetic, max_rows=1) as driver:
        gate = Gate(driver)
        requests = [greedy(f"r{number}", number) for number in range(4)]
        for request in requests:
            driver.submit(request, collector)
        closing = threading.Thread(target=driver.close, kwargs={"drain_s": 10 * PATIENCE_S})
        closing.start()
        wait_for(lambda: not driver.healthy)
        with pytest.raises(EngineClosedError, match="shutting down"):
            driver.submit(greedy("late", 9), collector)
        gate.open()
        closing.join(PATIENCE_S)
        assert not closing.is_alive(), "it waits although all have finished"
        for request in requests:
            assert tokens_of(collector.of(request.id)) == greedy_tokens(request.prompt, request.sampling)
            assert collector.of(request.id)[-1].finish in (FinishReason.STOP, FinishReason.LENGTH)


def test_a_drain_that_takes_too_long_is_cut_short(synthetic: SyntheticModel, monkeypatch: pytest.MonkeyPatch) -> None:
    collector, now = Collector(), 100.0
    with driving(synthetic) as driver:
        step = driver._engine.step

        def slow() -> list[Delta]:
            nonlocal now
            now += 0.01
            return step()

        driver._engine.step = slow  # type: ignore[method-assign]
        gate = Gate(driver, num_free=3)
        driver.submit(Request("endless", (1,), ENDLESS), collector)
        gate.wait_until_held()
        monkeypatch.setattr("ortserve.runtime.drivers.driver.monotonic", lambda: now)
        closing = threading.Thread(target=driver.close, kwargs={"drain_s": 0.155})
        closing.start()
        wait_for(lambda: driver._drain_until is not None)
        gate.open()
        closing.join(PATIENCE_S)
        assert not closing.is_alive()
        assert collector.of("endless")[-1].finish is FinishReason.CANCELLED
        assert len(tokens_of(collector.of("endless"))) == 3 + 16  # steps until the time was over


def test_closing_twice_or_from_the_engines_own_thread_does_not_hang(synthetic: SyntheticModel) -> None:
    class Closing(Collector):
        def deliver(self, deltas: object) -> None:
            driver.close()

    with driving(synthetic) as driver:
        driver.submit(greedy("r", 1), Closing())
        driver._thread.join(PATIENCE_S)
        assert not driver._thread.is_alive()
        driver.close()
        with pytest.raises(EngineClosedError):
            driver.submit(greedy("late", 1), Collector())


@pytest.mark.parametrize("defect", [AssertionError("a law is broken"), KeyError("r1"), SystemExit()])
def test_when_the_engine_has_a_defect_nobody_waits_forever(synthetic: SyntheticModel, defect: BaseException) -> None:
    collector = Collector()
    with driving(synthetic, max_rows=2) as driver:
        gate = Gate(driver)
        for number in range(4):
            driver.submit(Request(f"r{number}", prompt_of(number), ENDLESS), collector)
        gate.wait_until_held()
        driver.submit(greedy("in the inbox", 7), collector)
        errand = driver.cache_entries()

        def plan(number: int, now_s: float, drafts: object = None) -> None:
            raise defect

        driver._engine.scheduler.plan = plan  # type: ignore[method-assign]
        gate.open()
        for name in ("r0", "r1", "r2", "r3", "in the inbox"):
            last = collector.wait_for(name)[-1]
            assert last.finish is FinishReason.ERROR
            assert last.error == f"the engine has failed ({type(defect).__name__})"
            assert last.is_lost
        with pytest.raises(EngineClosedError, match="the engine has failed"):
            driver.ended.result(PATIENCE_S)
        with pytest.raises(EngineClosedError, match="the engine has failed"):
            errand.result(PATIENCE_S)
        assert not driver.healthy
        assert driver.has_failed
        with pytest.raises(EngineClosedError, match="has failed"):
            driver.submit(greedy("late", 1), collector)


def test_a_driver_that_has_ended_keeps_nothing_of_what_it_computed_with(synthetic: SyntheticModel) -> None:
    with driving(synthetic) as driver:
        held: list[weakref.ref[Any]] = [weakref.ref(driver._engine), weakref.ref(driver._engine._runner)]
        run_one(driver)
        gc.collect()
        gc.disable()  # gigabytes must not wait for the collector
        try:
            driver.close()
            assert driver.ended.done()
            assert [one() for one in held] == [None, None]
        finally:
            gc.enable()
        with pytest.raises(EngineClosedError):
            driver.submit(greedy("late", 3), Collector())


def test_neither_does_one_whose_engine_has_failed(synthetic: SyntheticModel) -> None:
    def plan(number: int, now_s: float, drafts: object = None) -> None:
        raise AssertionError("a defect")

    with driving(synthetic) as driver:
        held: list[weakref.ref[Any]] = [weakref.ref(driver._engine), weakref.ref(driver._engine._runner)]
        driver._engine.scheduler.plan = plan  # type: ignore[method-assign]
        assert run_one(driver)[-1].is_lost
        driver.close()
        gc.collect()  # the log has looked into every frame
        assert [one() for one in held] == [None, None]


def run_one(driver: Driver) -> list[Delta]:
    collector = Collector()
    driver.submit(greedy("one", 1), collector)
    return collector.wait_for("one")


def test_a_defect_while_taking_requests_in_loses_none_of_them_silently(synthetic: SyntheticModel) -> None:
    collector = Collector()
    with driving(synthetic) as driver:
        gate = Gate(driver)
        driver.submit(Request("running", (1,), ENDLESS), collector)
        gate.wait_until_held()

        def add(request: Request, constraint: Constraint | None = None) -> None:
            raise AssertionError("a defect")

        driver._engine.add = add  # type: ignore[method-assign]
        for number in range(3):
            driver.submit(greedy(f"r{number}", number), collector)
        gate.open()
        for name in ("running", "r0", "r1", "r2"):
            assert collector.wait_for(name)[-1].finish is FinishReason.ERROR
