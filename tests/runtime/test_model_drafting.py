"""A small model that guesses for an engine: it is right whatever happens to the requests, and changes no reply.

The small model is the synthetic model again, so every guess of a row that has read the right tokens is right: a guess
that is rejected shows a row that was not kept in step with its request.
"""

from __future__ import annotations

from dataclasses import replace
from threading import Lock

import pytest

from ortserve.plugins.draft_model import ModelDrafter
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.engine import Engine
from ortserve.runtime.opening import open_drafter
from ortserve.runtime.plan import EnginePlan
from ortserve.runtime.request import Request, SamplingParams
from ortserve.runtime.scheduling.audit import audit
from ortserve.runtime.session import Session
from ortserve.runtime.slots.kv import SlotKvStore
from ortserve.runtime.speculation.adaptation import DraftCost
from ortserve.runtime.speculation.small_model import DraftModel, LoadedDraft
from tests.runtime.synthetic import SyntheticModel, block_tokens, run_to_end, whole
from tests.runtime.test_equalities import REGIME, with_regimes
from tests.waiting import PATIENCE_S

GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, num_logprobs=1)
SAMPLED = replace(GREEDY, temperature=1.0, seed=3)
RULED = replace(SAMPLED, repetition_penalty=1.2, presence_penalty=0.5, logit_bias=((7, 2.0),), min_tokens=5, top_k=20)


class Free(DraftCost):
    """Guesses cost nothing."""

    def observe(self, longest: int, milliseconds: float) -> None:
        pass


def plan_of(synthetic: SyntheticModel, *, rows: int = 4) -> EnginePlan:
    plan = synthetic.plan(EngineConfig(max_rows=rows, max_context=384, deterministic=True))
    return replace(plan, num_host_blocks=16, cache_bytes=16 * plan.bytes_per_block)


def drafted(
    synthetic: SyntheticModel, plan: EnginePlan, *, draft_context: int = 512, prompt_cache: str = "none"
) -> Engine:
    """As it is composed for a server, with a patient engine whose clock stands still."""
    engine = synthetic.engine(plan, prompt_cache=prompt_cache)
    session = Session(synthetic.folder / synthetic.manifest.graph, num_threads=1, turn=Lock())
    store = SlotKvStore(synthetic.manifest.kv, num_rows=1, capacity=block_tokens(synthetic), num_host_blocks=0)
    loaded = LoadedDraft(replace(synthetic.manifest, max_context=draft_context), session, 1)
    config = EngineConfig(drafter="model")
    engine.drafting = open_drafter(synthetic.manifest, plan, config, store, loaded, folder=synthetic.folder)
    assert engine.drafting is not None
    engine.drafting._shortest_wait_s = PATIENCE_S
    # Steps take no time by the engine's clock: guesses must not seem dear beside them.
    engine.drafting.cost = Free()
    return engine


def check(synthetic: SyntheticModel, engine: Engine, plan: EnginePlan, requests: list[Request]) -> tuple[int, int]:
    """Replies are the plain ones, bit for bit; guesses accepted and rejected in all."""
    found = {name: whole(deltas) for name, deltas in run_to_end(engine, requests).items()}
    plain = run_to_end(synthetic.engine(plan), requests)
    for request in requests:
        reply, expected = found[request.id], whole(plain[request.id])
        assert (reply.token_ids, reply.logprobs) == (expected.token_ids, expected.logprobs)
    assert engine.drafting is not None
    assert engine.drafting.is_on
    assert engine.drafting.stats.num_missed_deadlines == 0
    assert audit(engine.scheduler, plan) == []
    usages = [reply.usage for reply in found.values()]
    return sum(usage.num_accepted_tokens for usage in usages), sum(usage.num_rejected_tokens for usage in usages)


def prompt(length: int, first: int) -> tuple[int, ...]:
    return tuple((first + 7 * place) % 100 for place in range(length))


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, RULED], ids=["greedy", "sampled", "rules"])
@pytest.mark.parametrize("prompt_cache", ["none", "prefix"])
def test_every_guess_of_mixed_rows_holds(
    synthetic: SyntheticModel, sampling: SamplingParams, prompt_cache: str
) -> None:
    plan = plan_of(synthetic)
    engine = drafted(synthetic, plan, prompt_cache=prompt_cache)
    # More requests than rows, short and long, and prompts that the cache has when their turn comes.
    requests = [Request(f"r{place}", prompt(size, size), sampling) for place, size in enumerate((2, 30, 200, 30, 126))]
    accepted, rejected = check(synthetic, engine, plan, requests)
    again = [replace(request, id=f"again {request.id}") for request in requests]
    more, worse = check(synthetic, engine, plan, again)
    assert accepted > 100
    assert more > 100
    assert rejected == worse == 0
    engine.close()


def test_guesses_rotate_as_the_requests_do(synthetic: SyntheticModel) -> None:
    """On both sides of a rotary regime's end, and exactly at it: a guess of another regime would be wrong."""
    model = with_regimes(synthetic)
    plan = plan_of(model)
    engine = drafted(model, plan)
    sizes = (REGIME - 40, REGIME - 39, 30, 200, REGIME - 41)
    requests = [Request(f"r{place}", prompt(size, size), GREEDY) for place, size in enumerate(sizes)]
    requests.append(Request("open", prompt(50, 1), replace(GREEDY, max_tokens=None)))  # ends with its regime
    accepted, rejected = check(model, engine, plan, requests)
    assert accepted > 100
    assert rejected == 0
    engine.close()


def test_choices_are_guessed_for_each(synthetic: SyntheticModel) -> None:
    plan = plan_of(synthetic)
    engine = drafted(synthetic, plan)
    requests = [Request(f"c{n}", (5, 6, 7, 8), SAMPLED, choice=n, group="call") for n in range(4)]
    accepted, rejected = check(synthetic, engine, plan, requests)
    assert accepted > 100
    assert rejected == 0
    engine.close()


def test_preempted_requests_are_guessed_for_again(synthetic: SyntheticModel) -> None:
    plan = replace(plan_of(synthetic, rows=3), num_blocks=3)
    engine = drafted(synthetic, plan)
    requests = [Request(f"r{n}", prompt(110, n), GREEDY) for n in range(3)]
    accepted, rejected = check(synthetic, engine, plan, requests)
    assert engine.stats().num_preemptions > 0
    assert accepted > 50
    assert rejected == 0
    engine.close()


def test_a_cancelled_request_leaves_its_row_to_the_next(synthetic: SyntheticModel) -> None:
    plan = plan_of(synthetic, rows=2)
    engine = drafted(synthetic, plan)
    for number in range(6):
        engine.add(Request(f"gone {number}", prompt(20, number), replace(GREEDY, max_tokens=200)))
        for _ in range(3):
            engine.step()
        engine.cancel(f"gone {number}")
    accepted, rejected = check(synthetic, engine, plan, [Request("last", prompt(20, 50), GREEDY)])
    assert accepted > 25
    assert rejected == 0
    engine.close()


def test_requests_beyond_the_small_models_context_go_on(synthetic: SyntheticModel) -> None:
    plan = plan_of(synthetic)
    engine = drafted(synthetic, plan, draft_context=64)
    requests = [Request(f"r{n}", prompt(40 + 30 * n, n), replace(GREEDY, max_tokens=150)) for n in range(3)]
    # It has forgotten the beginning, so that its guesses are wrong: only the replies must be right.
    check(synthetic, engine, plan, requests)
    assert engine.drafting is not None
    assert engine.drafting.stats.num_proposed > 0
    engine.close()


def test_its_memory_goes_back_when_the_requests_have_ended(synthetic: SyntheticModel) -> None:
    plan = plan_of(synthetic)
    engine = drafted(synthetic, plan)
    check(synthetic, engine, plan, [Request(f"r{n}", prompt(100, n), GREEDY) for n in range(6)])
    assert engine.drafting is not None
    drafter = engine.drafting._drafter
    assert isinstance(drafter, ModelDrafter)
    model = drafter._model
    assert isinstance(model, DraftModel)
    engine.drafting._ask(lambda: ()).result(PATIENCE_S)  # what has ended is told on the drafter's thread
    assert model._lengths == [0] * plan.num_rows
    engine.close()
