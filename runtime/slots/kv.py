"""The only owner of KV memory on the CPU: rows that the graph reads and writes in place, and host blocks for swapping.

Knows no sequences: it moves what a Step tells it to move. Memory is anonymous, private and lazily resident (never
numpy-allocated: transparent huge pages would make one touched token 2 MiB); released rows go back with MADV_DONTNEED.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ortserve.runtime.errors import MemoryBudgetError
from ortserve.runtime.manifest import KvLayout, KvType
from ortserve.runtime.sizes import shown_bytes
from ortserve.runtime.step import CopyRow, LoadBlocks, Move, ReleaseRow, SaveBlocks, SwapIn, SwapOut

PAGE_BYTES = mmap.PAGESIZE
_MAP_NORESERVE = 0x4000  # Linux; untouched rows must not count against overcommit
_SMALLEST_BLOCK = 32  # tokens; fewer would make block tables long for no gain


def block_size(layout: KvLayout) -> int:
    """Tokens per block: the least number of at least 32 whose bytes per head fill whole pages, to be releasable."""
    token_bytes = layout.head_dim * layout.item_bytes
    per_page = PAGE_BYTES // math.gcd(PAGE_BYTES, token_bytes)
    return per_page * math.ceil(_SMALLEST_BLOCK / per_page)


@dataclass(frozen=True, slots=True)
class KvTensor:
    """Where one bound tensor lies: shape [rows, kv_heads, capacity, head_dim] from `address`."""

    name: str  # "0.key": the graph calls it past.0.key and present.0.key
    address: int
    dtype: KvType
    row_shape: tuple[int, int, int]


class SlotKvStore:
    """`num_rows` rows of `capacity` tokens for every layer's keys and values, and `num_host_blocks` blocks."""

    def __init__(self, layout: KvLayout, *, num_rows: int, capacity: int, num_host_blocks: int) -> None:
        self.layout = layout
        self.num_rows = num_rows
        self.capacity = capacity
        self.block_size = block_size(layout)
        assert capacity % self.block_size == 0, "a row is a whole number of blocks"
        heads, depth = layout.num_kv_heads, layout.head_dim
        num_tensors = 2 * layout.num_layers
        # [layer and kind, row, head, token, channel]
        self._row_memory, self._rows = _allocate((num_tensors, num_rows, heads, capacity, depth), layout.dtype)
        # [block, layer and kind, head, token, channel]: one block is contiguous, so a disk tier can write it whole
        block_shape = (num_tensors, heads, self.block_size, depth)
        self._host_memory, self._host = _allocate((max(num_host_blocks, 1), *block_shape), layout.dtype)
        self._row_bytes = heads * capacity * depth * layout.item_bytes
        self._host_block_bytes = num_tensors * heads * self.block_size * depth * layout.item_bytes

    def tensors(self, first_row: int = 0) -> list[KvTensor]:
        """What the session binds once, from that row on: for each layer its keys, then its values."""
        shape, dtype = (self.layout.num_kv_heads, self.capacity, self.layout.head_dim), self.layout.dtype
        return [
            KvTensor(
                f"{index // 2}.{'value' if index % 2 else 'key'}",
                int(self._rows[index, first_row].ctypes.data),
                dtype,
                shape,
            )
            for index in range(len(self._rows))
        ]

    def apply(self, moves: tuple[Move, ...]) -> None:
        """Execute a step's moves, in order."""
        for move in moves:
            match move:
                case SwapOut():
                    self._save(move.slot, 0, move.num_tokens, move.host_blocks)
                    self._release_row(move.slot)
                case SwapIn():
                    self._load(move.slot, move.num_tokens, move.host_blocks)
                    self._release_host_blocks(move.host_blocks)
                case CopyRow():
                    self._rows[:, move.slot, :, : move.num_tokens] = self._rows[:, move.source, :, : move.num_tokens]
                case LoadBlocks():
                    self._load(move.slot, move.num_tokens, move.host_blocks)
                case SaveBlocks():
                    self._save(move.slot, move.start, move.end, move.host_blocks)
                case ReleaseRow():
                    self._release_row(move.slot)

    def span(self, tensor: int, slot: int) -> npt.NDArray[np.generic]:
        """Where one row of one tensor lies, writable: `[kv_heads, capacity, head_dim]`; tensors as in `tensors`."""
        row: npt.NDArray[np.generic] = self._rows[tensor, slot]
        return row

    def view(self, block: int) -> memoryview:
        """The bytes of one host block, writable: `[2 * layers, kv_heads, block_size, head_dim]`."""
        return memoryview(self._host[block].reshape(-1).view(np.uint8))

    def _save(self, slot: int, start: int, end: int, host_blocks: tuple[int, ...]) -> None:
        for begin, block in zip(range(start, end, self.block_size), host_blocks, strict=True):
            count = min(self.block_size, end - begin)
            self._host[block, :, :, :count] = self._rows[:, slot, :, begin : begin + count]

    def _load(self, slot: int, num_tokens: int, host_blocks: tuple[int, ...]) -> None:
        for begin, block in zip(range(0, num_tokens, self.block_size), host_blocks, strict=True):
            count = min(self.block_size, num_tokens - begin)
            self._rows[:, slot, :, begin : begin + count] = self._host[block, :, :, :count]

    def _release_host_blocks(self, host_blocks: tuple[int, ...]) -> None:
        if self._host_block_bytes % PAGE_BYTES == 0:
            for block in host_blocks:
                self._host_memory.madvise(mmap.MADV_DONTNEED, block * self._host_block_bytes, self._host_block_bytes)

    def _release_row(self, slot: int) -> None:
        for tensor in range(len(self._rows)):
            offset = (tensor * self.num_rows + slot) * self._row_bytes
            self._row_memory.madvise(mmap.MADV_DONTNEED, offset, self._row_bytes)

    def row(self, slot: int, num_tokens: int) -> npt.NDArray[np.generic]:
        """A copy of a row's first tokens [2 * layers, kv_heads, num_tokens, head_dim], for tests and snapshots."""
        return self._rows[:, slot, :, :num_tokens].copy()


def _allocate(shape: tuple[int, ...], dtype: KvType) -> tuple[mmap.mmap, npt.NDArray[np.generic]]:
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        memory = mmap.mmap(
            -1,
            num_bytes,
            flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE,
            prot=mmap.PROT_READ | mmap.PROT_WRITE,
        )
    except (OSError, OverflowError) as error:
        raise MemoryBudgetError(
            f"cannot map {shown_bytes(num_bytes)} of address space for the KV cache ({error}):"
            " lower --max-rows or --max-context"
        ) from None
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory, np.frombuffer(memory, dtype).reshape(shape)
