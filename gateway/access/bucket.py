"""A token bucket: so many a minute, a minute's worth at once. Keeps no clock of its own."""

from __future__ import annotations

MINUTE_S = 60.0


class Bucket:
    """Its level may fall below zero: what has been used is used, and is waited for."""

    def __init__(self, per_minute: int, now_s: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at_s = now_s

    def level(self, now_s: float) -> float:
        """What is left now."""
        self._level = min(self._level + (now_s - self._at_s) * self.per_minute / MINUTE_S, float(self.per_minute))
        self._at_s = now_s
        return self._level

    def take(self, amount: float, now_s: float) -> None:
        """Use so much; less than nothing gives back."""
        self._level = min(self.level(now_s) - amount, float(self.per_minute))

    def wait_s(self, wanted: float, now_s: float) -> float:
        """Seconds until so much is left."""
        return max(0.0, (min(wanted, self.per_minute) - self.level(now_s)) * MINUTE_S / self.per_minute)

    def resized(self, per_minute: int, now_s: float) -> Bucket:
        """The same with another rate: what has been used stays used."""
        used = self.per_minute - self.level(now_s)
        bucket = Bucket(per_minute, now_s)
        bucket.take(used, now_s)
        return bucket
