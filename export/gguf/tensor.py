"""Reads tensors of a GGUF file as float32, row ranges included. Knows how blocks are stored, no names.

Source of the blocks: ggml's `block_q4_0` and `block_q8_0`: a float16 scale, then 32 codes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ortserve.export.errors import ExportError

BLOCK_SIZE = 32


@dataclass(frozen=True, slots=True)
class Storage:
    """How one type lies in the file."""

    block_size: int  # values
    block_bytes: int
    dtype: np.dtype[Any]  # of the values as they are read; of blocks, float32


STORAGE: Mapping[str, Storage] = {
    "F32": Storage(1, 4, np.dtype(np.float32)),
    "F16": Storage(1, 2, np.dtype(np.float16)),
    "BF16": Storage(1, 2, np.dtype(ml_dtypes.bfloat16)),
    "Q8_0": Storage(BLOCK_SIZE, 2 + BLOCK_SIZE, np.dtype(np.float32)),
    "Q4_0": Storage(BLOCK_SIZE, 2 + BLOCK_SIZE // 2, np.dtype(np.float32)),
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where one tensor lies; its rows may be stored in another order."""

    path: Path
    offset: int  # bytes from the start of the file
    type_name: str  # key of STORAGE
    shape: tuple[int, ...]
    interleaved_heads: int | None = None  # heads whose rotary halves lie row by row in turn; None: rows are in order

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return STORAGE[self.type_name].dtype

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows `[start, stop)` of the first axis, as float32. Raises `ExportError` when the file shrank since."""
        stop = self.shape[0] if stop is None else min(stop, self.shape[0])
        if self.interleaved_heads is None or stop <= start:
            return self._stored(start, max(stop, start))
        size = self.shape[0] // self.interleaved_heads
        first = start // size * size
        head, place = np.divmod(np.arange(start, stop), size)
        half, pair = np.divmod(place, size // 2)
        whole_heads = self._stored(first, -(-stop // size) * size)
        rows: NDArray[np.float32] = whole_heads[head * size + 2 * pair + half - first]
        return rows

    def _stored(self, start: int, stop: int) -> NDArray[np.float32]:
        storage = STORAGE[self.type_name]
        row_bytes = math.prod(self.shape[1:]) * storage.block_bytes // storage.block_size
        if len(self.shape) == 1:
            row_bytes = storage.block_bytes // storage.block_size
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset + start * row_bytes)
                data = file.read((stop - start) * row_bytes)
        except OSError as error:
            raise ExportError(f"{self.path} cannot be read ({error.strerror}): check the file") from None
        if len(data) != (stop - start) * row_bytes:
            raise ExportError(f"{self.path} is truncated: download it again")
        return self._values(data).reshape(stop - start, *self.shape[1:])

    def _values(self, data: bytes) -> NDArray[np.float32]:
        storage = STORAGE[self.type_name]
        if storage.block_size == 1:
            return np.frombuffer(data, storage.dtype).astype(np.float32)
        blocks = np.frombuffer(data, np.uint8).reshape(-1, storage.block_bytes)
        scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
        if self.type_name == "Q8_0":
            codes = blocks[:, 2:].view(np.int8).astype(np.float32)
        else:  # the low halves of the bytes are the first 16 values
            packed = blocks[:, 2:]
            codes = np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32) - 8
        values: NDArray[np.float32] = codes * scale
        return values
