"""A model of the engine's arena whose bytes say which tokens they stand for, and for whom. Knows no cache.

Every token of a block is eight bytes that depend on the model's digest, the salt and all tokens up to it, just as real
keys and values do. So a block in the wrong place, of another salt or overwritten too early shows.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from enum import Enum, auto
from hashlib import blake2b

from ortserve.plugins.api import BlockId

STAMP_BYTES = 8


class Holder(Enum):
    """Who has the one reference to a block."""

    NOBODY = auto()
    ENGINE = auto()
    CACHE = auto()


def stamps(digest: str, salt: bytes, tokens: Sequence[int]) -> list[bytes]:
    """One stamp per token."""
    name = digest.encode()
    state = blake2b(len(name).to_bytes(8, "little") + name + salt, digest_size=STAMP_BYTES).digest()
    found = []
    for token in tokens:
        state = blake2b(state + token.to_bytes(8, "little"), digest_size=STAMP_BYTES).digest()
        found.append(state)
    return found


class ModelArena:
    """`BlockSource` and `BlockIo` of a `PluginContext`, and the engine's side of both.

    Misuse raises `AssertionError`; on a thread of the plugin, where that would be lost, it is also put into `faults`.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.bytes_per_block = block_size * STAMP_BYTES
        self.faults: list[str] = []
        self.woken = threading.Event()
        self._bytes = bytearray(num_blocks * self.bytes_per_block)
        self._holders = [Holder.NOBODY] * num_blocks
        self._free = list(range(num_blocks))
        self._readers: dict[BlockId, int] = {}  # by block: how many hits of the engine read it

    @property
    def num_free(self) -> int:
        """Blocks nobody holds."""
        return len(self._free)

    def blocks_of(self, holder: Holder) -> set[BlockId]:
        """Every block with this holder."""
        return {block for block, its_holder in enumerate(self._holders) if its_holder is holder}

    def take(self, count: int) -> Sequence[BlockId]:
        """For the cache: part of `BlockSource`."""
        self._check(count >= 0, f"{count} blocks cannot be taken")
        return self._allocate(min(count, len(self._free)), Holder.CACHE)

    def give_back(self, blocks: Iterable[BlockId]) -> None:
        """For the cache: part of `BlockSource`."""
        for block in blocks:
            self._check(self._holders[block] is Holder.CACHE, f"block {block} is given back but not held by the cache")
            self._check(
                block not in self._readers, f"block {block} is given back while a hit that is not released has it"
            )
            self._release(block)

    def view(self, block: BlockId) -> memoryview:
        """For the cache: part of `BlockIo`."""
        self._check(self._holders[block] is not Holder.NOBODY, f"block {block} is viewed but free")
        begin = block * self.bytes_per_block
        return memoryview(self._bytes)[begin : begin + self.bytes_per_block]

    def allocate(self, count: int) -> list[BlockId]:
        """For the engine. The caller has asked `num_free` first."""
        return self._allocate(count, Holder.ENGINE)

    def hand_over(self, blocks: Iterable[BlockId]) -> None:
        """The cache has kept these published blocks."""
        for block in blocks:
            self._check(self._holders[block] is Holder.ENGINE, f"block {block} is kept but was not offered")
            self._holders[block] = Holder.CACHE

    def release(self, blocks: Iterable[BlockId]) -> None:
        """The engine's own blocks, such as refused ones."""
        for block in blocks:
            self._check(self._holders[block] is Holder.ENGINE, f"block {block} is refused but was not offered")
            self._release(block)

    def reclaim(self) -> None:
        """The cache is closed: all its blocks are free."""
        for block in self.blocks_of(Holder.CACHE):
            self._release(block)

    def read(self, blocks: Iterable[BlockId], *, begins: bool) -> None:
        """The engine begins or ends to rely on a hit's blocks."""
        for block in blocks:
            left = self._readers.get(block, 0) + (1 if begins else -1)
            self._readers[block] = left
            if not left:
                del self._readers[block]

    def write(self, blocks: Sequence[BlockId], marks: Sequence[bytes]) -> None:
        """The engine copies computed tokens, one mark each, into its own blocks."""
        data = b"".join(marks)
        for index, block in enumerate(blocks):
            part = data[index * self.bytes_per_block : (index + 1) * self.bytes_per_block]
            begin = block * self.bytes_per_block
            self._bytes[begin : begin + len(part)] = part

    def contents(self, blocks: Sequence[BlockId], num_tokens: int) -> bytes:
        """What the first tokens of these blocks hold."""
        data = b"".join(bytes(self.view(block)) for block in blocks)
        return data[: num_tokens * STAMP_BYTES]

    def _allocate(self, count: int, holder: Holder) -> list[BlockId]:
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._holders[block] = holder
        return taken

    def _release(self, block: BlockId) -> None:
        self._holders[block] = Holder.NOBODY
        self._free.insert(0, block)
        begin = block * self.bytes_per_block
        self._bytes[begin : begin + self.bytes_per_block] = b"\xff" * self.bytes_per_block  # a late reader must see it

    def _check(self, is_right: bool, fault: str) -> None:
        if not is_right:
            self.faults.append(fault)
            raise AssertionError(fault)
