"""Waiting for what must happen. Knows nothing of what that is.

A busy machine is no failure: who waits goes on as soon as what he waits for is there, and gives up only when it will
never come.
"""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 60.0


def wait_for(holds: Callable[[], object], what: str | Callable[[], object] = "it never happened") -> None:
    """Return once `holds` does. `what` is said where it never does; a function is asked then."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, what if isinstance(what, str) else what()
        time.sleep(0.005)
