"""Gives freed memory back to the system. Knows nothing of what was freed."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def trim_heap() -> None:
    """Let the C library return what it keeps for later: after a model has been loaded, that is half of its weights.

    Nothing happens where the C library cannot.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
