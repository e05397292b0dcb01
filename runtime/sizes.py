"""Bytes as people read them."""

from __future__ import annotations

MIB, GIB = 2**20, 2**30


def shown_bytes(num_bytes: float) -> str:
    """As 1.25 GiB, and below one as 8.0 MiB: a small budget is not none."""
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB else f"{num_bytes / MIB:.1f} MiB"
