"""A drafter that costs more than it brings rests, is tried ever later, and comes back; one that pays goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

import pytest

from ortserve.runtime.speculation.payoff import LONGEST_REST, LONGEST_REST_S, SCOUT_EVERY, TRIAL, Payoff

PLAIN_S = 0.003
Asked = Callable[[int], tuple[float, float]]  # of a step by number: tokens per row, and seconds


@dataclass
class Drive:
    """Steps of one engine by a clock of its own."""

    payoff: Payoff = field(default_factory=Payoff)
    noise: float = 0.0
    plain_s: float = PLAIN_S
    now_s: float = 0.0
    asked: list[int] = field(default_factory=list)
    num_steps: int = 0
    random: Random = field(default_factory=lambda: Random(4))

    def run(self, count: int, asked: Asked, num_rows: int = 8) -> float:
        """Tokens per second, of what it would be without the drafter."""
        begun_s, num_tokens, first = self.now_s, 0.0, self.num_steps
        for number in range(first, first + count):
            per_row, seconds = 1.0, self.plain_s
            if self.payoff.pays(num_rows, self.now_s):
                self.payoff.ask(num_rows)
                self.asked.append(number)
                per_row, seconds = asked(number)
            seconds *= 1 + self.noise * self.random.expovariate(1.0)
            self.now_s += seconds
            num_tokens += per_row
            self.payoff.observe(num_rows, round(per_row * num_rows), seconds, self.plain_s, self.now_s)
        self.num_steps += count
        return num_tokens / (self.now_s - begun_s) * self.plain_s * (1 + self.noise)


def slow(number: int) -> tuple[float, float]:
    """The drafter takes as long as the step, and a guess in four holds."""
    del number
    return 1.25, 2 * PLAIN_S


def good(number: int) -> tuple[float, float]:
    del number
    return 3.0, 2 * PLAIN_S


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_a_slow_drafter_on_a_fast_model_costs_next_to_nothing(noise: float) -> None:
    drive = Drive(noise=noise)
    assert drive.run(10_000, slow) > 0.97
    assert len(drive.asked) < 800


def test_it_is_tried_again_ever_later() -> None:
    drive = Drive()
    drive.run(12_000, slow)
    trials = [before for before, after in pairwise(drive.asked) if after == before + 1]
    gaps = [after - before for before, after in pairwise(trials) if after - before > 16]
    assert gaps == sorted(gaps)
    assert len(set(gaps)) >= 3
    assert max(gaps) > LONGEST_REST


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_it_comes_back_when_it_pays(noise: float) -> None:
    drive = Drive(noise=noise)
    drive.run(6000, slow)
    drive.run(LONGEST_REST + TRIAL, good)  # whatever is left of its rest
    assert drive.run(2000, good) > 1.4
    assert not drive.payoff.is_resting


def test_a_rest_is_over_once_clearly_more_guesses_hold() -> None:
    """A drafter learns from the first replies of a kind."""
    drive = Drive()
    drive.run(1500, slow)
    while not drive.payoff.is_deaf:
        drive.run(1, slow)
    begun = drive.num_steps
    while drive.payoff.is_resting:
        drive.run(1, good)
    assert drive.num_steps - begun <= SCOUT_EVERY + 2
    assert drive.run(500, good) > 1.4


def test_a_slow_models_drafter_is_tried_again_within_seconds() -> None:
    drive = Drive(plain_s=0.1)
    while not drive.payoff.is_deaf:
        drive.run(1, lambda _: (1.0, 0.2))
    last, rested_s = drive.asked[-1], drive.now_s
    while drive.asked[-1] == last:
        drive.run(1, lambda _: (3.0, 0.2))
    assert drive.now_s - rested_s < LONGEST_REST_S + 1


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_one_that_pays_goes_on_and_is_compared_now_and_then(noise: float) -> None:
    drive = Drive(noise=noise)
    assert drive.run(5000, good) > 1.45  # 1.5 without comparing
    assert 4800 < len(drive.asked) < 5000


def test_what_costs_nothing_may_go_on() -> None:
    drive = Drive()
    drive.run(2000, lambda _: (1.0, PLAIN_S))
    assert len(drive.asked) > 1800


def test_it_hears_of_requests_until_several_trials_were_in_vain() -> None:
    drive = Drive()
    drive.run(50, slow)
    assert (drive.payoff.is_resting, drive.payoff.is_deaf) == (True, False)
    drive.run(1000, slow)
    assert (drive.payoff.is_resting, drive.payoff.is_deaf) == (True, True)
    while drive.payoff.is_deaf:
        drive.run(1, good)
    assert drive.run(100, good) > 1.3


def test_other_numbers_of_rows_are_judged_by_themselves() -> None:
    drive = Drive()
    drive.run(2000, slow, num_rows=16)
    assert drive.payoff.is_resting
    assert drive.payoff.pays(1, drive.now_s)
    assert drive.run(1000, good, num_rows=1) > 1.4
    assert not drive.payoff.pays(16, drive.now_s)


def test_a_clock_that_stands_still_says_nothing() -> None:
    payoff = Payoff()
    for _ in range(200):
        assert payoff.pays(4, 0.0)
        payoff.ask(4)
        payoff.observe(4, 4, 0.0, PLAIN_S, 0.0)


def test_a_step_that_tells_nothing_leaves_no_trace() -> None:
    drive = Drive()
    drive.payoff.ask(8)
    drive.payoff.drop()
    drive.payoff.observe(8, 8, 1.0, PLAIN_S, 0.0)  # without asking: it is no verdict on the drafter
    assert drive.run(200, good) > 1.3
