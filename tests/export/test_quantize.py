"""Properties of the weight quantizers for any finite input."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from ortserve.export.recipes.quantize import (
    INT4_ZERO,
    INT8_LIMIT,
    INT8_ZERO,
    quantize_int4_blocks,
    quantize_int8_blocks,
    quantize_int8_rows,
)

values = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)
matrices = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40), elements=values)


TINY = 1e-27  # rows smaller than this count as zeros


def _unpack(packed: NDArray[np.uint8], scale: NDArray[np.float32], num_columns: int) -> NDArray[np.float32]:
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], -1).astype(np.float32)
    rows = (codes - INT4_ZERO) * scale[..., None]
    return rows.reshape(len(packed), -1)[:, :num_columns].astype(np.float32)


@settings(max_examples=50, deadline=None)
@given(matrices, st.sampled_from([16, 32]))
def test_int8_in_blocks_is_within_half_a_step_of_each_block(rows: NDArray[np.float32], block: int) -> None:
    codes, scale = quantize_int8_blocks(rows, block)
    num_blocks = -(-rows.shape[1] // block)
    assert codes.shape == (len(rows), num_blocks, block)
    assert codes.dtype == np.uint8
    values = (codes.astype(np.float32) - INT8_ZERO) * scale[..., None]
    found = values.reshape(len(rows), -1)
    steps = np.repeat(np.abs(scale), block, axis=1)[:, : rows.shape[1]]
    assert (np.abs(found[:, : rows.shape[1]] - rows) <= 0.501 * steps + TINY).all()
    assert (found[:, rows.shape[1] :] == 0).all()


@settings(max_examples=100, deadline=None)
@given(matrices)
def test_int8_is_within_half_a_step_and_uses_no_code_below_minus_127(rows: NDArray[np.float32]) -> None:
    codes, scale = quantize_int8_rows(rows)
    assert codes.dtype == np.int8
    assert scale.dtype == np.float32
    assert codes.min() >= -INT8_LIMIT  # -128 would have no positive twin
    assert np.all(scale > 0)
    assert np.all(np.abs(codes * scale[:, None] - rows) <= scale[:, None] * 0.5001 + TINY)


@settings(max_examples=100, deadline=None)
@given(matrices)
def test_int8_is_odd_and_rows_are_independent(rows: NDArray[np.float32]) -> None:
    codes, scale = quantize_int8_rows(rows)
    negated, same_scale = quantize_int8_rows(-rows)
    np.testing.assert_array_equal(negated, -codes)
    np.testing.assert_array_equal(same_scale, scale)
    alone, alone_scale = quantize_int8_rows(rows[:1])
    np.testing.assert_array_equal(alone[0], codes[0])
    assert alone_scale[0] == scale[0]


@settings(max_examples=100, deadline=None)
@given(matrices, st.sampled_from([16, 32]))
def test_int4_is_within_half_a_step_except_at_the_missing_code_eight(rows: NDArray[np.float32], block: int) -> None:
    packed, scale = quantize_int4_blocks(rows, block)
    num_blocks = -(-rows.shape[1] // block)
    assert packed.shape == (len(rows), num_blocks, block // 2)
    assert scale.shape == (len(rows), num_blocks)
    found = _unpack(packed, scale, rows.shape[1])
    step = np.abs(np.repeat(scale, block, axis=1)[:, : rows.shape[1]])
    # codes run from -8 to 7: the far end of the other sign is clipped by up to a whole step
    assert np.all(np.abs(found - rows) <= step * 1.0001 + TINY)
    inner = np.abs(rows) <= 7 * step
    assert np.all(np.abs(found - rows)[inner] <= step[inner] * 0.5001 + TINY)


@settings(max_examples=50, deadline=None)
@given(matrices, st.sampled_from([np.float16, ml_dtypes.bfloat16]))
def test_codes_are_those_of_the_scales_as_they_are_stored(rows: NDArray[np.float32], kind: type[np.generic]) -> None:
    codes, scale = quantize_int8_blocks(rows, 16, scale_type=kind)
    packed, narrow = quantize_int4_blocks(rows, 16, importance=np.ones(rows.shape[1], np.float32), scale_type=kind)
    for scales in (scale, narrow):
        np.testing.assert_array_equal(scales.astype(kind).astype(np.float32), scales)
        assert (scales != 0).all()
    steps = np.repeat(scale, 16, axis=1)[:, : rows.shape[1]]
    found = ((codes.astype(np.float32) - INT8_ZERO) * scale[..., None]).reshape(len(rows), -1)[:, : rows.shape[1]]
    smallest = 6e-8 if kind is np.float16 else TINY  # below half of it a half-float scale is none
    inner = np.abs(rows) <= INT8_LIMIT * steps  # a scale that was rounded down cuts the rest off
    assert (np.abs(found - rows)[inner] <= 0.501 * steps[inner] + INT8_LIMIT * smallest).all()
    assert (np.abs(found - rows)[~inner] <= np.abs(rows)[~inner] * 2**-8 + INT8_LIMIT * smallest).all()
    assert np.isfinite(_unpack(packed, narrow, rows.shape[1])).all()


@settings(max_examples=50, deadline=None)
@given(matrices, st.integers(0, 2**32 - 1))
def test_fitted_scales_lose_no_more_of_a_product_than_the_first_ones(rows: NDArray[np.float32], seed: int) -> None:
    importance = np.exp(np.random.default_rng(seed).standard_normal(rows.shape[1])).astype(np.float32)
    plain, fitted = (
        np.sum(np.square(_unpack(*quantize_int4_blocks(rows, 16, importance=given), rows.shape[1]) - rows) * importance)
        for given in (None, importance)
    )
    assert fitted <= plain + 1e-5 * np.sum(np.square(rows) * importance)


def test_fitted_scales_lose_less_of_usual_weights() -> None:
    generator = np.random.default_rng(5)
    rows = generator.standard_normal((64, 128)).astype(np.float32)
    importance = np.exp(generator.standard_normal(128)).astype(np.float32)
    plain, fitted = (
        np.sum(np.square(_unpack(*quantize_int4_blocks(rows, 32, importance=given), 128) - rows) * importance)
        for given in (None, importance)
    )
    assert fitted < 0.85 * plain


@settings(max_examples=50, deadline=None)
@given(matrices)
def test_zeros_stay_zeros_in_both(rows: NDArray[np.float32]) -> None:
    rows[::2] = 0
    codes, _ = quantize_int8_rows(rows)
    assert not codes[::2].any()
    packed, scale = quantize_int4_blocks(rows, 16)
    assert not _unpack(packed, scale, rows.shape[1])[::2].any()
