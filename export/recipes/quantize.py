"""Numpy weight quantizers over rows of a matrix. Knows neither files nor graphs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

INT8_LIMIT = 127
INT4_ZERO, INT8_ZERO = 8, 128  # MatMulNBits' implied zero points
Floating = type[np.generic]  # what scales are stored as
INT4_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.72, -1.0, -0.9)  # of the first scale; negative: -8 at the other end
SMALLEST_SCALE = np.float32(1e-30)  # below it a row counts as zeros: the reciprocal would overflow


def quantize_int8_rows(
    rows: NDArray[np.float32], *, scale_type: Floating = np.float32
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric 8 bits with one scale per row: `rows [n, k]` to integers `[n, k]` and scales `[n]`.

    Scales are values of `scale_type`, so that storing them as that rounds nothing which the codes do not know of.
    """
    limit = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    scale = _stored(limit / np.float32(INT8_LIMIT), scale_type)
    scale[scale < SMALLEST_SCALE] = 1.0
    scaled = rows * (np.float32(1.0) / scale)[:, None]
    np.rint(scaled, out=scaled)
    np.clip(scaled, -INT8_LIMIT, INT8_LIMIT, out=scaled)
    return scaled.astype(np.int8), scale


def quantize_int8_blocks(
    rows: NDArray[np.float32], block_size: int, *, scale_type: Floating = np.float32
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Symmetric 8 bits around 128 with one scale per `block_size` columns, as MatMulNBits takes them.

    `rows [n, k]` to codes `[n, blocks, block_size]` and scales `[n, blocks]`; the last block is padded with zeros.
    For `scale_type` see `quantize_int8_rows`.
    """
    num_rows, num_columns = rows.shape
    padding = -num_columns % block_size
    if padding:
        rows = np.pad(rows, ((0, 0), (0, padding)))
    codes, scale = quantize_int8_rows(rows.reshape(-1, block_size), scale_type=scale_type)
    shape = (num_rows, (num_columns + padding) // block_size)
    return (codes.view(np.uint8) ^ np.uint8(INT8_ZERO)).reshape(*shape, block_size), scale.reshape(shape)


def quantize_int4_blocks(
    rows: NDArray[np.float32],
    block_size: int,
    *,
    importance: NDArray[np.float32] | None = None,
    scale_type: Floating = np.float32,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Symmetric 4 bits with one scale per `block_size` columns, packed for MatMulNBits.

    `rows [n, k]` to bytes `[n, blocks, block_size / 2]` (low nibble first) and scales `[n, blocks]`; the last
    block is padded with zeros. A first scale maps the value of largest magnitude to -8, so all 16 codes are used.
    With `importance [k]`, the mean square of what each column is multiplied by, the scale is the one of several
    candidates, then fitted by least squares, that leaves the least expected square error of the product.
    For `scale_type` see `quantize_int8_rows`.
    """
    num_rows, num_columns = rows.shape
    num_blocks = -(-num_columns // block_size)
    padding = num_blocks * block_size - num_columns
    if padding:
        rows = np.pad(rows, ((0, 0), (0, padding)))
    blocks = rows.reshape(num_rows, num_blocks, block_size)
    high, low = blocks.max(axis=2), blocks.min(axis=2)
    scale = _usable(np.where(high > -low, high, low) / np.float32(-INT4_ZERO))
    if importance is not None:
        weights = np.pad(importance, (0, padding)).reshape(num_blocks, block_size).astype(np.float32)
        scale = _fit_scale(blocks, scale, weights / max(float(weights.max()), float(SMALLEST_SCALE)))
    scale = _usable(_stored(scale, scale_type))
    nibbles = (_int4_codes(blocks, scale) + np.float32(INT4_ZERO)).astype(np.uint8)
    low_nibbles, high_nibbles = nibbles[..., 0::2], nibbles[..., 1::2]
    packed: NDArray[np.uint8] = low_nibbles | (high_nibbles * np.uint8(16))
    return packed, scale


def _fit_scale(
    blocks: NDArray[np.float32], first: NDArray[np.float32], weights: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The scale of each block `[n, blocks]` with the least weighted square error among those tried.

    With codes `c` and the scale that fits them to values `b`, the error is the sum of `b * b` less that of `b * c`
    times the scale: the largest gain is the least error, without another pass over the values.
    """
    best, most = first, np.full(first.shape, -1, np.float32)
    for share in INT4_SHARES:
        scale = first * np.float32(share)
        codes = _int4_codes(blocks, scale)
        weighted = codes * weights
        both = np.einsum("rbk,rbk->rb", weighted, blocks)
        fitted = both / np.maximum(np.einsum("rbk,rbk->rb", weighted, codes), np.float32(1e-20))
        scale = np.where(np.abs(fitted) < SMALLEST_SCALE, scale, fitted).astype(np.float32)
        gain = both * fitted
        best, most = np.where(gain > most, scale, best), np.maximum(gain, most)
    return _usable(best)


def _int4_codes(blocks: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    codes = blocks * (np.float32(1.0) / scale)[..., None]
    np.rint(codes, out=codes)
    np.clip(codes, -INT4_ZERO, INT4_ZERO - 1, out=codes)
    return codes


def _stored(scale: NDArray[np.float32], scale_type: Floating) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # an infinite scale is whoever's who stores it to refuse
        stored: NDArray[np.float32] = scale.astype(scale_type).astype(np.float32)
    return stored


def _usable(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    usable: NDArray[np.float32] = np.where(np.abs(scale) < SMALLEST_SCALE, np.float32(1.0), scale).astype(np.float32)
    return usable
