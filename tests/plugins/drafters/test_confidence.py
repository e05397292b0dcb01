"""What is said of guesses follows what became of them, fed or not."""

from __future__ import annotations

import pytest

from ortserve.plugins.confidence import Confidence, Guess, Pending
from ortserve.plugins.drafting import Draft, Drafter, DraftRequest, SequenceView
from ortserve.plugins.prediction import PredictionDrafter
from ortserve.plugins.suffix import SuffixDrafter
from tests.plugins.drafters.play import NEVER, new_context

SURE, UNSURE = (1,), (2,)


def guesses(*tokens: int) -> list[Guess]:
    return [Guess(token, SURE if token < 10 else UNSURE, 0.5) for token in tokens]


def chances(confidence: Confidence) -> tuple[float, float]:
    return confidence.chance(Guess(0, SURE, 0.5)), confidence.chance(Guess(0, UNSURE, 0.5))


def test_a_kind_is_judged_by_what_became_of_it() -> None:
    confidence, pending = Confidence(), Pending()
    assert chances(confidence) == (0.5, 0.5)
    for _ in range(100):
        pending.expect(guesses(1, 2, 30), 5)
        pending.settle([1, 2, 3, 4], 5, confidence)
    sure, unsure = chances(confidence)
    assert sure > 0.95
    assert unsure < 0.1
    for _ in range(200):  # texts change
        confidence.learn(SURE, is_right=False)
    assert chances(confidence)[0] < 0.1


def test_guesses_behind_a_wrong_one_and_those_not_reached_say_nothing() -> None:
    confidence, pending = Confidence(), Pending()
    pending.expect(guesses(7, 30, 40), 5)
    pending.settle([8, 30, 40], 5, confidence)  # the first was wrong
    assert chances(confidence) == (0.4, 0.5)
    pending.expect(guesses(7, 30, 40), 5)
    pending.settle([7], 5, confidence)
    assert chances(confidence) == (0.5, 0.5)
    pending.settle([9, 9], 6, confidence)  # settled already
    pending.expect(guesses(7), 9)
    pending.settle([1, 2], 5, confidence)  # of a place before the guesses
    assert chances(confidence) == (0.5, 0.5)


def test_a_promise_is_the_expected_number_that_holds() -> None:
    assert Draft("r", 1, (1, 2, 3), "x", (1.0, 0.5, 0.5)).promise == pytest.approx(1.75)
    assert Draft("r", 1, (1, 2, 3), "x").promise == 0


@pytest.mark.parametrize("drafter", [SuffixDrafter(new_context()), PredictionDrafter(new_context())])
def test_what_holds_is_promised_and_what_does_not_is_not(drafter: Drafter) -> None:
    """Nothing is ever fed or reported: the replies say it all."""
    found = []
    for step in (1, 0):  # the reply goes on as guessed, or stops short of it every time
        drafter.start(DraftRequest("r", b"", (*range(40), *range(3)), tuple(range(3, 40))))
        tokens = [*range(40), *range(3)]
        for number in range(30):
            drafts = drafter.propose([SequenceView("r", tokens, 43, 4, room=8)], NEVER)
            tokens.append(tokens[-1] + 1 if step else 100 + number if number % 3 else number)
        found.append(drafts[0].chances[0] if drafts else 0.0)
    assert found[0] > 0.85 > found[1]


def test_long_drafts_are_for_engines_that_weigh_them() -> None:
    drafter = SuffixDrafter(new_context({"per_match": "1"}))
    prompt = (*range(30), 0, 1)
    drafter.start(DraftRequest("r", b"", prompt))
    (short,) = drafter.propose([SequenceView("r", prompt, 32, 8)], NEVER)
    (long,) = drafter.propose([SequenceView("r", prompt, 32, 1, room=8)], NEVER)
    assert short.tokens == (2, 3)
    assert long.tokens == tuple(range(2, 10))
    assert len(long.chances) == 8
    assert long.chances[0] < long.chances[-1]  # the longer the run, the surer
