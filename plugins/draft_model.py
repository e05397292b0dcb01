"""Guesses what a small model of the same tokenizer would say, for all requests at once. Knows no graph and no logits.

One model call chooses the next guess of every request. A row of the small model keeps what it has read of a request;
guesses that did not come true are cut off it before the next call. Where the request samples, the small model draws
with the request's own random number, so that both choose alike wherever their distributions are alike. Leviathan et
al., "Fast Inference from Transformers via Speculative Decoding", 2023, with equality in place of rejection sampling.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from ortserve.plugins.api import PluginContext
from ortserve.plugins.draft_options import read_counts
from ortserve.plugins.drafting import Draft, DraftRequest, Ended, SequenceView, Verified
from ortserve.plugins.small_model import Feed, NextDraw, SmallModel

_SMALLEST_CHUNK = 16  # tokens of prompts that are read in a call however late it is: they must end at last
_LEARN = 0.2  # weight of the newest call in what a call takes


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Counts of tokens."""

    max_draft: int = 16
    chunk: int = 128  # of prompts and of what was not drafted, read in one call


@dataclass(slots=True, eq=False)
class _Live:
    """What the small model has of one request."""

    row: int | None = None
    begin: int = 0  # place in the request of the row's first token
    stored: list[int] = field(default_factory=list)  # the row's tokens; guesses at the end
    num_known: int = 0  # of them that are the request's for sure
    last_used: int = 0  # number of the call

    def settle(self, tokens: Sequence[int], length: int) -> int:
        """Drop the guesses that the request did not take; the tokens that are left. One stays to be read."""
        most = min(len(self.stored), length - self.begin - 1)
        place = min(self.num_known, most)
        while place < most and self.stored[place] == tokens[self.begin + place]:
            place += 1
        del self.stored[place:]
        self.num_known = place
        return place


@dataclass(slots=True, eq=False)
class _Asking:
    """One request of one call: what is still to be read, and what has been guessed."""

    view: SequenceView
    live: _Live
    row: int
    length: int
    pending: tuple[int, ...]
    draw: NextDraw | None
    guesses: list[int] = field(default_factory=list)

    @property
    def max_length(self) -> int | None:
        """Tokens that its row may have at the end."""
        return None if self.view.max_length is None else self.view.max_length - self.live.begin


class ModelDrafter:
    """Rows of one small model, given to the requests that were asked for last."""

    def __init__(self, context: PluginContext) -> None:
        self._options = read_counts("model", ModelOptions(), context.options)
        self._clock = context.clock
        self._eos = frozenset(context.eos_token_ids)
        self._model: SmallModel = context.load_model()
        # Room for what is read again and for guesses, however short the small model's context is.
        self._most = max(1, min(self._options.max_draft, self._model.max_context // 4))
        self._live: dict[str, _Live] = {}
        self._free = list(range(self._model.num_rows))  # a heap: low rows cost less
        self._num_calls = 0
        self._guess_s = 0.0  # a call that reads a guess of each request
        self._token_s = 0.0  # one more token of a prompt in a call

    def start(self, request: DraftRequest) -> None:
        """Nothing is read yet: the engine has the cores."""
        self._live[request.id] = _Live()

    def propose(self, views: Sequence[SequenceView], deadline_s: float) -> Sequence[Draft]:
        """Read what is new, prompts within the time there is, then guess on while there is time."""
        self._num_calls += 1
        known = [(view, self._live[view.id]) for view in views if view.id in self._live]
        for _, live in known:
            live.last_used = self._num_calls
        asking = [one for view, live in known if (one := self._prepare(view, live)) is not None]
        ready = self._read(asking, deadline_s)
        while ready := [one for one in ready if self._goes_on(one)]:
            begun = self._clock()
            if begun + self._guess_s > deadline_s:
                break
            self._extend([(one, (one.guesses[-1],), True) for one in ready])
            self._guess_s += (
                _LEARN * (self._clock() - begun - self._guess_s) if self._guess_s else self._clock() - begun
            )
        return [Draft(one.view.id, one.length, tuple(one.guesses), "model") for one in asking if one.guesses]

    def observe(self, results: Sequence[Verified]) -> None:
        """The next view says it all."""

    def forget(self, ended: Sequence[Ended]) -> None:
        """Free their rows."""
        for request in ended:
            live = self._live.pop(request.id, None)
            if live is not None:
                self._take_row(live)

    def close(self) -> None:
        """Free the model."""
        self._live.clear()
        self._model.close()

    def _prepare(self, view: SequenceView, live: _Live) -> _Asking | None:
        """Give it a row without wrong guesses and with room; None when others have them all."""
        tokens, length = view.tokens, len(view.tokens)  # a late call may see the sequence grow
        if live.row is not None:
            self._model.truncate(live.row, live.settle(tokens, length))
        if length - live.begin + self._most > self._model.max_context:
            # Read the last half again, as if the request began there: half a context later it is due again.
            self._empty(live)
            live.begin = max(0, length - max(1, self._model.max_context // 2))
        if not self._has_room(live, length - live.begin + self._most):
            return None
        if live.row is None:
            live.row = heappop(self._free)
        pending = tuple(tokens[live.begin + len(live.stored) : length])
        return _Asking(view, live, live.row, length, pending, view.draw)

    def _has_room(self, live: _Live, wanted: int) -> bool:
        """Make room for a row of `wanted` tokens; those that have not been asked for longest give way."""
        while True:
            others = sum(len(one.stored) for one in self._live.values() if one is not live)
            if (live.row is not None or self._free) and others + wanted <= self._model.max_tokens:
                return True
            idle = [one for one in self._live.values() if one.row is not None and one.last_used < self._num_calls]
            if not idle:
                return False
            self._take_row(min(idle, key=lambda one: one.last_used))

    def _read(self, asking: Iterable[_Asking], deadline_s: float) -> list[_Asking]:
        """One call over all that is pending, the shortest first, within the time; those who have their first guess."""
        begun = self._clock()
        budget = self._affordable(deadline_s - begun)
        plans: list[tuple[_Asking, tuple[int, ...], bool]] = []
        num_tokens = 0
        for one in sorted(asking, key=lambda one: len(one.pending)):
            count = len(one.pending)
            if count > self._most + 1:  # more than a verified draft brings: a prompt, or what was not drafted
                count = min(count, self._model.max_feed, budget)
                budget -= count
            if count:
                plans.append((one, one.pending[:count], count == len(one.pending)))
                num_tokens += count
        self._extend(plans)
        if num_tokens > _SMALLEST_CHUNK:
            taken = max(self._clock() - begun - self._guess_s, 0.0) / num_tokens
            self._token_s += _LEARN * (taken - self._token_s) if self._token_s else taken
        return [one for one, _, is_whole in plans if is_whole]

    def _affordable(self, seconds: float) -> int:
        """Tokens of prompts that may be read in `seconds`."""
        if self._token_s <= 0 or seconds == float("inf"):
            return self._options.chunk
        return min(self._options.chunk, max(_SMALLEST_CHUNK, int((seconds - self._guess_s) / self._token_s)))

    def _extend(self, plans: Sequence[tuple[_Asking, tuple[int, ...], bool]]) -> None:
        """Have the small model read tokens, and take its next guess of those that are whole."""
        chosen = self._model.extend(
            [Feed(one.row, tokens, one.draw, is_whole, one.max_length) for one, tokens, is_whole in plans]
        )
        for (one, tokens, is_whole), token in zip(plans, chosen, strict=True):
            one.live.stored.extend(tokens)
            if is_whole and token is not None:
                one.guesses.append(token)
                one.draw = None if one.draw is None else one.draw.after(token)

    def _goes_on(self, one: _Asking) -> bool:
        if not one.guesses or len(one.guesses) >= min(one.view.max_draft, self._most):
            return False
        return one.guesses[-1] not in self._eos

    def _empty(self, live: _Live) -> None:
        if live.row is not None:
            self._model.truncate(live.row, 0)
        live.stored.clear()
        live.num_known = live.begin = 0

    def _take_row(self, live: _Live) -> None:
        if live.row is not None:
            self._empty(live)
            heappush(self._free, live.row)
            live.row = None
