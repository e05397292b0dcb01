"""Notices a step that does not end. Knows no engine: it is told when a step begins and ends.

A step may take as long as the longest one before it has taken, many times over, and in any case the limit it was given:
long prompts, a graph captured at its first use and other models of this process that go first are no failures.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic

STEP_LIMIT_S = 120.0
FACTOR = 10.0  # by the longest step so far
_LOOKS = 8  # in the time of the limit
_LONGEST_LOOK_S = 1.0


class Steps:
    """The steps of one engine, as somebody sees them who looks eight times in the time of the limit or more often."""

    def __init__(self, limit_s: float, clock: Callable[[], float] = monotonic) -> None:
        self.every_s = min(limit_s / _LOOKS, _LONGEST_LOOK_S)  # between two looks
        self.longest_s = 0.0
        self._limit_s = limit_s
        self._clock = clock
        self._number = 0  # of the step; odd while one runs. Written by the engine's thread alone
        self._begun_s = 0.0
        self._seen, self._waited_s, self._looked_s = 0, 0.0, clock()

    @property
    def limit_s(self) -> float:
        """How long a step may take now."""
        return max(self._limit_s, FACTOR * self.longest_s)

    def begin(self) -> None:
        """A step begins."""
        self._begun_s = self._clock()
        self._number += 1

    def end(self) -> None:
        """It has ended."""
        self._number += 1
        self.longest_s = max(self.longest_s, self._clock() - self._begun_s)

    def renew(self) -> None:
        """One has ended and the next begins; how long it has taken says nothing of the next."""
        self._number += 2

    def hung_s(self) -> float | None:
        """Look: the seconds that the running step has taken, where it may not take so long."""
        number, now_s = self._number, self._clock()
        # A process that was stopped for a while (SIGSTOP, a frozen machine) has not run a step all that time.
        passed_s, self._looked_s = min(now_s - self._looked_s, 2 * self.every_s), now_s
        self._waited_s = self._waited_s + passed_s if number == self._seen and number % 2 else 0.0
        self._seen = number
        return self._waited_s if self._waited_s > self.limit_s else None


class Watchdog:
    """One thread beside the engine's. `hung` is called on it, once, with the seconds that a step has taken."""

    def __init__(self, limit_s: float, hung: Callable[[float], None]) -> None:
        self.steps = Steps(limit_s)
        self._hung = hung
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ortserve-watchdog", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """A step begins."""
        self.steps.begin()

    def end(self) -> None:
        """It has ended."""
        self.steps.end()

    def renew(self) -> None:
        """One step has ended and the next begins."""
        self.steps.renew()

    def close(self) -> None:
        """Look no more."""
        self._is_over.set()

    def _run(self) -> None:
        while not self._is_over.wait(self.steps.every_s):
            seconds = self.steps.hung_s()
            if seconds is not None:
                self._hung(seconds)
                return
