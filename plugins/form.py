"""Guesses that a reply fills the same form as its tenant's recent ones, with pieces of its own prompt.

Records to extract, tables, labels: the replies to many such prompts differ only in what they copy, and the tokens of a
copied word are mostly others than in the prompt ("Ann" behind a quote, " Ann" in a sentence), so that repeated tokens
say little. Replies are therefore read as forms (`blanks`), forms are matched as `suffix` matches tokens, and a blank is
filled with what stands in the same place of this prompt. Knows no other tenant. Silent without the text of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ortserve.plugins.api import PluginContext
from ortserve.plugins.automaton import Step
from ortserve.plugins.blanks import BEGIN, Filled, PromptText, Reading
from ortserve.plugins.confidence import Confidence, Guess, Pending
from ortserve.plugins.draft_options import read_counts
from ortserve.plugins.drafting import Draft, DraftRequest, Ended, SequenceView, Verified
from ortserve.plugins.recent import BYTES_PER_TOKEN, Followed, Tenants
from ortserve.plugins.spelling import Spelling

_MOST_PROMPT = 8192  # tokens: in longer ones pieces are found too slowly, and too often by chance
_LITERAL, _BLANK, _INSIDE, _WORD = range(4)  # kinds of guesses
_MOST_BLANKS = 1024  # kept per salt
_INSIDE_PRIOR, _WORD_PRIOR = 0.9, 0.6


@dataclass(frozen=True, slots=True)
class FormOptions:
    """Counts of tokens. One kept token takes about half a kilobyte."""

    max_draft: int = 16
    tenant_tokens: int = field(default=8192, metadata={"least": 0})  # of replies kept per salt; 0: keep none
    recent_tokens: int = 32768  # of replies kept in all, within the engine's byte budget


class _Live:
    """One running request."""

    __slots__ = (
        "_spelled",
        "followed",
        "num_prompt_tokens",
        "num_seen",
        "pending",
        "prompt",
        "reading",
        "salt",
        "symbols",
    )

    def __init__(self, request: DraftRequest, spelling: Spelling) -> None:
        self.salt = request.salt
        self.prompt = PromptText(spelling.join(request.prompt))
        self.reading = Reading(self.prompt, spelling)
        self.symbols = [BEGIN]
        self.followed = Followed()
        self.pending = Pending()
        self.num_seen = self.num_prompt_tokens = len(request.prompt)
        self._spelled: dict[Filled, tuple[int, ...]] = {}

    def spelled(self, filled: Filled, spelling: Spelling) -> tuple[int, ...]:
        """The tokens that a blank is filled with here."""
        tokens = self._spelled.get(filled)
        if tokens is None:
            piece = self.prompt.fill(filled)
            tokens = self._spelled[filled] = spelling.spell(filled.blank.lead + piece) if piece else ()
        return tokens


class FormDrafter:
    """A reading per running request, and the forms of each salt."""

    def __init__(self, context: PluginContext) -> None:
        self._options = read_counts("form", FormOptions(), context.options)
        words = context.load_words()
        self._spelling = Spelling(words) if words and self._options.tenant_tokens else None
        self._clock = context.clock
        self._confidence = Confidence()
        self._live: dict[str, _Live] = {}
        most = min(self._options.recent_tokens, context.byte_budget // BYTES_PER_TOKEN)
        self._tenants = Tenants(self._options.tenant_tokens, most)
        self._known: dict[bytes, dict[int, Filled]] = {}  # the blanks in the forms of each salt, by symbol

    def start(self, request: DraftRequest) -> None:
        """Take in the prompt's text."""
        if self._spelling is not None and len(request.prompt) <= _MOST_PROMPT:
            self._live[request.id] = _Live(request, self._spelling)
            self._tenants.touch(request.salt)

    def propose(self, views: Sequence[SequenceView], deadline_s: float) -> Sequence[Draft]:
        """A guess for each request whose reply goes on like an earlier one."""
        drafts: list[Draft] = []
        for view in views:
            live = self._live.get(view.id)
            if live is None:
                continue
            if self._clock() >= deadline_s:
                break
            length = len(view.tokens)  # a late call may see the sequence grow
            self._read(live, view.tokens[live.num_seen : length])
            guesses = self._guesses(live, min(view.most, self._options.max_draft))
            live.pending.expect(guesses, length)
            if guesses:
                drafts.append(self._confidence.draft(view.id, length, "form", guesses))
        return drafts

    def observe(self, results: Sequence[Verified]) -> None:
        """The next view says it all."""

    def forget(self, ended: Sequence[Ended]) -> None:
        """Learn the forms of their replies for their salts."""
        for request in ended:
            live = self._live.pop(request.id, None)
            if live is None:
                continue
            known = self._known.setdefault(live.salt, {})
            self._read(live, request.output[live.num_seen - live.num_prompt_tokens :])
            live.symbols += live.reading.finish(known)
            self._tenants.learn(live.salt, live.symbols)
            for symbol, filled in live.reading.filled.items():
                known.pop(symbol, None)  # what is used again stays longest
                known[symbol] = filled
            for symbol in list(known)[: max(0, len(known) - _MOST_BLANKS)]:
                del known[symbol]
            for salt in [salt for salt in self._known if not self._tenants.halves(salt)]:
                del self._known[salt]

    def close(self) -> None:
        """Drop everything."""
        self._live.clear()
        self._known.clear()
        self._tenants.clear()

    def _read(self, live: _Live, tokens: Sequence[int]) -> None:
        """The reply has grown."""
        live.pending.settle(tokens, live.num_seen, self._confidence)
        live.num_seen += len(tokens)
        known = self._known.get(live.salt, {})
        symbols = [symbol for token in tokens for symbol in live.reading.follow(token, known)]
        live.symbols += symbols
        live.followed.grow(symbols, live.symbols, self._tenants.halves(live.salt))

    def _guesses(self, live: _Live, most: int) -> list[Guess]:
        """What the form says comes next; behind a piece that is not the form's, the rest of its word."""
        open_ = live.reading.open
        guesses = self._filled_in(live, most + len(open_))
        if open_ and [guess.token for guess in guesses[: len(open_)]] != open_:
            return self._completed(live)[:most]
        return guesses[len(open_) :]

    def _filled_in(self, live: _Live, most: int) -> list[Guess]:
        match, known = live.followed.best(), self._known.get(live.salt, {})
        found: list[Guess] = []
        for step in [] if match is None else match.steps(most, 1):
            if step.token < BEGIN:
                found.append(_judged(step.token, _LITERAL, step))
                continue
            filled = known.get(step.token)
            tokens = () if filled is None or self._spelling is None else live.spelled(filled, self._spelling)
            if not tokens:
                break
            found.append(_judged(tokens[0], _BLANK, step))
            found += (Guess(token, (_INSIDE,), _INSIDE_PRIOR) for token in tokens[1:])
            if len(found) >= most:
                break
        return found[:most]

    def _completed(self, live: _Live) -> list[Guess]:
        rest = live.reading.completion()
        if not rest or self._spelling is None:
            return []
        drawn = self._spelling.join(live.reading.open)
        tokens = self._spelling.spell(drawn + rest)
        count = len(live.reading.open)
        is_same = tokens[:count] == tuple(live.reading.open)
        return [Guess(token, (_WORD,), _WORD_PRIOR) for token in tokens[count:]] if is_same else []


def _judged(token: int, what: int, step: Step) -> Guess:
    """The longer the form has been followed, and the more of its replies agree, the better."""
    share = step.num_followed / max(step.num_seen, 1)
    kind = (what, min(step.length, 31).bit_length(), min(step.num_seen, 8).bit_length(), int(6 * share))
    prior = step.num_followed / (step.num_seen + 1 / step.length) * (1 - 0.5 / step.length)
    return Guess(token, kind, prior)
