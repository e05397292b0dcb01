"""What one tenant's replies were lately, within bounds: the tail of long ones, the newest of many. Knows no request."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from ortserve.plugins.automaton import Match, SuffixAutomaton

BYTES_PER_TOKEN = 512  # of a kept reply
_LOOK_BACK = 32  # tokens matched against replies at first; a longer match would not guess better
MOST_SALTS = 256  # whose replies are kept: even a short one costs a kilobyte or two


class RecentReplies:
    """What one salt got lately, in two halves: when the newer is full it becomes the older, which is dropped."""

    __slots__ = ("_most", "halves")

    def __init__(self, most: int) -> None:
        self.halves: tuple[SuffixAutomaton, ...] = ()  # the newer first
        self._most = most  # tokens

    @property
    def num_tokens(self) -> int:
        """Kept now."""
        return sum(half.num_tokens for half in self.halves)

    def learn(self, reply: Sequence[int]) -> None:
        """A reply is complete. Of a very long one the end is kept."""
        room = max(1, self._most // 2)
        reply = reply[-room:]
        if not self.halves or self.halves[0].num_tokens + len(reply) > room:
            self.halves = (SuffixAutomaton(), *self.halves[:1])
        self.halves[0].begin()
        self.halves[0].extend(reply)


class Tenants:
    """Recent replies by salt. Nothing of one is found under another."""

    __slots__ = ("_by_salt", "_most", "_most_of_one")

    def __init__(self, most_of_one: int, most: int) -> None:
        """`most_of_one`: tokens kept of one salt, 0 for none; `most`: of all."""
        self._most_of_one = min(most_of_one, most)
        self._most = most
        self._by_salt: OrderedDict[bytes, RecentReplies] = OrderedDict()  # the least recently used first

    @property
    def num_tokens(self) -> int:
        """Kept of all replies."""
        return sum(recent.num_tokens for recent in self._by_salt.values())

    def halves(self, salt: bytes) -> tuple[SuffixAutomaton, ...]:
        """Of one salt, the newer first."""
        recent = self._by_salt.get(salt)
        return () if recent is None else recent.halves

    def touch(self, salt: bytes) -> None:
        """It is in use."""
        if salt in self._by_salt:
            self._by_salt.move_to_end(salt)

    def learn(self, salt: bytes, reply: Sequence[int]) -> None:
        """A reply of one salt is complete; others may be forgotten for it."""
        if not reply or not self._most_of_one:
            return
        recent = self._by_salt.pop(salt, None) or RecentReplies(self._most_of_one)
        recent.learn(reply)
        self._by_salt[salt] = recent
        while self.num_tokens > self._most or len(self._by_salt) > MOST_SALTS:
            self._by_salt.popitem(last=False)

    def clear(self) -> None:
        """Forget all."""
        self._by_salt.clear()


class Followed:
    """Where the end of one growing sequence occurs in a tenant's replies."""

    __slots__ = ("_matches",)

    def __init__(self) -> None:
        self._matches: dict[SuffixAutomaton, Match] = {}

    def grow(self, added: Sequence[int], tokens: Sequence[int], halves: Sequence[SuffixAutomaton]) -> None:
        """`added` has come, `tokens` is all there is."""
        matches: dict[SuffixAutomaton, Match] = {}
        for half in halves:
            match = self._matches.get(half)
            if match is None or len(added) > _LOOK_BACK:
                match = Match(half)
                match.follow(tokens[-_LOOK_BACK:])
            else:
                match.follow(added)
            matches[half] = match
        self._matches = matches

    def best(self, other: Match | None = None) -> Match | None:
        """The longest match, `other` among them; of equals the one that has seen its next token most often."""
        best = other
        for match in self._matches.values():
            if best is None or (match.length, match.support) > (best.length, best.support):
                best = match
        return best
