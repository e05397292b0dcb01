"""The products of a graph in NumPy, as its recipes round them: for choosing recipes and for checking graphs.

Rounds as ONNX Runtime does (half to even, in float32). Knows neither files nor graphs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ortserve.export.quantize import INT4_ZERO, INT8_LIMIT

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
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], -1).astype(np.float32)
    values: Floats = ((codes - INT4_ZERO) * scale[..., None]).reshape(len(packed), -1)[:, :num_columns]
    return values


def _codes(value: Floats, scale: Floats | np.float32) -> Floats:
    codes: Floats = np.clip(np.rint(value / scale), LOWEST_CODE, HIGHEST_CODE)
    return codes


def _in_blocks(value: Floats, block_size: int) -> Floats:
    num_rows, num_columns = value.shape
    padding = -num_columns % block_size
    return np.pad(value, ((0, 0), (0, padding))).reshape(num_rows, -1, block_size)
