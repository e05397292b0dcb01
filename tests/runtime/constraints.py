"""A grammar over the synthetic model's ids that a few lines of Python read. Knows no engine and no text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ortserve.runtime.errors import RequestError
from ortserve.runtime.grammar.constraint import Constraint, Mask
from ortserve.runtime.request import Grammar, GrammarKind
from tests.runtime.synthetic import LAST_ID

PERIOD = 7
FORCED_PLACES = range(2, 6)  # of every period: four tokens in a row without a choice


def counting(least: int, most: int) -> Grammar:
    """Replies of `least` to `most` tokens; of every seven, four are decided by what came before."""
    return Grammar(GrammarKind.REGEX, f"{least} {most}")


class CountingConstraint:
    """What may follow depends on how many tokens there are and on the last one."""

    def __init__(self, least: int, most: int, *, tells_forced: bool) -> None:
        self._least, self._most = least, most
        self._tells_forced = tells_forced
        self._tokens: list[int] = []
        self.num_readers = 0  # guesses and masks asked for

    def allowed(self, tokens: Sequence[int]) -> frozenset[int]:
        """The ids that may follow `tokens`; 0, the model's end, never."""
        count = len(tokens)
        if count >= self._most:
            return frozenset()
        if count % PERIOD in FORCED_PLACES:
            return frozenset([1 + (sum(tokens) * 5 + count) % LAST_ID])
        return frozenset(token for token in range(1, LAST_ID + 1) if (token + count) % 3)

    def can_end(self, tokens: Sequence[int]) -> bool:
        """Never where the next token is decided: then there would be a choice."""
        return len(tokens) >= self._most or (len(tokens) >= self._least and len(tokens) % PERIOD not in FORCED_PLACES)

    def mask(self, guesses: Sequence[int]) -> Mask:
        """Behind the tokens and some guesses."""
        tokens = [*self._tokens, *guesses]
        bits = np.zeros(LAST_ID + 1, np.uint8)
        bits[list(self.allowed(tokens))] = 1
        return Mask(np.packbits(bits, bitorder="little"), self.can_end(tokens))

    def accept(self, token: int) -> bool:
        """Part of `Constraint`."""
        assert token in self.allowed(self._tokens), f"{token} after {self._tokens}"
        self._tokens.append(token)
        return True

    def forced(self) -> tuple[int, ...]:
        """Part of `Constraint`."""
        tokens = list(self._tokens)
        while self._tells_forced and len(only := self.allowed(tokens)) == 1 and not self.can_end(tokens):
            tokens += only
        return tuple(tokens[len(self._tokens) :])

    def allowed_prefix(self, tokens: Sequence[int]) -> int:
        """Part of `Constraint`."""
        self.num_readers += 1
        for count in range(len(tokens)):
            if tokens[count] not in self.allowed([*self._tokens, *tokens[:count]]):
                return count
        return len(tokens)

    @property
    def is_complete(self) -> bool:
        """Part of `Constraint`."""
        return len(self._tokens) >= self._most

    @property
    def failure(self) -> str | None:
        """Part of `Constraint`."""
        return None


class CountingGrammars:
    """Compiles `counting` grammars. Without `tells_forced` every token is drawn, as if there were no shortcut."""

    def __init__(self, *, tells_forced: bool = True) -> None:
        self._tells_forced = tells_forced
        self.num_masks = 0
        self.compiled: list[CountingConstraint] = []

    def compile(self, grammar: Grammar) -> Constraint:
        """Part of `Grammars`."""
        numbers = grammar.text.split()
        if len(numbers) != 2:
            raise RequestError(f"{grammar.text!r} is not two numbers", parameter="grammar")
        constraint = CountingConstraint(int(numbers[0]), int(numbers[1]), tells_forced=self._tells_forced)
        self.compiled.append(constraint)
        return constraint

    def masks(self, wanted: Sequence[tuple[Constraint, Sequence[int]]]) -> list[tuple[Mask, ...]]:
        """Part of `Grammars`."""
        found: list[tuple[Mask, ...]] = []
        for constraint, guesses in wanted:
            assert isinstance(constraint, CountingConstraint)
            found.append(tuple(constraint.mask(guesses[:count]) for count in range(len(guesses) + 1)))
            self.num_masks += len(guesses) + 1
        return found
