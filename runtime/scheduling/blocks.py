"""Reference counts of KV blocks: integers only. Knows no tensors, no sequences and no policy."""

from __future__ import annotations

from collections.abc import Iterable


class BlockPool:
    """A fixed number of block ids, each free or held by one or more holders.

    In the "slots" layout a running sequence's ids count resident memory (its row holds the bytes); in the host pool an
    id is an address in the swap arena.
    """

    def __init__(self, num_blocks: int) -> None:
        self._references = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack: the most recently released is warm

    @property
    def num_blocks(self) -> int:
        """Blocks in all."""
        return len(self._references)

    @property
    def num_free(self) -> int:
        """Blocks nobody holds."""
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take `count` free blocks, each with one reference. The caller has asked `num_free` first."""
        assert 0 <= count <= len(self._free), f"{count} blocks wanted, {len(self._free)} free"
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._references[block] = 1
        return taken

    def retain(self, blocks: Iterable[int]) -> None:
        """Add a holder to each block."""
        for block in blocks:
            assert self._references[block] > 0, f"block {block} is free and cannot be shared"
            self._references[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Drop one holder of each block; the last one frees it."""
        for block in blocks:
            assert self._references[block] > 0, f"block {block} released more often than held"
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free.append(block)

    def references(self) -> tuple[int, ...]:
        """A copy of all reference counts, for the audit."""
        return tuple(self._references)
