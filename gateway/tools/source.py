"""The text of a reply as it arrives, and reading it without knowing where its pieces were cut. Knows no format.

A reader is a generator that yields events, or None when it needs more text than there is. It decides by what it has
read, never by how much is there, so the same text gives the same events however it is cut into pieces; only the pieces
of one text or one call's arguments may be longer or shorter.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from ortserve.gateway.tools.events import CallBegun, Event, Said

Result = TypeVar("Result")
Steps = Generator[Event | None, None, Result]


class NotACallError(Exception):
    """What looked like a call is none: its text is shown instead. Never raised once a call has begun."""


class Source:
    """Text that has arrived and is not settled yet. `at` is the place of the reader in `text`."""

    __slots__ = ("_base", "_is_ended", "_mark", "at", "text")

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self._base = 0  # characters before `text`
        self._mark: int | None = None  # text from there on may have to be shown after all
        self._is_ended = False

    @property
    def position(self) -> int:
        """Characters of the whole reply before the reader's place."""
        return self._base + self.at

    @property
    def num_settled(self) -> int:
        """Characters of the whole reply of which nothing will be shown any more."""
        return self._base + (self.at if self._mark is None else self._mark)

    @property
    def rest(self) -> str:
        """What has arrived and not been read."""
        return self.text[self.at :]

    def append(self, text: str) -> None:
        """More of the reply."""
        settled = self.num_settled - self._base
        self.text = self.text[settled:] + text
        self._base += settled
        self.at -= settled
        if self._mark is not None:
            self._mark -= settled

    def end(self) -> None:
        """The reply has ended."""
        self._is_ended = True

    def more(self) -> Steps[bool]:
        """Wait until there is more text than now; False: there will be none."""
        length = len(self.text) - self.at
        while len(self.text) - self.at == length:
            if self._is_ended:
                return False
            yield None
        return True

    def peek(self) -> Steps[str]:
        """The next character, "" at the end."""
        if self.at == len(self.text):
            yield from self.more()
        return self.text[self.at : self.at + 1]

    def accept(self, literal: str) -> Steps[bool]:
        """Read `literal` if it comes next."""
        while True:
            if self.text.startswith(literal, self.at):
                self.at += len(literal)
                return True
            if not literal.startswith(self.rest) or not (yield from self.more()):
                return False

    def expect(self, literal: str) -> Steps[None]:
        """Read `literal`; raises `NotACallError` when something else comes next."""
        if not (yield from self.accept(literal)):
            raise NotACallError

    def skip(self, characters: str) -> Steps[str]:
        """Read all of these characters that come next; the first other one, "" at the end."""
        while (character := (yield from self.peek())) and character in characters:
            self.at += 1
        return character

    def expect_after(self, blanks: str, character: str) -> Steps[None]:
        """Read one character and the `blanks` before it; raises `NotACallError` when another comes next."""
        if (yield from self.skip(blanks)) != character:
            raise NotACallError
        self.at += 1

    def before(self, literals: Sequence[str], limit: int | None = None) -> Steps[str]:
        """Read what comes before the next of `literals`; raises `NotACallError` when none does within `limit`."""
        while True:
            rest = self.rest
            found = find_first(rest, literals)
            end = found[0] if found else len(rest) - num_held(rest, literals)
            if limit is not None and end > limit:
                raise NotACallError
            if found:
                self.at += end
                return rest[:end]
            if not (yield from self.more()):
                raise NotACallError

    def said(self, length: int) -> Said:
        """Read `length` characters as text for the reader."""
        said = Said(self.text[self.at : self.at + length], self.position)
        self.at += length
        return said

    def mark(self, place: int) -> None:
        """Keep the text from `place` on until a call has begun or `shown` has been taken."""
        self._mark = place

    def begin(self, name: str) -> CallBegun:
        """A call: what has been read of it will not be shown."""
        self._mark = None
        return CallBegun(name)

    def shown(self) -> Said:
        """The kept text up to the reader's place, which was no call."""
        assert self._mark is not None
        said = Said(self.text[self._mark : self.at], self._base + self._mark)
        self._mark = None
        return said

    def forget(self) -> None:
        """The kept text is neither a call nor to be shown."""
        self._mark = None


class Reader:
    """Runs a reader over the pieces of one reply."""

    __slots__ = ("_source", "_steps")

    def __init__(self, read: Callable[[Source], Steps[None]]) -> None:
        self._source = Source()
        self._steps = read(self._source)

    @property
    def num_settled(self) -> int:
        """Characters of which nothing will be shown any more but what has been."""
        return self._source.num_settled

    def feed(self, text: str) -> list[Event]:
        """The events that this piece completes."""
        self._source.append(text)
        return self._run()

    def finish(self) -> list[Event]:
        """The events that were waiting for more text. To be called once, after the last piece."""
        self._source.end()
        return self._run()

    def _run(self) -> list[Event]:
        events: list[Event] = []
        for event in self._steps:
            if event is None:
                break
            events.append(event)
        return events


def find_first(text: str, literals: Sequence[str]) -> tuple[int, str] | None:
    """The literal that occurs first, of several there the longest."""
    places = [(place, -len(one), one) for one in literals if (place := text.find(one)) >= 0]
    if not places:
        return None
    place, _, literal = min(places)
    return place, literal


def num_held(text: str, literals: Sequence[str]) -> int:
    """The length of the longest suffix of `text` with which one of `literals` could begin."""
    longest = max((len(one) for one in literals), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        suffix = text[len(text) - length :]
        if any(len(one) > length and one.startswith(suffix) for one in literals):
            return length
    return 0
