"""Draws every position of a step's rows and says how far their drafts hold. Lossless: drafts never change a token.

The ordinary sampler runs at each of the k + 1 positions as if the earlier drafts had been drawn, with the random number
of that position. A draft is accepted if and only if it equals the token drawn there, so the tokens are those of a run
without drafts, by seed and hence in distribution.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Values
from dataclasses import dataclass
from typing import Any, Protocol

from ortserve.runtime.grammar.constraint import Mask
from ortserve.runtime.request import SamplingParams, TokenLogprobs
from ortserve.runtime.sampling.draw import Draw
from ortserve.runtime.sampling.sampler import Drawn
from ortserve.runtime.sequence import Sequence
from ortserve.runtime.step import Row

_NOTHING = Draw(SamplingParams(temperature=0), 0, 0, 0)


class Drawing(Protocol):
    """Tokens that may still be on their way."""

    @property
    def address(self) -> int | None:
        """Where they will lie on their device, int64, one for each row, -1 for none; None: the host may have a say."""

    def wait(self) -> None:
        """Return once its device has nothing left to do. Raises `DeviceError` for work that has failed."""

    def result(self) -> list[Drawn]:
        """One token for each row of the logits; waits for them."""


class TokenSampler(Protocol):
    """Draws from the logits of its own device. Logits are indexed by rows, as arrays are."""

    def begin(self, logits: Any, draws: Values[Draw]) -> Drawing:
        """Draw one token per row of the logits, which may be overwritten. Nothing else begins before its result."""

    def score(self, logits: Any, tokens: Values[int], num_top: Values[int]) -> list[TokenLogprobs | None]:
        """How likely each row makes the token given for it; None where the logits are no numbers."""


@dataclass(frozen=True, slots=True)
class Picked:
    """What the logits of one row say: its accepted drafts and the token after them, and how likely its prompt is."""

    drawn: tuple[Drawn, ...]
    scored: tuple[TokenLogprobs | None, ...] = ()  # None where the logits are no numbers


class Picking:
    """What the rows of a step add, once it has been drawn."""

    def __init__(
        self, rows: Values[Row], drawing: Drawing | None, scored: Mapping[int, tuple[TokenLogprobs | None, ...]]
    ) -> None:
        """`drawing` is of all their positions, None where there are none."""
        self._rows = rows
        self._drawing = drawing
        self._scored = scored

    @property
    def address(self) -> int | None:
        """See `Drawing`."""
        return None if self._drawing is None else self._drawing.address

    def wait(self) -> None:
        """Return once the device has drawn."""
        if self._drawing is not None:
            self._drawing.wait()

    def result(self) -> list[Picked]:
        """For each row that has logits, the tokens it adds, and the prompt tokens it judges. Waits for them."""
        drawn = [] if self._drawing is None else self._drawing.result()
        found: list[Picked] = []
        end = 0
        for index, row in enumerate(self._rows):
            begin, end = end, end + row.num_drawn
            found.append(Picked(_accepted(row.drafts, drawn[begin:end]), self._scored.get(index, ())))
        return found


def draw_rows(
    sampler: TokenSampler,
    rows: Values[tuple[Row, Sequence | None]],
    logits: Any,
    masks: Mapping[str, tuple[Mask, ...]],
) -> Picking:
    """Begin to draw for each row that has logits.

    `logits [sum of num_logits, vocab]` belong to the rows in order and are overwritten where rules apply. `masks` are
    of requests with a grammar, by id, at each of their positions. For a row whose sequence has ended meanwhile,
    something is drawn that nobody wants.
    """
    scored = _score(sampler, rows, logits)
    draws: list[Draw] = []
    places: list[int] = []
    begin = 0
    for row, sequence in rows:
        if row.num_drawn:
            wanted = [_NOTHING] if sequence is None else sequence.draws(row.drafts, masks.get(row.request_id, ()))
            draws += wanted
            places += range(begin + row.num_scored, begin + row.num_logits)
        begin += row.num_logits
    assert len(draws) == len(places)
    drawing = sampler.begin(logits if len(places) == begin else logits[places], draws) if draws else None
    return Picking([row for row, _ in rows], drawing, scored)


def _score(
    sampler: TokenSampler, rows: Values[tuple[Row, Sequence | None]], logits: Any
) -> dict[int, tuple[TokenLogprobs | None, ...]]:
    """By the index of the row, for those that judge anything."""
    found: dict[int, tuple[TokenLogprobs | None, ...]] = {}
    begin = 0
    for index, (row, sequence) in enumerate(rows):
        if row.num_scored and sequence is not None:
            first = sequence.num_scored + 1
            tokens = sequence.tokens[first : first + row.num_scored]
            num_top = sequence.request.sampling.num_prompt_logprobs or 0
            values = logits[begin : begin + row.num_scored]
            found[index] = tuple(sampler.score(values, tokens, [num_top] * row.num_scored))
        begin += row.num_logits
    return found


def _accepted(drafts: Values[int], drawn: Values[Drawn]) -> tuple[Drawn, ...]:
    for place, draft in enumerate(drafts):
        if drawn[place].token_id != draft:
            return tuple(drawn[: place + 1])
    return tuple(drawn)
