"""Plain counts behind a histogram: an observation is one search and one addition. Knows no metric's name.

prometheus-client's own histogram takes a lock and several microseconds; tokens are counted by the thousand per second.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)


class Tally:
    """How many observations fell at or below each bound, and their sum. For one thread."""

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    @property
    def count(self) -> int:
        """Observations so far."""
        return sum(self._counts)

    def add(self, value: float, count: int = 1) -> None:
        """`count` observations of `value`."""
        self._counts[bisect_left(self._bounds, value)] += count
        self.total += value * count

    def merge(self, other: Tally) -> None:
        """Take over the observations of a tally with the same bounds."""
        assert self._bounds is other._bounds
        for place, count in enumerate(other._counts):
            self._counts[place] += count
        self.total += other.total

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulated counts by upper bound, as the exposition format wants them."""
        names = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        cumulated = 0
        pairs: list[tuple[str, float]] = []
        for name, count in zip(names, self._counts, strict=True):
            cumulated += count
            pairs.append((name, float(cumulated)))
        return pairs
