"""Turns between tenants: shares by weight, no tenant starved by another's flood, no reply changed by any of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import pytest

from ortserve.runtime.config import EngineConfig
from ortserve.runtime.engine import Engine
from ortserve.runtime.request import Delta, Request, SamplingParams
from ortserve.runtime.scheduling.admission import new_sequence
from ortserve.runtime.scheduling.fair_order import AGEING_S, FairOrder
from ortserve.runtime.scheduling.pace import Pace
from ortserve.runtime.sequence import Sequence
from tests.runtime.synthetic import Clock, SyntheticModel, greedy_tokens, whole

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


class Waiting:
    """Sequences that wait, by arrival."""

    def __init__(self, model: SyntheticModel) -> None:
        self._model = model
        self._plan = model.plan(EngineConfig(max_rows=1, max_context=256))
        self.sequences: list[Sequence] = []

    def add(self, tenant: bytes, *, length: int = 10, since_s: float = 0.0, priority: int = 0, weight: int = 1) -> None:
        number = len(self.sequences)
        request = Request(f"{number}", (1,) * length, GREEDY, priority=priority, tenant=tenant, weight=weight)
        sequence = new_sequence(request, self._model.manifest, self._plan, seed=0, arrival=number, now_s=since_s)
        sequence.waiting_since_s = since_s
        self.sequences.append(sequence)

    def tenants(self, order: FairOrder, now_s: float = 0.0) -> bytes:
        return b"".join(one.request.tenant for one in order.arrange(self.sequences, (), now_s))


def test_tenants_take_turns_by_their_weights(synthetic: SyntheticModel) -> None:
    even, heavy = Waiting(synthetic), Waiting(synthetic)
    for _ in range(4):
        even.add(b"a")
        heavy.add(b"a")
    for _ in range(4):
        even.add(b"b")
        heavy.add(b"b", weight=3)
    assert even.tenants(FairOrder()) == b"abababab"
    assert heavy.tenants(FairOrder()) == b"abbbabaa"


def test_one_tenant_alone_is_served_in_order_and_by_priority(synthetic: SyntheticModel) -> None:
    waiting = Waiting(synthetic)
    for priority in (0, 2, 0, 1):
        waiting.add(b"a", priority=priority)
    assert [one.arrival for one in FairOrder().arrange(waiting.sequences, (), 0.0)] == [1, 3, 0, 2]


def test_a_larger_priority_goes_first_whoever_has_been_served_more(synthetic: SyntheticModel) -> None:
    waiting, order = Waiting(synthetic), FairOrder()
    waiting.add(b"b")
    waiting.add(b"a", priority=1)
    order.arrange(waiting.sequences, (), 0.0)
    order.charge(waiting.sequences[1].request, 10**6)
    assert waiting.tenants(order) == b"ab"


def test_a_flood_does_not_age_by_its_own_length(synthetic: SyntheticModel) -> None:
    waiting, order = Waiting(synthetic), FairOrder()
    now_s = 10 * AGEING_S
    for _ in range(5):
        waiting.add(b"a", since_s=0.0)
    waiting.add(b"b", since_s=now_s)
    order.arrange(waiting.sequences, (), now_s)
    order.charge(waiting.sequences[0].request, 1000)
    order.admit(waiting.sequences[0].request, now_s)  # the flooding tenant has just been served
    assert waiting.tenants(order, now_s)[:1] == b"b"


def test_a_tenant_that_nobody_serves_ages_past_larger_priorities(synthetic: SyntheticModel) -> None:
    waiting, order = Waiting(synthetic), FairOrder()
    waiting.add(b"low", since_s=0.0)
    now_s = 2.5 * AGEING_S
    waiting.add(b"high", since_s=now_s, priority=1)
    assert waiting.tenants(order, now_s) == b"lowhigh"


def test_idling_saves_nothing_up(synthetic: SyntheticModel) -> None:
    waiting, order = Waiting(synthetic), FairOrder()
    waiting.add(b"a")
    order.arrange(waiting.sequences, (), 0.0)
    order.charge(waiting.sequences[0].request, 10_000)  # alone for a long time
    for _ in range(3):
        waiting.add(b"a")
        waiting.add(b"b")
    assert waiting.tenants(order) in (b"abababa", b"aababab")


@pytest.mark.parametrize("flood", [1, 40])
def test_one_flooding_tenant_does_not_starve_another(synthetic: SyntheticModel, flood: int) -> None:
    """The other's three requests are done after as many steps, however long the first one's queue is."""
    clock = Clock()
    plan = synthetic.plan(EngineConfig(max_rows=2, max_context=256, deterministic=True, prompt_cache="none"))
    engine = synthetic.engine(plan, clock)
    requests = {f"a{place}": Request(f"a{place}", (1, 2, place), GREEDY, tenant=b"a") for place in range(flood)}
    for request in requests.values():
        engine.add(request)
    deltas = list(engine.step())
    others = {f"b{place}": Request(f"b{place}", (3, 4, place), GREEDY, tenant=b"b") for place in range(3)}
    for request in others.values():
        engine.add(request)
    pending = set(others)
    num_steps = 0
    while pending:
        stepped = engine.step()
        deltas += stepped
        pending -= {delta.request_id for delta in stepped if delta.finish is not None}
        num_steps += 1
        clock.now += 10.0  # those of the flood age
        assert num_steps < 60, "the flood is served first"
    while engine.has_work:
        deltas += engine.step()
    for request in (requests | others).values():  # and what they say does not depend on their turn
        own = [delta for delta in deltas if delta.request_id == request.id]
        assert list(whole(own).token_ids) == greedy_tokens(request.prompt, request.sampling)


LONG = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)


def flooded(model: SyntheticModel, *, rows: int, priority: int = 0) -> tuple[Engine, dict[str, Request], list[Delta]]:
    """An engine whose rows one tenant has, with as many requests again in the queue."""
    plan = model.plan(EngineConfig(max_rows=rows, max_context=256, deterministic=True, prompt_cache="none"))
    engine = model.engine(replace(plan, num_host_blocks=plan.num_blocks))
    requests = {
        f"a{place}": Request(f"a{place}", (1, 2, place), LONG, tenant=b"a", priority=priority)
        for place in range(2 * rows)
    }
    for request in requests.values():
        engine.add(request)
    return engine, requests, engine.step() + engine.step()


def rows_of(engine: Engine) -> Counter[bytes]:
    return Counter(sequence.request.tenant for sequence in engine.scheduler.placement.running)


@pytest.mark.parametrize(("num_others", "weight", "wanted"), [(1, 1, 1), (6, 1, 2), (6, 3, 3)])
def test_who_comes_into_a_flood_has_its_share_at_once(
    synthetic: SyntheticModel, num_others: int, weight: int, wanted: int
) -> None:
    engine, requests, deltas = flooded(synthetic, rows=4)
    for place in range(num_others):
        request = Request(f"b{place}", (3, 4, place), LONG, tenant=b"b", weight=weight)
        requests[request.id] = request
        engine.add(request)
    deltas += engine.step()
    assert rows_of(engine) == {b"a": 4 - wanted, b"b": wanted}
    first = [delta.request_id for delta in deltas if delta.token_ids and delta.request_id[0] == "b"]
    assert first == [f"b{place}" for place in range(wanted)]
    for _ in range(12):
        deltas += engine.step()
    assert rows_of(engine) == {b"a": 4 - wanted, b"b": wanted}
    assert engine.stats().num_preemptions == wanted
    while engine.has_work:
        deltas += engine.step()
    for request in requests.values():  # those that gave way too
        own = [delta for delta in deltas if delta.request_id == request.id]
        assert list(whole(own).token_ids) == greedy_tokens(request.prompt, request.sampling)
    assert engine.stats().num_preemptions <= 2 * wanted  # rows are not passed to and fro


def test_nobody_gives_way_to_a_smaller_priority_or_within_a_tenant(synthetic: SyntheticModel) -> None:
    engine, _, _ = flooded(synthetic, rows=4, priority=1)
    engine.add(Request("b", (3, 4), LONG, tenant=b"b"))
    engine.step()
    assert rows_of(engine) == {b"a": 4}
    assert engine.stats().num_preemptions == 0


def tokens_by_tenant(deltas: Iterable[Delta]) -> Counter[str]:
    return Counter(delta.request_id[0] for delta in deltas for _ in delta.token_ids)


def test_the_prompt_of_who_comes_into_a_flood_has_a_step_without_it(synthetic: SyntheticModel) -> None:
    engine, requests, deltas = flooded(synthetic, rows=4)
    requests["b"] = Request("b", (3, 4, 5), LONG, tenant=b"b")
    engine.add(requests["b"])
    first = engine.step()
    assert tokens_by_tenant(first) == {"b": 1}
    second = engine.step()
    assert tokens_by_tenant(second) == {"a": 3, "b": 1}
    deltas += first + second
    while engine.has_work:
        deltas += engine.step()
    for request in requests.values():
        own = [delta for delta in deltas if delta.request_id == request.id]
        assert list(whole(own).token_ids) == greedy_tokens(request.prompt, request.sampling)


@pytest.mark.parametrize(("num_tokens", "others"), [(24, 0), (32, 3)])
def test_what_fits_a_step_without_the_flood_has_one_whether_or_not_it_fits_beside_it(
    synthetic: SyntheticModel, num_tokens: int, others: int
) -> None:
    engine, _, _ = flooded(synthetic, rows=4)
    pace = Pace(max_step_ms=None, max_chunk_tokens=128)
    for tokens in (1, 8, 32, 128):
        pace.observe(tokens, 0, 6.0 + tokens)  # beside three decodes a step takes 16 prompt tokens, without them 24
    assert pace.chunk_tokens(decode_tokens=3, decode_attended=0, start=0) == 16
    engine.scheduler._pace = pace
    engine.add(Request("b", (3,) * num_tokens, LONG, tenant=b"b"))
    assert tokens_by_tenant(engine.step())["a"] == others


def test_short_requests_one_after_another_hold_up_nobody_beyond_their_share(synthetic: SyntheticModel) -> None:
    """Each comes into a flood anew; what its tenant has had before is not forgotten between them."""
    engine, _, _ = flooded(synthetic, rows=4)
    computed = Counter[str]()
    for place in range(12):
        request = Request(f"b{place}", tuple(range(2, 26)), replace(LONG, max_tokens=1), tenant=b"b")
        engine.add(request)
        is_done = False
        while not is_done:
            deltas = engine.step()
            is_done = any(delta.request_id == request.id and delta.finish is not None for delta in deltas)
            computed["a"] += tokens_by_tenant(deltas)["a"]
        computed["b"] += len(request.prompt)
    assert computed["a"] >= 3 * 11  # at most one step of each without the others, and not of each
    assert computed["b"] > 0


@pytest.mark.parametrize(("prompt", "priority"), [(200, 0), (3, -1)])
def test_neither_long_prompts_nor_less_urgent_ones_hold_up_others(
    synthetic: SyntheticModel, prompt: int, priority: int
) -> None:
    plan = synthetic.plan(EngineConfig(max_rows=4, max_context=256, deterministic=True, prompt_cache="none"))
    engine = synthetic.engine(plan)
    for place in range(3):
        engine.add(Request(f"a{place}", (1, 2, place), LONG, tenant=b"a"))
    engine.step()
    engine.step()
    engine.add(Request("b", (3,) * prompt, LONG, tenant=b"b", priority=priority))
    assert tokens_by_tenant(engine.step())["a"] == 3
