"""A suffix automaton over token sequences that counts what follows what. Knows no request and no tenant.

Blumer et al., "The smallest automaton recognizing the subwords of a text", 1985, built online: one token at a time,
amortized constant time and at most two states each. A state stands for the runs of tokens that end at the same places;
its link is the state of the longest of their suffixes that ends at more places.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

ROOT = 0
_NOTHING = -1  # in place of a token: nothing has followed yet
_MOST_LINKS = 16  # counted per token, the longest runs first: only in loops are there more, and there all say the same


class SuffixAutomaton:
    """All runs of one or more sequences, how often each occurred, and what followed it most often."""

    __slots__ = ("_counts", "_favourites", "_last", "_lengths", "_links", "_nexts", "num_tokens")

    def __init__(self) -> None:
        self.num_tokens = 0
        self._last = ROOT  # the whole sequence so far
        self._lengths = [0]  # of the longest run of each state
        self._links = [_NOTHING]
        self._nexts: list[dict[int, int]] = [{}]  # state by token
        self._counts = [0]  # occurrences
        self._favourites = [_NOTHING]  # the token that followed most often, of equals the most recent

    @property
    def repeated(self) -> Match:
        """The longest end of the current sequence that had occurred before."""
        state = self._links[self._last]
        return Match(self, max(state, ROOT), self._lengths[state] if state > ROOT else 0)

    def begin(self) -> None:
        """What comes is a new sequence: no run reaches across."""
        self._last = ROOT

    def extend(self, tokens: Iterable[int]) -> None:
        """Take in the next tokens of the current sequence."""
        nexts, links, lengths = self._nexts, self._links, self._lengths
        for token in tokens:
            before = origin = self._last
            if token in nexts[before]:  # a later sequence repeats an earlier one
                self._last = self._exact(before, token)
            else:
                state = self._last = self._new(lengths[before] + 1, {})
                while before != _NOTHING and token not in nexts[before]:
                    nexts[before][token] = state
                    before = links[before]
                if before != _NOTHING:
                    links[state] = self._exact(before, token)
            self._count(origin, token)
            self.num_tokens += 1

    def _exact(self, before: int, token: int) -> int:
        """The state after `before` and `token` that has no longer runs than these: split off where it has."""
        nexts, links, lengths = self._nexts, self._links, self._lengths
        found = nexts[before][token]
        if lengths[found] == lengths[before] + 1:
            return found
        split = self._new(lengths[before] + 1, nexts[found].copy())
        links[split], self._counts[split] = links[found], self._counts[found]
        self._favourites[split] = self._favourites[found]
        links[found] = split
        while before != _NOTHING and nexts[before].get(token) == found:
            nexts[before][token] = split
            before = links[before]
        return split

    def _new(self, length: int, nexts: dict[int, int]) -> int:
        self._lengths.append(length)
        self._links.append(ROOT)
        self._nexts.append(nexts)
        self._counts.append(0)
        self._favourites.append(_NOTHING)
        return len(self._lengths) - 1

    def _count(self, before: int, token: int) -> None:
        """Every run that ends here has occurred once more, and `token` has followed every run that ended before it."""
        nexts, links, counts, favourites = self._nexts, self._links, self._counts, self._favourites
        state, num_left = self._last, _MOST_LINKS
        while state != ROOT and num_left:
            counts[state] += 1
            state = links[state]
            num_left -= 1
        num_left = _MOST_LINKS
        while before > ROOT and num_left:
            favourite = favourites[before]
            if favourite == _NOTHING:
                favourites[before] = token
            elif favourite != token:
                follows = nexts[before]
                if counts[follows[token]] >= counts[follows[favourite]]:
                    favourites[before] = token
            before = links[before]
            num_left -= 1


class Step(NamedTuple):
    """A token that may come next, and what says so."""

    token: int
    length: int  # of the run it follows
    num_seen: int  # occurrences of that run; of a sequence's own end, the one that asks is among them
    num_followed: int  # of the run with the token behind it


class Match:
    """The longest end of some other sequence that occurs in an automaton, kept while both grow."""

    __slots__ = ("_automaton", "_state", "length")

    def __init__(self, automaton: SuffixAutomaton, state: int = ROOT, length: int = 0) -> None:
        self._automaton = automaton
        self._state = state
        self.length = length

    @property
    def support(self) -> int:
        """How often the token it would guess next has followed."""
        self._settle()
        token = self._automaton._favourites[self._state]
        return 0 if token == _NOTHING else self._automaton._counts[self._automaton._nexts[self._state][token]]

    def follow(self, tokens: Iterable[int]) -> None:
        """The other sequence has grown."""
        nexts, links, lengths = self._automaton._nexts, self._automaton._links, self._automaton._lengths
        self._settle()
        for token in tokens:
            while self._state != ROOT and token not in nexts[self._state]:
                self._state = links[self._state]
                self.length = lengths[self._state]
            if token in nexts[self._state]:
                self._state = nexts[self._state][token]
                self.length += 1
            self._settle()

    def guess(self, count: int, least: int) -> tuple[int, ...]:
        """Up to `count` tokens, each the one that has followed most often; none from runs of fewer than `least`."""
        return tuple(step.token for step in self.steps(count, least))

    def steps(self, count: int, least: int) -> list[Step]:
        """`guess`, with what each token rests on."""
        self._settle()
        automaton = self._automaton
        favourites, nexts, counts = automaton._favourites, automaton._nexts, automaton._counts
        state, length, found = self._state, self.length, list[Step]()
        while length >= least and len(found) < count:
            token = favourites[state]
            if token != _NOTHING:
                follower = nexts[state][token]
                found.append(Step(token, length, counts[state], counts[follower]))
                state = follower
                length += 1
            else:  # the run ended with the sequence
                state = automaton._links[state]
                length = automaton._lengths[state] if state > ROOT else 0
        return found

    def _settle(self) -> None:
        """A state that was split keeps its longer runs only."""
        links, lengths = self._automaton._links, self._automaton._lengths
        while self._state != ROOT and self.length <= lengths[links[self._state]]:
            self._state = links[self._state]
