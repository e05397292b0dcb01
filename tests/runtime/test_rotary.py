"""Rotary regimes: chosen once by prompt and max_tokens, kept whatever happens, and never mixed by a cache."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ortserve.plugins.api import CacheMode
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.manifest import RotaryRegime
from ortserve.runtime.plan import EnginePlan
from ortserve.runtime.request import CacheHints, FinishReason, Request, SamplingParams
from ortserve.runtime.rotary import assumed_tokens, choose_regime, regimes_within, salt_within
from ortserve.runtime.scheduling.admission import new_sequence
from ortserve.runtime.scheduling.audit import audit
from ortserve.runtime.testing import REGIME_ROWS
from tests.runtime.paged_synthetic import PagedSyntheticModel, load_paged_synthetic_model
from tests.runtime.synthetic import SyntheticModel, greedy_tokens, run_to_end, whole

BOUNDS = (100, 200, 384)
REGIMES = tuple(RotaryRegime(bound, place * REGIME_ROWS) for place, bound in enumerate(BOUNDS))
AnyModel = SyntheticModel | PagedSyntheticModel


@pytest.fixture(scope="module", params=["slots", "pages"])
def model(
    request: pytest.FixtureRequest, synthetic: SyntheticModel, tmp_path_factory: pytest.TempPathFactory
) -> AnyModel:
    found: AnyModel = synthetic
    if request.param == "pages":
        found = load_paged_synthetic_model(tmp_path_factory.mktemp("paged"), max_context=512)
    return replace(found, manifest=replace(found.manifest, max_context=384, rotary_regimes=REGIMES))


def plan_of(model: AnyModel, *, num_blocks: int | None = None, num_host_blocks: int = 64) -> EnginePlan:
    plan = model.plan(EngineConfig(max_rows=4, max_context=384), num_blocks=num_blocks, num_host_blocks=num_host_blocks)
    return replace(plan, cache_bytes=num_host_blocks * plan.bytes_per_block)


def request_of(name: str, length: int, max_tokens: int | None, *, first: int = 3, **fields: object) -> Request:
    prompt = tuple((first + 7 * place) % 100 for place in range(length))
    sampling = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    return replace(Request(name, prompt, sampling), **fields)  # type: ignore[arg-type]


def rule(request: Request, regime: int) -> list[int]:
    return greedy_tokens(request.prompt, request.sampling, regime=regime)


def test_regimes_within_a_context() -> None:
    class Described:
        max_context, rotary_regimes = 384, REGIMES

    def within(context: int) -> list[tuple[int, int]]:
        found = regimes_within(Described, context)  # type: ignore[arg-type]
        return [(regime.max_tokens, regime.first_row // REGIME_ROWS) for regime in found]

    assert within(384) == [(100, 0), (200, 1), (384, 2)]
    assert within(383) == [(100, 0), (200, 1), (383, 2)]
    assert within(200) == [(100, 0), (200, 1)]
    assert within(101) == [(100, 0), (101, 1)]
    assert within(100) == [(100, 0)]
    assert within(7) == [(7, 0)]
    Described.rotary_regimes = ()
    assert within(300) == [(300, 0)]


def test_the_shortest_that_holds_the_whole_request() -> None:
    assert [choose_regime(REGIMES, count).max_tokens for count in (1, 100, 101, 200, 201, 384)] == [
        100, 100, 200, 200, 384, 384,
    ]  # fmt: skip
    # without max_tokens: room for a reply of half of the shortest
    assert [assumed_tokens(REGIMES, count) for count in (1, 50, 51, 340)] == [51, 100, 101, 384]


def test_salts_of_regimes_differ_and_the_first_is_the_callers() -> None:
    salts = [salt_within(regime, salt) for salt in (b"", b"tenant") for regime in REGIMES]
    assert len(set(salts)) == len(salts)
    assert salts[0] == b""
    assert salts[len(REGIMES)] == b"tenant"


@pytest.mark.parametrize(
    ("length", "max_tokens", "planned", "regime", "most"),
    [
        (60, 40, None, 0, 40),
        (60, 41, None, 1, 41),
        (60, 10**6, None, 2, 324),  # cut to the context
        (60, 0, None, 0, 0),
        (50, None, None, 0, 50),  # ends where its regime does
        (51, None, None, 1, 149),
        (200, None, None, 2, 184),
        (383, None, None, 2, 1),
        (60, 1, 200, 1, 1),  # what a longer request will ask for
        (60, 200, 61, 2, 200),
        (60, 1, 10**6, 2, 1),
    ],
)
def test_a_request_is_sized_by_prompt_and_max_tokens(
    model: AnyModel, length: int, max_tokens: int | None, planned: int | None, regime: int, most: int
) -> None:
    plan = plan_of(model)
    assert plan.rotary_regimes == REGIMES
    request = request_of("r", length, max_tokens, planned_tokens=planned)
    sequence = new_sequence(request, model.manifest, plan, seed=0, arrival=0, now_s=0.0)
    assert (sequence.regime, sequence.max_tokens) == (REGIMES[regime], most)
    assert "up to 100, 200, 384 tokens" in str(plan)


def test_every_regime_in_one_batch_whatever_is_preempted(model: AnyModel) -> None:
    """Few blocks: rows are copied out, computed again, and keep their regime; one context of blocks always stays."""
    requests = [
        request_of(f"{length}+{count}", length, count, first=length)
        for length, count in ((60, 40), (60, 41), (99, 101), (99, 102), (170, 31), (20, 60))
    ]
    expected = [rule(one, regime) for one, regime in zip(requests, (0, 1, 1, 2, 2, 0), strict=True)]
    for num_host_blocks in (0, 40):
        width = -(-384 // model.plan(EngineConfig(max_context=384)).block_size)
        plan = plan_of(model, num_blocks=width, num_host_blocks=num_host_blocks)
        engine = model.engine(plan)
        replies = run_to_end(engine, requests)
        assert [list(whole(replies[one.id]).token_ids) for one in requests] == expected
        assert engine.stats().num_preemptions > 0
        assert audit(engine.scheduler, plan) == []


def test_a_reply_without_a_limit_ends_with_its_regime(model: AnyModel) -> None:
    request = request_of("r", 40, None)
    reply = whole(run_to_end(model.engine(plan_of(model)), [request])["r"])
    assert (len(reply.token_ids), reply.finish) == (60, FinishReason.LENGTH)
    assert list(reply.token_ids) == greedy_tokens(request.prompt, replace(request.sampling, max_tokens=60))


def test_a_cached_prefix_serves_its_own_regime_only(model: AnyModel) -> None:
    engine = model.engine(plan_of(model), prompt_cache="prefix")
    for name, max_tokens, regime, num_cached in (
        ("cold", 5, 0, 0),
        ("cached", 5, 0, 79),
        ("longer", 60, 1, 0),  # the same prompt: its keys rotate otherwise
        ("longer again", 60, 1, 79),
        ("longest", 200, 2, 0),
        ("back", 5, 0, 79),
    ):
        request = request_of(name, 80, max_tokens)
        reply = whole(run_to_end(engine, [request])[name])
        assert list(reply.token_ids) == rule(request, regime), name
        assert reply.usage.num_cached_tokens == num_cached, name


def test_those_who_wait_for_a_prefix_wait_within_their_regime(model: AnyModel) -> None:
    requests = [request_of(name, 80, count) for name, count in (("a", 5), ("b", 60), ("c", 5), ("d", 60))]
    replies = run_to_end(model.engine(plan_of(model), prompt_cache="prefix"), requests)
    for request, regime in zip(requests, (0, 1, 0, 1), strict=True):
        assert list(whole(replies[request.id]).token_ids) == rule(request, regime)


def test_choices_of_one_call_share_within_their_regime(model: AnyModel) -> None:
    """Choices of one call have one max_tokens; should a caller differ, the prompt is computed twice."""
    requests = [
        request_of(f"{place}", 80, count, choice=place, group="call", cache=CacheHints(mode=CacheMode.OFF))
        for place, count in enumerate((5, 60, 60, 5))
    ]
    replies = run_to_end(model.engine(plan_of(model)), requests)
    for request, regime, num_shared in zip(requests, (0, 1, 1, 0), (0, 0, 79, 79), strict=True):
        reply = whole(replies[request.id])
        assert list(reply.token_ids) == rule(request, regime)
        assert reply.usage.num_cached_tokens == num_shared


def test_prefixes_are_pinned_and_cleared_in_every_regime(model: AnyModel) -> None:
    plan = plan_of(model)
    engine = model.engine(plan, prompt_cache="prefix")
    prompt = request_of("r", 120, 1).prompt
    run_to_end(engine, [request_of("short", 120, 1, planned_tokens=200, cache=CacheHints(salt=b"s"))])
    assert engine.reuse.pin(prompt, b"s", 60.0) == 0  # 384 is missing; 100 could not hold it
    run_to_end(engine, [request_of("long", 120, 1, planned_tokens=384, cache=CacheHints(salt=b"s"))])
    assert engine.reuse.pin(prompt, b"s", 60.0) == 120
    assert engine.reuse.clear(b"another") == 0
    assert engine.reuse.clear(b"s") == 2 * -(-120 // plan.block_size)
