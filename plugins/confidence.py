"""How often guesses of a kind have held, by what the replies became. Knows no drafter and no engine.

A drafter says of each guess what kind it is, such as how long a run it continues. Every reply then tells how far the
last guesses for it would have held, whether they were verified or not: what is never fed can still prove right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from ortserve.plugins.drafting import Draft

Kind: TypeAlias = tuple[int, ...]

_PRIOR_WEIGHT = 4.0  # guesses that the first estimate counts for
_LEAST = 0.005  # probability of a guess that is worth mentioning
_MOST_WEIGHT = 64.0  # guesses after which the oldest count half: texts change


class Guess(NamedTuple):
    """One token, and how probably it holds if those before it do."""

    token: int
    kind: Kind
    prior: float  # before anything is known of its kind


class Confidence:
    """Shares of right guesses by kind. A drafter has few kinds."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: dict[Kind, tuple[float, float]] = {}  # right guesses, and all

    def chance(self, guess: Guess) -> float:
        """Between 0 and 1."""
        right, tried = self._seen.get(guess.kind, (0.0, 0.0))
        return (right + _PRIOR_WEIGHT * guess.prior) / (tried + _PRIOR_WEIGHT)

    def draft(self, id: str, length: int, source: str, guesses: Sequence[Guess]) -> Draft:
        """At least one guess, with chances, up to where hardly any would hold."""
        chances: list[float] = []
        probability = 1.0
        for guess in guesses:
            chances.append(self.chance(guess))
            probability *= chances[-1]
            if probability < _LEAST:
                break
        return Draft(id, length, tuple(guess.token for guess in guesses[: len(chances)]), source, tuple(chances))

    def learn(self, kind: Kind, *, is_right: bool) -> None:
        """One guess of that kind has been put to the test."""
        right, tried = self._seen.get(kind, (0.0, 0.0))
        if tried >= _MOST_WEIGHT:
            right, tried = right / 2, tried / 2
        self._seen[kind] = (right + is_right, tried + 1)


class Pending:
    """The last guesses for one request, until its reply has passed them."""

    __slots__ = ("_guesses", "_length")

    def __init__(self) -> None:
        self._guesses: Sequence[Guess] = ()
        self._length = 0

    def expect(self, guesses: Sequence[Guess], length: int) -> None:
        """What is guessed after the first `length` tokens of the request."""
        self._guesses, self._length = guesses, length

    def settle(self, tokens: Sequence[int], begin: int, confidence: Confidence) -> None:
        """`tokens` are the request's from the place `begin` on. Guesses behind a wrong one say nothing."""
        place = self._length - begin
        if place >= 0:
            for guess, token in zip(self._guesses, tokens[place : place + len(self._guesses)], strict=False):
                confidence.learn(guess.kind, is_right=guess.token == token)
                if guess.token != token:
                    break
        self._guesses = ()
