"""How much memory is resident, as the kernel counts it. Knows no KV store."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)


def process_bytes() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def resident_bytes(address: int, num_bytes: int) -> int:
    """Resident bytes of an anonymous mapping from a page-aligned address on (mincore(2))."""
    pages = (ctypes.c_ubyte * -(-num_bytes // mmap.PAGESIZE))()
    failed = _LIBC.mincore(ctypes.c_void_p(address), ctypes.c_size_t(num_bytes), pages)
    assert failed == 0, f"mincore failed with error {ctypes.get_errno()}"
    return sum(page & 1 for page in pages) * mmap.PAGESIZE
