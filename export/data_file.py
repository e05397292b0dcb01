"""Appends tensors to the external data file of a graph, hashing on the way. Knows bytes, no model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

PAGE = 4096  # ONNX Runtime maps the file: large tensors start on a page
SMALL_ALIGNMENT = 64
MAX_INLINE_BYTES = 1024


class DataFile:
    """One `*.onnx.data` file being written. At most one chunk is in memory; no tensor is ever read back."""

    def __init__(self, path: Path, *, progress: Callable[[int], None]) -> None:
        self._name = path.name
        self._file = path.open("wb")
        self._hash = hashlib.sha256()
        self._progress = progress  # told the number of bytes just written
        self.num_bytes = 0

    def __enter__(self) -> DataFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def sha256(self) -> bytes:
        """Digest of everything written so far."""
        return self._hash.digest()

    def append(
        self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], chunks: Iterable[NDArray[Any]]
    ) -> TensorProto:
        """Write the chunks, which together are one row-major tensor, and return its graph entry.

        Small tensors are consumed into the entry itself. Raises `OSError` when the disk is full.
        """
        size = math.prod(shape) * dtype.itemsize
        if size <= MAX_INLINE_BYTES:
            data = b"".join(chunk.astype(dtype, copy=False).tobytes() for chunk in chunks)
            assert len(data) == size, (name, len(data), size)
            return helper.make_tensor(name, helper.np_dtype_to_tensor_dtype(dtype), shape, data, raw=True)
        self._pad(PAGE if size >= PAGE else SMALL_ALIGNMENT)
        offset = self.num_bytes
        for chunk in chunks:
            self._write(np.ascontiguousarray(chunk, dtype=dtype))
        assert self.num_bytes - offset == size, (name, self.num_bytes - offset, size)
        return self._entry(name, dtype, shape, offset, size)

    def _entry(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int, size: int) -> TensorProto:
        tensor = onnx.TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(dtype), dims=shape)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", self._name), ("offset", str(offset)), ("length", str(size))):
            tensor.external_data.add(key=key, value=value)
        return tensor

    def _pad(self, alignment: int) -> None:
        gap = -self.num_bytes % alignment
        if gap:
            self._write(np.zeros(gap, np.uint8))

    def _write(self, chunk: NDArray[Any]) -> None:
        data = chunk.reshape(-1).view(np.uint8).data
        self._file.write(data)
        self._hash.update(data)
        self.num_bytes += len(data)
        self._progress(len(data))
