"""Turns tokens into text and text into tokens, by what each token stands for. Knows no tokenizer and no file.

Text becomes the tokens of byte pair encoding: neighbours that form a token are joined, the lowest id first, as ids are
given in the order of merging. Where a tokenizer does otherwise the tokens are other ones of the same text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

NOTHING = b"\0"  # stands for tokens without text, such as the end of a turn
# Joined within a run of letters, of digits, or of anything else; a space goes with what it precedes.
_RUNS = re.compile(rb" ?[A-Za-z\x80-\xff]+| ?[0-9]+| ?[^\sA-Za-z0-9\x80-\xff]+|\s+")


class Spelling:
    """The words of one vocabulary."""

    def __init__(self, words: Sequence[bytes]) -> None:
        """`words`: what each token stands for, by id; empty where it has no text."""
        self._words = words
        self._ids: dict[bytes, int] = {}
        for token, word in enumerate(words):
            if word:
                self._ids.setdefault(word, token)

    def text(self, token: int) -> bytes:
        """What a token stands for."""
        return (self._words[token] if token < len(self._words) else b"") or NOTHING

    def join(self, tokens: Iterable[int]) -> bytes:
        """What several stand for."""
        return b"".join(map(self.text, tokens))

    def spell(self, text: bytes) -> tuple[int, ...]:
        """Tokens of a text; fewer than all of it where a byte is no token."""
        found: list[int] = []
        for run in _RUNS.findall(text):
            tokens = self._merged(run)
            found += tokens
            if not tokens:
                break
        return tuple(found)

    def _merged(self, run: bytes) -> list[int]:
        parts = [run[place : place + 1] for place in range(len(run))]
        while len(parts) > 1:
            joined = [self._ids.get(one + other) for one, other in pairwise(parts)]
            lowest = min((token for token in joined if token is not None), default=None)
            if lowest is None:
                break
            place = joined.index(lowest)
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        tokens = [self._ids.get(part) for part in parts]
        return [] if None in tokens else [token for token in tokens if token is not None]
