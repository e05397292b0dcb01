"""Guesses that the reply goes on as the client predicted it (OpenAI's predicted outputs). Knows no other text.

A cursor stands at the predicted token that should come next. When the reply goes another way, the last tokens it got
are looked for in the prediction: first behind the cursor, the nearest first, then before it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ortserve.plugins.api import PluginContext
from ortserve.plugins.confidence import Confidence, Guess, Pending
from ortserve.plugins.draft_options import read_counts
from ortserve.plugins.drafting import Draft, DraftRequest, Ended, SequenceView, Verified

_MOST_ANCHOR = 4  # tokens that must agree to be sure of a place
_MOST_PLACES = 32  # compared for one anchor
_PRIOR = 0.9  # a client's prediction mostly holds


@dataclass(frozen=True, slots=True)
class PredictionOptions:
    """Counts of tokens."""

    max_draft: int = 16
    window: int = 8  # so near behind the cursor, one token that agrees is enough


class Cursor:
    """Where a reply stands in its prediction. Fed with the reply only, never with the prompt."""

    __slots__ = ("_is_lost", "_pairs", "_place", "_reply", "_tokens", "_window", "num_agreed")

    def __init__(self, prediction: Sequence[int], window: int) -> None:
        self._tokens = prediction
        self._window = window
        self._place = 0  # of the token that should come next; when lost, of the one that should have come
        self._is_lost = False  # the reply has left the prediction
        self.num_agreed = 0  # tokens in line with it since it was found last
        self._reply: list[int] = []  # the last tokens of it
        self._pairs: dict[tuple[int, int], list[int]] = {}  # places after each pair of tokens, ascending
        for place in range(2, len(prediction)):
            self._pairs.setdefault((prediction[place - 2], prediction[place - 1]), []).append(place)

    def follow(self, tokens: Iterable[int]) -> None:
        """The reply has grown."""
        for token in tokens:
            self._reply.append(token)
            if not self._is_lost and self._place < len(self._tokens) and self._tokens[self._place] == token:
                self._place += 1
                self.num_agreed += 1
            else:
                self.num_agreed = 0
                self._realign()
        del self._reply[:-_MOST_ANCHOR]

    def ahead(self, count: int) -> tuple[int, ...]:
        """Up to `count` predicted tokens that should come next; none when it is lost."""
        return () if self._is_lost else tuple(self._tokens[self._place : self._place + count])

    def _realign(self) -> None:
        place = self._find()
        self._is_lost = place is None
        if place is not None:
            self._place = place

    def _find(self) -> int | None:
        places = self._pairs.get((self._reply[-2], self._reply[-1]), []) if len(self._reply) > 1 else []
        middle = bisect_left(places, self._place)
        behind = self._longest(places[middle : middle + _MOST_PLACES])
        if behind is not None:
            return behind
        last = self._reply[-1]
        for place in range(self._place, min(self._place + self._window, len(self._tokens))):
            if self._tokens[place] == last:
                return place + 1
        return self._longest(places[max(0, middle - _MOST_PLACES) : middle][::-1])

    def _longest(self, places: Sequence[int]) -> int | None:
        """The first of those where most of the last tokens agree."""
        return max(places, key=self._num_agreeing, default=None)

    def _num_agreeing(self, place: int) -> int:
        anchor = self._reply[-_MOST_ANCHOR:]
        for count in range(2, min(len(anchor), place)):
            if self._tokens[place - count - 1] != anchor[-count - 1]:
                return count
        return min(len(anchor), place)


@dataclass(slots=True)
class _Live:
    """One running request that came with a prediction."""

    cursor: Cursor
    num_seen: int  # tokens, the prompt's with them
    pending: Pending = field(default_factory=Pending)


class PredictionDrafter:
    """One cursor per request with a prediction; the others get no drafts."""

    def __init__(self, context: PluginContext) -> None:
        self._options = read_counts("prediction", PredictionOptions(), context.options)
        self._clock = context.clock
        self._confidence = Confidence()
        self._live: dict[str, _Live] = {}

    def start(self, request: DraftRequest) -> None:
        """Index the prediction, if there is one."""
        if request.prediction:
            self._live[request.id] = _Live(Cursor(request.prediction, self._options.window), len(request.prompt))

    def propose(self, views: Sequence[SequenceView], deadline_s: float) -> Sequence[Draft]:
        """A guess for each request that is in line with its prediction."""
        drafts: list[Draft] = []
        for view in views:
            if self._clock() >= deadline_s:
                break
            live = self._live.get(view.id)
            if live is None:
                continue
            length = len(view.tokens)  # a late call may see the sequence grow
            grown = view.tokens[live.num_seen : length]
            live.pending.settle(grown, live.num_seen, self._confidence)
            live.cursor.follow(grown)
            live.num_seen = length
            ahead = live.cursor.ahead(min(view.most, self._options.max_draft))
            agreed = live.cursor.num_agreed
            kinds = [(min(agreed + place, 31).bit_length(),) for place in range(len(ahead))]
            guesses = [Guess(token, kind, _PRIOR) for token, kind in zip(ahead, kinds, strict=True)]
            live.pending.expect(guesses, length)
            if guesses:
                drafts.append(self._confidence.draft(view.id, length, "prediction", guesses))
        return drafts

    def observe(self, results: Sequence[Verified]) -> None:
        """The next view says it all."""

    def forget(self, ended: Sequence[Ended]) -> None:
        """Drop their cursors."""
        for request in ended:
            self._live.pop(request.id, None)

    def close(self) -> None:
        """Drop everything."""
        self._live.clear()
