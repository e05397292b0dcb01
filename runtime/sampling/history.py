"""Which tokens a sequence has seen, as arrays that penalties can index. Knows no logits and no requests."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt


class TokenHistory:
    """Occurrences of every token of one sequence, in order of first appearance; adding a token is O(1)."""

    __slots__ = ("_counts", "_ids", "_places")

    def __init__(self, prompt: Iterable[int]) -> None:
        self._places: dict[int, int] = {token: place for place, token in enumerate(dict.fromkeys(prompt))}
        size = max(64, 2 * len(self._places))
        self._ids = np.zeros(size, np.int64)
        self._ids[: len(self._places)] = list(self._places)
        self._counts = np.zeros(size, np.float32)  # occurrences in the output

    def add(self, token: int) -> None:
        """Count one more output token."""
        place = self._places.get(token)
        if place is None:
            place = self._places[token] = len(self._places)
            if place == len(self._ids):
                self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._ids[place] = token
        self._counts[place] += 1

    def extended(self, token: int) -> TokenHistory:
        """A copy with one more output token: what the history would be if a draft were accepted."""
        other = self.copy()
        other.add(token)
        return other

    def copy(self) -> TokenHistory:
        """One that stays as it is when this one grows."""
        other = TokenHistory.__new__(TokenHistory)
        other._places = dict(self._places)
        other._ids = self._ids.copy()
        other._counts = self._counts.copy()
        return other

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """Distinct tokens of prompt and output."""
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> npt.NDArray[np.float32]:
        """Occurrences of each of `ids` in the output alone."""
        return self._counts[: len(self._places)]
