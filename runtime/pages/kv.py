"""The only owner of KV memory on a device: pages that the graph reads and writes in place, and host blocks to swap.

Knows no sequences: it moves what a Step tells it to move, in order, before the step's model call on the same stream.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

import numpy as np

from ortserve.runtime.devices.device import Bytes, Device, Strided
from ortserve.runtime.manifest import KvLayout, KvType
from ortserve.runtime.step import CopyBlock, Move, ReleaseRow, SwapIn, SwapOut


@dataclass(frozen=True, slots=True)
class PageTensor:
    """Where one bound tensor lies: shape [pages, page size, kv_heads, head_dim] from `address`."""

    name: str  # "0.key": the graph calls it past.0.key and present.0.key
    address: int
    dtype: KvType
    shape: tuple[int, ...]


class PagedKvStore:
    """`num_blocks` pages for every layer's keys and values, and `num_host_blocks` blocks of the same bytes."""

    def __init__(self, layout: KvLayout, device: Device, *, num_blocks: int, num_host_blocks: int) -> None:
        assert layout.page_size is not None
        self.num_blocks = num_blocks
        self.block_size = layout.page_size
        self._layout = layout
        self._device = device
        self._num_tensors = 2 * layout.num_layers
        self._shape = (num_blocks, layout.page_size, layout.num_kv_heads, layout.head_dim)
        self._page_bytes = math.prod(self._shape[1:]) * layout.item_bytes
        # [layer and kind, page, token, head, channel]: a block is one page of every tensor, a fixed pitch apart
        self._address = device.allocate(self._num_tensors * num_blocks * self._page_bytes)
        self._host = device.host_array(num_host_blocks * self._block_bytes)
        self._staging: list[Bytes] = []  # free ones
        self._staging_lock = Lock()

    def tensors(self) -> list[PageTensor]:
        """What the session binds once: for each layer its keys, then its values."""
        pitch = self.num_blocks * self._page_bytes
        return [
            PageTensor(
                f"{index // 2}.{'value' if index % 2 else 'key'}",
                self._address + index * pitch,
                self._layout.dtype,
                self._shape,
            )
            for index in range(self._num_tensors)
        ]

    def apply(self, moves: tuple[Move, ...]) -> None:
        """Enqueue a step's moves, in order."""
        for move in moves:
            match move:
                case SwapOut():
                    for block, host_block in zip(move.blocks, move.host_blocks, strict=True):
                        self._copy(self._host_block(host_block), self._block(block))
                case SwapIn():
                    for block, host_block in zip(move.blocks, move.host_blocks, strict=True):
                        self._copy(self._block(block), self._host_block(host_block))
                case CopyBlock():
                    self._copy(self._block(move.block), self._block(move.source))
                case ReleaseRow():
                    pass  # pages are reused, never given back
                case _:
                    raise AssertionError(f"{type(move).__name__} is of layout slots")

    @contextmanager
    def view(self, block: int) -> Iterator[memoryview]:
        """The bytes of one block: `[2 * layers, page size, kv_heads, head_dim]`. What was written goes back at the end.

        For slower cache tiers, from any thread; the block is one that no step writes.
        """
        staging = self._take_staging()
        there, here = self._block(block), Strided(int(staging.ctypes.data), self._page_bytes)
        shape = {"width": self._page_bytes, "height": self._num_tensors}
        self._device.copy_now(here, there, **shape)
        before = staging.copy()
        try:
            with staging.data as view:
                yield view
            if not np.array_equal(before, staging):
                self._device.copy_now(there, here, **shape)
        finally:
            with self._staging_lock:
                self._staging.append(staging)

    def _take_staging(self) -> Bytes:
        """Locked host memory for one block: copies to and from it run at full speed. As many as threads ask at once."""
        with self._staging_lock:
            return self._staging.pop() if self._staging else self._device.host_array(self._block_bytes)

    @property
    def _block_bytes(self) -> int:
        return self._num_tensors * self._page_bytes

    def _block(self, block: int) -> Strided:
        assert 0 <= block < self.num_blocks, f"block {block} of {self.num_blocks}"
        return Strided(self._address + block * self._page_bytes, self.num_blocks * self._page_bytes)

    def _host_block(self, block: int) -> Strided:
        return Strided(int(self._host.ctypes.data) + block * self._block_bytes, self._page_bytes)

    def _copy(self, target: Strided, source: Strided) -> None:
        self._device.copy(target, source, width=self._page_bytes, height=self._num_tensors)
