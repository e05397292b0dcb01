"""Drafted replies are plain replies, whatever the drafter does; what is counted is true; what does not pay stops."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import pytest
from structlog.testing import capture_logs

from ortserve.plugins.drafting import Draft, DraftRequest, Ended, SequenceView, Verified
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.engine import Engine
from ortserve.runtime.plan import EnginePlan
from ortserve.runtime.request import Completion, DraftHints, Request, SamplingParams
from ortserve.runtime.scheduling.audit import audit
from ortserve.runtime.speculation.adaptation import MAX_DRAFT
from ortserve.runtime.speculation.drafting import MAX_MISSES, Drafting
from ortserve.runtime.testing import predict_logits
from tests.runtime.synthetic import PADDING_ID, Clock, SyntheticModel, greedy_tokens, run_to_end, whole
from tests.waiting import PATIENCE_S, wait_for

GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, num_logprobs=2)
Guess = Callable[[Sequence[int], int], tuple[int, ...]]


class GuessingDrafter:
    """Guesses by a function of the tokens and the number wanted; keeps what it is told."""

    def __init__(self, guess: Guess) -> None:
        self._guess = guess
        self.running: set[str] = set()
        self.results: list[Verified] = []
        self.outputs: dict[str, tuple[int, ...]] = {}

    def start(self, request: DraftRequest) -> None:
        self.running.add(request.id)

    def propose(self, views: Sequence[SequenceView], deadline_s: float) -> Sequence[Draft]:
        assert {view.id for view in views} <= self.running
        return [Draft(view.id, len(view.tokens), self._guess(view.tokens, view.max_draft), "guess") for view in views]

    def observe(self, results: Sequence[Verified]) -> None:
        self.results += results

    def forget(self, ended: Sequence[Ended]) -> None:
        self.running -= {one.id for one in ended}
        self.outputs.update({one.id: one.output for one in ended})

    def close(self) -> None:
        self.running.clear()


def right(tokens: Sequence[int], count: int) -> tuple[int, ...]:
    """What the synthetic model says next, greedily."""
    found = list(tokens)
    for _ in range(count):
        found.append(int(predict_logits(found)[:PADDING_ID].argmax()))
    return tuple(found[len(tokens) :])


def mixed(tokens: Sequence[int], count: int) -> tuple[int, ...]:
    """Right at first, then sometimes wrong; depends on the tokens alone."""
    chance = random.Random(hash(tuple(tokens)))
    return tuple(token if chance.random() < 0.7 else (token + 1) % 100 for token in right(tokens, count))


def wrong(tokens: Sequence[int], count: int) -> tuple[int, ...]:
    return tuple((token + 1) % 100 for token in right(tokens, count))


def drafted_engine(
    model: SyntheticModel, plan: EnginePlan, drafter: GuessingDrafter, *, prompt_cache: str = "none"
) -> Engine:
    engine = model.engine(plan, prompt_cache=prompt_cache)
    # The engine's clock stands still: so must the one that says what drafting costs.
    engine.drafting = Drafting(drafter, vocab_size=PADDING_ID, clock=engine._clock, shortest_wait_s=PATIENCE_S)
    return engine


def plan_of(model: SyntheticModel, *, deterministic: bool = True, rows: int = 4) -> EnginePlan:
    plan = model.plan(EngineConfig(max_rows=rows, max_context=384, deterministic=deterministic))
    return replace(plan, num_host_blocks=16, cache_bytes=16 * plan.bytes_per_block)


def replies_of(engine: Engine, requests: list[Request]) -> dict[str, Completion]:
    return {name: whole(deltas) for name, deltas in run_to_end(engine, requests).items()}


SAMPLINGS = {
    "greedy": GREEDY,
    "sampled": replace(GREEDY, temperature=1.0, seed=3),
    "penalties": replace(GREEDY, temperature=0.8, seed=4, repetition_penalty=1.3, presence_penalty=0.5, top_k=9),
    "bias and early stop": replace(GREEDY, ignore_eos=False, min_tokens=6, logit_bias=((7, 3.0), (0, 1.0))),
    "stop ids": replace(GREEDY, stop_token_ids=tuple(range(0, 100, 9))),
}


@pytest.mark.parametrize("prompt_cache", ["none", "prefix"])
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("guess", [right, mixed, wrong])
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_drafted_replies_are_plain_ones(
    synthetic: SyntheticModel, guess: Guess, sampling: SamplingParams, deterministic: bool, prompt_cache: str
) -> None:
    plan = plan_of(synthetic, deterministic=deterministic)
    requests = [
        Request(f"r{size}", tuple((size + place * 7) % 100 for place in range(size)), sampling)
        for size in (2, 30, 126, 128, 200)
    ]
    engine = drafted_engine(synthetic, plan, GuessingDrafter(guess), prompt_cache=prompt_cache)
    drafted = replies_of(engine, requests)
    plain = replies_of(synthetic.engine(plan), requests)
    for request in requests:
        assert drafted[request.id].token_ids == plain[request.id].token_ids
        assert drafted[request.id].finish == plain[request.id].finish
        if deterministic:
            assert drafted[request.id].logprobs == plain[request.id].logprobs
    assert audit(engine.scheduler, plan) == []
    engine.close()


def test_choices_are_drafted_too(synthetic: SyntheticModel) -> None:
    plan = plan_of(synthetic)
    sampling = replace(GREEDY, temperature=1.0, seed=9)
    requests = [Request(f"c{n}", (5, 6, 7, 8), sampling, choice=n, group="call") for n in range(4)]
    drafted = replies_of(drafted_engine(synthetic, plan, GuessingDrafter(mixed)), requests)
    plain = replies_of(synthetic.engine(plan), requests)
    assert {n: reply.token_ids for n, reply in drafted.items()} == {n: reply.token_ids for n, reply in plain.items()}


def test_drafts_hold_under_preemption(synthetic: SyntheticModel) -> None:
    plan = replace(plan_of(synthetic, rows=3), num_blocks=3)
    requests = [Request(f"r{n}", tuple((n + place) % 100 for place in range(110)), GREEDY) for n in range(3)]
    engine = drafted_engine(synthetic, plan, GuessingDrafter(mixed))
    drafted = replies_of(engine, requests)
    assert engine.stats().num_preemptions > 0
    for request in requests:
        assert list(drafted[request.id].token_ids) == greedy_tokens(request.prompt, GREEDY)


def test_right_guesses_save_steps_and_are_counted(synthetic: SyntheticModel) -> None:
    plan = plan_of(synthetic)
    drafter = GuessingDrafter(right)
    engine = drafted_engine(synthetic, plan, drafter)
    reply = replies_of(engine, [Request("r", (5, 6, 7), GREEDY)])["r"]
    assert engine.stats().num_steps < 15
    assert reply.usage.num_output_tokens == 40
    assert reply.usage.num_rejected_tokens == 0
    assert engine.drafting is not None
    engine.close()
    # The prompt draws one token, and each verified draft one beyond its guesses.
    assert reply.usage.num_accepted_tokens == 40 - 1 - engine.drafting.stats.num_drafts
    assert sum(one.num_accepted for one in drafter.results) == reply.usage.num_accepted_tokens
    assert engine.drafting.stats.num_accepted == reply.usage.num_accepted_tokens
    assert drafter.running == set()
    assert drafter.outputs == {"r": reply.token_ids}  # also the tokens of steps that were not drafted
    stats = engine.drafting.stats
    assert stats.num_proposed == stats.num_accepted
    assert stats.lengths.total() == stats.num_drafts
    assert sum(length * count for (_, length), count in stats.lengths.items()) == stats.num_accepted
    assert stats.accepted["guess", 1] == stats.num_drafts >= stats.accepted["guess", 2] > 0


@pytest.mark.parametrize(("kind", "most"), [("plain", 20), ("promising", 45)])
def test_wrong_guesses_are_counted_and_become_rare(synthetic: SyntheticModel, kind: str, most: int) -> None:
    plan = plan_of(synthetic)
    engine = drafted_engine(synthetic, plan, GuessingDrafter(wrong) if kind == "plain" else Promising(wrong))
    # a clock by which every token of a step costs the same: then a rejected guess never pays
    for tokens in (1, 8, 64):
        for context in (10, 1000):
            engine._pace.observe(tokens, tokens * context, float(tokens))
    engine._pace.observe = lambda *arguments, **options: None  # type: ignore[method-assign]
    sampling = replace(GREEDY, max_tokens=200)
    reply = replies_of(engine, [Request("r", (5, 6, 7), sampling)])["r"]
    assert reply.usage.num_accepted_tokens == 0
    assert reply.usage.num_rejected_tokens < most
    assert list(reply.token_ids) == greedy_tokens((5, 6, 7), sampling)


def test_a_request_can_switch_drafting_off_or_bound_it(synthetic: SyntheticModel) -> None:
    plan = plan_of(synthetic)
    engine = drafted_engine(synthetic, plan, GuessingDrafter(right))
    off = Request("off", (5, 6, 7), GREEDY, draft=DraftHints(max_draft=0))
    one = Request("one", (5, 6, 8), GREEDY, draft=DraftHints(max_draft=1))
    assert replies_of(engine, [off])["off"].usage.num_accepted_tokens == 0
    replies_of(engine, [one])
    assert engine.drafting is not None
    assert max(place for _, place in engine.drafting.stats.proposed) == 1


class Promising(GuessingDrafter):
    """Says of every guess that it holds for sure, and makes as many as are welcome."""

    def propose(self, views: Sequence[SequenceView], deadline_s: float) -> Sequence[Draft]:
        return [
            Draft(view.id, len(view.tokens), self._guess(view.tokens, view.most), "sure", (1.0,) * view.most)
            for view in views
        ]


def test_sure_guesses_may_be_many_where_the_request_allows_them(synthetic: SyntheticModel) -> None:
    plan = plan_of(synthetic)
    engine = drafted_engine(synthetic, plan, Promising(right))
    for tokens in (1, 8, 64):
        engine._pace.observe(tokens, 10 * tokens, 100.0 + tokens)
    engine._pace.observe = lambda *arguments, **options: None  # type: ignore[method-assign]
    replies_of(engine, [Request("one", (5, 6, 8), GREEDY, draft=DraftHints(max_draft=1))])
    assert engine.drafting is not None
    assert max(place for _, place in engine.drafting.stats.proposed) == 1
    reply = replies_of(engine, [Request("r", (5, 6, 7), GREEDY)])["r"]
    assert list(reply.token_ids) == greedy_tokens((5, 6, 7), GREEDY)
    assert max(place for _, place in engine.drafting.stats.accepted) == MAX_DRAFT


@pytest.mark.parametrize("chances", [(2.0,) * 40, (float("nan"),) * 40, (-1.0,) * 40, (0.5,)])
def test_chances_that_are_none_are_dropped_and_the_guesses_kept(
    synthetic: SyntheticModel, chances: tuple[float, ...]
) -> None:
    plan = plan_of(synthetic)
    drafter = GuessingDrafter(right)
    drafter.propose = lambda views, deadline_s: [  # type: ignore[method-assign]
        Draft(view.id, len(view.tokens), right(view.tokens, 40), "x", chances) for view in views
    ]
    engine = drafted_engine(synthetic, plan, drafter)
    reply = replies_of(engine, [Request("r", (5, 6, 7), GREEDY)])["r"]
    assert list(reply.token_ids) == greedy_tokens((5, 6, 7), GREEDY)
    assert reply.usage.num_accepted_tokens > 20
    engine.close()


class Hostile(GuessingDrafter):
    """Does one thing wrong."""

    def __init__(self, what: str) -> None:
        super().__init__(right)
        self.what = what
        self.release = threading.Event()

    def propose(self, views: Sequence[SequenceView], deadline_s: float) -> Sequence[Draft]:
        if self.what == "raises":
            raise RuntimeError("no guesses today")
        if self.what == "hangs":
            self.release.wait(PATIENCE_S)
        if self.what == "no drafts":
            return cast(Sequence[Draft], [None, 7])
        if self.what == "garbage":
            view = views[0]
            length = len(view.tokens)
            return [
                Draft("nobody", 3, (1, 2), "x"),
                Draft(view.id, length - 1, (1, 2), "stale"),
                Draft(view.id, length, (-5, 10**9), "ids"),
                Draft(view.id, length, (), "nothing"),
            ]
        return super().propose(views, deadline_s)

    def observe(self, results: Sequence[Verified]) -> None:
        if self.what == "cannot listen":
            raise ValueError("observe")


def test_a_drafter_that_is_always_late_is_left_alone_and_tried_again(synthetic: SyntheticModel) -> None:
    clock = Clock()
    late = Hostile("hangs")
    drafting = Drafting(late, vocab_size=PADDING_ID, clock=clock, shortest_wait_s=0.001)
    engine = synthetic.engine(plan_of(synthetic))
    engine.add(Request("r", (5, 6, 7), GREEDY))
    engine.step()
    (sequence,) = engine.scheduler.sequences
    drafting.begin(sequence)

    def ask() -> None:
        late.release.clear()
        assert drafting.propose([sequence], {"r": 2}, 0.001) == {}
        late.release.set()
        wait_for(lambda: drafting._pending is None or drafting._pending.done())

    for pause_s in (1.0, 2.0, 4.0):
        for _ in range(MAX_MISSES):
            assert drafting.is_asked
            ask()
        num_calls = drafting.stats.num_calls
        ask()
        assert drafting.stats.num_calls == num_calls, "it is not asked during a pause"
        assert drafting.is_on
        clock.now += pause_s - 0.01
        assert not drafting.is_asked
        clock.now += 0.02
    late.what = "right"
    drafting._shortest_wait_s = PATIENCE_S
    assert drafting.propose([sequence], {"r": 2}, 0.001)
    late.what, drafting._shortest_wait_s = "hangs", 0.001
    for _ in range(MAX_MISSES):
        ask()
    clock.now += 1.01
    assert drafting.is_asked, "a draft in time makes the next pause short again"
    drafting.close()


def test_drafts_that_pay_are_waited_for_as_long_as_they_have_taken(synthetic: SyntheticModel) -> None:
    deadlines: list[float] = []
    clock = Clock()

    class Noting(GuessingDrafter):
        def propose(self, views: Sequence[SequenceView], deadline_s: float) -> Sequence[Draft]:
            deadlines.append(deadline_s - clock.now)
            return super().propose(views, deadline_s)

    drafting = Drafting(Noting(right), vocab_size=PADDING_ID, clock=clock, shortest_wait_s=0.5)
    engine = synthetic.engine(plan_of(synthetic))
    engine.add(Request("r", (5, 6, 7), GREEDY))
    engine.step()
    (sequence,) = engine.scheduler.sequences
    drafting.begin(sequence)
    drafting.propose([sequence], {"r": 7}, 10.0)
    assert deadlines[-1] == 2.5  # a quarter of the step
    drafting.cost._guess_ms = 400.0
    drafting.propose([sequence], {"r": 7}, 10.0)
    assert deadlines[-1] == pytest.approx(1.5 * 8 * 0.4)
    drafting.cost._guess_ms = 4000.0
    drafting.propose([sequence], {"r": 7}, 10.0)
    assert deadlines[-1] == 10.0  # never longer than the step
    drafting.close()


@pytest.mark.parametrize("what", ["raises", "hangs", "garbage", "no drafts", "cannot listen"])
def test_a_hostile_drafter_costs_time_only(
    synthetic: SyntheticModel, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(synthetic)
    engine = synthetic.engine(plan)
    drafter = Hostile(what)
    engine.drafting = Drafting(drafter, vocab_size=PADDING_ID, shortest_wait_s=0.05 if what == "hangs" else PATIENCE_S)
    requests = [Request(f"r{n}", (5, 6, 7, n), GREEDY) for n in range(3)]
    replies = replies_of(engine, requests)
    drafter.release.set()
    for request in requests:
        assert list(replies[request.id].token_ids) == greedy_tokens(request.prompt, GREEDY)
    engine.close()
    if what in ("raises", "no drafts", "cannot listen"):
        assert not engine.drafting.is_on
    if what == "hangs":
        assert engine.drafting.stats.num_missed_deadlines == 1  # it is not asked again while it hangs
        assert MAX_MISSES > 1


def test_guesses_that_are_no_tokens_are_told_once(synthetic: SyntheticModel) -> None:
    engine = drafted_engine(synthetic, plan_of(synthetic), GuessingDrafter(lambda tokens, wanted: (5, PADDING_ID)))
    with capture_logs() as logged:
        replies = replies_of(engine, [Request(f"r{n}", (5, 6, 7, n), GREEDY) for n in range(3)])
    assert list(replies["r0"].token_ids) == greedy_tokens((5, 6, 7, 0), GREEDY)
    (told,) = (line for line in logged if line["event"] == "a draft is dropped")
    assert told["drafter"] == "GuessingDrafter"
    assert f"(5, {PADDING_ID})" in told["reason"]
