"""Reads the header of a GGUF file: metadata and where each tensor lies. Knows bytes, no model and no tokenizer.

Every count, length and offset is checked against the size of the file before anything is read or allocated by it.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ortserve.export.errors import ExportError
from ortserve.export.gguf.tensor import STORAGE, GgufTensor

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_ENTRIES = 1 << 16  # of metadata, and of tensors
MAX_ITEMS = 1 << 21  # of one array: a vocabulary
MAX_TEXT = 1 << 22  # bytes of one string: a chat template
MAX_NAME = 1 << 10
MAX_DIMENSIONS = 4
SCALARS: Mapping[int, str] = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"
}  # fmt: skip
TEXT, ARRAY = 8, 9
TYPE_NAMES: Mapping[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What one file holds."""

    path: Path
    metadata: Mapping[str, Any]  # numbers, texts, booleans and lists of them
    tensors: Mapping[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """The header. Raises `ExportError` for a file that is no GGUF, damaged, or holds a tensor type that is not read."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _Reader(path, file, size).header()
    except OSError as error:
        raise ExportError(f"{path} cannot be read ({error.strerror}): check the file") from None


@dataclass(slots=True)
class _Reader:
    path: Path
    file: BinaryIO
    size: int

    def header(self) -> GgufFile:
        if self.take(4) != MAGIC:
            raise ExportError(f"{self.path} is no GGUF file: its first bytes are not GGUF")
        version = self.number("<I")
        if version not in VERSIONS:
            raise ExportError(f"{self.path} is GGUF version {version}: export reads {VERSIONS}, little-endian")
        num_tensors, num_entries = self.number("<Q"), self.number("<Q")
        if max(num_tensors, num_entries) > MAX_ENTRIES:
            raise self.damaged(f"{num_tensors} tensors and {num_entries} metadata entries")
        metadata: dict[str, Any] = {}
        for _ in range(num_entries):
            key = self.text(MAX_NAME)
            if key in metadata:
                raise self.damaged(f"metadata {key[:80]!r} occurs twice")
            metadata[key] = self.value(self.number("<I"))
        found = [self.tensor() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 16 or alignment & (alignment - 1):
            raise self.damaged(f"general.alignment {alignment!r}")
        start = -(-self.file.tell() // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, shape, kind, offset in found:
            if name in tensors:
                raise self.damaged(f"tensor {name[:80]!r} occurs twice")
            tensors[name] = self.placed(name, shape, kind, start + offset)
        return GgufFile(self.path, metadata, tensors)

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape with the fastest axis last, type and offset of the data."""
        name = self.text(MAX_NAME)
        num_dimensions = self.number("<I")
        if not 1 <= num_dimensions <= MAX_DIMENSIONS:
            raise self.damaged(f"{name[:80]!r} has {num_dimensions} dimensions")
        shape = tuple(reversed([self.number("<Q") for _ in range(num_dimensions)]))
        if not all(0 < dimension <= 1 << 40 for dimension in shape):
            raise self.damaged(f"{name[:80]!r} has shape {list(shape)}")
        return name, shape, self.number("<I"), self.number("<Q")

    def placed(self, name: str, shape: tuple[int, ...], kind: int, offset: int) -> GgufTensor:
        type_name = TYPE_NAMES.get(kind, f"number {kind}")
        if type_name not in STORAGE:
            raise ExportError(
                f"{self.path}: {name} has type {type_name}, export reads {', '.join(STORAGE)}:"
                " use a file of one of these types"
            )
        storage = STORAGE[type_name]
        if shape[-1] % storage.block_size:
            raise self.damaged(f"{name} has rows of {shape[-1]}, no multiple of {storage.block_size}")
        num_bytes = math.prod(shape) // storage.block_size * storage.block_bytes
        if offset + num_bytes > self.size:
            raise ExportError(
                f"{self.path} is truncated: {name} ends at byte {offset + num_bytes}, the file has {self.size}:"
                " download it again"
            )
        return GgufTensor(self.path, offset, type_name, shape)

    def value(self, kind: int) -> Any:
        if kind == TEXT:
            return self.text(MAX_TEXT)
        if kind != ARRAY:
            return self.number(self.layout(kind))
        item, count = self.number("<I"), self.number("<Q")
        if count > MAX_ITEMS:
            raise self.damaged(f"an array of {count} items")
        if item == TEXT:
            return [self.text(MAX_TEXT) for _ in range(count)]
        layout = self.layout(item)  # arrays of arrays are refused here
        return list(struct.unpack(f"<{count}{layout[1:]}", self.take(count * struct.calcsize(layout))))

    def layout(self, kind: int) -> str:
        if kind not in SCALARS:
            raise self.damaged(f"a metadata value of type {kind}")
        return SCALARS[kind]

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def text(self, limit: int) -> str:
        length = self.number("<Q")
        if length > limit:
            raise self.damaged(f"a text of {length} bytes")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise self.damaged("a text that is not UTF-8") from None

    def take(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise ExportError(f"{self.path} is truncated in its header ({self.size} bytes): download it again")
        return self.file.read(count)

    def damaged(self, what: str) -> ExportError:
        return ExportError(f"{self.path} has a damaged header ({what}): download it again")
