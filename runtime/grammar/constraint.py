"""What a reply may still say: the contract between the engine and whatever reads grammars. Knows token ids, no text."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Values
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from ortserve.runtime.errors import RequestError
from ortserve.runtime.request import Grammar

Bits: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Mask:
    """The ids allowed at one position. `bits` holds id i in bit i % 8 of byte i // 8, for every id that can be drawn.

    End-of-sequence ids are never among them: `can_end` says that the reply may end here.
    """

    bits: Bits
    can_end: bool

    def with_ends(self, ends: Iterable[int]) -> Bits:
        """The bits, and where the reply may end also `ends`."""
        if not self.can_end:
            return self.bits
        bits = self.bits.copy()
        for token in ends:
            bits[token // 8] |= 1 << token % 8
        return bits


class Constraint(Protocol):
    """A grammar and the tokens one reply has taken so far. Ends of a sequence are not told to it."""

    def accept(self, token: int) -> bool:
        """Take one more token of the reply. False: it is not allowed, or `failure` says what went wrong."""

    def forced(self) -> tuple[int, ...]:
        """The only tokens that can follow, one after another; empty where there is a choice or the reply may end."""

    def allowed_prefix(self, tokens: Values[int]) -> int:
        """How many of `tokens` could follow, from the first. May be called from any thread."""

    @property
    def is_complete(self) -> bool:
        """The reply satisfies the grammar, and nothing can follow."""

    @property
    def failure(self) -> str | None:
        """Why nothing is allowed any more though the reply is not complete; None while all is well."""


class Grammars(Protocol):
    """The grammars of one model. `compile` may be called from any thread, `masks` from one at a time."""

    def compile(self, grammar: Grammar) -> Constraint:
        """A fresh constraint. Raises `RequestError` that says what is wrong with the grammar."""

    def masks(self, wanted: Values[tuple[Constraint, Values[int]]]) -> list[tuple[Mask, ...]]:
        """For each constraint and its guesses, all of them allowed: the mask here and after each guess.

        The constraints stay where they are.
        """


class NoGrammars:
    """Of a model whose tokens no grammar library can read: every grammar is refused."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def compile(self, grammar: Grammar) -> Constraint:
        """Part of `Grammars`."""
        del grammar
        raise RequestError(f"replies of this model cannot be constrained: {self._reason}", parameter="grammar")

    def masks(self, wanted: Values[tuple[Constraint, Values[int]]]) -> list[tuple[Mask, ...]]:
        """Part of `Grammars`."""
        del wanted
        raise AssertionError("nothing has been compiled")
