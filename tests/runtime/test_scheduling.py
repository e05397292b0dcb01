"""Who runs when; each way of giving way (swap, recompute, copy, abandon) really happens and changes no token."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.engine import Engine
from ortserve.runtime.plan import EnginePlan
from ortserve.runtime.request import Delta, FinishReason, Request, SamplingParams
from ortserve.runtime.scheduling.audit import audit
from ortserve.runtime.step import CopyRow, Move, Step, SwapIn, SwapOut
from tests.runtime.synthetic import Clock, SyntheticModel, greedy_tokens, run_to_end, whole

GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, num_logprobs=2)


def prompt(first: int, length: int) -> tuple[int, ...]:
    return tuple((first + place) % 100 for place in range(length))


def small_plan(
    model: SyntheticModel, *, rows: int, blocks: int, host: int, deterministic: bool = True, chunk: int = 128
) -> EnginePlan:
    config = EngineConfig(max_rows=rows, max_context=256, deterministic=deterministic, max_chunk_tokens=chunk)
    return replace(model.plan(config), num_blocks=blocks, num_host_blocks=host)


class Recorded:
    """An engine whose steps are kept."""

    def __init__(self, model: SyntheticModel, plan: EnginePlan) -> None:
        self.clock = Clock()
        self.plan = plan
        self.engine = model.engine(plan, self.clock)
        self.steps: list[Step] = []
        run = self.engine._runner.run

        def recording(step: Step) -> object:
            self.steps.append(step)
            return run(step)

        self.engine._runner.run = recording  # type: ignore[method-assign]

    def moves(self, kind: type[Move]) -> list[Move]:
        return [move for step in self.steps for move in step.moves if isinstance(move, kind)]

    def step(self) -> list[Delta]:
        deltas = self.engine.step()
        assert audit(self.engine.scheduler, self.plan) == []
        return deltas


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("host_blocks", [0, 1, 8])
def test_when_blocks_run_out_the_youngest_gives_way_and_its_reply_stays(
    synthetic: SyntheticModel, host_blocks: int, deterministic: bool
) -> None:
    plan = small_plan(synthetic, rows=3, blocks=3, host=host_blocks, deterministic=deterministic)
    recorded = Recorded(synthetic, plan)
    requests = [Request(f"r{place}", prompt(place, 120), GREEDY) for place in range(3)]
    replies = run_to_end(recorded.engine, requests)
    assert whole(replies["r1"]).usage.num_preemptions > 0
    assert whole(replies["r0"]).usage.num_preemptions == 0
    assert bool(recorded.moves(SwapOut)) == bool(recorded.moves(SwapIn)) == (host_blocks > 0)
    for request in requests:
        alone = run_to_end(synthetic.engine(replace(plan, num_rows=1, num_blocks=8)), [request])
        assert list(whole(replies[request.id]).token_ids) == greedy_tokens(request.prompt, GREEDY)
        if deterministic:
            assert whole(replies[request.id]).logprobs == whole(alone[request.id]).logprobs


def test_choices_of_one_call_compute_their_prompt_once(synthetic: SyntheticModel) -> None:
    plan = small_plan(synthetic, rows=4, blocks=16, host=0)
    recorded = Recorded(synthetic, plan)
    sampling = SamplingParams(seed=5, max_tokens=6, ignore_eos=True, num_logprobs=0)
    requests = [Request(f"r{choice}", prompt(3, 100), sampling, choice=choice, group="call") for choice in range(4)]
    replies = run_to_end(recorded.engine, requests)
    assert len(recorded.moves(CopyRow)) == 3
    assert [whole(replies[request.id]).usage.num_cached_tokens for request in requests] == [0, 98, 98, 98]
    assert len({whole(replies[request.id]).token_ids for request in requests}) > 1
    for request in requests:
        alone = run_to_end(synthetic.engine(plan), [replace(request, group=None)])
        assert whole(replies[request.id]).logprobs == whole(alone[request.id]).logprobs


def test_a_larger_priority_takes_the_row_of_a_smaller_one(synthetic: SyntheticModel) -> None:
    recorded = Recorded(synthetic, small_plan(synthetic, rows=1, blocks=8, host=8))
    low, high = Request("low", prompt(1, 50), GREEDY), Request("high", prompt(2, 20), GREEDY, priority=1)
    recorded.engine.add(low)
    deltas = [delta for _ in range(10) for delta in recorded.step()]
    recorded.engine.add(high)
    while recorded.engine.has_work:
        deltas += recorded.step()
    finished = [delta.request_id for delta in deltas if delta.finish is not None]
    assert finished == ["high", "low"]
    assert len(recorded.moves(SwapIn)) == 1
    for request in (low, high):
        own = [delta for delta in deltas if delta.request_id == request.id]
        assert list(whole(own).token_ids) == greedy_tokens(request.prompt, GREEDY)


def test_equal_priorities_never_displace_each_other(synthetic: SyntheticModel) -> None:
    recorded = Recorded(synthetic, small_plan(synthetic, rows=1, blocks=8, host=8))
    requests = [Request(f"r{place}", prompt(place, 10), GREEDY) for place in range(3)]
    for request in requests:
        recorded.engine.add(request)
    finished: list[str] = []
    while recorded.engine.has_work:
        recorded.clock.now += 100.0  # those who wait age beyond any priority
        finished += [delta.request_id for delta in recorded.step() if delta.finish is not None]
    assert finished == ["r0", "r1", "r2"]
    assert recorded.engine.stats().num_preemptions == 0


def test_who_has_waited_long_passes_larger_priorities_and_keeps_the_row(synthetic: SyntheticModel) -> None:
    recorded = Recorded(synthetic, small_plan(synthetic, rows=1, blocks=8, host=8))
    recorded.engine.add(Request("running", prompt(0, 10), replace(GREEDY, max_tokens=3), priority=1))
    recorded.step()
    recorded.engine.add(Request("low", prompt(1, 10), GREEDY))
    recorded.clock.now += 90.0
    finished: list[str] = []
    for number in range(3):
        recorded.engine.add(Request(f"high{number}", prompt(2, 10), replace(GREEDY, max_tokens=3), priority=1))
    while recorded.engine.has_work:
        finished += [delta.request_id for delta in recorded.step() if delta.finish is not None]
    assert finished == ["running", "low", "high0", "high1", "high2"]


def test_running_sequences_get_a_token_in_every_step_while_a_long_prompt_is_computed(
    synthetic: SyntheticModel,
) -> None:
    recorded = Recorded(synthetic, small_plan(synthetic, rows=4, blocks=16, host=0, deterministic=False, chunk=16))
    for place in range(3):
        recorded.engine.add(Request(f"r{place}", prompt(place, 5), GREEDY))
    recorded.step()
    recorded.engine.add(Request("long", prompt(9, 200), GREEDY))
    num_steps = 0
    deltas = recorded.step()
    while all(delta.request_id != "long" for delta in deltas):
        num_steps += 1
        assert {delta.request_id for delta in deltas} == {"r0", "r1", "r2"}
        assert recorded.steps[-1].num_tokens <= 16 + 3
        deltas = recorded.step()
    assert num_steps == 200 // 16


def test_a_step_without_room_for_all_logits_serves_whoever_waited_longest(synthetic: SyntheticModel) -> None:
    plan = replace(small_plan(synthetic, rows=5, blocks=16, host=0), max_logit_rows=2)
    recorded = Recorded(synthetic, plan)
    requests = [Request(f"r{place}", prompt(place, 5), GREEDY) for place in range(5)]
    replies = run_to_end(recorded.engine, requests)
    assert max(step.num_logits for step in recorded.steps) == 2
    for request in requests:
        assert list(whole(replies[request.id]).token_ids) == greedy_tokens(request.prompt, GREEDY)


def failing_once(engine: Engine, error: Exception) -> None:
    run = engine._runner.run

    def fail(step: Step) -> np.ndarray:
        engine._runner.run = run  # type: ignore[method-assign]
        raise error

    engine._runner.run = fail  # type: ignore[method-assign]


def test_a_step_that_fails_loses_its_own_requests_only(synthetic: SyntheticModel) -> None:
    engine = synthetic.engine(small_plan(synthetic, rows=2, blocks=8, host=0))
    requests = [Request(f"r{place}", prompt(place, 5), GREEDY) for place in range(4)]
    for request in requests:
        engine.add(request)
    deltas = engine.step()
    failing_once(engine, RuntimeError("Non-zero status code: out of memory\ndetails"))
    deltas += engine.step()
    while engine.has_work:
        deltas += engine.step()
    by_id = {request.id: [delta for delta in deltas if delta.request_id == request.id] for request in requests}
    for lost in ("r0", "r1"):
        assert by_id[lost][-1].finish is FinishReason.ERROR
        assert by_id[lost][-1].error == "Non-zero status code: out of memory"
    for kept in requests[2:]:
        assert list(whole(by_id[kept.id]).token_ids) == greedy_tokens(kept.prompt, GREEDY)
    assert engine.stats().num_failed_steps == 1


def test_logits_that_are_no_numbers_end_one_request(synthetic: SyntheticModel) -> None:
    engine = synthetic.engine(small_plan(synthetic, rows=2, blocks=8, host=0))
    run = engine._runner.run

    def poison(step: Step) -> object:
        logits = run(step)
        if step.number == 3:
            logits[0] = np.nan
        return logits

    engine._runner.run = poison  # type: ignore[method-assign]
    requests = [Request(f"r{place}", prompt(place, 5), GREEDY) for place in range(2)]
    replies = run_to_end(engine, requests)
    assert replies["r0"][-1].finish is FinishReason.ERROR
    assert "not finite" in (replies["r0"][-1].error or "")
    assert list(whole(replies["r1"]).token_ids) == greedy_tokens(requests[1].prompt, GREEDY)
