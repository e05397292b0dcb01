"""The engine's thread: many callers at once, overload, closing, a crash, and rest when there is nothing to do."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ortserve.runtime.drivers.driver import Driver
from ortserve.runtime.errors import ContextLengthError, OverloadedError, RequestError
from ortserve.runtime.request import FinishReason, Request, SamplingParams
from ortserve.runtime.scheduling.pace import Costs
from tests.runtime.driving import ENDLESS, Collector, Gate, driving, greedy, prompt_of, tokens_of
from tests.runtime.synthetic import SyntheticModel, greedy_tokens, whole
from tests.waiting import PATIENCE_S, wait_for


def test_many_threads_submit_and_cancel_at_random_and_every_reply_is_its_own(synthetic: SyntheticModel) -> None:
    failures: list[BaseException] = []

    def use(driver: Driver, thread: int) -> None:
        dice = random.Random(thread)
        collector = Collector()
        try:
            for number in range(12):
                request = greedy(f"{thread}-{number}", 100 * thread + number, dice.choice([1, 5, 60]))
                driver.submit(request, collector)
                fate = dice.choice(["read", "read", "cancel at once", "cancel later", "leave"])
                if fate == "cancel later":
                    collector.wait_for(request.id, num_deltas=2)
                if fate.startswith("cancel"):
                    driver.cancel(request.id)
                if fate == "leave":
                    continue
                deltas = collector.wait_for(request.id)
                expected = greedy_tokens(request.prompt, request.sampling)
                if deltas[-1].finish is FinishReason.CANCELLED:
                    assert fate != "read"
                    assert tokens_of(deltas) == expected[: len(tokens_of(deltas))]
                else:
                    assert tokens_of(deltas) == expected
                    assert whole(deltas).usage.num_prompt_tokens == len(request.prompt)
            for number in range(12):
                assert collector.wait_for(f"{thread}-{number}")[-1].finish is not None
        except BaseException as error:
            failures.append(error)

    with driving(synthetic, max_rows=5) as driver:
        threads = [threading.Thread(target=use, args=(driver, number)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert failures == []
        assert driver.stats().num_finished == 8 * 12
        assert (driver.stats().num_running, driver.stats().num_waiting) == (0, 0)


def test_all_deltas_of_a_step_arrive_in_one_call_per_outlet(synthetic: SyntheticModel) -> None:
    shared, single = Collector(), Collector()
    with driving(synthetic) as driver:
        gate = Gate(driver)
        driver.submit(Request("first", (1,), replace(ENDLESS, max_tokens=10)), single)
        gate.wait_until_held()
        for number in range(3):
            driver.submit(Request(f"r{number}", prompt_of(3)[:4], replace(ENDLESS, max_tokens=10)), shared)
        gate.open()
        for number in range(3):
            shared.wait_for(f"r{number}")
        single.wait_for("first")
    assert [len(call) for call in single.calls] == [1] * 10
    assert [len(call) for call in shared.calls] == [3] * 10


def test_what_can_never_run_is_refused_in_the_callers_thread(synthetic: SyntheticModel) -> None:
    collector = Collector()
    with driving(synthetic) as driver:
        with pytest.raises(ContextLengthError):
            driver.submit(Request("long", (1,) * driver.max_context), collector)
        with pytest.raises(RequestError, match="no tokens"):
            driver.submit(Request("empty", ()), collector)
        driver.submit(greedy("good", 1), collector)
        collector.wait_for("good")
    assert {delta.request_id for call in collector.calls for delta in call} == {"good"}


def test_an_id_in_use_is_refused_and_its_holder_goes_on(synthetic: SyntheticModel) -> None:
    first, second = Collector(), Collector()
    request = greedy("same", 5)
    with driving(synthetic) as driver:
        gate = Gate(driver)
        driver.submit(request, first)
        gate.wait_until_held()
        with pytest.raises(RequestError, match="request id 'same' is in use") as error:
            driver.submit(greedy("same", 6), second)
        assert error.value.parameter == "id"
        gate.open()
        assert tokens_of(first.wait_for("same")) == greedy_tokens(request.prompt, request.sampling)
        driver.submit(greedy("same", 6), second)  # free again
        assert tokens_of(second.wait_for("same")) == greedy_tokens(prompt_of(6), request.sampling)


def test_a_full_queue_refuses_with_an_estimate_and_takes_more_later(synthetic: SyntheticModel) -> None:
    collector = Collector()
    with driving(synthetic, max_rows=2, max_waiting=3) as driver:
        gate = Gate(driver)
        for number in range(2 + 3):
            driver.submit(greedy(f"r{number}", number), collector)
        with pytest.raises(OverloadedError, match="3 requests are waiting, which is the limit") as error:
            driver.submit(greedy("late", 9), collector)
        assert error.value.retry_after_s == 1.0  # nothing has finished yet
        gate.open()
        for number in range(5):
            collector.wait_for(f"r{number}")
        driver.submit(greedy("late", 9), collector)
        assert tokens_of(collector.wait_for("late")) == greedy_tokens(prompt_of(9), greedy("", 9).sampling)


def test_the_estimate_follows_from_what_steps_have_taken_and_what_runs(synthetic: SyntheticModel) -> None:
    with driving(synthetic, max_rows=1, max_waiting=0) as driver:
        collector = Collector()
        costs = Costs(prompt_s=0.25, output_s=0.5)
        driver._engine._pace.costs = lambda num_rows, depth: costs  # type: ignore[method-assign]
        gate = Gate(driver, num_free=5)
        driver.submit(Request("running", (1,), replace(ENDLESS, max_tokens=200)), collector)
        gate.wait_until_held()
        num_output = len(tokens_of(collector.of("running")))
        assert num_output == 5
        with pytest.raises(OverloadedError) as error:
            driver.submit(greedy("late", 1), collector)
        assert error.value.retry_after_s == pytest.approx(0.25 + 0.5 * (200 - num_output))
        assert driver.queue_stats().num_requests == 0
        with pytest.raises(OverloadedError):
            driver.check_room()
        gate.open()


def test_cancelling_what_is_unknown_or_finished_does_nothing(synthetic: SyntheticModel) -> None:
    collector = Collector()
    with driving(synthetic) as driver:
        driver.cancel("unknown")
        driver.submit(greedy("r", 1), collector)
        deltas = collector.wait_for("r")
        driver.cancel("r")
        driver.submit(greedy("next", 2), collector)
        collector.wait_for("next")
        assert collector.of("r") == deltas


def test_a_request_cancelled_while_it_waits_never_runs(synthetic: SyntheticModel) -> None:
    collector = Collector()
    with driving(synthetic, max_rows=1) as driver:
        gate = Gate(driver)
        driver.submit(Request("running", (1,), ENDLESS), collector)
        driver.submit(greedy("waiting", 2), collector)
        driver.cancel("waiting")
        gate.open()
        (delta,) = collector.wait_for("waiting")
        assert (delta.finish, delta.token_ids) == (FinishReason.CANCELLED, ())
        assert delta.usage is not None
        assert delta.usage.num_output_tokens == 0


def test_a_driver_without_work_uses_no_processor(synthetic: SyntheticModel) -> None:
    collector = Collector()
    with driving(synthetic) as driver:
        driver.submit(greedy("r", 1), collector)
        collector.wait_for("r")
        thread = Path(f"/proc/self/task/{driver._thread.native_id}")

        def used() -> str:
            """Nanoseconds on a processor, and how often it was given one."""
            running, _, number = (thread / "schedstat").read_text().split()
            return f"{running} {number}"

        seen: list[str] = []

        def rests() -> bool:  # the row's memory goes back in a step of its own
            time.sleep(0.1)
            seen.append(used())
            return len(seen) > 2 and seen[-1] == seen[-2] == seen[-3]

        wait_for(rests)
        num_steps = driver.stats().num_steps
        time.sleep(1.0)
        assert used() == seen[-1]
        assert driver.stats().num_steps == num_steps


def test_a_seed_decides_a_reply_and_none_means_another_every_time(synthetic: SyntheticModel) -> None:
    collector = Collector()
    with driving(synthetic) as driver:
        for name, seed in (("a", 5), ("b", 5), ("c", None), ("d", None)):
            sampling = SamplingParams(seed=seed, max_tokens=30, ignore_eos=True)
            driver.submit(Request(name, (1, 2, 3), sampling), collector)
        replies = {name: tokens_of(collector.wait_for(name)) for name in "abcd"}
    assert replies["a"] == replies["b"]
    assert len({tuple(reply) for reply in replies.values()}) == 3


class Broken:
    """An outlet against its contract."""

    def deliver(self, deltas: object) -> None:
        raise ValueError("nobody reads here")


def test_an_outlet_that_raises_loses_its_own_requests_only(
    synthetic: SyntheticModel, capsys: pytest.CaptureFixture[str]
) -> None:
    with driving(synthetic) as driver:
        driver.submit(Request("broken", (1, 2, 3), ENDLESS), Broken())
        collector = Collector()
        request = greedy("kept", 5, 20)
        driver.submit(request, collector)
        assert tokens_of(collector.wait_for("kept")) == greedy_tokens(request.prompt, request.sampling)
        assert driver.healthy
