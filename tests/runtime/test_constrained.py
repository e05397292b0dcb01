"""Replies with a grammar: masked everywhere, forced tokens for nothing, the same tokens however they are run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from ortserve.plugins.drafting import Draft, SequenceView
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.engine import Engine
from ortserve.runtime.errors import RequestError
from ortserve.runtime.plan import EnginePlan
from ortserve.runtime.request import Completion, FinishReason, Grammar, GrammarKind, Request, SamplingParams
from ortserve.runtime.scheduling.audit import audit
from ortserve.runtime.speculation.drafting import Drafting
from tests.runtime.constraints import CountingConstraint, CountingGrammars, counting
from tests.runtime.synthetic import PADDING_ID, SyntheticModel, run_to_end, whole
from tests.runtime.test_drafting import GuessingDrafter, mixed, right
from tests.waiting import PATIENCE_S

GREEDY = SamplingParams(temperature=0, max_tokens=60)
SAMPLINGS = {
    "greedy": GREEDY,
    "sampled": replace(GREEDY, temperature=1.0, seed=3),
    "narrowed": replace(GREEDY, temperature=0.8, seed=4, repetition_penalty=1.3, presence_penalty=0.5, top_k=9),
    "top-p": replace(GREEDY, temperature=1.2, seed=5, top_p=0.7, min_p=0.01),
    "early end": replace(GREEDY, min_tokens=6, logit_bias=((7, 3.0), (0, 50.0))),
    "no end": replace(GREEDY, ignore_eos=True, logit_bias=((0, 50.0),)),
    "stop ids": replace(GREEDY, stop_token_ids=tuple(range(0, 100, 9))),
}
RULE = counting(12, 45)


class Scripted(CountingConstraint):
    """Fifty tokens, every one decided."""

    def allowed(self, tokens: Sequence[int]) -> frozenset[int]:
        return frozenset() if len(tokens) >= 50 else frozenset([1 + len(tokens) % 9])

    def can_end(self, tokens: Sequence[int]) -> bool:
        return len(tokens) >= 50


class Failing(CountingConstraint):
    """Gives up after five tokens."""

    def accept(self, token: int) -> bool:
        return len(self._tokens) < 5 and super().accept(token)

    @property
    def failure(self) -> str | None:
        return "out of fuel"


def plan_of(
    model: SyntheticModel, *, deterministic: bool = True, rows: int = 4, max_logit_rows: int = 64
) -> EnginePlan:
    config = EngineConfig(max_rows=rows, max_context=384, deterministic=deterministic, max_logit_rows=max_logit_rows)
    plan = model.plan(config)
    return replace(plan, num_host_blocks=16, cache_bytes=16 * plan.bytes_per_block)


def requests_of(sampling: SamplingParams, grammar: Grammar | None = RULE) -> list[Request]:
    return [
        Request(f"r{size}", tuple((size + place * 7) % 100 for place in range(size)), sampling, grammar=grammar)
        for size in (2, 30, 126, 128, 200)
    ]


def replies_of(engine: Engine, requests: list[Request]) -> dict[str, Completion]:
    found = {name: whole(deltas) for name, deltas in run_to_end(engine, requests).items()}
    engine.close()
    return found


def reply_of(model: SyntheticModel, sampling: SamplingParams, grammar: Grammar) -> Completion:
    engine = model.engine(plan_of(model), grammars=CountingGrammars())
    return replies_of(engine, [Request("r", (1, 2), sampling, grammar=grammar)])["r"]


def check_follows(reply: Completion, grammar: Grammar) -> None:
    """Judged by the grammar's own rule, token by token."""
    constraint = CountingGrammars().compile(grammar)
    assert isinstance(constraint, CountingConstraint)
    tokens: list[int] = []
    for token in reply.token_ids:
        assert token in constraint.allowed(tokens)
        tokens.append(token)
    if reply.finish is FinishReason.STOP:
        assert constraint.can_end(tokens)


@pytest.mark.parametrize("num_logprobs", [None, 1])
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_forced_tokens_are_those_that_drawing_would_give(
    synthetic: SyntheticModel, sampling: SamplingParams, deterministic: bool, num_logprobs: int | None
) -> None:
    plan = plan_of(synthetic, deterministic=deterministic)
    requests = requests_of(replace(sampling, num_logprobs=num_logprobs))
    forced = replies_of(synthetic.engine(plan, grammars=CountingGrammars()), requests)
    drawn = replies_of(synthetic.engine(plan, grammars=CountingGrammars(tells_forced=False)), requests)
    for request in requests:
        assert forced[request.id].token_ids == drawn[request.id].token_ids
        assert forced[request.id].finish == drawn[request.id].finish
        assert forced[request.id].usage.num_output_tokens == drawn[request.id].usage.num_output_tokens
        if not sampling.stop_token_ids:
            check_follows(forced[request.id], RULE)
        if num_logprobs is not None:
            assert len(forced[request.id].logprobs) == len(forced[request.id].token_ids)
        if deterministic:
            assert forced[request.id].logprobs == drawn[request.id].logprobs


def test_forced_tokens_take_no_steps_of_their_own(synthetic: SyntheticModel) -> None:
    sampling = replace(GREEDY, ignore_eos=True)
    engine = synthetic.engine(plan_of(synthetic), grammars=CountingGrammars())
    (reply,) = replies_of(engine, [Request("r", (1, 2, 3), sampling, grammar=counting(42, 42))]).values()
    assert len(reply.token_ids) == 42
    # Six periods of seven tokens, of which four are forced and come with the one drawn before them.
    assert engine.stats().num_steps == 6 * 3 + 1  # and the one that gives the row back
    assert engine.stats().num_output_tokens == reply.usage.num_output_tokens == 42


def test_what_is_forced_at_the_beginning_comes_with_the_prompt(synthetic: SyntheticModel) -> None:
    for most, expected in ((60, 50), (7, 7)):
        engine = synthetic.engine(plan_of(synthetic), grammars=CountingGrammars())
        request = Request("r", tuple(range(1, 40)), replace(GREEDY, max_tokens=most), grammar=counting(50, 50))
        engine.add(request, Scripted(50, 50, tells_forced=True))
        (delta,) = engine.step()  # the prompt, all that is forced, and one token drawn
        assert delta.token_ids == tuple(1 + place % 9 for place in range(expected))
        assert delta.finish is (FinishReason.STOP if most > expected else FinishReason.LENGTH)
        assert engine.stats().num_output_tokens == expected
        engine.close()


def test_a_long_run_of_forced_tokens_is_fed_in_parts(synthetic: SyntheticModel) -> None:
    class Late(Scripted):
        """A choice first, so that nothing of it belongs to the prompt."""

        def allowed(self, tokens: Sequence[int]) -> frozenset[int]:
            return super().allowed(tokens) if tokens else frozenset(range(1, 100))

    class Free(Late):
        """And two more choices in the end."""

        def allowed(self, tokens: Sequence[int]) -> frozenset[int]:
            return frozenset(range(1, 100)) if len(tokens) in (48, 49) else super().allowed(tokens)

    for num_logprobs in (None, 0):
        plan = plan_of(synthetic, max_logit_rows=8)
        engine = synthetic.engine(plan, grammars=CountingGrammars())
        request = Request("r", (5, 6), replace(GREEDY, num_logprobs=num_logprobs), grammar=counting(50, 50))
        engine.add(request, Free(50, 50, tells_forced=True))
        tokens: list[int] = []
        num_steps = 0
        while engine.has_work:
            tokens += [token for delta in engine.step() for token in delta.token_ids]
            num_steps += 1
            assert audit(engine.scheduler, plan) == []
        assert tokens[1:48] == [1 + place % 9 for place in range(1, 48)]
        assert len(tokens) == 50
        # One for the prompt, 48 tokens at 16 or (with a limit of 8 logits) 8 at a time, one for the last.
        assert num_steps <= (7 if num_logprobs is None else 11)
        engine.close()


@pytest.mark.parametrize("prompt_cache", ["none", "prefix"])
@pytest.mark.parametrize("num_logprobs", [None, 2])
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_drafted_replies_with_a_grammar_are_plain_ones(
    synthetic: SyntheticModel, sampling: SamplingParams, num_logprobs: int | None, prompt_cache: str
) -> None:
    plan = plan_of(synthetic)
    requests = requests_of(replace(sampling, num_logprobs=num_logprobs))
    requests += [replace(request, id=f"free-{request.id}", grammar=None) for request in requests]
    plain = replies_of(synthetic.engine(plan, grammars=CountingGrammars()), requests)
    for guess in (right, mixed):
        engine = synthetic.engine(plan, prompt_cache=prompt_cache, grammars=CountingGrammars())
        engine.drafting = Drafting(GuessingDrafter(guess), vocab_size=PADDING_ID, shortest_wait_s=PATIENCE_S)
        drafted = replies_of(engine, requests)
        for request in requests:
            assert drafted[request.id].token_ids == plain[request.id].token_ids
            assert drafted[request.id].finish == plain[request.id].finish
            assert drafted[request.id].logprobs == plain[request.id].logprobs
        assert audit(engine.scheduler, plan) == []


def test_guesses_are_cut_to_what_the_grammar_allows(synthetic: SyntheticModel) -> None:
    engine = synthetic.engine(plan_of(synthetic), grammars=CountingGrammars())
    seen: list[int] = []

    class Asking(GuessingDrafter):
        def propose(self, views: Sequence[SequenceView], deadline_s: float) -> Sequence[Draft]:
            seen.extend(view.allowed_prefix([0, 0]) for view in views)
            return super().propose(views, deadline_s)

    engine.drafting = Drafting(Asking(lambda _, count: (0,) * count), vocab_size=PADDING_ID, shortest_wait_s=PATIENCE_S)
    (reply,) = replies_of(engine, [Request("r", (1, 2), GREEDY, grammar=counting(40, 40))]).values()
    assert len(reply.token_ids) == 40
    assert reply.usage.num_rejected_tokens == 0  # 0 is never allowed, so it is not even verified
    assert seen
    assert set(seen) == {0}


def test_forced_tokens_are_no_accepted_guesses(synthetic: SyntheticModel) -> None:
    for num_logprobs in (None, 1):
        reply = reply_of(synthetic, replace(GREEDY, num_logprobs=num_logprobs), counting(40, 40))
        assert (reply.usage.num_accepted_tokens, reply.usage.num_rejected_tokens) == (0, 0)


def test_neighbours_without_a_grammar_are_unaffected(synthetic: SyntheticModel) -> None:
    plan = plan_of(synthetic)
    free = requests_of(replace(GREEDY, temperature=0.9, seed=1, num_logprobs=1), None)
    alone = replies_of(synthetic.engine(plan), free)
    tied = [replace(request, id=f"tied-{request.id}", grammar=RULE) for request in free]
    together = replies_of(synthetic.engine(plan, grammars=CountingGrammars()), free + tied)
    for request in free:
        assert together[request.id].token_ids == alone[request.id].token_ids
        assert together[request.id].logprobs == alone[request.id].logprobs


def test_a_complete_reply_ends_whatever_min_tokens_and_ignore_eos_say(synthetic: SyntheticModel) -> None:
    reply = reply_of(synthetic, replace(GREEDY, ignore_eos=True, min_tokens=50), counting(10, 10))
    assert (reply.finish, len(reply.token_ids), reply.usage.num_output_tokens) == (FinishReason.STOP, 10, 10)


def test_the_end_is_drawn_only_where_the_grammar_is_satisfied(synthetic: SyntheticModel) -> None:
    eager = replace(GREEDY, logit_bias=((0, 1000.0),))
    reply = reply_of(synthetic, eager, counting(20, 45))
    assert (reply.finish, len(reply.token_ids)) == (FinishReason.STOP, 20)
    late = reply_of(synthetic, replace(eager, min_tokens=30), counting(20, 45))
    assert (late.finish, len(late.token_ids)) == (FinishReason.STOP, 34)  # at 30 the next tokens are decided
    assert len(reply_of(synthetic, replace(eager, ignore_eos=True), counting(20, 45)).token_ids) == 45
    stopped = reply_of(synthetic, replace(eager, ignore_eos=True, stop_token_ids=(0,)), counting(20, 45))
    assert (stopped.finish, len(stopped.token_ids)) == (FinishReason.STOP, 20)


def test_a_reply_cut_by_max_tokens_says_so(synthetic: SyntheticModel) -> None:
    for most in range(1, 12):
        reply = reply_of(synthetic, replace(GREEDY, max_tokens=most), counting(30, 30))
        assert (reply.finish, len(reply.token_ids)) == (FinishReason.LENGTH, most)


def test_log_probabilities_are_those_of_the_raw_logits(synthetic: SyntheticModel) -> None:
    grammar = counting(10, 10)
    reply = reply_of(synthetic, replace(GREEDY, num_logprobs=20), grammar)
    assert any(entry.token_id not in dict(entry.top) for entry in reply.logprobs)  # forced against the model's wish
    assert all(entry.top[0][1] > -1.0 for entry in reply.logprobs)  # the model's own favourite, allowed or not


def test_a_grammar_that_cannot_be_read_is_refused(synthetic: SyntheticModel) -> None:
    engine = synthetic.engine(plan_of(synthetic), grammars=CountingGrammars())
    with pytest.raises(RequestError, match="not two numbers"):
        engine.add(Request("r", (1,), GREEDY, grammar=Grammar(GrammarKind.REGEX, "a*")))
    with pytest.raises(RequestError, match="cannot be constrained"):
        synthetic.engine(plan_of(synthetic)).add(Request("r", (1,), GREEDY, grammar=RULE))
    assert not engine.has_work


def test_a_reader_that_fails_ends_its_own_request_only(synthetic: SyntheticModel) -> None:
    for num_logprobs in (None, 1):
        engine = synthetic.engine(plan_of(synthetic), grammars=CountingGrammars())
        sampling = replace(GREEDY, num_logprobs=num_logprobs)
        engine.add(Request("bad", (1, 2), sampling, grammar=RULE), Failing(12, 45, tells_forced=True))
        engine.add(Request("good", (1, 2), sampling, grammar=RULE))
        last = {}
        while engine.has_work:
            last.update({delta.request_id: delta for delta in engine.step()})
        assert last["bad"].finish is FinishReason.ERROR
        assert "out of fuel" in (last["bad"].error or "")
        assert last["good"].finish in (FinishReason.STOP, FinishReason.LENGTH)
        assert engine.stats().num_finished == 2
