"""Top-k and top-p against full sorts, with ties, around block boundaries and beyond the sort limit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ortserve.runtime.sampling.truncation import BLOCK, top_k, top_p

Floats = npt.NDArray[np.float32]

SIZES = (
    *(1, 2, 3, 50, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK - 1, 3 * BLOCK, 3 * BLOCK + 1),
    *(4095, 4096, 4097, 20 * BLOCK + 5, 12_345),
)
MASSES = (0.0, 1e-300, 1e-9, 0.1, 0.5, 0.9, 0.95, 0.999, 1.0 - 2**-20, 1.0 - 2**-52)


def in_order(values: Floats) -> npt.NDArray[np.int64]:
    """All ids, the largest value first, equal ones by ascending id."""
    return np.lexsort((np.arange(len(values)), -values.astype(np.float64)))


def coarse_values(seed: int, size: int, levels: int) -> Floats:
    """Random logits of few different levels, so with many ties."""
    return np.random.default_rng(seed).integers(-levels, levels, size).astype(np.float32) / np.float32(4)


def exact_weights(seed: int, size: int, levels: int) -> Floats:
    """Random weights whose sums are exact in float64 in any order, with ties; the largest is 1."""
    exponents = np.random.default_rng(seed).integers(0, levels, size)
    weights: Floats = (2.0 ** -exponents.astype(np.float64)).astype(np.float32)
    weights[seed % size] = 1.0
    return weights


def literal_top_p(weights: Floats, mass: float, total: float) -> npt.NDArray[np.bool_]:
    order = in_order(weights)
    kept = np.zeros(len(weights), np.bool_)
    reached = 0.0
    for id in order:
        kept[id] = True
        reached += float(weights[id])
        if reached >= mass * total:
            break
    return kept


def kept_by_top_p(weights: Floats, mass: float) -> npt.NDArray[np.bool_]:
    found = top_p(weights, mass, float(weights.sum(dtype=np.float64)))
    return np.ones(len(weights), np.bool_) if found is None else found


@settings(max_examples=150)
@given(st.sampled_from(SIZES), st.integers(0, 2**32), st.sampled_from([1, 3, 40, 100_000]), st.data())
def test_top_k_is_the_head_of_a_full_sort(size: int, seed: int, levels: int, data: st.DataObject) -> None:
    values = coarse_values(seed, size, levels)
    count = data.draw(st.one_of(st.integers(1, 3), st.integers(1, size + 2)))
    assert top_k(values, count).tolist() == sorted(in_order(values)[:count].tolist())


@pytest.mark.parametrize("count", [1, 2, 5, 17, 48, 49, 50, 300])
def test_top_k_finds_what_hides_in_the_incomplete_last_block(count: int) -> None:
    size = 48 * BLOCK + 7
    values = np.arange(size, dtype=np.float32)
    assert top_k(values, count).tolist() == list(range(size - count, size))
    assert top_k(-values, count).tolist() == list(range(count))


def test_top_k_of_equal_values_takes_the_lowest_ids() -> None:
    assert top_k(np.zeros(10_000, np.float32), 5).tolist() == [0, 1, 2, 3, 4]
    values = np.zeros(10_000, np.float32)
    values[9_999] = 1.0
    assert top_k(values, 3).tolist() == [0, 1, 9_999]


def test_top_k_passes_over_banned_ids() -> None:
    values = np.full(5_000, -np.inf, np.float32)
    values[[7, 4_000, 4_999]] = [1.0, 2.0, 3.0]
    assert top_k(values, 2).tolist() == [4_000, 4_999]


@settings(max_examples=150)
@given(st.sampled_from(SIZES), st.integers(0, 2**32), st.sampled_from([1, 2, 10, 25]), st.sampled_from(MASSES))
@example(4097, 0, 1, 0.5)
@example(12_345, 3, 25, 0.0)
def test_top_p_is_the_shortest_prefix_of_a_full_sort(size: int, seed: int, levels: int, mass: float) -> None:
    weights = exact_weights(seed, size, levels)
    total = float(weights.sum(dtype=np.float64))
    assert np.array_equal(kept_by_top_p(weights, mass), literal_top_p(weights, mass, total))


@settings(max_examples=100)
@given(
    size=st.sampled_from(SIZES),
    seed=st.integers(0, 2**32),
    spread=st.sampled_from([1e-3, 1.0, 10.0, 80.0, 300.0]),
    mass=st.sampled_from(MASSES),
)
@example(size=4097, seed=0, spread=10.0, mass=1.0 - 2**-52)
def test_top_p_of_any_range_of_weights_is_a_prefix_just_large_enough(
    size: int, seed: int, spread: float, mass: float
) -> None:
    logits = np.random.default_rng(seed).standard_normal(size) * spread
    weights = np.exp(logits - logits.max()).astype(np.float32)
    total = float(weights.sum(dtype=np.float64))
    kept = kept_by_top_p(weights, mass)
    order = in_order(weights)
    count = int(kept.sum())
    assert count >= 1
    assert kept[order[:count]].all(), "not a prefix of the order"
    reached = np.cumsum(weights[order], dtype=np.float64)
    slack = 1e-12 * total
    assert reached[count - 1] >= mass * total - slack
    assert count == 1 or reached[count - 2] < mass * total + slack


def test_top_p_of_equal_weights_takes_the_lowest_ids() -> None:
    for size in (10, 5_000):
        kept = kept_by_top_p(np.ones(size, np.float32), 0.3)
        assert np.flatnonzero(kept).tolist() == list(range(3 * size // 10))


def test_top_p_of_zero_keeps_the_lowest_of_the_most_likely() -> None:
    weights = np.array([0.5, 1.0, 0.25, 1.0], np.float32)
    assert np.flatnonzero(kept_by_top_p(weights, 0.0)).tolist() == [1]


def test_top_p_just_below_one_drops_the_last_only_when_the_rest_suffice() -> None:
    weights = np.array([1.0, 2.0**-60], np.float32)
    assert kept_by_top_p(weights, 1.0 - 2**-52).tolist() == [True, False]
    assert kept_by_top_p(np.array([1.0, 0.5], np.float32), 1.0 - 2**-52).tolist() == [True, True]


def test_top_p_never_keeps_weights_of_zero_that_are_not_needed() -> None:
    weights = np.zeros(6_000, np.float32)
    weights[[17, 5_000]] = [0.5, 1.0]
    assert np.flatnonzero(kept_by_top_p(weights, 1.0 - 2**-52)).tolist() == [17, 5_000]
