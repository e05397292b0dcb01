"""Guesses that what followed the last few tokens before will follow again (prompt lookup). Knows one request at a time.

The last `max_n` tokens are looked up among all earlier tokens of the request, prompt and output, then fewer and fewer
down to `min_n`; what followed the most recent occurrence is the guess. Saxena, "Prompt Lookup Decoding", 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ortserve.plugins.api import PluginContext
from ortserve.plugins.draft_options import read_counts
from ortserve.plugins.drafting import Draft, DraftRequest, Ended, SequenceView, Verified


@dataclass(frozen=True, slots=True)
class NgramOptions:
    """Counts of tokens."""

    min_n: int = 2  # shorter matches are chance
    max_n: int = 4
    max_draft: int = 16


class NgramIndex:
    """Where each run of `min_n` to `max_n` tokens was last followed by another token. Grows with one sequence.

    It keeps hashes, not tokens: two runs with one hash would give a wrong guess, once in 2^61.
    """

    __slots__ = ("_num_indexed", "_tables")

    def __init__(self, min_n: int, max_n: int) -> None:
        self._tables: tuple[tuple[int, dict[int, int]], ...] = tuple((n, {}) for n in range(max_n, min_n - 1, -1))
        self._num_indexed = 0  # runs followed by a token before this one are known

    def extend(self, tokens: Sequence[int], length: int) -> None:
        """Take in the tokens before `length` that are new. The last run has no follower yet, so it waits."""
        for n, followers in self._tables:
            for end in range(max(self._num_indexed, n), length):
                followers[hash(tuple(tokens[end - n : end]))] = end
        self._num_indexed = max(self._num_indexed, length)

    def find(self, tokens: Sequence[int], length: int) -> int | None:
        """The place of the token that followed the longest run that also ends the first `length` tokens."""
        for n, followers in self._tables:
            if n <= length:
                place = followers.get(hash(tuple(tokens[length - n : length])))
                if place is not None:
                    return place
        return None


def continued(tokens: Sequence[int], place: int, length: int, count: int) -> tuple[int, ...]:
    """`count` tokens from `place` on; past `length` the tokens in between repeat, as they do in a loop."""
    found = list(tokens[place : min(place + count, length)])
    period = length - place
    while len(found) < count:
        found.append(found[-period])
    return tuple(found)


class NgramDrafter:
    """One index per request."""

    def __init__(self, context: PluginContext) -> None:
        self._options = read_counts("ngram", NgramOptions(), context.options)
        if self._options.min_n > self._options.max_n:
            raise ValueError("min_n of the drafter ngram is more than its max_n")
        self._clock = context.clock
        self._indexes: dict[str, NgramIndex] = {}

    def start(self, request: DraftRequest) -> None:
        """Index the prompt."""
        index = NgramIndex(self._options.min_n, self._options.max_n)
        index.extend(request.prompt, len(request.prompt))
        self._indexes[request.id] = index

    def propose(self, views: Sequence[SequenceView], deadline_s: float) -> Sequence[Draft]:
        """A guess for each request whose last tokens have occurred before."""
        drafts: list[Draft] = []
        for view in views:
            if self._clock() >= deadline_s:
                break
            index = self._indexes.get(view.id)
            if index is None:
                continue
            tokens, length = view.tokens, len(view.tokens)  # a late call may see the sequence grow
            index.extend(tokens, length)
            place = index.find(tokens, length)
            if place is not None:
                count = min(view.max_draft, self._options.max_draft)
                drafts.append(Draft(view.id, length, continued(tokens, place, length, count), "ngram"))
        return drafts

    def observe(self, results: Sequence[Verified]) -> None:
        """The next view says it all."""

    def forget(self, ended: Sequence[Ended]) -> None:
        """Drop their indexes."""
        for request in ended:
            self._indexes.pop(request.id, None)

    def close(self) -> None:
        """Drop everything."""
        self._indexes.clear()
