"""The contract of a small second model that drafters guess with. Standard library only; knows no request and no engine.

It has the tokenizer of the model that is served, and rows of its own: a row holds the keys and values of the tokens it
was extended with. Its memory is in the engine's plan, and it never runs while the served model does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class NextDraw(Protocol):
    """How the engine draws one token of a request. Opaque to a drafter, which hands it on in a `Feed`."""

    def after(self, token: int) -> NextDraw:
        """How it draws the token after that, should this one be `token`."""


@dataclass(frozen=True, slots=True)
class Feed:
    """Tokens to add to one row, at least one. `draw`: how the token after them is chosen; None: the most likely."""

    row: int
    tokens: tuple[int, ...]
    draw: NextDraw | None = None
    is_wanted: bool = True  # False: the row is extended, and no token is chosen
    max_length: int | None = None  # tokens the row may have at the end; of an empty row: positions rotate accordingly


class SmallModel(Protocol):
    """Called from the drafter's thread only."""

    @property
    def num_rows(self) -> int:
        """Rows, from 0; low ones cost less."""

    @property
    def max_context(self) -> int:
        """Tokens that one row may hold."""

    @property
    def max_tokens(self) -> int:
        """Tokens that all rows together may hold."""

    @property
    def max_feed(self) -> int:
        """Tokens that one row may be extended with at once."""

    def extend(self, feeds: Sequence[Feed]) -> Sequence[int | None]:
        """Add tokens to rows, each named once, in one model call; the token chosen after each, None if not wanted.

        Raises `ValueError` for what exceeds the bounds above: nothing has been added then.
        """

    def truncate(self, row: int, length: int) -> None:
        """Forget a row's tokens from `length` on. An empty row takes no memory."""

    def close(self) -> None:
        """Free everything; no other method is called afterwards."""
