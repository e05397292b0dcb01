"""Reads a reply as a form whose blanks are filled from its prompt. Knows no drafter and no other request.

After "Name and age? We met Ann, aged 31." the reply '{"age": 31}' reads '{"', what stands behind the first "and ",
'": ', what stands behind the first "aged ", '}'. So read, replies to many prompts are one sequence of symbols: a token
stands for itself, a blank for where in the prompt it is filled from. A piece begins and ends with a word in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import NamedTuple

from ortserve.plugins.spelling import Spelling

BEGIN = 1 << 40  # the symbol before every reply: above all tokens
_FIRST_BLANK = BEGIN + 1
_NUM_BLANKS = 1 << 40
_MOST_PLACES = 32  # of the prompt, where one piece may be from
_MOST_GAP = 32  # bytes between words, and of a word, that name a place
_LONGEST = 96  # bytes of a piece that are spelled at once
_WORD = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz") | frozenset(range(128, 256))


class Blank(NamedTuple):
    """Where in a prompt a piece stands: behind the `number`-th (from 0) occurrence of `anchor`, a word and a gap."""

    lead: bytes  # what the reply has before it, in the same token: a space, or nothing
    anchor: bytes
    number: int

    @property
    def symbol(self) -> int:
        """Stands for it among tokens. Two blanks with one symbol would give a wrong guess, once in 2^40."""
        return _FIRST_BLANK + hash(self) % _NUM_BLANKS


class Ending(NamedTuple):
    """What followed a piece in its prompt; empty at the prompt's end."""

    gap: bytes
    word: bytes


class Filled(NamedTuple):
    """A blank, and how far the piece went."""

    blank: Blank
    ending: Ending


class PromptText:
    """The text of one prompt."""

    __slots__ = ("text",)

    def __init__(self, text: bytes) -> None:
        self.text = text

    def begins(self, piece: bytes) -> Iterator[int]:
        """Places where a word begins that begins with `piece`, from the last one back."""
        place = self.text.rfind(piece)
        for _ in range(_MOST_PLACES):
            if place < 0:
                break
            if not self._is_word(place - 1):
                yield place
            place = self.text.rfind(piece, 0, place + len(piece) - 1) if place else -1

    def is_end(self, place: int) -> bool:
        """A word has ended before it."""
        return self._is_word(place - 1) and not self._is_word(place)

    def describe(self, lead: bytes, place: int, end: int) -> Filled:
        """The blank that a piece from `place` to `end` fills."""
        gap = self._back(place, is_word=False)
        first = self._back(gap, is_word=True)
        anchor = self.text[first:place]
        number = sum(1 for _ in self._anchored(anchor, first - 1))
        follower = self._forward(end, is_word=False)
        word = self.text[follower : self._forward(follower, is_word=True)]
        return Filled(Blank(lead, anchor, number), Ending(self.text[end:follower], word))

    def fill(self, filled: Filled) -> bytes:
        """What stands in this prompt where the blank is filled from; empty where there is no such place."""
        (_, anchor, number), (gap, word) = filled
        place = next(islice(self._anchored(anchor, len(self.text)), number, None), None)
        if place is None:
            return b""
        end = self.text.find(gap + word, place + 1) if gap else len(self.text)
        if end < 0:
            end = self.text.find(gap, place + 1)
        return self.text[place : end if end > place else self._forward(place, is_word=True)][:_LONGEST]

    def _anchored(self, anchor: bytes, last: int) -> Iterator[int]:
        """Places behind each occurrence of a whole `anchor` that begins at `last` or before."""
        place = self.text.find(anchor)
        while 0 <= place <= last:
            if not self._is_word(place - 1) or not anchor:
                yield place + len(anchor)
            place = self.text.find(anchor, place + 1) if anchor else -1

    def rest(self, place: int) -> bytes:
        """What is left of the word at `place`."""
        return self.text[place : self._forward(place, is_word=True)]

    def _is_word(self, place: int) -> bool:
        return 0 <= place < len(self.text) and self.text[place] in _WORD

    def _back(self, place: int, *, is_word: bool) -> int:
        first = max(0, place - _MOST_GAP)
        while place > first and (self.text[place - 1] in _WORD) is is_word:
            place -= 1
        return place

    def _forward(self, place: int, *, is_word: bool) -> int:
        last = min(len(self.text), place + _MOST_GAP)
        while place < last and (self.text[place] in _WORD) is is_word:
            place += 1
        return place


class Reading:
    """One reply as it grows: its symbols so far, and the tokens at its end that may yet become a blank."""

    __slots__ = ("_best", "_gone", "_is_word_before", "_lead", "_places", "_prompt", "_spelling", "filled", "open")

    def __init__(self, prompt: PromptText, spelling: Spelling) -> None:
        self._prompt = prompt
        self._spelling = spelling
        self.open: list[int] = []  # the tokens of the piece that is being read
        self._lead = b""
        self._gone = 0  # bytes of it
        self._places: list[int] = []  # where in the prompt it may begin
        self._best: tuple[int, int, int] | None = None  # tokens of it, first and last place, up to the last word's end
        self._is_word_before = False  # the text before it ends within a word
        self.filled: dict[int, Filled] = {}  # by symbol: the blanks of this reply

    def follow(self, token: int, known: Mapping[int, Filled]) -> list[int]:
        """The symbols that are certain now that `token` has come; of several places one that is `known` is taken."""
        symbols: list[int] = []
        waiting = [token]
        while waiting:
            token = waiting.pop(0)
            if not self.open:
                symbols += self._begin(token)
                continue
            if self._extend(token, known):
                continue
            waiting = [*self._close(symbols), token, *waiting]
        return symbols

    def finish(self, known: Mapping[int, Filled]) -> list[int]:
        """The reply is complete: what is open ends here."""
        symbols: list[int] = []
        while self.open:
            self._mark(known)
            for token in self._close(symbols):
                symbols += self.follow(token, known)
        return symbols

    def completion(self) -> bytes:
        """The rest of the word that the open piece ends in, as it stands where it was found last."""
        return self._prompt.rest(self._places[0] + self._gone) if self.open and self._places else b""

    def _begin(self, token: int) -> list[int]:
        """Open a piece where the token begins a word of the prompt; otherwise it stands for itself."""
        text = self._spelling.text(token)
        piece = text.lstrip(b" ")
        is_inside = self._is_word_before and piece == text
        self._is_word_before = text[-1] in _WORD
        if piece and piece[0] in _WORD and not is_inside:
            places = list(self._prompt.begins(piece))
            if places:
                self.open, self._places, self._best = [token], places, None
                self._lead, self._gone = text[: len(text) - len(piece)], len(piece)
                return []
        return [token]

    def _extend(self, token: int, known: Mapping[int, Filled]) -> bool:
        """Whether the piece goes on with the token, somewhere."""
        text = self._spelling.text(token)
        if text[0] not in _WORD:
            self._mark(known)
        places = [place for place in self._places if self._prompt.text.startswith(text, place + self._gone)]
        if places:
            self._places = places
            self._gone += len(text)
            self.open.append(token)
        return bool(places)

    def _mark(self, known: Mapping[int, Filled]) -> None:
        """A word of the reply ends here: where one of the prompt does too, the piece may."""
        ended = [place for place in self._places if self._prompt.is_end(place + self._gone)]
        if ended:
            symbols = [self._describe(place, self._gone).blank.symbol for place in ended]
            chosen = next((place for place, symbol in zip(ended, symbols, strict=True) if symbol in known), ended[0])
            self._best = len(self.open), chosen, chosen + self._gone

    def _describe(self, place: int, length: int) -> Filled:
        return self._prompt.describe(self._lead, place, place + length)

    def _close(self, symbols: list[int]) -> list[int]:
        """Take the longest piece that ended with a word, or its first token as it is. Returns the tokens behind it."""
        tokens, self.open = self.open, []
        if self._best is None:
            count = 1
            symbols.append(tokens[0])
        else:
            count, first, last = self._best
            filled = self._prompt.describe(self._lead, first, last)
            symbol = filled.blank.symbol
            self.filled[symbol] = filled
            symbols.append(symbol)
        self._is_word_before = self._spelling.text(tokens[count - 1])[-1] in _WORD
        return tokens[count:]
