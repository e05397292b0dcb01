"""Reads tensors of safetensors files lazily, row ranges included, and writes such files. Knows bytes, no model.

Format: 8 bytes little-endian header length, JSON header, data (https://github.com/huggingface/safetensors#format).
Plain reads rather than a memory map: mapped pages would count as resident memory of the export.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ortserve.export.errors import ExportError

DTYPES: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype(np.float64),
}
INTEGERS: Mapping[str, np.dtype[Any]] = {"I32": np.dtype(np.int32), "I64": np.dtype(np.int64)}
DTYPE_NAMES: Mapping[np.dtype[Any], str] = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies."""

    path: Path
    offset: int  # bytes from the start of the file
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows `[start, stop)` of the first axis, as float32. Raises `ExportError` when the file shrank since."""
        return self.raw(start, stop).astype(np.float32, copy=False)

    def raw(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """The same in the type of the file."""
        stop = self.shape[0] if stop is None else min(stop, self.shape[0])
        row = math.prod(self.shape[1:])
        count = max(stop - start, 0) * row
        offset = self.offset + start * row * self.dtype.itemsize
        try:
            data = np.fromfile(self.path, self.dtype, count, offset=offset)
        except OSError as error:
            raise ExportError(f"{self.path} cannot be read ({error.strerror}): check the checkpoint folder") from None
        if data.size != count:
            raise ExportError(f"{self.path} is truncated: download it again")
        return data.reshape(-1, *self.shape[1:])


def read_header(path: Path, dtypes: Mapping[str, np.dtype[Any]] = DTYPES) -> dict[str, StoredTensor]:
    """The tensors of one file, all of which have one of these types.

    Raises `ExportError` when the file is missing, not safetensors, or shorter than its header says. Tensors
    of other types (quantized checkpoints) raise it too, naming the type.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise ExportError(f"{path} is truncated or no safetensors file ({size} bytes): download it again")
            header = json.loads(file.read(length))
    except OSError as error:
        raise ExportError(f"{path} cannot be read ({error.strerror}): download the checkpoint again") from None
    except (ValueError, RecursionError):
        raise ExportError(f"{path} has a damaged safetensors header: download it again") from None
    try:
        return {
            name: _stored(path, name, entry, dtypes, base=8 + length, size=size)
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ExportError(f"{path} has a damaged safetensors header: download it again") from None


def _stored(
    path: Path, name: str, entry: Any, dtypes: Mapping[str, np.dtype[Any]], *, base: int, size: int
) -> StoredTensor:
    if entry["dtype"] not in dtypes:
        raise ExportError(
            f"{path}: {name} has type {entry['dtype']}, export reads {', '.join(DTYPES)}:"
            " use the unquantized checkpoint"
        )
    dtype = dtypes[entry["dtype"]]
    begin, end = entry["data_offsets"]
    shape = tuple(int(dimension) for dimension in entry["shape"])
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ExportError(f"{path}: the header's size of {name} contradicts its shape: download it again")
    if base + end > size:
        raise ExportError(
            f"{path} is truncated: {name} ends at byte {base + end}, the file has {size}: download it again"
        )
    return StoredTensor(path, base + begin, dtype, shape)


@dataclass(frozen=True, slots=True)
class NewTensor:
    """One tensor to be written."""

    name: str
    dtype: str  # key of DTYPES
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size of its data."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def write_tensors(
    path: Path,
    tensors: Iterable[NewTensor],
    chunks_of: Callable[[NewTensor], Iterable[NDArray[np.float32]]],
    *,
    progress: Callable[[int], None],
) -> None:
    """Write a file tensor by tensor; `chunks_of` yields each one's values in row-major order, in pieces.

    `progress` is told the number of bytes just written. Raises `OSError` when the disk is full.
    """
    tensors = tuple(tensors)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        span = [offset, offset + tensor.num_bytes]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": span}
        offset = span[1]
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors:
            start = file.tell()
            for chunk in chunks_of(tensor):
                values = np.ascontiguousarray(chunk.astype(DTYPES[tensor.dtype], copy=False))
                file.write(values.reshape(-1).view(np.uint8).data)
                progress(values.nbytes)
            assert file.tell() - start == tensor.num_bytes, tensor
