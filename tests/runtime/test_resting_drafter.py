"""A drafter that is slow beside its model is told nothing while it rests, reads late what came, changes no reply."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from ortserve.plugins.drafting import Draft, DraftRequest, SequenceView
from ortserve.runtime.engine import Engine, StepRunner
from ortserve.runtime.request import Request
from ortserve.runtime.speculation.adaptation import DraftCost
from ortserve.runtime.speculation.drafting import Drafting
from ortserve.runtime.speculation.payoff import LONGEST_REST
from ortserve.runtime.step import Step
from tests.runtime.synthetic import PADDING_ID, Clock, SyntheticModel, greedy_tokens, run_to_end, whole
from tests.runtime.test_drafting import GREEDY, GuessingDrafter, plan_of, right

STEP_S, TOKEN_S = 0.002, 0.0001
LONG = replace(GREEDY, max_tokens=150, num_logprobs=0)


class Ticking:
    """A runner whose steps take time by a clock."""

    def __init__(self, runner: StepRunner, clock: Clock) -> None:
        self._runner = runner
        self._clock = clock

    def run(self, step: Step) -> object:
        self._clock.now += STEP_S + TOKEN_S * step.num_tokens
        return self._runner.run(step)


class Free(DraftCost):
    """Knows no cost: what a drafter takes from the engine beside its answers is in no formula. Here that is all."""

    def observe(self, longest: int, milliseconds: float) -> None:
        pass


class Slow(GuessingDrafter):
    """Makes one guess, and the clock go on meanwhile."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(right)
        self._clock = clock
        self.takes_s = 2 * STEP_S
        self.started: list[str] = []
        self.num_calls = 0

    def start(self, request: DraftRequest) -> None:
        super().start(request)
        self.started.append(request.id)

    def propose(self, views: Sequence[SequenceView], deadline_s: float) -> Sequence[Draft]:
        self.num_calls += 1
        self._clock.now += self.takes_s
        return [Draft(view.id, len(view.tokens), self._guess(view.tokens, 1), "slow") for view in views]


@pytest.fixture
def made(synthetic: SyntheticModel) -> Iterator[tuple[Engine, Slow]]:
    clock = Clock()
    engine = synthetic.engine(plan_of(synthetic), clock)
    engine._runner = Ticking(engine._runner, clock)
    drafter = Slow(clock)
    engine.drafting = Drafting(drafter, vocab_size=PADDING_ID, clock=clock, shortest_wait_s=5.0)
    engine.drafting.cost = Free()
    for tokens in (1, 8, 64):
        engine._pace.observe(tokens, 10 * tokens, 1000 * (STEP_S + TOKEN_S * tokens))
    yield engine, drafter
    engine.close()


def test_it_rests_is_tried_again_and_comes_back(made: tuple[Engine, Slow]) -> None:
    engine, drafter = made
    assert engine.drafting is not None
    requests = [Request(name, (5, 6, 7, place), LONG) for place, name in enumerate("abcdef")]
    replies = {}

    def serve(request: Request) -> int:
        before = drafter.num_calls
        replies.update(run_to_end(engine, [request]))
        return drafter.num_calls - before

    asked = [serve(requests[0])]
    assert 0 < asked[0] < 80
    assert engine.drafting.payoff.is_resting
    asked += [serve(request) for request in requests[1:4]]
    assert asked[-1] <= asked[0] / 2
    drafter.takes_s = 0.0
    engine.drafting.payoff._case(1).num_plain = 1  # the end of its rest
    serve(requests[4])
    assert serve(requests[5]) > 60
    assert drafter.started[-1] == "f"
    for request in requests[:4]:
        assert list(whole(replies[request.id]).token_ids) == greedy_tokens(request.prompt, LONG)
    assert drafter.running == set()


def test_who_came_while_it_rested_is_guessed_for_once_it_is_tried_again(made: tuple[Engine, Slow]) -> None:
    engine, drafter = made
    assert engine.drafting is not None
    payoff = engine.drafting.payoff
    payoff._case(1).next_rest = LONGEST_REST  # after trials in vain
    run_to_end(engine, [Request("first", (5, 6, 7), LONG)])
    assert payoff.is_resting
    drafter.takes_s = 0.0
    engine.add(Request("late", (5, 6, 8), replace(LONG, max_tokens=340)))
    deltas = engine.step()
    assert "late" not in drafter.started
    payoff._case(1).num_plain = 3  # the end of its rest
    while engine.has_work:
        deltas += engine.step()
    assert drafter.started == ["first", "late"]
    reply = whole(deltas)
    assert reply.usage.num_accepted_tokens > 100
    assert list(reply.token_ids) == greedy_tokens((5, 6, 8), replace(LONG, max_tokens=340))
