"""Blocks that a prompt cache has references to, by the engine's own account. Knows no prefix."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Values

from ortserve.runtime.scheduling.blocks import BlockPool


class CacheBlocks:
    """Host blocks as the cache sees them (its `BlockSource`), and which of them it holds, whatever it says itself."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._published: set[int] = set()
        self._taken: set[int] = set()  # perhaps being written by a thread of the cache

    @property
    def owned(self) -> frozenset[int]:
        """Every block the cache has a reference to."""
        return frozenset(self._published | self._taken)

    def take(self, count: int) -> Values[int]:
        """Part of `BlockSource`."""
        blocks = self._pool.allocate(min(count, self._pool.num_free))
        self._taken.update(blocks)
        return tuple(blocks)

    def give_back(self, blocks: Iterable[int]) -> None:
        """Part of `BlockSource`. Raises `ValueError` for a block the cache does not hold."""
        for block in blocks:
            if block not in self._published and block not in self._taken:
                raise ValueError(f"block {block} is given back but not held")
            self._published.discard(block)
            self._taken.discard(block)
            self._pool.release((block,))

    def accept(self, blocks: Iterable[int]) -> None:
        """The cache has kept these published blocks: the reference is now its own."""
        self._published.update(blocks)

    def reclaim(self) -> None:
        """The cache is gone. Blocks that its threads may still write stay out of use for good."""
        self._pool.release(self._published)
        self._published = set()
