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

from ortserve.export.folder.journal import Journal, Unit

PAGE = 4096  # ONNX Runtime maps the file: large tensors start on a page
SMALL_ALIGNMENT = 64
MAX_INLINE_BYTES = 1024


class DataFile:
    """One `*.onnx.data` file being written. At most one chunk is in memory; no tensor is ever read back."""

    def __init__(self, path: Path, *, progress: Callable[[int], None], journal: Journal | None = None) -> None:
        self._name = path.name
        self._file = path.open("r+b" if journal is not None and journal.num_units and path.exists() else "w+b")
        self._hash = hashlib.sha256()
        self._progress = progress  # told the number of bytes just written
        self._journal = journal
        self._unit_hash = hashlib.sha256()
        self.num_bytes = 0

    def __enter__(self) -> DataFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._file.truncate(self.num_bytes)  # an earlier run may have written more
        finally:
            self._file.close()

    def unit(self, name: str, store: Callable[[], list[TensorProto]]) -> list[TensorProto]:
        """What `store` appends, taken from an earlier run where its journal has it."""
        if self._journal is None:
            return store()
        start = self.num_bytes
        kept = self._journal.take(name, start, self._file, self._count)
        if kept:
            return kept
        self._file.seek(start)
        self._unit_hash = hashlib.sha256()
        entries = store()
        self._file.flush()
        encoded = tuple(entry.SerializeToString() for entry in entries)
        self._journal.add(Unit(name, start, self.num_bytes, self._unit_hash.hexdigest(), encoded))
        return entries

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
        self._unit_hash.update(data)
        self._count(data)

    def _count(self, data: bytes | memoryview) -> None:
        self._hash.update(data)
        self.num_bytes += len(data)
        self._progress(len(data))
