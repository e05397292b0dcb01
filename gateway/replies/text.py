"""Token bytes to text, piece by piece: no character split, no stop string leaked. Knows no tokenizer and no request.

Whatever the split into pieces, the joined text is the text of the whole: both machines keep only the state a longer
input could still change (an unfinished character, a suffix that may become a stop string).
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass


class Utf8Decoder:
    """Bytes in, whole characters out. Ill-formed bytes become U+FFFD, an unfinished tail is dropped at the end."""

    __slots__ = ("_decoder",)

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> str:
        """Characters that are complete now."""
        return self._decoder.decode(data)

    @property
    def num_pending(self) -> int:
        """Bytes of a character that is not complete yet (0 to 3)."""
        return len(self._decoder.getstate()[0])


@dataclass(frozen=True, slots=True)
class Scan:
    """What may be shown now, and the stop string that ended the text, if one did."""

    text: str
    stop: str | None = None

    @property
    def stopped(self) -> bool:
        """The text has ended."""
        return self.stop is not None


class StopScanner:
    """Cuts a text before the stop string that completes first; at the same place the longest one wins.

    Knuth-Morris-Pratt states, one per stop string: constant work per character and stop, whatever the pieces. Only the
    longest suffix that is a proper prefix of a stop string is held back.
    """

    __slots__ = ("_failures", "_held", "_states", "_stops")

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops), "an empty stop string would match everywhere"
        self._stops = tuple(stops)
        self._failures = tuple(_failure_table(stop) for stop in self._stops)
        self._states = [0] * len(self._stops)
        self._held = ""

    def feed(self, text: str) -> Scan:
        """Text that can no longer become part of a stop string. Not to be called again once stopped."""
        if not self._stops:
            return Scan(text)
        buffer = self._held + text
        for place in range(len(self._held), len(buffer)):
            matched = self._advance(buffer[place])
            if matched:
                self._held = ""
                start = place + 1 - matched
                return Scan(buffer[:start], buffer[start : place + 1])
        keep = max(self._states)
        self._held = buffer[len(buffer) - keep :]
        return Scan(buffer[: len(buffer) - keep])

    def flush(self) -> str:
        """The held suffix: the text has ended, so it is not a stop string."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> int:
        """Move every state by one character; the length of the longest stop string completed here, or 0."""
        matched = 0
        for index, stop in enumerate(self._stops):
            state = self._states[index]
            while state and stop[state] != character:
                state = self._failures[index][state - 1]
            if stop[state] == character:
                state += 1
            if state == len(stop):
                matched = max(matched, state)
                state = self._failures[index][state - 1]
            self._states[index] = state
        return matched


def _failure_table(pattern: str) -> tuple[int, ...]:
    """For each prefix, the length of its longest proper prefix that is also its suffix (Knuth, Morris, Pratt 1977)."""
    table = [0] * len(pattern)
    state = 0
    for place in range(1, len(pattern)):
        while state and pattern[state] != pattern[place]:
            state = table[state - 1]
        if pattern[state] == pattern[place]:
            state += 1
        table[place] = state
    return tuple(table)
