"""What may wait, and for how long it is said to: by formula, and against an engine whose time is a formula too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import msgspec
import pytest

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.errors import OverloadedError, WaitTooLongError
from ortserve.runtime.request import Delta, Request, SamplingParams, Usage
from ortserve.runtime.scheduling.backlog import UNKNOWN_S, Backlog, Progress, RunningState
from ortserve.runtime.scheduling.fair_order import FairOrder
from ortserve.runtime.scheduling.pace import Costs
from ortserve.runtime.step import Step
from tests.runtime.synthetic import Clock, SyntheticModel

COSTS = Costs(prompt_s=0.001, output_s=0.01)
USAGE = Usage(10, 0, 0, 4, 0, 0, 0, 0.0, 0.0, 0.0)


def request(
    name: str, *, length: int = 10, max_tokens: int | None = 20, tenant: bytes = b"a", **fields: object
) -> Request:
    made = Request(name, (1,) * length, SamplingParams(max_tokens=max_tokens), tenant=tenant)
    return replace(made, **fields)  # type: ignore[arg-type]


def backlog(model: SyntheticModel, *, rows: int = 2, waiting: int = 10, tokens: int = 10**6) -> Backlog:
    config = EngineConfig(max_rows=rows, max_waiting=waiting, max_waiting_tokens=tokens, max_context=256)
    return Backlog(model.plan(config))


def running(states: Mapping[str, tuple[int, int]], **fields: object) -> Progress:
    found = {name: RunningState(*state) for name, state in states.items()}
    return replace(Progress(found, costs=COSTS), **fields)  # type: ignore[arg-type]


def test_requests_are_bounded_beyond_the_rows_and_leave_room_when_they_end(synthetic: SyntheticModel) -> None:
    queue = backlog(synthetic, rows=2, waiting=1)
    for number in range(3):
        queue.add(request(f"{number}"), 0.0)
    with pytest.raises(OverloadedError, match="1 requests are waiting, which is the limit") as refused:
        queue.add(request("late"), 0.0)
    assert refused.value.limit == ("requests", 1)
    assert refused.value.retry_after_s == UNKNOWN_S  # nothing has been measured
    with pytest.raises(OverloadedError):
        queue.check_room(0.0)
    queue.remove("1", None)
    queue.add(request("late"), 0.0)
    assert queue.stats(0.0).num_requests == 1


def test_tokens_are_bounded_except_of_one_that_waits_alone(synthetic: SyntheticModel) -> None:
    queue = backlog(synthetic, rows=1, tokens=100)
    queue.add(request("running", length=90), 0.0)  # a row is free for it
    queue.advance(running({"running": (1, 0)}))
    queue.add(request("long", length=120), 0.0)
    assert queue.stats(0.0).num_tokens == 120
    with pytest.raises(OverloadedError, match="prompts of 120 tokens are waiting, and the limit is 100") as refused:
        queue.add(request("short", length=1), 0.0)
    assert refused.value.limit == ("tokens", 100)
    queue.remove("long", None)
    for choice in range(3):  # which have one prompt, computed once
        queue.add(request(f"choice{choice}", length=60, group="call", choice=choice), 0.0)
    queue.add(request("fits", length=40), 0.0)
    with pytest.raises(OverloadedError):
        queue.add(request("too many", length=1), 0.0)


def test_an_estimate_is_the_time_until_a_row_is_free(synthetic: SyntheticModel) -> None:
    queue = backlog(synthetic, rows=2)
    for name in ("decoding", "reading", "next"):
        queue.add(request(name), 0.0)
    assert queue.wait_s(0.0, request("new")) == 0.0  # nothing is measured yet
    # Both rows share the engine: everything takes twice its cost. 12 tokens are left of one, all of the other.
    queue.advance(running({"decoding": (1, 8), "reading": (10, 0)}))
    first = 2 * (0.001 + 12 * 0.01)
    second = 2 * (10 * 0.001 + 20 * 0.01)
    assert queue.wait_s(1.0, request("new")) == pytest.approx(second)  # "next" has the row that is free first
    queue.remove("next", None)
    assert queue.wait_s(2.0, request("new")) == pytest.approx(first)
    queue.advance(running({"decoding": (1, 8)}))
    assert queue.wait_s(3.0, request("new")) == pytest.approx(first)  # "reading" waits for the free row
    queue.remove("reading", None)
    assert queue.wait_s(4.0, request("new")) == 0.0


def test_the_estimate_learns_how_long_replies_are_and_how_much_is_cached(synthetic: SyntheticModel) -> None:
    queue = backlog(synthetic, rows=1)
    queue.add(request("short", max_tokens=200), 0.0)
    queue.remove("short", USAGE)
    queue.advance(running({}))
    queue.add(request("a", max_tokens=200), 0.0)
    assert queue.wait_s(0.0, request("b")) == pytest.approx(10 * 0.001 + 4 * 0.01)
    for number in range(200):
        queue.add(request(f"{number}", max_tokens=200), 0.0)
        queue.remove(f"{number}", msgspec.structs.replace(USAGE, num_cached_tokens=10, num_output_tokens=50))
    assert queue.wait_s(1.0, request("b")) == pytest.approx(50 * 0.01, rel=0.02)
    queue.advance(running({"a": (1, 60)}))  # more than others: half as much again
    assert queue.wait_s(2.0, request("b")) == pytest.approx(0.001 + 25 * 0.01, rel=0.02)


def test_a_flood_of_others_is_not_waited_for(synthetic: SyntheticModel) -> None:
    queue, fair = backlog(synthetic, rows=1, waiting=1000), FairOrder()
    names = [f"{number}" for number in range(101)]
    for name in names:
        queue.add(request(name, tenant=b"flood"), 0.0)
    fair.arrange([], [], 0.0)
    queue.advance(running({"0": (10, 0)}, fair=fair))
    each = 10 * 0.001 + 20 * 0.01
    assert queue.wait_s(1.0, request("own", tenant=b"flood")) == pytest.approx(101 * each)
    assert queue.wait_s(1.0, request("other", tenant=b"quiet")) <= 2 * each
    assert queue.wait_s(1.0, request("urgent", tenant=b"flood", priority=1)) == pytest.approx(each)
    assert queue.stats(1.0).wait_s == pytest.approx(101 * each)
    wide = backlog(synthetic, rows=2, waiting=1000)
    for name in names:
        wide.add(request(name, tenant=b"flood"), 0.0)
    wide.advance(running({"0": (10, 0), "1": (10, 0)}))
    assert wide.wait_s(1.0, request("other", tenant=b"quiet")) == 0.0  # a row is spared for it


def test_who_would_wait_too_long_is_refused_and_told_when_to_return(synthetic: SyntheticModel) -> None:
    queue = backlog(synthetic, rows=1)
    for number in range(3):
        queue.add(request(f"{number}"), 0.0)
    queue.advance(running({"0": (10, 0)}))
    each = 10 * 0.001 + 20 * 0.01
    queue.add(request("patient", max_wait_s=3 * each + 0.01), 1.0)
    with pytest.raises(WaitTooLongError, match=r"would wait about 0\.8 s for its turn and may wait 0\.5 s") as refused:
        queue.add(request("hasty", max_wait_s=0.5), 2.0)
    assert refused.value.retry_after_s == pytest.approx(4 * each - 0.5)
    queue.add(request("urgent", max_wait_s=0.5, priority=1), 3.0)


def test_a_refusal_says_when_enough_has_left_the_queue(synthetic: SyntheticModel) -> None:
    queue = backlog(synthetic, rows=1, waiting=3, tokens=45)
    for number in range(4):
        queue.add(request(f"{number}"), 0.0)
    queue.advance(running({"0": (10, 0)}))
    each = 10 * 0.001 + 20 * 0.01
    with pytest.raises(OverloadedError) as full:
        queue.add(request("late"), 1.0)
    assert full.value.retry_after_s == pytest.approx(each)
    queue.remove("3", None)
    with pytest.raises(OverloadedError) as long:
        queue.add(request("long", length=40), 2.0)  # 20 wait: 15 of them, which is two, must go
    assert long.value.retry_after_s == pytest.approx(2 * each)
    empty = backlog(synthetic, rows=1, waiting=0)
    empty.add(request("running"), 0.0)
    empty.advance(running({"running": (10, 0)}))
    with pytest.raises(OverloadedError) as none:
        empty.add(request("late"), 1.0)
    assert none.value.retry_after_s == pytest.approx(each)


@pytest.mark.parametrize("lengths", [(24,), (8, 60)])
def test_estimates_come_true_in_an_engine_whose_time_is_a_formula(
    synthetic: SyntheticModel, lengths: tuple[int, ...]
) -> None:
    """Of what comes while 60 others wait, each is told its wait, and gets its row within a fifth of that."""
    clock = Clock()
    plan = synthetic.plan(EngineConfig(max_rows=4, max_context=256))
    engine, queue = synthetic.engine(plan, clock), Backlog(plan)
    run = engine._runner.run

    def timed(step: Step) -> object:
        clock.now += 0.004 + 0.0005 * step.num_tokens + 1e-7 * step.num_attended
        return run(step)

    engine._runner.run = timed  # type: ignore[method-assign]
    submitted: dict[str, float] = {}
    told: dict[str, float] = {}
    waited: dict[str, float] = {}

    def submit(number: int) -> None:
        sampling = SamplingParams(temperature=0, max_tokens=lengths[number % len(lengths)], ignore_eos=True)
        one = Request(f"{number}", tuple((7 * number + place) % 90 + 1 for place in range(40)), sampling)
        told[one.id] = queue.wait_s(clock.now, one)
        queue.add(one, clock.now)
        engine.add(one)
        submitted[one.id] = clock.now

    def take(deltas: list[Delta]) -> None:
        queue.advance(engine.progress())
        for delta in deltas:
            if delta.finish is not None:
                queue.remove(delta.request_id, delta.usage)
                assert delta.usage is not None
                waited[delta.request_id] = delta.usage.queue_s

    for number in range(60):
        submit(number)
        take(engine.step())
    while engine.has_work:
        if len(told) < 100 and engine.stats().num_steps % 8 == 0:
            submit(len(told))
        take(engine.step())
    late = [f"{number}" for number in range(40, 100)]
    assert max(waited[name] for name in late) > 1.0
    for name in late:
        assert told[name] == pytest.approx(waited[name], rel=0.2, abs=0.1), name
