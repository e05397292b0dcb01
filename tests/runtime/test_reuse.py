"""What a prompt cache saves the engine, whom it never serves, and what its failures cost. Counts steps and tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from ortserve.plugins.api import (
    Breakpoint,
    CacheMode,
    CacheQuery,
    Hit,
    HitState,
    Part,
    PromptCache,
    Ticket,
)
from ortserve.plugins.none import NoCache
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.engine import Engine
from ortserve.runtime.plan import EnginePlan
from ortserve.runtime.request import CacheHints, Completion, FinishReason, Request, SamplingParams
from ortserve.runtime.scheduling.audit import audit
from ortserve.runtime.scheduling.cache_blocks import CacheBlocks
from ortserve.runtime.scheduling.reuse import new_reuse
from ortserve.runtime.step import Step, SwapIn
from tests.runtime.synthetic import SyntheticModel, greedy_tokens, run_to_end, whole

SAMPLING = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True, num_logprobs=2)
PREFIX = tuple(place * place % 100 for place in range(300))


def plan_of(model: SyntheticModel, *, deterministic: bool = True, rows: int = 4, host: int = 32) -> EnginePlan:
    plan = model.plan(EngineConfig(max_rows=rows, max_context=512, deterministic=deterministic))
    return replace(plan, num_host_blocks=host, cache_bytes=host * plan.bytes_per_block)


def one(engine: Engine, request: Request) -> Completion:
    return whole(run_to_end(engine, [request])[request.id])


def fed(engine: Engine) -> int:
    return engine.stats().num_fed_tokens


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_prefix_is_computed_once_and_the_reply_stays_the_same(synthetic: SyntheticModel, deterministic: bool) -> None:
    plan = plan_of(synthetic, deterministic=deterministic)
    engine, cold = synthetic.engine(plan, prompt_cache="prefix"), synthetic.engine(plan)
    first, second = Request("a", (*PREFIX, 1, 2, 3), SAMPLING), Request("b", (*PREFIX, 4, 5, 6), SAMPLING)
    one(engine, first)
    before = fed(engine)
    found, expected = one(engine, second), one(cold, second)
    assert found.usage.num_cached_tokens == len(PREFIX)
    assert fed(engine) - before < 30
    assert found.token_ids == expected.token_ids == tuple(greedy_tokens(second.prompt, SAMPLING))
    if deterministic:
        assert found.logprobs == expected.logprobs
    assert audit(engine.scheduler, plan) == []


def test_the_whole_prompt_again_computes_only_what_its_logits_need(synthetic: SyntheticModel) -> None:
    engine = synthetic.engine(plan_of(synthetic), prompt_cache="prefix")
    cold = one(engine, Request("a", PREFIX, SAMPLING))
    warm = one(engine, Request("b", PREFIX, SAMPLING))
    assert cold.usage.num_cached_tokens == 0
    assert cold.usage.num_cache_write_tokens == len(PREFIX)
    assert warm.usage.num_cached_tokens == len(PREFIX) - 2
    assert warm.logprobs == cold.logprobs


def test_requests_that_arrive_together_wait_for_the_first(synthetic: SyntheticModel) -> None:
    engine = synthetic.engine(plan_of(synthetic), prompt_cache="prefix")
    requests = [Request(f"r{place}", (*PREFIX, place, place + 1), SAMPLING) for place in range(4)]
    replies = run_to_end(engine, requests)
    assert fed(engine) < len(PREFIX) + 4 * (128 - len(PREFIX) % 128 + 2 * 10 + 64)
    assert [whole(replies[r.id]).usage.num_cached_tokens > 0 for r in requests] == [False, True, True, True]
    for request in requests:
        assert list(whole(replies[request.id]).token_ids) == greedy_tokens(request.prompt, SAMPLING)


def test_a_conversation_computes_its_new_tokens_only(synthetic: SyntheticModel) -> None:
    engine = synthetic.engine(plan_of(synthetic, deterministic=False), prompt_cache="prefix")
    conversation, num_new = PREFIX[:50], 50
    for turn in range(12):
        reply = one(engine, Request(f"turn{turn}", conversation, SAMPLING))
        assert list(reply.token_ids) == greedy_tokens(conversation, SAMPLING)
        conversation = (*conversation, *reply.token_ids, turn, turn + 1, turn + 2)
        num_new += len(reply.token_ids) + 3
    assert fed(engine) <= num_new


@pytest.mark.parametrize(
    "other",
    [
        CacheHints(salt=b"b"),
        CacheHints(salt=b""),
        CacheHints(salt=b"a", mode=CacheMode.OFF),
    ],
)
def test_who_may_not_share_runs_exactly_the_steps_of_a_cold_engine(
    synthetic: SyntheticModel, other: CacheHints
) -> None:
    plan = plan_of(synthetic)
    engine, cold = synthetic.engine(plan, prompt_cache="prefix"), synthetic.engine(plan, prompt_cache="prefix")
    one(engine, Request("owner", PREFIX, SAMPLING, cache=CacheHints(salt=b"a")))
    before = engine.stats()
    stranger = Request("stranger", PREFIX, SAMPLING, cache=other)
    found, expected = one(engine, stranger), one(cold, stranger)
    assert found.usage.num_cached_tokens == 0
    assert found.logprobs == expected.logprobs
    assert engine.stats().num_steps - before.num_steps == cold.stats().num_steps
    assert fed(engine) - before.num_fed_tokens == fed(cold)


def test_an_explicit_request_leaves_only_what_lies_before_its_breakpoint(synthetic: SyntheticModel) -> None:
    engine = synthetic.engine(plan_of(synthetic), prompt_cache="prefix")
    hints = CacheHints(mode=CacheMode.EXPLICIT, breakpoints=(Breakpoint(128, 60.0),))
    one(engine, Request("a", PREFIX, SAMPLING, cache=hints))
    assert one(engine, Request("b", PREFIX, SAMPLING)).usage.num_cached_tokens == 128


def test_the_cache_gives_way_to_preempted_sequences(synthetic: SyntheticModel) -> None:
    plan = replace(plan_of(synthetic, rows=3, host=6), num_blocks=3)
    engine = synthetic.engine(plan, prompt_cache="prefix")
    one(engine, Request("filler", PREFIX, SAMPLING))
    sampling = replace(SAMPLING, max_tokens=60)
    requests = [Request(f"r{place}", tuple((place + n) % 100 for n in range(120)), sampling) for place in range(3)]
    replies = run_to_end(engine, requests)
    assert engine.stats().num_preemptions > 0
    for request in requests:
        assert list(whole(replies[request.id]).token_ids) == greedy_tokens(request.prompt, sampling)
    assert audit(engine.scheduler, plan) == []


def test_who_follows_a_preempted_or_cancelled_request_goes_on_alone(synthetic: SyntheticModel) -> None:
    plan = plan_of(synthetic, rows=2)
    engine = synthetic.engine(plan, prompt_cache="prefix")
    leader, follower = Request("leader", PREFIX, SAMPLING), Request("follower", (*PREFIX, 1), SAMPLING)
    engine.add(leader)
    engine.add(follower)
    engine.step()
    assert engine.stats().num_running == 1
    engine.cancel("leader")
    deltas = []
    while engine.has_work:
        deltas += engine.step()
    assert list(whole(deltas).token_ids) == greedy_tokens(follower.prompt, SAMPLING)
    assert audit(engine.scheduler, plan) == []


class Failing:
    """Keeps all blocks and finds nothing, until the call named `when` raises."""

    def __init__(self, when: str) -> None:
        self._when = when
        self._kept: list[int] = []
        self._inner = NoCache()

    def publish(self, ticket: Ticket, part: Part) -> tuple[int, ...]:
        if self._when == "publish" and self._kept:
            raise RuntimeError("the second part is one too many")
        self._kept += part.blocks
        return ()

    def held(self) -> list[int]:
        return self._kept

    def __getattr__(self, name: str) -> Any:
        def fail(*arguments: object) -> None:
            raise RuntimeError("the disk of the plugin's author is full")

        return fail if name == self._when else getattr(self._inner, name)


class Lying(NoCache):
    """Finds what it does not have."""

    def __init__(self, hit: Hit) -> None:
        super().__init__()
        self._hit = hit

    def lookup(self, query: CacheQuery) -> Hit:
        return self._hit


@pytest.mark.parametrize(
    "hit",
    [
        Hit(1, HitState.READY, (0, 1, 2), 301),
        Hit(1, HitState.READY, (0,), 200),
        Hit(1, HitState.READY, (0,), 100),
        Hit(1, HitState.READY, (), -1),
    ],
)
def test_a_cache_that_finds_what_it_cannot_have_is_not_believed(
    synthetic: SyntheticModel, hit: Hit, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(synthetic)
    lying = Lying(hit)
    reuse = new_reuse(plan, lambda blocks: lying)
    engine = Engine(synthetic.manifest, plan, synthetic.engine(plan)._runner, synthetic.sampler, reuse=reuse)
    reply = one(engine, Request("r", PREFIX, SAMPLING))
    assert list(reply.token_ids) == greedy_tokens(PREFIX, SAMPLING)
    assert type(engine.reuse.cache) is NoCache


@pytest.mark.parametrize("when", ["lookup", "announce", "publish", "finish"])
def test_a_cache_that_raises_costs_nothing_but_itself(
    synthetic: SyntheticModel, when: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(synthetic)
    engine = synthetic.engine(plan)
    reuse = new_reuse(plan, lambda blocks: cast(PromptCache, Failing(when)))
    engine = Engine(synthetic.manifest, plan, engine._runner, synthetic.sampler, reuse=reuse)
    requests = [Request(f"r{place}", (*PREFIX, place), SAMPLING) for place in range(6)]
    replies = run_to_end(engine, requests)
    for request in requests:
        reply = whole(replies[request.id])
        assert reply.finish is FinishReason.LENGTH
        assert list(reply.token_ids) == greedy_tokens(request.prompt, SAMPLING)
    assert type(engine.reuse.cache) is NoCache
    assert engine.reuse.pool.num_free == plan.num_host_blocks
    assert audit(engine.scheduler, plan) == []


def test_a_reply_cut_by_its_reader_is_kept_for_the_next_turn(synthetic: SyntheticModel) -> None:
    engine = synthetic.engine(plan_of(synthetic, deterministic=False), prompt_cache="prefix")
    engine.add(Request("cut", PREFIX[:60], SAMPLING))
    tokens: list[int] = []
    while len(tokens) < 5:
        tokens += [token for delta in engine.step() for token in delta.token_ids]
    engine.cancel("cut")
    while engine.has_work:
        engine.step()
    following = Request("next", (*PREFIX[:60], *tokens, 1, 2), SAMPLING)
    assert one(engine, following).usage.num_cached_tokens == 60 + len(tokens) - 1


def test_choices_do_not_save_their_prompt_again(synthetic: SyntheticModel) -> None:
    plan = plan_of(synthetic)
    engine = synthetic.engine(plan, prompt_cache="prefix")
    requests = [Request(f"c{n}", PREFIX, replace(SAMPLING, seed=n), choice=n, group="call") for n in range(4)]
    run_to_end(engine, requests)
    stats = engine.reuse.stats()
    assert stats.num_published_blocks + stats.num_refused_blocks <= 3 + 4  # the prompt once, and a tail of each


def test_blocks_that_a_step_still_reads_are_not_handed_to_the_cache(synthetic: SyntheticModel) -> None:
    """A thread of the cache writes what it takes at once; a restored sequence is read when the step runs."""
    plan = replace(plan_of(synthetic, rows=1, host=4), num_blocks=8)
    engine = synthetic.engine(plan)
    taken: list[tuple[int, ...]] = []

    class Greedy(Failing):
        def __init__(self, blocks: CacheBlocks) -> None:
            super().__init__("never")
            self._blocks = blocks

        def poll(self) -> tuple[()]:
            taken.append(tuple(self._blocks.take(100)))
            self._blocks.give_back(taken[-1])
            return ()

    reuse = new_reuse(plan, lambda blocks: cast(PromptCache, Greedy(blocks)))
    engine = Engine(synthetic.manifest, plan, engine._runner, synthetic.sampler, reuse=reuse)
    run = engine._runner.run
    read: list[set[int]] = []

    def recording(step: Step) -> Any:
        free = set(range(plan.num_host_blocks)) - set(reuse.held())
        for move in step.moves:
            if isinstance(move, SwapIn):
                read.append(set(move.host_blocks) & free)
        return run(step)

    engine._runner.run = recording  # type: ignore[method-assign]
    engine.add(Request("low", PREFIX[:60], SAMPLING))
    engine.step()
    engine.add(Request("high", PREFIX[:20], SAMPLING, priority=1))
    while engine.has_work:
        engine.step()
    assert read == [set()]
    assert engine.reuse.pool.num_free == plan.num_host_blocks - len(list(reuse.held()))
