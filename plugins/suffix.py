"""Guesses what most often followed the longest repeated run, in this request or in its tenant's recent replies.

Knows no other tenant: what one salt has produced is matched for the same salt only. Oliaro et al., "SuffixDecoding",
2024, with an automaton in place of the tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ortserve.plugins.api import PluginContext
from ortserve.plugins.automaton import Step, SuffixAutomaton
from ortserve.plugins.confidence import Confidence, Guess, Pending
from ortserve.plugins.draft_options import read_counts
from ortserve.plugins.drafting import Draft, DraftRequest, Ended, SequenceView, Verified
from ortserve.plugins.recent import BYTES_PER_TOKEN, Followed, Tenants


@dataclass(frozen=True, slots=True)
class SuffixOptions:
    """Counts of tokens. One kept token takes about half a kilobyte."""

    min_match: int = 2
    max_draft: int = 16
    per_match: int = 2  # guesses per token matched, where the engine weighs no chances: short matches are wrong soon
    tenant_tokens: int = field(default=16384, metadata={"least": 0})  # of replies kept per salt; 0: keep none
    recent_tokens: int = 65536  # of replies kept in all, within the engine's byte budget


class _Live:
    """One running request."""

    __slots__ = ("_followed", "num_prompt_tokens", "pending", "salt", "seen", "tokens")

    def __init__(self, request: DraftRequest) -> None:
        self.salt = request.salt
        self.num_prompt_tokens = len(request.prompt)
        self.tokens = list(request.prompt)
        self.seen = SuffixAutomaton()
        self.seen.extend(self.tokens)
        self._followed = Followed()
        self.pending = Pending()

    def grow(self, tokens: Sequence[int], halves: Sequence[SuffixAutomaton]) -> None:
        """Take in what is new, and look for the end of it in `halves`."""
        self.seen.extend(tokens)
        self.tokens.extend(tokens)
        self._followed.grow(tokens, self.tokens, halves)

    def guesses(self, most: int, least: int) -> tuple[list[Guess], int]:
        """Up to `most` guesses from runs of `least` tokens and more, and how long the run is that they continue."""
        own = self.seen.repeated
        best = self._followed.best(own) or own
        steps = best.steps(most, least)
        return [_judged(step, is_own=best is own, is_first=not place) for place, step in enumerate(steps)], best.length


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
        self._clock = context.clock
        self._confidence = Confidence()
        self._live: dict[str, _Live] = {}
        most = min(self._options.recent_tokens, context.byte_budget // BYTES_PER_TOKEN)
        self._tenants = Tenants(self._options.tenant_tokens, most)

    @property
    def num_recent_tokens(self) -> int:
        """Kept of all replies."""
        return self._tenants.num_tokens

    def start(self, request: DraftRequest) -> None:
        """Take in the prompt."""
        self._live[request.id] = _Live(request)
        self._tenants.touch(request.salt)

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
            begin = len(live.tokens)
            grown = view.tokens[begin:length]
            live.pending.settle(grown, begin, self._confidence)
            live.grow(grown, self._tenants.halves(live.salt))
            most = min(view.most, self._options.max_draft)
            guesses, matched = live.guesses(most, self._options.min_match)
            live.pending.expect(guesses, length)
            if view.room is None:
                guesses = guesses[: self._options.per_match * matched]
            if guesses:
                drafts.append(self._confidence.draft(view.id, length, "suffix", guesses))
        return drafts

    def observe(self, results: Sequence[Verified]) -> None:
        """The next view says it all."""

    def forget(self, ended: Sequence[Ended]) -> None:
        """Drop their automata, and learn their replies for their salts."""
        for request in ended:
            live = self._live.pop(request.id, None)
            if live is not None:
                live.pending.settle(request.output, live.num_prompt_tokens, self._confidence)
                self._tenants.learn(live.salt, request.output)

    def close(self) -> None:
        """Drop everything."""
        self._live.clear()
        self._tenants.clear()
