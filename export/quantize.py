"""Numpy weight quantizers over rows of a matrix. Knows neither files nor graphs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

INT8_LIMIT = 127
INT4_ZERO = 8  # MatMulNBits' implied zero point for 4 bits
SMALLEST_SCALE = np.float32(1e-30)  # below it a row counts as zeros: the reciprocal would overflow


def quantize_int8_rows(rows: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric 8 bits with one scale per row: `rows [n, k]` to integers `[n, k]` and scales `[n]`."""
    limit = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    scale = (limit / np.float32(INT8_LIMIT)).astype(np.float32)
    scale[scale < SMALLEST_SCALE] = 1.0
    scaled = rows * (np.float32(1.0) / scale)[:, None]
    np.rint(scaled, out=scaled)
    np.clip(scaled, -INT8_LIMIT, INT8_LIMIT, out=scaled)
    return scaled.astype(np.int8), scale


def quantize_int4_blocks(rows: NDArray[np.float32], block_size: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Symmetric 4 bits with one scale per `block_size` columns, packed for MatMulNBits.

    `rows [n, k]` to bytes `[n, blocks, block_size / 2]` (low nibble first) and scales `[n, blocks]`; the last
    block is padded with zeros. The scale maps the value of largest magnitude to -8, so all 16 codes are used.
    """
    num_rows, num_columns = rows.shape
    num_blocks = -(-num_columns // block_size)
    if num_blocks * block_size != num_columns:
        rows = np.pad(rows, ((0, 0), (0, num_blocks * block_size - num_columns)))
    blocks = rows.reshape(num_rows, num_blocks, block_size)
    high, low = blocks.max(axis=2), blocks.min(axis=2)
    scale = np.where(high > -low, high, low) / np.float32(-INT4_ZERO)
    scale = np.where(np.abs(scale) < SMALLEST_SCALE, np.float32(1.0), scale).astype(np.float32)
    codes = blocks * (np.float32(1.0) / scale)[..., None]
    np.rint(codes, out=codes)
    codes += INT4_ZERO
    np.clip(codes, 0, 15, out=codes)
    nibbles = codes.astype(np.uint8)
    low_nibbles, high_nibbles = nibbles[..., 0::2], nibbles[..., 1::2]
    packed: NDArray[np.uint8] = low_nibbles | (high_nibbles * np.uint8(16))
    return packed, scale
