"""Has the system keep what this process holds now on pages of 2 MiB. Knows nothing of what is held.

Reading weights is what a decode step does, and with pages of 4 KiB the processor looks up a page for every 64 lines of
them. C libraries map large blocks with small pages unless the environment said otherwise before the process began.
"""

from __future__ import annotations

import ctypes
import mmap
import re
from collections.abc import Iterator
from pathlib import Path

PAGE = 1 << 21
_COLLAPSE = 25  # MADV_COLLAPSE of Linux 6.1, which Python has no name for
_PRESENT = 1  # of mincore's bytes
_MAPS = Path("/proc/self/smaps")
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_HEAD = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ 0 *(\S*)$")
_FLAGS = "VmFlags:"
_REFUSES = "nh"  # flag of memory that is to stay on small pages, as rows of the KV cache are


def use_huge_pages() -> int:
    """Move private memory that is wholly present onto huge pages; how many bytes lie on such pages then.

    What has holes stays as it is: filling them would cost memory. Nothing happens where the system's setting is
    `never`, or the system cannot.
    """
    try:
        if "[never]" in _SETTING.read_text():
            return 0
        areas = list(_areas(_MAPS.read_text()))
        library = ctypes.CDLL(None)
        library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        library.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    except (OSError, AttributeError):
        return 0
    present = ctypes.create_string_buffer(PAGE // mmap.PAGESIZE)
    count = 0
    for begin, end in areas:
        for address in range(begin, end, PAGE):
            if library.mincore(address, PAGE, present) == 0 and all(byte & _PRESENT for byte in present.raw):
                count += PAGE if library.madvise(address, PAGE, _COLLAPSE) == 0 else 0
    return count


def _areas(maps: str) -> Iterator[tuple[int, int]]:
    """Whole huge pages within each area of anonymous memory: its first address, and the one behind its last."""
    bounds: tuple[int, int] | None = None
    for line in maps.splitlines():
        if (head := _HEAD.match(line)) is not None:
            begin, end = int(head[1], 16), int(head[2], 16)
            bounds = (-(-begin // PAGE) * PAGE, end // PAGE * PAGE)
        elif line.startswith(_FLAGS):
            if bounds is not None and bounds[0] < bounds[1] and _REFUSES not in line.split():
                yield bounds
            bounds = None
