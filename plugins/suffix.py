"""Guesses what most often followed the longest repeated run, in this request or in its tenant's recent replies.

Knows no other tenant: what one salt has produced is matched for the same salt only. Oliaro et al., "SuffixDecoding",
2024, with an automaton in place of the tree.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from ortserve.plugins.api import PluginContext
from ortserve.plugins.automaton import Match, Step, SuffixAutomaton
from ortserve.plugins.confidence import Confidence, Guess, Pending
from ortserve.plugins.draft_options import read_counts
from ortserve.plugins.drafting import Draft, DraftRequest, Ended, SequenceView, Verified

_LOOK_BACK = 32  # tokens matched against replies at first; a longer match would not guess better
_BYTES_PER_TOKEN = 512  # of a kept reply
_MOST_SALTS = 256  # whose replies are kept: even a short one costs a kilobyte or two


@dataclass(frozen=True, slots=True)
class SuffixOptions:
    """Counts of tokens. One kept token takes about half a kilobyte."""

    min_match: int = 2
    max_draft: int = 16
    per_match: int = 2  # guesses per token matched, where the engine weighs no chances: short matches are wrong soon
    tenant_tokens: int = field(default=16384, metadata={"least": 0})  # of replies kept per salt; 0: keep none
    recent_tokens: int = 65536  # of replies kept in all, within the engine's byte budget


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


class _Live:
    """One running request."""

    __slots__ = ("_matches", "num_prompt_tokens", "pending", "salt", "seen", "tokens")

    def __init__(self, request: DraftRequest) -> None:
        self.salt = request.salt
        self.num_prompt_tokens = len(request.prompt)
        self.tokens = list(request.prompt)
        self.seen = SuffixAutomaton()
        self.seen.extend(self.tokens)
        self._matches: dict[SuffixAutomaton, Match] = {}
        self.pending = Pending()

    def grow(self, tokens: Sequence[int], halves: Sequence[SuffixAutomaton]) -> None:
        """Take in what is new, and look for the end of it in `halves`."""
        self.seen.extend(tokens)
        self.tokens.extend(tokens)
        matches: dict[SuffixAutomaton, Match] = {}
        for half in halves:
            match = self._matches.get(half)
            if match is None or len(tokens) > _LOOK_BACK:
                match = Match(half)
                match.follow(self.tokens[-_LOOK_BACK:])
            else:
                match.follow(tokens)
            matches[half] = match
        self._matches = matches

    def best(self) -> tuple[Match, bool]:
        """The longest match, of equals the one that has seen its next token most often; whether it is the request's."""
        own = best = self.seen.repeated
        for match in self._matches.values():
            if match.length > best.length or (match.length == best.length and match.support > best.support):
                best = match
        return best, best is own

    def guesses(self, most: int, least: int) -> tuple[list[Guess], int]:
        """Up to `most` guesses from runs of `least` tokens and more, and how long the run is that they continue."""
        best, is_own = self.best()
        steps = best.steps(most, least)
        return [_judged(step, is_own=is_own, is_first=not place) for place, step in enumerate(steps)], best.length


def _judged(step: Step, *, is_own: bool, is_first: bool) -> Guess:
    """The longer the run, and the more of its occurrences agree, the better."""
    num_seen = max(step.num_seen - (is_own and is_first), step.num_followed, 1)
    share = step.num_followed / num_seen
    kind = (int(is_own), min(step.length, 31).bit_length(), min(num_seen, 8).bit_length(), int(6 * share))
    prior = step.num_followed / (num_seen + 1 / step.length) * (1 - 0.8 / step.length)
    return Guess(step.token, kind, prior)


class SuffixDrafter:
    """An automaton per running request, and two per salt."""

    def __init__(self, context: PluginContext) -> None:
        self._options = read_counts("suffix", SuffixOptions(), context.options)
        self._most_recent = min(self._options.recent_tokens, context.byte_budget // _BYTES_PER_TOKEN)
        self._clock = context.clock
        self._confidence = Confidence()
        self._live: dict[str, _Live] = {}
        self._recent: OrderedDict[bytes, RecentReplies] = OrderedDict()  # by salt, the least recently used first

    @property
    def num_recent_tokens(self) -> int:
        """Kept of all replies."""
        return sum(recent.num_tokens for recent in self._recent.values())

    def start(self, request: DraftRequest) -> None:
        """Take in the prompt."""
        self._live[request.id] = _Live(request)
        if request.salt in self._recent:
            self._recent.move_to_end(request.salt)

    def propose(self, views: Sequence[SequenceView], deadline_s: float) -> Sequence[Draft]:
        """A guess for each request whose end repeats something."""
        drafts: list[Draft] = []
        for view in views:
            if self._clock() >= deadline_s:
                break
            live = self._live.get(view.id)
            if live is None:
                continue
            length = len(view.tokens)  # a late call may see the sequence grow
            recent, begin = self._recent.get(live.salt), len(live.tokens)
            grown = view.tokens[begin:length]
            live.pending.settle(grown, begin, self._confidence)
            live.grow(grown, recent.halves if recent else ())
            most = min(view.most, self._options.max_draft)
            guesses, matched = live.guesses(most, self._options.min_match)
            live.pending.expect(guesses, length)
            if view.room is None:
                guesses = guesses[: self._options.per_match * matched]
            if guesses:
                tokens = tuple(guess.token for guess in guesses)
                chances = tuple(map(self._confidence.chance, guesses))
                drafts.append(Draft(view.id, length, tokens, "suffix", chances))
        return drafts

    def observe(self, results: Sequence[Verified]) -> None:
        """The next view says it all."""

    def forget(self, ended: Sequence[Ended]) -> None:
        """Drop their automata, and learn their replies for their salts."""
        for request in ended:
            live = self._live.pop(request.id, None)
            if live is None:
                continue
            live.pending.settle(request.output, live.num_prompt_tokens, self._confidence)
            if self._options.tenant_tokens:
                self._learn(live.salt, request.output)

    def close(self) -> None:
        """Drop everything."""
        self._live.clear()
        self._recent.clear()

    def _learn(self, salt: bytes, reply: Sequence[int]) -> None:
        if not reply:
            return
        most = self._most_recent
        recent = self._recent.pop(salt, None) or RecentReplies(min(self._options.tenant_tokens, most))
        recent.learn(reply)
        self._recent[salt] = recent
        while self.num_recent_tokens > most or len(self._recent) > _MOST_SALTS:
            self._recent.popitem(last=False)
