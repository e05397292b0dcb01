"""The products of a graph in NumPy, as its recipes round them: for choosing recipes and for checking graphs.

Rounds as ONNX Runtime does (half to even, in float32). Knows neither files nor graphs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ortserve.export.recipes.quantize import INT8_LIMIT

Floats = NDArray[np.float32]
SMALLEST_SCALE = 1e-30  # an all-zero row divides by this instead of zero
LOWEST_CODE, HIGHEST_CODE = -128, 127  # of an activation, around the zero point 128


def round_per_token(value: Floats) -> Floats:
    """8-bit activations with one scale per row of `value [T, K]`."""
    limit = np.abs(value).max(axis=1) * np.float32(1 / INT8_LIMIT)
    scale = np.maximum(limit, np.float32(SMALLEST_SCALE))[:, None]
    rounded: Floats = _codes(value, scale) * scale
    return rounded


def round_by_scale(value: Floats, scale: float) -> Floats:
    """8-bit activations with one calibrated scale; what lies beyond the codes is cut off."""
    step = np.float32(scale)
    return _codes(value, step) * step


def round_per_block(value: Floats, block_size: int) -> Floats:
    """8-bit activations with one scale per `block_size` columns, as MatMulNBits rounds at accuracy level 4."""
    num_rows, num_columns = value.shape
    blocks = _in_blocks(value, block_size)
    limit = np.abs(blocks).max(axis=2, keepdims=True) * np.float32(1 / INT8_LIMIT)
    scale = np.maximum(limit, np.float32(SMALLEST_SCALE))
    rounded: Floats = (_codes(blocks, scale) * scale).reshape(num_rows, -1)[:, :num_columns]
    return rounded


def int4_values(packed: NDArray[np.uint8], scale: Floats, num_columns: int) -> Floats:
    """What bytes `[n, blocks, block_size / 2]` and scales `[n, blocks]` stand for, `[n, num_columns]`."""
    return block_values(packed, scale, None, bits=4, num_columns=num_columns)


def block_values(
    packed: NDArray[np.uint8], scale: Floats, zeros: NDArray[np.uint8] | None, *, bits: int, num_columns: int
) -> Floats:
    """The same of `bits` 4 or 8; with `zeros [n, ceil(blocks * bits / 8)]`, else around the middle code."""
    codes = (_nibbles(packed) if bits == 4 else packed).astype(np.float32)
    middle = np.full((1, 1), 1 << bits - 1, np.uint8)
    unpacked = middle if zeros is None else _nibbles(zeros) if bits == 4 else zeros
    zero = unpacked[:, : packed.shape[1], None].astype(np.float32)
    values: Floats = ((codes - zero) * scale[..., None]).reshape(len(packed), -1)[:, :num_columns]
    return values


def _nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Twice as long an axis: the low halves first."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def _codes(value: Floats, scale: Floats | np.float32) -> Floats:
    codes: Floats = np.clip(np.rint(value / scale), LOWEST_CODE, HIGHEST_CODE)
    return codes


def _in_blocks(value: Floats, block_size: int) -> Floats:
    num_rows, num_columns = value.shape
    padding = -num_columns % block_size
    return np.pad(value, ((0, 0), (0, padding))).reshape(num_rows, -1, block_size)
