"""What is wholly present is moved onto huge pages; what has holes, or is to stay on small ones, is left as it is."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ortserve.runtime.host import huge_pages
from ortserve.runtime.host.huge_pages import PAGE, use_huge_pages

SIZE = 4 * PAGE
SMALL = mmap.PAGESIZE


class Area:
    """Private memory that begins with a huge page."""

    def __init__(self, memory: mmap.mmap) -> None:
        self.memory = memory
        begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self.first = -begin % PAGE

    def fill(self, *, every: int = 1) -> None:
        """Touch small pages of the huge ones."""
        for offset in range(self.first, self.first + SIZE, every * SMALL):
            self.memory[offset : offset + 8] = offset.to_bytes(8, "little")

    def check(self, *, every: int = 1) -> None:
        for offset in range(self.first, self.first + SIZE, every * SMALL):
            assert self.memory[offset : offset + 8] == offset.to_bytes(8, "little")


@contextmanager
def area(advice: int | None = None) -> Iterator[Area]:
    memory = mmap.mmap(-1, SIZE + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if advice is not None:
        memory.madvise(advice)
    yield Area(memory)


def kilobytes(name: str) -> int:
    """Of the whole process."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


@pytest.fixture(autouse=True)
def _moved() -> None:
    with area() as one:
        one.fill()
        if use_huge_pages() < SIZE:
            pytest.skip("this system does not give huge pages to memory that is there")


def test_what_is_present_is_moved_and_stays_what_it_was() -> None:
    with area() as one:
        one.fill()
        before, resident = kilobytes("AnonHugePages"), kilobytes("Rss")
        use_huge_pages()
        assert kilobytes("AnonHugePages") - before >= SIZE // 1024
        assert kilobytes("Rss") - resident < PAGE // 1024
        one.check()


def test_holes_are_not_filled() -> None:
    with area() as one:
        one.fill(every=2)
        before = kilobytes("Rss")
        use_huge_pages()
        assert kilobytes("Rss") - before < SIZE // 2 // 1024 // 2
        one.check(every=2)


def test_rows_of_the_cache_stay_on_small_pages() -> None:
    with area(mmap.MADV_NOHUGEPAGE) as one:
        one.fill()
        before = use_huge_pages()
        with area() as other:
            other.fill()
            assert use_huge_pages() - before == SIZE
        one.check()


def test_a_system_that_never_wants_them_gets_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = tmp_path / "enabled"
    setting.write_text("always madvise [never]\n")
    monkeypatch.setattr(huge_pages, "_SETTING", setting)
    assert use_huge_pages() == 0
    monkeypatch.setattr(huge_pages, "_SETTING", tmp_path / "missing")
    assert use_huge_pages() == 0
