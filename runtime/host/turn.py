"""A lock that is handed on in the order in which it was asked for. Knows nothing of what its holders do."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import AbstractContextManager
from types import TracebackType


class Turn(AbstractContextManager[None]):
    """Held by one thread at a time, first come, first served; not reentrant.

    An ordinary lock goes to whoever happens to ask next, which under load is the thread that has just released it: of
    two busy models that share cores one would starve.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._is_taken = False
        self._waiting: deque[threading.Lock] = deque()  # each held until its thread's turn has come

    def __enter__(self) -> None:
        with self._mutex:
            if not self._is_taken:
                self._is_taken = True
                return
            gate = threading.Lock()
            gate.acquire()
            self._waiting.append(gate)
        gate.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._mutex:
            if self._waiting:
                self._waiting.popleft().release()  # still taken: by the one that waited longest
            else:
                self._is_taken = False
