"""The tokens of a reply that its content shows, those of reasoning and calls taken out. Knows no format."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from ortserve.gateway.replies.pieces import ShownToken


class TokenSieve:
    """Tokens waiting until it is known what their text is."""

    __slots__ = ("_said", "_waiting")

    def __init__(self) -> None:
        self._waiting: deque[ShownToken] = deque()
        self._said: deque[tuple[int, int]] = deque()  # characters of the reply that are content, ascending

    def sift(
        self, tokens: Sequence[ShownToken], said: Sequence[tuple[int, int]], num_settled: int | None
    ) -> tuple[ShownToken, ...]:
        """Tokens now known to be content, cut where only a part of them is.

        `said` are intervals of the reply's characters that have become content, `num_settled` the characters before
        which there will be no others; None: the reply has ended.
        """
        self._waiting.extend(tokens)
        self._said.extend(said)
        shown = []
        while self._waiting:
            token = self._waiting[0]
            text = _text_of(token)
            end = token.offset + max(len(text or ""), 1)
            if num_settled is not None and end > num_settled:
                break
            self._waiting.popleft()
            part = self._part(token, text, end)
            if part is not None:
                shown.append(part)
        return tuple(shown)

    def _part(self, token: ShownToken, text: str | None, end: int) -> ShownToken | None:
        while self._said and self._said[0][1] <= token.offset:
            self._said.popleft()
        overlaps = [(max(start, token.offset), min(stop, end)) for start, stop in self._said if start < end]
        overlaps = [(start, stop) for start, stop in overlaps if start < stop]
        if not overlaps:
            return None
        if text is None or overlaps == [(token.offset, end)]:
            return token  # whole, or bytes of a character that is content
        kept = "".join(text[start - token.offset : stop - token.offset] for start, stop in overlaps)
        return replace(token, text=kept, data=kept.encode())


def _text_of(token: ShownToken) -> str | None:
    """The token's characters; None when its bytes are not whole ones."""
    try:
        return token.data.decode()
    except UnicodeDecodeError:
        return None
