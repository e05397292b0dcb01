"""How often, and after how long, an engine process that has died is started again. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Restarts:
    """`delays_s` before the first, second, ... start within `window_s`; after so many failures none is tried."""

    delays_s: tuple[float, ...] = (0.0, 1.0, 5.0, 15.0, 60.0)
    window_s: float = 600.0

    def delay_after(self, failures_s: Sequence[float], now_s: float) -> float | None:
        """Seconds to wait after the last of the failures, at these times; None: it has failed too often."""
        num_recent = sum(now_s - at < self.window_s for at in failures_s)
        return self.delays_s[num_recent - 1] if num_recent <= len(self.delays_s) else None
