"""Lets any thread wake the engine's thread, whose owner is made later than those who ring. Knows no reason."""

from __future__ import annotations

from collections.abc import Callable


class Bell:
    """Rings into the void until somebody answers."""

    def __init__(self) -> None:
        self._answer: Callable[[], None] | None = None

    def answer_with(self, answer: Callable[[], None]) -> None:
        """From now on ringing calls `answer`, which must be quick and thread-safe."""
        self._answer = answer

    def ring(self) -> None:
        """May be called from any thread."""
        answer = self._answer
        if answer is not None:
            answer()
