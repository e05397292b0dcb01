"""Writes GGUF files for tests, field by field from the format's description. Shares nothing with what reads them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 8, "Q6_K": 14, "BF16": 30}
Tensor = tuple[str, NDArray[np.float32]]  # type, values


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor], *, version: int = 3) -> Path:
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for key, value in metadata.items():
        header += text(key) + typed(value)
    data = bytearray()
    for name, (kind, values) in tensors.items():
        header += text(name) + struct.pack("<I", values.ndim)
        header += b"".join(struct.pack("<Q", size) for size in reversed(values.shape))
        header += struct.pack("<IQ", TYPES[kind], len(data))
        packed = encode(kind, values)
        data += packed + bytes(-len(packed) % 32)
    path.write_bytes(header + bytes(-len(header) % 32) + data)
    return path


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def typed(value: Any) -> bytes:
    """A metadata value behind the number of its type."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, np.int32):  # llama.cpp reads the kinds of tokens as signed ones
        return struct.pack("<Ii", 5, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    items = [typed(item) for item in value]
    return struct.pack("<I", 9) + items[0][:4] + struct.pack("<Q", len(items)) + b"".join(item[4:] for item in items)


def encode(kind: str, values: NDArray[np.float32]) -> bytes:
    if kind in ("F32", "F16", "BF16"):
        return values.astype({"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[kind]).tobytes()
    packed = b""
    for block in values.reshape(-1, 32).astype(np.float64):
        if kind == "Q8_0":
            scale = np.float16(np.abs(block).max() / 127)
            codes = np.clip(np.rint(block / max(float(scale), 1e-9)), -127, 127).astype(np.int8)
            packed += scale.tobytes() + codes.tobytes()
        elif kind == "Q4_0":
            scale = np.float16(block[np.abs(block).argmax()] / -8)
            codes = np.clip(np.rint(block / (float(scale) or 1e-9)) + 8, 0, 15).astype(np.uint8)
            packed += scale.tobytes() + bytes(
                int(low) | int(high) << 4 for low, high in zip(codes[:16], codes[16:], strict=True)
            )
        else:
            packed += bytes(210)  # of a type that is not read
    return packed


def decode(kind: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a reader must find where `values` were written."""
    data = encode(kind, values)
    if kind in ("F32", "F16", "BF16"):
        dtype: Any = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[kind]
        return np.frombuffer(data, dtype).astype(np.float32).reshape(values.shape)
    found: list[float] = []
    size = 34 if kind == "Q8_0" else 18
    for start in range(0, len(data), size):
        (scale,) = struct.unpack("<e", data[start : start + 2])
        codes = data[start + 2 : start + size]
        if kind == "Q8_0":
            found += [scale * code for code in struct.unpack("<32b", codes)]
        else:
            found += [scale * ((code & 15) - 8) for code in codes]
            found += [scale * ((code >> 4) - 8) for code in codes]
    return np.array(found, np.float32).reshape(values.shape)


def interleave(weight: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """Rows of queries or keys as llama.cpp stores them: component i beside its partner i + half."""
    halves = weight.reshape(num_heads, 2, weight.shape[0] // num_heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)
