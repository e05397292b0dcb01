"""As many guesses as pay: by acceptance, by what a token and drafting cost, and by whether the drafter has any."""

from __future__ import annotations

import pytest

from ortserve.plugins.drafting import Draft
from ortserve.runtime.manifest import RotaryRegime
from ortserve.runtime.request import DraftHints, Request
from ortserve.runtime.scheduling.pace import Pace
from ortserve.runtime.sequence import Sequence
from ortserve.runtime.speculation.adaptation import (
    MAX_DRAFT,
    PRIOR,
    DraftCost,
    expected,
    heard,
    learn,
    limits,
    rooms,
    trust,
    worthwhile,
)


def sequence_of(name: str = "r", *, acceptance: float | None = None, max_draft: int | None = None) -> Sequence:
    request = Request(name, (1, 2, 3), draft=DraftHints(max_draft=max_draft))
    found = Sequence(request, 0, 100, 0, 0.0, [1, 2, 3], frozenset(), frozenset(), None, RotaryRegime(103, 0))
    if acceptance is not None:
        found.acceptance, found.num_accepted = acceptance, 1
    return found


def pace_of(base_ms: float, token_ms: float) -> Pace:
    pace = Pace(max_step_ms=None, max_chunk_tokens=128)
    for tokens in (1, 8, 64):
        for _ in range(3):
            pace.observe(tokens, tokens * 10, base_ms + token_ms * tokens)
    return pace


def allowed(one: Sequence, pace: Pace, cost: DraftCost | None = None) -> int:
    return limits([one], pace, cost or DraftCost()).get("r", 0)


def test_the_number_follows_acceptance_and_cost() -> None:
    cheap, dear = pace_of(10.0, 0.3), pace_of(0.1, 10.0)
    counts = [allowed(sequence_of(acceptance=share), cheap) for share in (0.05, 0.5, 0.8, 0.95, 1.0)]
    assert counts == sorted(counts)
    assert counts[1] > 0
    assert counts[-1] == MAX_DRAFT
    assert allowed(sequence_of(acceptance=0.001), cheap) == 0
    assert allowed(sequence_of(acceptance=0.8), dear) == 0  # a token costs a step: a guess brings less than it takes
    assert allowed(sequence_of(), cheap) == allowed(sequence_of(acceptance=PRIOR), cheap)


def test_a_request_bounds_its_own() -> None:
    assert allowed(sequence_of(acceptance=1.0, max_draft=3), pace_of(10.0, 0.3)) == 3
    assert allowed(sequence_of(acceptance=1.0, max_draft=0), pace_of(10.0, 0.3)) == 0
    assert allowed(sequence_of(max_draft=2), Pace(max_step_ms=None, max_chunk_tokens=128)) == 2  # nothing is known yet
    assert limits([], pace_of(10.0, 0.3), DraftCost()) == {}


def test_the_first_guess_pays_for_the_kind_of_step_it_makes() -> None:
    """On a device a step with guesses has other kernels than a plain one: one guess is not worth that."""

    def pace_with(entry_ms: float) -> Pace:
        pace = Pace(max_step_ms=None, max_chunk_tokens=128, longest_short=32)
        for tokens, longest in [(1, 1), (8, 1), (32, 1), (4, 2), (16, 2), (64, 2)]:
            for attended in (10, 40):
                taken = 1.0 + 0.01 * tokens + entry_ms * (longest > 1)
                pace.observe(tokens, tokens * attended, taken, longest=longest)
        return pace

    likely = [sequence_of(f"r{number}", acceptance=0.7) for number in range(8)]
    others = [sequence_of(f"r{number}", acceptance=0.0) for number in range(1, 8)]
    odd = [sequence_of("r0", acceptance=0.7), *others]
    cheap, dear = pace_with(0.0), pace_with(0.5)
    free = limits(likely, cheap, DraftCost())
    paid = limits(likely, dear, DraftCost())
    assert set(paid.values()) == set(free.values()) or min(paid.values()) >= min(free.values()), "all are worth it"
    assert limits(odd, cheap, DraftCost()).keys() == {"r0"}
    assert limits(odd, dear, DraftCost()) == {}
    drafts = {"r0": Draft("r0", 3, (7, 8), "one", (0.7, 0.7))}
    assert worthwhile(drafts, {"r0": 2}, odd, cheap)
    assert not worthwhile(drafts, {"r0": 2}, odd, dear)


def test_what_a_step_has_room_for_goes_to_the_most_probable() -> None:
    pace = pace_of(10.0, 0.01)
    alike = [sequence_of(f"r{number}", acceptance=0.9) for number in range(16)]
    assert limits(alike, pace, DraftCost(), max_logits=64) == {f"r{number}": 3 for number in range(16)}
    assert limits(alike, pace, DraftCost(), max_logits=16) == {}
    assert limits(alike, Pace(max_step_ms=None, max_chunk_tokens=128), DraftCost(), max_logits=24) == {}
    unlike = [sequence_of("sure", acceptance=0.99), *(sequence_of(f"r{number}", acceptance=0.3) for number in range(7))]
    assert limits(unlike, pace, DraftCost(), max_logits=12) == {"sure": 4}
    drafts = {one.request.id: Draft(one.request.id, 3, (7,) * 8, "one", (0.9,) * 8) for one in alike}
    allowed = dict.fromkeys(drafts, 3)
    found = worthwhile(drafts, allowed, alike, pace, max_logits=32)
    assert {name: len(tokens) for name, tokens in found.items()} == dict.fromkeys(drafts, 1)


def test_what_drafting_takes_is_weighed_and_forgotten() -> None:
    pace, cost = pace_of(10.0, 0.3), DraftCost()
    free = allowed(sequence_of(acceptance=0.8), pace, cost)
    cost.observe(4, 10.0)  # 2 ms for each guess, and for the call
    paid = allowed(sequence_of(acceptance=0.8), pace, cost)
    assert 0 < paid < free
    for _ in range(40):
        cost.observe(4, 500.0)
    assert allowed(sequence_of(acceptance=0.8), pace, cost) == 0
    for _ in range(400):
        cost.fade()
    assert allowed(sequence_of(acceptance=0.8), pace, cost) > 0


def test_guesses_go_where_they_hold() -> None:
    sequences = [sequence_of("good", acceptance=0.95), sequence_of("bad", acceptance=0.1)]
    found = limits(sequences, pace_of(2.0, 0.8), DraftCost())
    assert found["good"] > 4
    assert "bad" not in found


def test_a_drafter_that_has_nothing_to_say_is_asked_less_where_asking_costs() -> None:
    pace, cost, one = pace_of(2.0, 0.3), DraftCost(), sequence_of(acceptance=0.7)
    cost.observe(0, 0.2)
    assert allowed(one, pace, cost) > 0
    for _ in range(50):
        heard(one, was_asked=True, has_draft=False)
    assert allowed(one, pace, cost) == 0
    assert allowed(one, pace) > 0  # where it costs nothing it goes on
    for _ in range(200):
        heard(one, was_asked=False, has_draft=False)
    assert allowed(one, pace, cost) > 0


def verify(one: Sequence, num_drafts: int, num_accepted: int) -> None:
    one.num_accepted += num_accepted
    one.num_rejected += num_drafts - num_accepted
    learn(one, num_drafts, num_accepted)


def steps_until_tried(one: Sequence, threshold: float) -> int:
    for number in range(20_000):
        if expected(one) >= threshold:
            return number
        learn(one, 0, 0)
    raise AssertionError("never tried again")


def test_what_does_not_hold_is_tried_again_ever_later() -> None:
    one, waits = sequence_of(), list[int]()
    for _ in range(6):
        verify(one, 1, 0)
        waits.append(steps_until_tried(one, 0.6))
    assert waits == sorted(waits)
    assert waits[-1] > 8 * waits[1]
    # Once one holds, hope is back.
    verify(one, 4, 4)
    assert expected(one) > 0.3
    assert one.hope == pytest.approx(0.01)


def test_guesses_behind_the_first_wrong_one_say_nothing() -> None:
    short, long = sequence_of(), sequence_of()
    verify(short, 2, 1)
    verify(long, 16, 1)
    assert expected(short) == pytest.approx(expected(long))


def kept(sequences: list[Sequence], chances: dict[str, tuple[float, ...]], pace: Pace) -> dict[str, int]:
    """How many guesses of drafts with such chances are fed."""
    drafts = {name: Draft(name, 3, (7,) * len(some), "x", some) for name, some in chances.items()}
    found = worthwhile(drafts, dict.fromkeys(chances, 2), sequences, pace)
    return {name: len(tokens) for name, tokens in found.items()}


def test_a_draft_stops_before_a_guess_that_does_not_pay() -> None:
    sure, doubt = (0.99,) * 6, (0.05, 0.99, 0.99)
    for pace in (pace_of(10.0, 0.3), pace_of(2.0, 0.8)):
        assert kept([sequence_of()], {"r": (*sure, *doubt)}, pace) == {"r": 6}
    assert kept([sequence_of()], {"r": doubt}, pace_of(2.0, 0.8)) == {}
    # What the others of the batch have guessed is weighed with it.
    both = [sequence_of("good"), sequence_of("bad")]
    assert kept(both, {"good": sure, "bad": (0.3,) * 6}, pace_of(2.0, 0.8)) == {"good": 6}
    assert rooms(both, {"good": 1}) == {"good": MAX_DRAFT}


def test_drafts_without_chances_are_cut_to_what_was_asked_for() -> None:
    one, pace = sequence_of(acceptance=0.99), pace_of(10.0, 0.3)
    plain = Draft("r", 3, (7, 8, 9), "x")
    assert worthwhile({"r": plain}, {"r": 2}, [one], pace) == {"r": (7, 8)}
    other = sequence_of("other")
    mixed = {"r": plain, "other": Draft("other", 3, (1,) * 4, "x", (0.99,) * 4)}
    assert worthwhile(mixed, {"r": 2, "other": 1}, [one, other], pace) == {"r": (7, 8), "other": (1,) * 4}
    unknown = Pace(max_step_ms=None, max_chunk_tokens=128)
    assert worthwhile(mixed, {"r": 2, "other": 1}, [one, other], unknown) == {"r": (7, 8), "other": (1,)}


def test_broken_promises_are_believed_less_until_they_are_kept() -> None:
    one, promise, pace = sequence_of(), (1.0,) * 8, pace_of(10.0, 0.3)
    assert trust(one) == 1.0
    for _ in range(5):
        learn(one, 8, 0, promise)
    assert trust(one) < 0.6
    assert kept([one], {"r": promise}, pace)["r"] < kept([sequence_of()], {"r": promise}, pace)["r"]
    for _ in range(10):
        learn(one, 8, 8, promise)
    assert trust(one) > 0.9
